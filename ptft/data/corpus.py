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

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ptft.core import cache, progress
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean
from ptft.core.record import say
from ptft.data import BadRows, Source, _docstrings, documents, labelled
from ptft.data._blanks import BLANKS, blanks, drawn, held_out
from ptft.data._docstrings import Module, harvest
from ptft.data._prose import prose
from ptft.data._sentences import sentences
from ptft.data.tfds import data_source, quiet

DEV_SHARE = 0.03  # of all paragraphs: documents@dev
FILES = "files.json"  # in the prepared folder, written last: its files and their sizes


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
        for module in sorted((m for m in self.modules if m.path in held), key=lambda m: drawn(m.path)):
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
    names = sorted(set(filter(None, _docstrings.PACKAGES.values())))
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
    code = b"".join(
        Path(str(inspect.getsourcefile(o))).read_bytes()
        for o in (PythonDocs, Module, prose, sentences, blanks)
    )
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
        with quiet(), progress.doing("preparing the corpus", watch=True):
            modules = harvest()
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
    texts = ((r["where"].decode(), r["text"].decode(), None, BLANKS[r["label"]]) for r in records)
    return labelled(texts, rows, labels or BLANKS)
