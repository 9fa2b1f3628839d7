"""The data of a run: its tokenizer, and every split read, tokenized and cut."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptft import data, objectives
from ptft.core.config import Config
from ptft.core.errors import UserError, listed
from ptft.core.startup import timed
from ptft.hub import folders
from ptft.inputs import tokenizer_files, train_tokenizer
from ptft.inputs.tokenizer import Tokenizer
from ptft.objectives import Objective, Rows
from ptft.train import spec


class Data(NamedTuple):
    """Tokenized splits; `test` and `dev` may be None."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    train: Rows
    dev: Rows | None
    test: Rows | None
    fingerprint: str
    notes: dict[str, dict[str, int]]
    doubts: tuple[str, ...] = ()


def run_tokenizer(workdir: Path) -> Tokenizer:
    """The tokenizer of a run, if it still is the one that the run was trained with."""
    tokenizer = tokenizer_files.load(workdir / "tokenizer")
    if tokenizer.fingerprint != spec.read_run(workdir, "run.json")["tokenizer"]:
        raise UserError(
            f"{workdir}/tokenizer ({tokenizer.vocab_size} entries) is not the one that {workdir} was trained "
            "with: the checkpoint's word embeddings would mean other words; restore the folder"
        )
    return tokenizer


def load_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer that the config names, or None: train one."""
    given = config.data.tokenizer and tokenizer_files.load(config.data.tokenizer)
    start = config.init_from
    own = start and (
        tokenizer_files.load(folders.locate(start))
        if folders.is_folder(start)
        else run_tokenizer(Path(start))
    )
    if given and own and given.fingerprint != own.fingerprint:
        raise UserError(
            f"data.tokenizer {config.data.tokenizer} ({given.vocab_size} entries) is not the one that "
            f"{config.init_from} was trained with ({own.vocab_size} entries); leave data.tokenizer out"
        )
    return own or given or None


def texts(records: Sequence[Mapping[str, Any]]) -> Any:
    """Every text of a source, to train a tokenizer on."""
    for r in records:
        if "words" in r:
            yield " ".join(r["words"])
        else:
            yield from r["sentences"] if "sentences" in r else (r[k] for k in ("text", "text_b") if k in r)


def load_data(config: Config) -> Data:
    """Reads, tokenizes and cuts all splits; runs of one process that read the same data share the result."""
    if not config.data.train:
        raise UserError(
            "data.train is empty; expected KIND:WHERE, such as data.train='files:/data/train.tsv'"
        )
    with timed("data"):
        loaded = _load_data(sources_of(config.data), config.objective, config.init_from)
    names, size = config.data.names, config.data.train_size
    if names and len(names) != len(loaded.labels):
        raise UserError(
            f"data.names: {len(names)} names for {len(loaded.labels)} labels ({listed(loaded.labels)})"
        )
    if len(set(map(str, names))) < len(names):
        raise UserError(f"data.names has a name twice: {listed(names)}; expected another for each label")
    if size > len(loaded.train):
        raise UserError(
            f"data.train_size: asked for {size} examples, {config.data.train} has {len(loaded.train)}"
        )
    return loaded


@functools.lru_cache(maxsize=2)
def _load_data(options: Config, objective_options: Config, init_from: str) -> Data:
    config = Config({"data": options, "objective": objective_options, "init_from": init_from})
    sources = read_sources(config.data)
    labels = sources["train"].labels
    tokenizer = load_tokenizer(config)
    if tokenizer is None:
        tokenizer = train_tokenizer.train(
            texts(sources["train"].records), config.data.vocab_size, config.data.lowercase
        )
    try:
        objective = objectives.build(config.objective, tokenizer, labels)
    except UserError as e:
        hint = (
            ""
            if labels
            else (
                ": it is read as documents; set data.label to the column of the label, or data.format='conll'"
            )
        )
        raise UserError(f"{e}{hint}") from None
    cut = {split: rows(objective, source, tokenizer, f"data.{split}") for split, source in sources.items()}
    for split, examples in cut.items():
        if not len(examples):
            raise UserError(f"data.{split} {config.data[split]} gives no example")
    notes = {
        split: {**sources[split].notes, **cut[split].notes, "rows": len(cut[split])} for split in sources
    }
    prints = "-".join(s.fingerprint[:12] for s in sources.values())
    doubts = *sources["train"].doubts, *getattr(cut["train"], "doubts", ())
    return Data(tokenizer, labels, cut["train"], cut.get("dev"), cut.get("test"), prints, notes, doubts)


def sources_of(options: Config) -> Config:
    """All of `config.data` but what draws from its sources, or names their labels."""
    return options.without("train_size", "dev_size", "names")


def read_sources(options: Config) -> dict[str, data.Source]:
    """What `config.data` names, by split: train, and dev and test where they are; train's labels are those of
    all."""
    sources: dict[str, data.Source] = {}
    for split in ("train", "dev", "test"):
        if where := options[split]:
            sources[split] = data.load(where, options, sources["train"].labels if sources else ())
    return sources


def rows(objective: Objective, source: data.Source, tokenizer: Tokenizer, where: str) -> Rows:
    """The rows of a source; a UserError if its records are not what the objective reads."""
    try:
        return objective.rows(source, tokenizer)
    except KeyError as e:
        have = ", ".join(source.records[0])
        raise UserError(
            f"{where}: the objective reads {e} of every record, these have {have}; labelled rows need "
            "data.label (eval: --label-column; and a pair data.text_b), documents none, tagged words "
            "data.format='conll'"
        ) from None
