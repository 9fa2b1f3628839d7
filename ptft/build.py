"""Config -> everything that training, evaluation and planning need: data, model, plan, durations."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ptft import config as configs
from ptft import data, freeze, mesh, models, objectives, optim, pipeline, record
from ptft import tokenizer as tokenizers
from ptft.config import Config, Field, Spec
from ptft.errors import UserError, did_you_mean
from ptft.objectives import Rows
from ptft.step import Net
from ptft.tokenizer import Tokenizer

SPEC: Spec = {
    "seed": Field(0, int, lo=0, hi=2**31 - 1, doc="initial weights, order of batches, dropout, masks, training subset"),
    "batch": Field(32, int, lo=1, doc="global batch size"),
    "eval_batch": Field(0, int, lo=0, doc="0: as batch"),
    "accumulate": Field(1, int, lo=1, doc="parts a batch is cut into"),
    "train_for": Field("3 epochs", (str, int), doc="steps, epochs or examples"),
    "warmup": Field("10%", (str, int), doc="a share of train_for, or steps, epochs, examples"),
    "eval_every": Field("1 epoch", (str, int), doc="evaluation on dev; '0': only at the end"),
    "save_every": Field("1 epoch", (str, int), doc="a checkpoint to resume from; '0': only at the end"),
    "log_every": Field("50 steps", (str, int)),
    "keep": Field(2, int, lo=1, doc="checkpoints to keep"),
    "early_stop": Field(0, int, lo=0, doc="stop after this many evaluations without a better best; 0: never"),
    "best": Field("", str, doc="dev metric that chooses the best checkpoint; '': the objective's; 'last': the last step"),
    "init_from": Field("", str, doc="folder of a run whose backbone, tokenizer and model size are taken"),
    "init_weights": Field(True, bool, doc="False: take tokenizer and size from init_from, but start from random weights"),
    "freeze": Field("full", (str, tuple), doc="a strategy's name, or a list of (pattern, action)"),
    "parallel": Field("jit", str, choices=("jit", "pmap")),
    "devices": Field(0, int, lo=0, doc="0: all of them"),
    "dtype": Field("float32", str, choices=("float32", "bfloat16"), doc="of the computation; weights are float32"),
    "tensorboard": Field(False, bool),
    "model": models.spec,
    "objective": objectives.spec,
    "optim": optim.SPEC,
    "data": {
        **data.SPEC,
        "train": Field("", str, doc="KIND:WHERE, such as files:/data/train.tsv or tfds:imdb_reviews@train"),
        "dev": Field("", str),
        "test": Field("", str),
        "names": Field((), tuple, doc="names of the labels for people, in the order of their ids; empty: the labels themselves"),
        "train_size": Field(0, int, lo=0, doc="this many training examples, chosen by the seed; 0: all"),
        "dev_size": Field(0, int, lo=0, doc="the first so many dev rows; 0: all"),
        "tokenizer": Field("", str, doc="a vocab.txt or a run's folder; '': init_from's, else trained on the training split"),
        "vocab_size": Field(8000, int, lo=100, doc="of a tokenizer trained here"),
        "lowercase": Field(True, bool, doc="of a tokenizer trained here"),
    },
}


class Data(NamedTuple):
    """Tokenized splits; `test` and `dev` may be None."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    train: Rows
    dev: Rows | None
    test: Rows | None
    fingerprint: str
    notes: dict[str, dict[str, int]]


def resolve(values: Mapping[str, Any]) -> Config:
    """Checks a config; with `init_from`, the model's keys default to those of that run."""
    start = values.get("init_from")
    if start and isinstance(start, str):
        base = read_run(Path(start), "config.json")
        values = {**values, "model": {**base["model"], **values.get("model", {})}}
    return configs.resolve(values, SPEC)


def read_run(workdir: Path, name: str) -> Any:
    """A JSON file of a run's folder; what reads a run never executes a config."""
    file = workdir / name
    if not file.is_file():
        beside = sorted(p.name for p in (workdir if workdir.is_dir() else workdir.parent).glob("*"))
        what = f"has no {name}" if workdir.is_dir() else "does not exist"
        raise UserError(f"{workdir} is not the folder of a run: it {what}; {did_you_mean(name if workdir.is_dir() else workdir.name, beside)}")
    return json.loads(file.read_text(encoding="utf-8"))


