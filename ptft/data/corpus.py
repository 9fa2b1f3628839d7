"""The embedded corpus: the English documentation that the Python environment itself carries.

`corpus:documents@train` (or dev): a document a module, its docstrings as sentences, for pretraining.
`corpus:libraries@train` (or dev, test): labelled paragraphs: which library is this text from? The names of all libraries are taken out.

Source files are parsed and never imported. Splits are made by module: a module of the labelled dev or test split is in none of
the other labelled splits, nor in the pretraining documents (documents@dev is a part of those held-out modules).
The result depends on nothing but the installed versions. It is prepared once, as an array_record TFDS data set without
TensorFlow, below $PTFT_CACHE (default ~/.cache/ptft), in a folder named after those versions and this code.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import re
import shutil
import sysconfig
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ptft import cache
from ptft.config import Config
from ptft.data import Rows, Source, documents, labelled, sentences
from ptft.data._prose import prose
from ptft.data.tfds import data_source, quiet
from ptft.errors import UserError, did_you_mean
from ptft.record import say

# A class of the labelled task: its packages, and the names by which its text would give it away.
LIBRARIES = {
    "stdlib": ((), ("python", "cpython", "pythonic", "stdlib")),
    "numpy": (("numpy",), ("numpy", "np")),
    "scipy": (("scipy",), ("scipy", "sp")),
    "jax": (("jax",), ("jax", "jaxlib", "jnp", "lax", "jaxpr", "jaxprs", "pallas", "pjit")),
    "flax": (("flax",), ("flax", "linen", "nn", "nnx")),
    "optax": (("optax",), ("optax",)),
    "matplotlib": (("matplotlib", "mpl_toolkits"), ("matplotlib", "mpl", "pyplot", "plt", "pylab", "mplot3d", "axes_grid1")),
}
# Only read for pretraining, where they are installed.
EXTRA = ("orbax", "tensorflow_datasets", "grain", "jaxlib", "huggingface_hub", "PIL", "fontTools", "rich", "pygments", "jinja2", "absl")
SKIP = {"tests", "test", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__", "_vendor", "vendor"}
SHARES = {"test": 0.15, "dev": 0.10}  # of a library's paragraphs; its train split has the rest
DEV_SHARE = 0.03  # of all paragraphs: documents@dev
MIN_WORDS = 25  # of a labelled paragraph
BALANCE = 4  # no class has more than so many times the paragraphs of the smallest


@dataclass(frozen=True)
class Module:
    """A source file: which library, its path from the library's folder, and its prose."""

    library: str
    path: str
    paragraphs: tuple[str, ...]

    @property
    def draw(self) -> str:
        """Hash of the name: the order in which modules are drawn into splits."""
        return hashlib.sha256(self.path.encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------- which modules


def harvest() -> list[Module]:
    """All modules with prose, in a fixed order; a paragraph that occurs again in any module is left out there."""
    seen: set[str] = set()
    out = []
    for library, root, files in _files():
        for file in files:
            kept = []
            for paragraph in (p for text in _docs(file) for p in prose(text)):
                if (key := _key(paragraph)) not in seen:
                    seen.add(key)
                    kept.append(paragraph)
            if kept:
                top = library if library == "stdlib" else root.name
                out.append(Module(library, f"{top}/{file.relative_to(root).as_posix()}", tuple(kept)))
    return out


def _files() -> Iterator[tuple[str, Path, list[Path]]]:
    packages = {library: packages for library, (packages, _) in LIBRARIES.items()} | {name: (name,) for name in EXTRA}
    for library, names in packages.items():
        roots = [Path(sysconfig.get_path("stdlib"))] if not names else []
        for name in names:
            spec = importlib.util.find_spec(name)
            roots += map(Path, (spec and spec.submodule_search_locations) or ())
        for root in roots:
            files = (p for p in root.rglob("*.py") if "test" not in p.stem and not SKIP.intersection(p.relative_to(root).parts))
            yield library, root, sorted(files)


def _docs(file: Path) -> list[str]:
    """The docstrings of a file in their order; also numpy's and scipy's `add_newdoc(…, "text")`, and the language reference of pydoc."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about other people's invalid escapes
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    values: list[Any] = []
    for node in _statements(tree.body):
        if isinstance(node, ast.Expr) and isinstance(call := node.value, ast.Call):
            if "newdoc" in (getattr(call.func, "id", "") or getattr(call.func, "attr", "")):
                values += [v for a in call.args for v in (a.elts if isinstance(a, ast.Tuple) else [a])]
        elif isinstance(node, ast.Expr):
            values.append(node.value)
        elif file.parent.name == "pydoc_data" and isinstance(value := getattr(node, "value", None), ast.Dict):
            values += value.values
    return [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]


def _statements(body: Sequence[Any]) -> Iterator[Any]:
    # ast.walk visits every expression too, which takes longer than parsing
    for node in body:
        yield node
        for field in ("body", "orelse", "handlers", "finalbody"):
            yield from _statements(getattr(node, field, ()))


def _key(paragraph: str) -> str:
    return re.sub(r"[^a-z]+", " ", paragraph.lower())


# ---------------------------------------------------------------------------------------------------- splits and the labelled task


def held_out(modules: Sequence[Module]) -> dict[str, str]:
    """{path: "test" or "dev"} of the modules kept from training, drawn per library by hash until a split has its share of paragraphs."""
    out = {}
    for library in LIBRARIES:
        mine = sorted((m for m in modules if m.library == library), key=lambda m: m.draw)
        room = {split: share * sum(len(m.paragraphs) for m in mine) for split, share in SHARES.items()}
        for module in mine:
            size = len(module.paragraphs)
            if split := next((s for s in room if room[s] >= size), None):
                room[split] -= size
                out[module.path] = split
    return out


_ANY = "|".join(name for _, names in LIBRARIES.values() for name in names)
_NAMES = re.compile(rf"(?<![A-Za-z])(?:{_ANY})(?:'s)?(?![A-Za-z])(?:[._](?=\w))?", re.IGNORECASE)


def anonymous(text: str) -> str:
    """The text without any library's names: "the numpy.dot of JAX arrays" -> "the dot of arrays"."""
    return re.sub(r" +([.,;:)])", r"\1", re.sub(r"\s+", " ", _NAMES.sub("", text))).strip(" ,;:-")


def paragraphs(modules: Sequence[Module]) -> dict[str, list[tuple[str, str, str]]]:
    """{split: [(text, library, module)]}; a text that is in two libraries or two splits is in none."""
    split = held_out(modules)
    found = [(anonymous(p), m) for m in modules if m.library in LIBRARIES for p in m.paragraphs]
    found = [(text, m) for text, m in found if len(text.split()) >= MIN_WORDS]
    places: dict[str, set[tuple[str, str]]] = {}
    for text, m in found:
        places.setdefault(_key(text), set()).add((m.library, split.get(m.path, "train")))
    out: dict[str, list[tuple[str, str, str]]] = {"train": [], "dev": [], "test": []}
    done: set[str] = set()
    for text, m in found:
        if len(places[key := _key(text)]) == 1 and key not in done:
            done.add(key)
            out[split.get(m.path, "train")].append((text, m.library, m.path))
    return {name: _capped(rows) for name, rows in out.items()}


def _capped(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """At most `BALANCE` times the smallest class of each, drawn by hash; the order stays."""
    cap = BALANCE * min(Counter(library for _, library, _ in rows).values(), default=0)
    taken: Counter[str] = Counter()
    keep = set()
    for text, library, _ in sorted(rows, key=lambda r: hashlib.sha256(r[0].encode()).digest()):
        taken[library] += 1
        if taken[library] <= cap:
            keep.add(text)
    return [r for r in rows if r[0] in keep]


# ---------------------------------------------------------------------------------------------------- the TFDS data set


class PythonDocs(tfds.core.GeneratorBasedBuilder):
    """English documentation of the Python environment."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="documents", description="a module a record, as sentences"),
        tfds.core.BuilderConfig(name="libraries", description="a paragraph a record, labelled with its library"),
    ]

    def __init__(self, *, modules: Sequence[Module] = (), **kwargs: Any):
        self.modules = modules
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {"sentences": tfds.features.Sequence(text), "where": text}
        if self.builder_config.name == "libraries":
            features = {"text": text, "label": tfds.features.ClassLabel(names=list(LIBRARIES)), "where": text}
        return tfds.core.DatasetInfo(builder=self, description=str(__doc__), features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self.builder_config.name == "libraries":
            return {split: self._generate_examples(rows) for split, rows in paragraphs(self.modules).items()}
        held = held_out(self.modules)
        groups = {"train": [m for m in self.modules if m.path not in held], "dev": []}
        room = DEV_SHARE * sum(len(m.paragraphs) for m in self.modules)
        for module in sorted((m for m in self.modules if m.path in held), key=lambda m: m.draw):
            if room >= len(module.paragraphs):
                room -= len(module.paragraphs)
                groups["dev"].append(module)
        return {name: self._generate_examples([(m.paragraphs, m.path) for m in group]) for name, group in groups.items()}

    def _generate_examples(self, rows: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, row in enumerate(rows):
            if self.builder_config.name == "libraries":
                yield i, dict(zip(("text", "label", "where"), row, strict=True))
            else:
                yield i, {"sentences": [s for p in row[0] for s in sentences(p)], "where": row[1]}


def _versions() -> list[str]:
    owners = importlib.metadata.packages_distributions()
    names = {owner for packages, _ in LIBRARIES.values() for package in (*packages, *EXTRA) for owner in owners.get(package, ())}
    return [platform.python_version(), sysconfig.get_path("stdlib"), *(f"{n}={importlib.metadata.version(n)}" for n in sorted(names))]


def prepare() -> Path:
    """The folder of the data set of this environment; harvested and written first if it is not there (half a minute)."""
    code = b"".join(Path(str(inspect.getsourcefile(o))).read_bytes() for o in (Module, prose, sentences))
    folder = cache.folder() / f"corpus-{hashlib.sha256(repr(_versions()).encode() + code).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"corpus: preparing it from this environment's documentation, once, in {folder} (half a minute)")
    temporary = Path(tempfile.mkdtemp(prefix="corpus-", suffix=".tmp", dir=folder.parent))
    try:
        modules = harvest()
        with quiet():
            for config in ("documents", "libraries"):
                PythonDocs(modules=modules, config=config, data_dir=temporary).download_and_prepare()
        with contextlib.suppress(OSError):  # another process was faster: its folder is the same
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def open(rest: str, options: Config, labels: Sequence[str]) -> Source:
    """`documents@train` or `libraries@dev[:500]`: a config and a split, with a slice as TFDS has it.

    Raises:
      UserError: no such config or split.
    """
    config, _, split = rest.partition("@")
    if config not in PythonDocs.builder_configs:
        raise UserError(f"corpus:{rest}: no {config!r}; {did_you_mean(config, PythonDocs.builder_configs)}")
    folder = prepare()
    rows = Rows("stop")
    with quiet():
        records = data_source(PythonDocs(config=config, data_dir=folder), split, f"corpus:{rest}")
    if config == "documents":
        return documents(((r["where"].decode(), [s.decode() for s in r["sentences"]]) for r in records), rows)
    names = list(LIBRARIES)
    return labelled(((r["where"].decode(), r["text"].decode(), None, names[r["label"]]) for r in records), rows, labels or names)
