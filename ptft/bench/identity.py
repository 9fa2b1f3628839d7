"""What decides a cell's result, as 12 hex digits: the name of its file.

That is its resolved config, but for what a run only prints and keeps, and with the content of weights,
tokenizer and data in the place of their paths: a benchmark that is moved, or goes on elsewhere, finds its
cells. Versions and devices are recorded with each result and are no part of the name: an upgrade does not
throw a benchmark away, and the report says where rows come from more than one environment.
"""

import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from ptft import data
from ptft.core import config as configs
from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.hub import folders
from ptft.train import dataset

# Keys that decide what a run prints and keeps, not what it computes.
SILENT = ("log_every", "save_every", "keep", "tensorboard", "strict_cost")
USUAL = ("checkpoint", "full")  # another kind of checkpoint has other bytes, which a report shows
PLACES = ("train", "dev", "test")
# keys of `data` of which no source depends
NOT_SOURCES = ("names", "train_size", "dev_size", "tokenizer", "vocab_size", "lowercase")


def of(config: Config, content: Mapping[str, str], kind: str, repeat: bool = False, metric: str = "") -> str:
    """12 hex digits.

    Args:
      config: resolved; `content`: what counts instead of some of its keys, by dotted name.
      kind: "train", or a reference, which looks at the data alone (without a subset not even at the seed), or
        at the encoder, too.
      repeat: the second copy of a strategy in the A/A check, which is run and not looked up.
      metric: by which a reference chooses what it has to choose.
    """
    plain = config.replace(**content).to_dict()
    if kind == "train":
        plain = {k: v for k, v in plain.items() if k not in SILENT and (k, v) != USUAL}
    else:
        section = plain["data"]
        seed = plain["seed"] if section["train_size"] else 0
        encoder = (
            {k: plain.get(k) for k in ("init_from", "model", "objective", "dtype")}
            if kind == "features"
            else {}
        )
        seen = {k: section[k] for k in (*PLACES, "train_size", "dev_size")}
        plain = {"data": seen, "seed": seed, "metric": metric, "kind": kind, **encoder}
    return hashlib.sha256(configs.to_json({**plain, "repeat": 2} if repeat else plain).encode()).hexdigest()[
        :12
    ]


def content(config: Config) -> dict[str, str]:
    """What a config's files hold: {"init_from": digest, "data.tokenizer": …, "data.train": …, …}, for those
    that it names."""
    section = config.data.to_dict()
    sources = _sources(config.data.without(*NOT_SOURCES))
    digests = {f"data.{split}": print_ for split, (print_, _) in sources.items()}
    if "dev" in sources and 0 < section["dev_size"] < sources["dev"][1]:
        digests["data.dev"] += " drawn"  # before, the first rows were looked at
    if config.init_from:
        digests["init_from"] = _weights(config.init_from)
    if section["tokenizer"]:
        digests["data.tokenizer"] = _tokenizer(config.init_from, section["tokenizer"])
    return digests


@functools.lru_cache(maxsize=256)
def _sources(options: Config) -> dict[str, tuple[str, float]]:
    """Fingerprint of each split and how many rows it gives, of documents inf; a digest costs reading the
    files, once a process."""
    sources, labels = dict[str, tuple[str, float]](), tuple[str, ...]()
    for split in PLACES:
        if where := options[split]:
            source = data.load(where, options, labels)
            labels = labels or source.labels
            sources[split] = source.fingerprint, len(source.records) if source.labels else math.inf
    return sources


@functools.lru_cache(maxsize=256)
def _weights(where: str) -> str:
    """Digest of the weights, sizes and tokenizer in a run's folder or in one of Hugging Face's format."""
    if folders.is_folder(where):
        folder = folders.locate(where)
        files = sorted({file for pattern in folders.WANTED for file in folder.glob(pattern)})
    else:
        folder = Path(where)
        manifests = sorted((folder / "manifests").glob("best-*.json")) or sorted(
            (folder / "manifests").glob("checkpoints-*.json"), key=lambda p: int(p.stem.split("-")[-1])
        )
        if not manifests:
            raise UserError(f"{where} has no checkpoint yet; expected a run that is finished")
        # it has the digest of every file of the checkpoint, and that knows its tokenizer and its base
        files = manifests[-1:]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as f:
            digest.update(
                f"{file.relative_to(folder) if len(files) > 1 else ''} "
                f"{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode()
            )
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _tokenizer(start: str, where: str) -> str:
    tokenizer = dataset.load_tokenizer(Config({"init_from": start, "data": {"tokenizer": where}}))
    assert tokenizer is not None
    return tokenizer.fingerprint
