"""The embedded corpus: the English documentation that the Python environment itself carries.

`corpus:documents@train` (or dev): a document a module, its docstrings as sentences, for pretraining.
`corpus:blanks@train` (or dev, test): sentences in which one word, of BLANKS, is missing: which one is it? As
many of each.

Source files are read as text and never imported. Splits are made by module: a module of the labelled dev or
test split is in none of the other labelled splits, nor in the pretraining documents (documents@dev is a part
of those held-out modules). The result depends on nothing but the installed versions. It is prepared once, as
an array_record TFDS data set without TensorFlow, below $PTFT_CACHE (default ~/.cache/ptft), in a folder named
after those versions and this code.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import re
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ptft.core import cache
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean
from ptft.core.record import say
from ptft.data import BadRows, Source, documents, labelled, sentences
from ptft.data._prose import prose
from ptft.data.tfds import data_source, quiet

# What is read, and the distribution that it comes from, whose version says what is in it.
PACKAGES = {
    "stdlib": "", "numpy": "numpy", "scipy": "scipy", "jax": "jax", "flax": "flax", "optax": "optax",
    "matplotlib": "matplotlib",
    "mpl_toolkits": "matplotlib", "orbax": "orbax-checkpoint", "tensorflow_datasets": "tensorflow-datasets",
    "grain": "grain",
}  # fmt: skip
SKIP = {
    "tests",
    "test",
    "testing",
    "site-packages",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "__pycache__",
    "_vendor",
    "vendor",
}
SHARES = {"test": 0.15, "dev": 0.10}  # of all paragraphs, by module; train has the rest
DEV_SHARE = 0.03  # of all paragraphs: documents@dev
BLANKS = ("the", "of", "to", "is")
BLANK = "___"
WORDS = (8, 20)  # of a sentence with a blank: whole, and seldom cut at 40 tokens
FILES = "files.json"  # in the prepared folder, written last: its files and their sizes
MOST = {"train": 1000, "dev": 250, "test": 250}  # sentences a missing word


@dataclass(frozen=True)
class Module:
    """A source file: its path from the folder that its library lies in, and its prose."""

    path: str
    paragraphs: tuple[str, ...]


# -------------------------------------------------------------------------------------------- which modules


def harvest() -> list[Module]:
    """All modules with prose, in a fixed order; a paragraph that occurs again in any module is left out
    there."""
    seen: set[str] = set()
    texts: set[str] = set()  # whole docstrings that are said again, which are many
    out = []
    for root, file in _files():
        kept = []
        new = [text for text in dict.fromkeys(_docs(file)) if text not in texts]
        texts.update(new)
        for paragraph in (p for text in new for p in prose(text)):
            if (key := re.sub(r"[^a-z]+", " ", paragraph.lower())) not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            out.append(Module(file.relative_to(root.parent).as_posix(), tuple(kept)))
    return out


def _files() -> Iterator[tuple[Path, Path]]:
    """(folder of a library, source file in it)."""
    roots: list[Path] = []
    for name in PACKAGES:
        spec = None if name == "stdlib" else importlib.util.find_spec(name)
        roots += map(Path, (spec and spec.submodule_search_locations) or ())
        if name == "stdlib":
            roots.append(Path(sysconfig.get_path("stdlib")))
    for root in roots:
        found = []
        for folder, below, names in os.walk(root):
            below[:] = [name for name in below if name not in SKIP]
            found += [Path(folder, name) for name in names if name.endswith(".py") and "test" not in name]
        yield from ((root, file) for file in sorted(found))


# Comments and strings, so that no quote within one of them is taken for the beginning of another.
_STRING = re.compile(
    r"""\#[^\n]*|(?P<long>\"{3}(?:[^"\\]+|\\.|"(?!""))*\"{3}|'{3}(?:[^'\\]+|\\.|'(?!''))*'{3})"""
    r"""|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""",
    re.DOTALL,
)
_PREFIX = re.compile(r"(?P<alone>\n[ \t]*)?(?P<letters>[rRbBuUfF]{0,2})$")