def load_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer that the config names, or None: train one."""
    given = config.data.tokenizer and tokenizers.load(config.data.tokenizer)
    own = config.init_from and tokenizers.load(Path(config.init_from) / "tokenizer")
    if given and own and given.fingerprint != own.fingerprint:
        raise UserError(
            f"data.tokenizer {config.data.tokenizer} ({given.vocab_size} entries) is not the one that {config.init_from} was trained "
            f"with ({own.vocab_size} entries); leave data.tokenizer out"
        )
    return own or given or None


def texts(records: Sequence[Mapping[str, Any]]) -> Any:
    """Every text of a source, to train a tokenizer on."""
    for r in records:
        yield from r["sentences"] if "sentences" in r else (r[k] for k in ("text", "text_b") if k in r)


def load_data(config: Config) -> Data:
    """Reads, tokenizes and cuts all splits; runs of one process that read the same data share the result."""
    if not config.data.train:
        raise UserError("data.train is empty; expected KIND:WHERE, such as data.train='files:/data/train.tsv'")
    plain = config.data.to_dict()
    key = {k: v for k, v in plain.items() if k not in ("train_size", "dev_size", "names")}
    _ = [config.data[k] for k in key], [config.objective[k] for k in config.objective]  # a cached load reads them, too
    loaded = _load_data(json.dumps(key), json.dumps(config.objective.to_dict()), str(config.init_from))
    if config.data.names and len(config.data.names) != len(loaded.labels):
        raise UserError(f"data.names: {len(config.data.names)} names for {len(loaded.labels)} labels ({', '.join(loaded.labels)})")
    if config.data.train_size > len(loaded.train):
        raise UserError(f"data.train_size: asked for {config.data.train_size} examples, {config.data.train} has {len(loaded.train)}")
    return loaded


@functools.lru_cache(maxsize=2)
def _load_data(data_json: str, objective_json: str, init_from: str) -> Data:
    config = Config({"data": json.loads(data_json), "objective": json.loads(objective_json), "init_from": init_from})
    labels: tuple[str, ...] = ()
    sources = {}
    for split in ("train", "dev", "test"):
        if where := config.data[split]:
            sources[split] = data.load(where, config.data, labels)
            labels = sources["train"].labels
    tokenizer = load_tokenizer(config)
    if tokenizer is None:
        tokenizer = tokenizers.train(texts(sources["train"].records), config.data.vocab_size, config.data.lowercase)
    objective = objectives.build(config.objective, tokenizer, labels)
    rows = {split: objective.rows(source, tokenizer) for split, source in sources.items()}
    for split, found in rows.items():
        if not len(found):
            raise UserError(f"data.{split} {config.data[split]} gives no example")
    notes = {split: {**sources[split].notes, **rows[split].notes, "rows": len(rows[split])} for split in sources}
    prints = "-".join(s.fingerprint[:12] for s in sources.values())
    return Data(tokenizer, labels, rows["train"], rows.get("dev"), rows.get("test"), prints, notes)


def net(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Net:
    """The model and its objective."""
    dtype = jnp.dtype(config.dtype)
    objective = objectives.build(config.objective, tokenizer, labels)
    return Net(models.build(config.model, tokenizer.vocab_size, dtype), objective.head(dtype), objective)


def plan(config: Config, net: Net) -> freeze.Plan:
    return freeze.plan(config.freeze, models.groups(config.model.name), net.shapes())


class Durations(NamedTuple):
    """All in steps; 0 means never before the end."""

    total: int
    warmup: int
    evaluate: int
    save: int
    log: int


def durations(config: Config, examples: int) -> Durations:
    """The config's durations in steps of its batch over `examples` training examples."""

    def steps(key: str, total: int | None = None) -> int:
        return configs.steps(key, config[key], batch=config.batch, examples=examples, total=total)

    total = steps("train_for")
    if total < 1:
        raise UserError(f"train_for: {config.train_for!r} is no step at all")
    warmup = steps("warmup", total)
    return Durations(total, min(warmup, total), steps("eval_every", total), steps("save_every", total), max(steps("log_every", total), 1))


class Run(NamedTuple):
    """Everything of a run but its numbers."""

    config: Config
    data: Data
    index: np.ndarray  # the training rows that are used
    net: Net
    plan: freeze.Plan
    durations: Durations
    mesh: Any


def build(config: Config) -> Run:
    """Builds all of a run; every mistake in config or data shows here, before anything is trained."""
    grid = mesh.make(config.devices)
    mesh.check_batch(config.batch, config.accumulate, grid)
    loaded = load_data(config)
    network = net(config, loaded.tokenizer, loaded.labels)
    index = pipeline.subset(len(loaded.train), config.data.train_size, config.seed)
    return Run(config, loaded, index, network, plan(config, network), durations(config, len(index)), grid)


def report_data(loaded: Data) -> None:
    """Says what was read, a line a split."""
    for split, notes in loaded.notes.items():
        record.say(f"  {split:<5} " + ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in notes.items() if n or name == "records"))