def _docs(file: Path) -> list[str]:
    """The strings in triple quotes that begin a line: docstrings, and what numpy and scipy give to
    `add_newdoc`. In `pydoc_data`, where the language reference is, all of them. (Parsing the files would take
    five times as long.)"""
    source = "\n" + file.read_text(encoding="utf-8", errors="ignore")
    found = _STRING.finditer(source) if '"""' in source or "'''" in source else ()
    everything = file.parent.name == "pydoc_data"
    texts = []
    for m in found:
        before = _PREFIX.search(source, source.rfind("\n", 0, m.start()), m.start()) if m["long"] else None
        if before and (everything or before["alone"]):
            texts.append(_value(before["letters"] + m[0]))
    return [text for text in texts if text]


def _value(literal: str) -> str:
    """What a string in a source file says; "" if it is none by itself."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about other people's invalid escapes
            value = ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        return ""
    return value if isinstance(value, str) else ""


# ----------------------------------------------------------------------------- splits and the labelled task


def _draw(text: str) -> bytes:
    """A hash: the order in which modules and sentences are drawn."""
    return hashlib.sha256(text.encode()).digest()


def held_out(modules: Sequence[Module]) -> dict[str, str]:
    """{path: "test" or "dev"} of the modules kept from training, drawn by hash until a split has its share of
    paragraphs."""
    out = {}
    room = {split: share * sum(len(m.paragraphs) for m in modules) for split, share in SHARES.items()}
    for module in sorted(modules, key=lambda m: _draw(m.path)):
        size = len(module.paragraphs)
        if split := next((s for s in room if room[s] >= size), None):
            room[split] -= size
            out[module.path] = split
    return out


def blanked(sentence: str) -> tuple[str, str] | None:
    """(the sentence with a blank, the word that is missing), or None where it has none of the words, or more
    or fewer words than WORDS.

    >>> blanked("It returns a number of rows in a table that was open.")
    ('It returns a number ___ rows in a table that was open.', 'of')
    """
    words = sentence.split()
    places = [i for i, word in enumerate(words) if word in BLANKS]
    if not places or not WORDS[0] <= len(words) <= WORDS[1] or BLANK in sentence:
        return None
    at = places[_draw(sentence)[0] % len(places)]
    return " ".join([*words[:at], BLANK, *words[at + 1 :]]), words[at]


def blanks(modules: Sequence[Module]) -> dict[str, list[tuple[str, str, str]]]:
    """{split: [(text, missing word, module)]}, as many of each word: as many as there are of the rarest, and
    not more than MOST.

    A sentence that is in two splits is in none; so the pretraining documents have none of dev or test.
    """
    split = held_out(modules)
    said = [(s, m.path) for m in modules for p in m.paragraphs for s in sentences(p)]
    places: dict[str, set[str]] = {}
    for sentence, path in said:
        places.setdefault(sentence, set()).add(split.get(path, "train"))
    found: dict[str, dict[str, list[tuple[str, str, str]]]] = {s: {word: [] for word in BLANKS} for s in MOST}
    for sentence, path in dict(said).items():
        if len(places[sentence]) == 1 and (made := blanked(sentence)):
            found[split.get(path, "train")][made[1]].append((*made, path))
    out = {}
    for name, words in found.items():
        n = min(MOST[name], *map(len, words.values()))
        out[name] = [row for rows in words.values() for row in sorted(rows, key=lambda r: _draw(r[0]))[:n]]
    return out


# ---------------------------------------------------------------------------------------- the TFDS data set


class PythonDocs(tfds.core.GeneratorBasedBuilder):
    """English documentation of the Python environment."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="documents", description="a module a record, as sentences"),
        tfds.core.BuilderConfig(
            name="blanks", description="a sentence a record, labelled with the word that it lacks"
        ),
    ]

    def __init__(self, *, modules: Sequence[Module] = (), **kwargs: Any):
        self.modules = modules
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {"sentences": tfds.features.Sequence(text), "where": text}
        if self.builder_config.name == "blanks":
            features = {"text": text, "label": tfds.features.ClassLabel(names=list(BLANKS)), "where": text}
        return tfds.core.DatasetInfo(
            builder=self, description=str(__doc__), features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self.builder_config.name == "blanks":
            return {split: self._generate_examples(rows) for split, rows in blanks(self.modules).items()}
        held = held_out(self.modules)
        groups = {"train": [m for m in self.modules if m.path not in held], "dev": []}
        room = DEV_SHARE * sum(len(m.paragraphs) for m in self.modules)
        for module in sorted((m for m in self.modules if m.path in held), key=lambda m: _draw(m.path)):
            if room >= len(module.paragraphs):
                room -= len(module.paragraphs)
                groups["dev"].append(module)
        return {
            name: self._generate_examples([(m.paragraphs, m.path) for m in group])
            for name, group in groups.items()
        }

    def _generate_examples(self, rows: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, row in enumerate(rows):
            if self.builder_config.name == "blanks":
                yield i, dict(zip(("text", "label", "where"), row, strict=True))
            else:
                yield i, {"sentences": [s for p in row[0] for s in sentences(p)], "where": row[1]}


def _versions() -> list[str]:
    names = sorted(set(filter(None, PACKAGES.values())))
    return [
        platform.python_version(),
        sysconfig.get_path("stdlib"),
        *(f"{n}={importlib.metadata.version(n)}" for n in names),
    ]


def _sizes(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def _whole(folder: Path) -> bool:
    """Whether all files are there as they were prepared: who cleans a cache may leave the folders alone."""
    try:
        return json.loads((folder / FILES).read_bytes()).items() <= _sizes(folder).items()
    except (OSError, ValueError, AttributeError):
        return False


def prepare() -> Path:
    """The folder of this environment's data set; harvested and written first (some seconds) if need be."""
    code = b"".join(Path(str(inspect.getsourcefile(o))).read_bytes() for o in (Module, prose, sentences))
    folder = cache.folder() / f"corpus-{hashlib.sha256(repr(_versions()).encode() + code).hexdigest()[:16]}"
    if _whole(folder):
        return folder
    if folder.exists():
        why = "files are missing or cut, or an older ptft wrote it"
        say(f"corpus: {folder} is not as this ptft prepares it ({why}): it is made anew")
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"corpus: preparing it from this environment's documentation, once, in {folder} (some seconds)")
    temporary = Path(tempfile.mkdtemp(prefix="corpus-", suffix=".tmp", dir=folder.parent))
    try:
        modules = harvest()
        with quiet():
            for config in ("documents", "blanks"):
                PythonDocs(modules=modules, config=config, data_dir=temporary).download_and_prepare()
        (temporary / FILES).write_text(json.dumps(_sizes(temporary)))
        if not _whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was faster: its folder is the same
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not _whole(folder):
        what = "delete it, or PTFT_CACHE=DIR names another folder"
        raise UserError(f"{folder} is damaged and cannot be replaced: {what}")
    return folder


def open(rest: str, options: Config, labels: Sequence[str]) -> Source:
    """`documents@train` or `blanks@dev[:500]`: a config and a split, with a slice as TFDS has it.

    Raises:
      UserError: no such config or split.
    """
    config, _, split = rest.partition("@")
    if config not in PythonDocs.builder_configs:
        raise UserError(f"corpus:{rest}: no {config!r}; {did_you_mean(config, PythonDocs.builder_configs)}")
    folder = prepare()
    rows = BadRows("stop")
    with quiet():
        records = data_source(PythonDocs(config=config, data_dir=folder), split, f"corpus:{rest}")
    if config == "documents":
        return documents(((r["where"].decode(), [s.decode() for s in r["sentences"]]) for r in records), rows)
    found = ((r["where"].decode(), r["text"].decode(), None, BLANKS[r["label"]]) for r in records)
    return labelled(found, rows, labels or BLANKS)
