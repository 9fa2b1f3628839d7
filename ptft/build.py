"""Config -> everything that training, evaluation and planning need: data, model, plan, durations, compiled step."""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ptft import adapters, checkpoint, cost, data, freeze, hub, ledger, mesh, models, objectives, optim, pipeline, record, step, thin, tree
from ptft import config as configs
from ptft import tokenizer as tokenizers
from ptft.config import Config, Field, Spec
from ptft.errors import UserError, did_you_mean, joined, listed, shown
from ptft.objectives import Objective, Rows
from ptft.startup import timed
from ptft.step import Net
from ptft.tokenizer import Tokenizer
from ptft.tree import Flat

SPEC: Spec = {
    "seed": Field(0, int, lo=0, hi=2**31 - 1, doc="initial weights, order of batches, dropout, masks, training subset"),
    "batch": Field(32, int, lo=1, doc="global batch size"),
    "eval_batch": Field(0, int, lo=0, doc="0: as batch"),
    "accumulate": Field(1, int, lo=1, doc="parts a batch is cut into"),
    "train_for": Field("3 epochs", (str, int), check=configs.duration, doc="steps, epochs or examples"),
    "warmup": Field("10%", (str, int), check=configs.share, doc="a share of train_for, or steps, epochs, examples"),
    "eval_every": Field("1 epoch", (str, int), check=configs.share, doc="evaluation on dev; '0': only at the end"),
    "save_every": Field("1 epoch", (str, int), check=configs.share, doc="a checkpoint to resume from; '0': only at the end"),
    "log_every": Field("50 steps", (str, int), check=configs.share),
    "keep": Field(2, int, lo=1, doc="checkpoints to keep"),
    "checkpoint": Field("full", str, choices=("full", "delta"), doc="delta: only what moves, and the digest of the weights it started on"),
    "early_stop": Field(0, int, lo=0, doc="stop after this many evaluations without a better best; 0: never"),
    "best": Field("", str, doc="dev metric that chooses the best checkpoint; '': the objective's; 'last': the last step"),
    "init_from": Field("", str, doc="a run, a folder in Hugging Face's format or hf:ORG/NAME: backbone, tokenizer and model size are its"),
    "init_weights": Field(True, bool, doc="False: take tokenizer and size from init_from, but start from random weights"),
    "freeze": Field("full", (str, tuple), doc="a strategy's name, a list of (pattern, action), or a list of (start, such a list)"),
    "frozen_dropout": Field(True, bool, doc="False: parts of the backbone in which nothing moves run as in evaluation"),
    "frozen_dtype": Field("float32", str, choices=thin.DTYPES, doc="how the matrices that are frozen are kept on the devices"),
    "cache_prefix": Field(
        "auto", str, choices=("auto", "off"), doc="compute what lies below all that moves once an example, where it pays"
    ),
    "strict_cost": Field(False, bool, doc="a compiled step that costs more than its freeze should is an error, not a warning"),
    "parallel": Field("jit", str, choices=("jit", "pmap")),
    "devices": Field(0, int, lo=0, doc="0: all of them"),
    "dtype": Field("float32", str, choices=("float32", "bfloat16"), doc="of the computation; weights are float32"),
    "tensorboard": Field(None, (bool, type(None)), doc="None: where tensorboardX is installed"),
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
        "dev_size": Field(0, int, lo=0, doc="evaluate on so many dev rows, drawn by label, the same for every run; 0: all"),
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
    doubts: tuple[str, ...] = ()


def resolve(values: Mapping[str, Any]) -> Config:
    """Checks a config; with `init_from`, the model's keys default to those of that run."""
    start, own = values.get("init_from"), values.get("model", {})
    if start and isinstance(start, str) and isinstance(own, Mapping):
        base = hub.model_keys(hub.open_folder(start)) if hub.is_folder(start) else read_run(Path(start), "config.json").get("model")
        if not isinstance(base, Mapping) or "name" not in base:
            raise UserError(f"{start}/config.json is that of no run, and without weights no checkpoint: its section 'model' is missing")
        if own.get("name", base["name"]) == base["name"]:
            values = {**values, "model": {**base, **own}}
    return configs.resolve(values, SPEC)


def read_run(workdir: Path, name: str) -> Any:
    """A JSON file of a run's folder; what reads a run never executes a config."""
    file = workdir / name
    if hub.is_folder(str(workdir)):
        raise UserError(f"{workdir} is no run but a folder in Hugging Face's format; first: ptft import {workdir} --workdir RUN")
    if not file.is_file():
        beside = sorted(p.name for p in (workdir if workdir.is_dir() else workdir.parent).glob("*"))
        what, near = (f"has no {name}", name) if workdir.is_dir() else ("does not exist", workdir.name)
        raise UserError(f"{workdir} is not the folder of a run: it {what}; {did_you_mean(near, beside)}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{file} is damaged ({e}); restore it, or train in another folder") from None


def run_tokenizer(workdir: Path) -> Tokenizer:
    """The tokenizer of a run, if it still is the one that the run was trained with."""
    tokenizer = tokenizers.load(workdir / "tokenizer")
    if tokenizer.fingerprint != read_run(workdir, "run.json")["tokenizer"]:
        raise UserError(
            f"{workdir}/tokenizer ({tokenizer.vocab_size} entries) is not the one that {workdir} was trained with: "
            "the checkpoint's word embeddings would mean other words; restore the folder"
        )
    return tokenizer


def load_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer that the config names, or None: train one."""
    given = config.data.tokenizer and tokenizers.load(config.data.tokenizer)
    start = config.init_from
    own = start and (tokenizers.load(hub.locate(start)) if hub.is_folder(start) else run_tokenizer(Path(start)))
    if given and own and given.fingerprint != own.fingerprint:
        raise UserError(
            f"data.tokenizer {config.data.tokenizer} ({given.vocab_size} entries) is not the one that {config.init_from} was trained "
            f"with ({own.vocab_size} entries); leave data.tokenizer out"
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
        raise UserError("data.train is empty; expected KIND:WHERE, such as data.train='files:/data/train.tsv'")
    _ = list(config.data.values()), list(config.objective.values())  # a cached load reads them, too
    with timed("data"):
        loaded = _load_data(sources_key(config.data), json.dumps(config.objective.to_dict()), str(config.init_from))
    names, size = config.data.names, config.data.train_size
    if names and len(names) != len(loaded.labels):
        raise UserError(f"data.names: {len(names)} names for {len(loaded.labels)} labels ({listed(loaded.labels)})")
    if len(set(map(str, names))) < len(names):
        raise UserError(f"data.names has a name twice: {listed(names)}; expected another for each label")
    if size > len(loaded.train):
        raise UserError(f"data.train_size: asked for {size} examples, {config.data.train} has {len(loaded.train)}")
    return loaded


@functools.lru_cache(maxsize=2)
def _load_data(data_json: str, objective_json: str, init_from: str) -> Data:
    config = Config({"data": json.loads(data_json), "objective": json.loads(objective_json), "init_from": init_from})
    sources = read_sources(config.data)
    labels = sources["train"].labels
    tokenizer = load_tokenizer(config)
    if tokenizer is None:
        tokenizer = tokenizers.train(texts(sources["train"].records), config.data.vocab_size, config.data.lowercase)
    try:
        objective = objectives.build(config.objective, tokenizer, labels)
    except UserError as e:
        hint = "" if labels else ": it is read as documents; set data.label to the column of the label, or data.format='conll'"
        raise UserError(f"{e}{hint}") from None
    cut = {split: rows(objective, source, tokenizer, f"data.{split}") for split, source in sources.items()}
    for split, found in cut.items():
        if not len(found):
            raise UserError(f"data.{split} {config.data[split]} gives no example")
    notes = {split: {**sources[split].notes, **cut[split].notes, "rows": len(cut[split])} for split in sources}
    prints = "-".join(s.fingerprint[:12] for s in sources.values())
    doubts = *sources["train"].doubts, *getattr(cut["train"], "doubts", ())
    return Data(tokenizer, labels, cut["train"], cut.get("dev"), cut.get("test"), prints, notes, doubts)


def sources_key(options: Config) -> str:
    """All of `config.data` but what draws from its sources, or names their labels."""
    return json.dumps({k: v for k, v in options.to_dict().items() if k not in ("train_size", "dev_size", "names")})


def read_sources(options: Config) -> dict[str, data.Source]:
    """What `config.data` names, by split: train, and dev and test where they are; train's labels are those of all."""
    found: dict[str, data.Source] = {}
    for split in ("train", "dev", "test"):
        if where := options[split]:
            found[split] = data.load(where, options, found["train"].labels if found else ())
    return found


def rows(objective: Objective, source: data.Source, tokenizer: Tokenizer, where: str) -> Rows:
    """The rows of a source; a UserError if its records are not what the objective reads."""
    try:
        return objective.rows(source, tokenizer)
    except KeyError as e:
        have = ", ".join(source.records[0])
        raise UserError(
            f"{where}: the objective reads {e} of every record, these have {have}; "
            "labelled rows need data.label (eval: --label-column; and a pair data.text_b), documents none, tagged words data.format='conll'"
        ) from None


def net(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Net:
    """The model and its objective."""
    dtype = jnp.dtype(config.dtype)
    if config.objective.seq_len > config.model.get("max_len", math.inf):
        raise UserError(
            f"objective.seq_len: {config.objective.seq_len} tokens do not fit a model of {config.model.max_len} positions; "
            f"expected at most {config.model.max_len} (texts longer than that are cut), or a larger model.max_len"
        )
    objective = objectives.build(config.objective, tokenizer, labels)
    rows = config.model.get("vocab", 0)
    if 0 < rows < tokenizer.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} entries, the model's word table {rows} rows: not a pair")
    backbone = models.build(config.model, tokenizer.vocab_size, dtype)
    return with_added(config, Net(backbone, objective.head(dtype, backbone.style), objective))


def with_added(config: Config, net: Net) -> Net:
    """The net with the added parameters that `config.freeze` names in any phase, and no others."""
    plain, groups = net._replace(added=()), models.groups(config.model.name)
    shapes = plain.shapes()
    named = [s for _, s in freeze.strategies(config.freeze, freeze.depth_of(groups, shapes), 1, lambda _: 1, 0) if isinstance(s, str)]
    return plain._replace(added=adapters.union([adapters.parse(s, groups, shapes) for s in named], config.freeze))


def phases(config: Config, net: Net, examples: int, total: int) -> tuple[freeze.Phase, ...]:
    """What moves when; one phase where it is always the same."""

    def steps(text: str) -> int:
        return configs.steps(f"freeze={config.freeze!r}", text, batch=config.batch, examples=examples, total=total)

    found = freeze.phases(config.freeze, models.groups(config.model.name), net.shapes(), total, steps, config.seed)
    if any(p.start is None for p in found) and not (config.data.dev and config.best != "last" and steps(config.eval_every)):
        raise UserError(
            f"freeze={config.freeze!r}: a plateau is seen on dev; it needs data.dev, an eval_every above 0 "
            "and a metric that chooses the best (config.best is not 'last')"
        )
    return found


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
    warmup, evaluate, save, log = (steps(key, total) for key in ("warmup", "eval_every", "save_every", "log_every"))
    return Durations(total, min(warmup, total), evaluate, save, max(log, 1))


class Run(NamedTuple):
    """Everything of a run but its numbers."""

    config: Config
    data: Data
    used: np.ndarray  # the training rows, i64[n]
    net: Net
    phases: tuple[freeze.Phase, ...]
    durations: Durations
    mesh: Any

    @property
    def plan(self) -> freeze.Plan:
        """Everything that moves in some phase."""
        return freeze.union(self.phases)


def build(config: Config, chosen: str = "") -> Run:
    """Builds all of a run; every mistake in config or data shows here, before anything is trained.

    Args:
      chosen: the strategy that moves where `config.freeze` leaves it to the data (`ptft.auto`).
    """
    grid = mesh.make(config.devices)
    mesh.check_batch(config.batch, config.accumulate, grid)
    loaded = load_data(config)
    network = net(config, loaded.tokenizer, loaded.labels)
    if config.best not in ("", "last", *(known := metrics(network))):
        why = getattr(network.objective, "lacks", "") or did_you_mean(config.best, [*known, "last"])
        raise UserError(f"best: {config.best!r} is no metric of this objective; {why}")
    if config.early_stop and (config.best == "last" or not config.data.dev):
        raise UserError("early_stop needs data.dev and a metric that chooses the best (config.best is not 'last')")
    used = pipeline.subset(len(loaded.train), config.data.train_size, config.seed)
    lengths = durations(config, len(used))
    moves = phases(config.replace(freeze=chosen) if chosen else config, network, len(used), lengths.total)
    return Run(config, loaded, used, network, moves, lengths, grid)


def outline(config: Config) -> Run:
    """A run without its data, for what hangs on shapes alone. Where the config leaves tokenizer or labels to the data, of the
    usual size: `data.vocab_size` entries, two classes, epochs of `data.train_size` examples or else of 1000 steps."""
    grid = mesh.make(config.devices)
    mesh.check_batch(config.batch, config.accumulate, grid)
    labels = tuple(map(str, config.data.labels or config.data.names or ("0", "1")))
    tokenizer = load_tokenizer(config)
    if tokenizer is None:
        specials = tokenizers.SPECIALS
        tokenizer = Tokenizer([*specials, *(f"w{i}" for i in range(config.data.vocab_size - len(specials)))], config.data.lowercase)
    network = net(config, tokenizer, labels)
    nothing: Any = None
    data = Data(tokenizer, labels, nothing, None, None, "", {})
    used = np.zeros(config.data.train_size or 1000 * config.batch, np.int64)
    run = Run(config, data, used, network, (), durations(config, len(used)), grid)
    return refrozen(run, config.freeze)


def refrozen(run: Run, strategy: Any) -> Run:
    """The same run under another freeze."""
    config = run.config.replace(freeze=strategy)
    network = with_added(config, run.net)
    return run._replace(config=config, net=network, phases=phases(config, network, len(run.used), run.durations.total))


@functools.lru_cache(maxsize=64)
def metrics(net: Net) -> list[str]:
    """Names of what an evaluation reports, found without computing any."""
    sums = jax.eval_shape(step.eval_step(net), net.shapes(), net.example(1))
    return list(net.objective.report(jax.tree.map(lambda s: np.ones(s.shape, s.dtype), sums)))


def metric(run: Run) -> str:
    """The dev metric that chooses the best step, or "last"."""
    return run.config.best or run.net.objective.best


class Program(NamedTuple):
    """Compiled for one shape of run; runs that differ in seed and data alone share it."""

    train: Callable[..., Any]
    cost: cost.Cost


def cohorts(run: Run, phase: int) -> dict[str, int]:
    """The cohort of everything that moves in a phase, numbered from 0: what moves in the same phases shares one, and its optimizer
    state begins and ends together. It hangs on the set that moves alone, not on what moved before, so that a set that comes back,
    as LISA's do, is not compiled again."""
    names = run.phases[phase].plan.trainable
    if run.config.optim.at_phase == "reset":
        return dict.fromkeys(names, 0)
    moving = [set(p.plan.trainable) for p in run.phases]
    together = {n: tuple(n in m for m in moving) for n in names}
    number = {when: i for i, when in enumerate(dict.fromkeys(together.values()))}
    return {n: number[together[n]] for n in names}


def came_from(run: Run, phase: int) -> list[int | None]:
    """For each cohort of a phase its number in the phase before; None: it begins."""
    old = cohorts(run, phase - 1) if run.config.optim.at_phase == "carry" else {}
    return list({c: old.get(n) for n, c in cohorts(run, phase).items()}.values())


def still(run: Run, phase: int) -> frozenset[str]:
    """The parts of the backbone that run without dropout: those in which nothing moves, if the config says so."""
    rows = [r for r in run.phases[phase].plan.rows if not r.name.startswith("head/")]
    parts = {r.name.split("/")[1] for r in rows}
    return frozenset() if run.config.frozen_dropout else frozenset(parts - {r.name.split("/")[1] for r in rows if r.rate})


def optimizer(run: Run, phase: int = 0) -> optax.GradientTransformation:
    """Of what moves in a phase, and of nothing else."""
    cohort = cohorts(run, phase)
    factors = tuple((r.name, r.rate, r.decay, cohort[r.name]) for r in run.phases[phase].plan.rows if r.rate)
    _ = list(run.config.optim.values())  # a cached optimizer read them
    return _optimizer(json.dumps(run.config.optim.to_dict()), factors, run.durations.warmup, run.durations.total)


@functools.lru_cache(maxsize=64)
def _optimizer(
    optim_json: str, factors: tuple[tuple[str, float, float, int], ...], warmup: int, total: int
) -> optax.GradientTransformation:
    rates, decays, cohorts = {f[0]: f[1] for f in factors}, {f[0]: f[2] for f in factors}, {f[0]: f[3] for f in factors}
    return optim.build(Config(json.loads(optim_json)), rates, warmup, total, decays, cohorts)


def fresh(run: Run, phase: int, params: Flat) -> step.Moving:
    """What moves in a phase, with new optimizer state."""
    return jax.device_put(step.init_moving(params, optimizer(run, phase)), mesh.replicated(run.mesh))


def below(run: Run, block: int) -> str:
    """A pattern of all parameters that lie below a block, what is added there among them; of block 0, nothing."""
    groups = models.groups(run.config.model.name)
    parts = [groups["stem"], *(groups["block"].format(i) for i in range(block))] if block else []
    return "|".join(f"(?:{p})" for p in parts).replace("backbone/", "(?:backbone|adapter)/") or "(?!)"


def program(run: Run, phase: int = 0) -> Program:
    """Compiles the training step of a phase, ahead of time where there is a whole-program form (`jit`)."""
    c, moving = run.config, run.phases[phase].plan.trainable
    resident = tuple((n, x.shape, x.dtype) for n, x in getattr(run.data.train, "resident", {}).items())
    kept = c.frozen_dtype, still(run, phase), resident
    return _program(run.net, optimizer(run, phase), moving, *kept, c.batch, c.accumulate, c.parallel, run.mesh)


@functools.lru_cache(maxsize=64)
def _program(
    net: Net,
    tx: optax.GradientTransformation,
    moving: tuple[str, ...],
    frozen_dtype: str,
    still: frozenset[str],
    resident: tuple[tuple[str, tuple[int, ...], Any], ...],
    batch: int,
    accumulate: int,
    parallel: str,
    grid: Any,
) -> Program:
    compiled = step.compile_train(net, tx, grid, accumulate, parallel, still)
    if parallel != "jit":
        return Program(compiled, cost.Cost(None, None, None))
    everywhere, by_rows = mesh.replicated(grid), mesh.by_rows(grid)

    def shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    trainable, frozen = tree.split(net.shapes(), moving)
    kept = jax.eval_shape(lambda p: thin.thin(p, frozen_dtype), frozen)
    kept |= {n: jax.ShapeDtypeStruct(size, dtype) for n, size, dtype in resident}
    state = jax.eval_shape(lambda p: step.init_moving(p, tx), trainable)
    aot = compiled.lower(  # type: ignore[attr-defined]
        *jax.tree.map(lambda x: shape(x, everywhere), (state, kept)),
        {k: shape(v, by_rows) for k, v in net.example(batch).items()},
        jax.ShapeDtypeStruct((), np.uint32, sharding=everywhere),
    ).compile()
    return Program(aot, cost.of(aot, accumulate, grid.size))


def initial(config: Config, net: Net, quiet: bool = True) -> Flat:
    """The weights of `init_from`, and fresh ones for what it lacks; says what was loaded, new and unused."""
    start, weights = config.init_from, config.init_weights  # read in any case: without init_from it is a default, not a dead key
    want, loaded = net.shapes(), Flat()
    if start and weights:
        skip, new_ok = "" if net.objective.carries_head else "head/.*", "(head|adapter|backbone/pooler)/.*"
        if hub.is_folder(start):
            folder = hub.open_folder(start)
            loaded, what = hub.load_params(folder, want, skip=skip, new_ok=new_ok)
            origin = f"{folder.kind}, {folder.dtype} in the file, float32 here"
        elif in_parts(Path(start)):
            loaded, what = checkpoint.choose(whole(Path(start)), want, start, skip=skip, new_ok=new_ok)
            origin = "with what was added to it or kept apart from its base"
        else:
            loaded, what = checkpoint.load_params(Path(start), want, skip=skip, new_ok=new_ok)
            origin = f"step {what.step}"
        if not quiet:
            record.say(f"from {start} ({origin}): loaded {len(what.loaded)} tensors")
            record.say(f"  new: {joined(what.new) or 'none'}")
            record.say(f"  unused: {joined(what.unused) or 'none'}")
    fresh = net.init(config.seed, tuple(n for n in want if n not in loaded))
    return {n: loaded[n] if n in loaded else fresh[n] for n in want}


def in_parts(workdir: Path) -> str:
    """What keeps a run's checkpoint from being the weights of a plain model by itself: "a delta" or "added parameters"; "" if nothing."""
    if read_run(workdir, "config.json").get("checkpoint") == "delta":
        return "a delta"
    added = any(row["name"].startswith("adapter/") for row in read_run(workdir, "run.json").get("freeze", ()))
    return "added parameters" if added else ""


def run_net(workdir: Path) -> tuple[Config, Tokenizer, Net]:
    """What a run's folder says of its model, without any data."""
    config = configs.resolve(read_run(workdir, "config.json"), SPEC)
    tokenizer = run_tokenizer(workdir)
    return config, tokenizer, net(config, tokenizer, read_run(workdir, "run.json")["labels"])


def run_params(workdir: Path, config: Config, net: Net) -> tuple[Flat, checkpoint.Loaded]:
    """All that the best (or newest) checkpoint of a run stands for; a delta is put on its base."""
    params, what = checkpoint.load_params(workdir, None, skip="")
    if config.checkpoint == "delta":
        params |= on_base(config, net, read_run(workdir, "run.json")["base"], workdir, params)
    return params, what


def whole(workdir: Path) -> Flat:
    """The weights of a run as those of a plain model: on its base, what was added merged."""
    config, _, network = run_net(workdir)
    return adapters.merge(network.added, run_params(workdir, config, network)[0])


def changing(run: Run) -> list[str]:
    """What may differ from the weights that a run started on: all that moves in some phase, and all that is added."""
    moving = set(run.plan.trainable)
    return [n for n in run.net.shapes() if n in moving or n.startswith("adapter/")]


def on_base(config: Config, net: Net, digest: str, workdir: Path, changed: Any) -> Flat:
    """The weights that a delta leaves out. Raises UserError if what it started on is not what it was."""
    rest = {n: x for n, x in initial(config, net).items() if n not in changed}
    if ledger.digest_of(rest) != digest:
        what = f"{config.init_from} is" if config.init_from else f"the initial weights of seed {config.seed} are"
        raise UserError(
            f"{workdir} holds only what moved, on a base with the digest {digest}; {what} another ({ledger.digest_of(rest)}): "
            "restore the base that it was trained on"
        )
    return rest


def start_params(run: Run, quiet: bool, like: Flat | None = None) -> Flat:
    """All parameters at step 0. `like`: those of a later step, whose places FISH takes instead of finding them again."""
    params = jax.device_put(initial(run.config, run.net, quiet), mesh.replicated(run.mesh))
    if like is None:
        return adapters.fill(run.net.added, params, squares(run, params)) if run.net.added else params
    return adapters.fill(run.net.added, params | {n: like[n] for n in like if n.endswith("/fish/index")})


def squares(run: Run, params: Flat) -> Flat | None:
    """Squared gradients of the first training examples in the run's order, where FISH chooses by them."""
    if not (examples := max(a.examples for a in run.net.added)):
        return None
    numbers = pipeline.order(len(run.used), run.config.seed)
    chosen = run.used[[numbers[i] for i in range(min(examples, len(run.used)))]]
    add, everywhere, total = jax.jit(run.net.squares), mesh.replicated(run.mesh), None
    for part in np.array_split(chosen, math.ceil(len(chosen) / 64)):
        rows = {**run.data.train.batch(part), "row": part.astype(np.int32), "valid": np.ones(len(part), np.float32)}
        found = add(params, jax.device_put(rows, everywhere))
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total


def describe_freeze(run: Run) -> list[str]:
    """What moves when, rule by rule."""
    said, known = [], list[freeze.Plan]()
    for phase in run.phases:
        when = (
            "" if len(run.phases) == 1 else f", from step {phase.start}" if phase.start is not None else f", at a plateau of {phase.waits}"
        )
        said.append(f"freeze: {phase.strategy}{when}" + ("" if phase.plan in known else f"\n{freeze.describe(phase.plan)}"))
        known.append(phase.plan)
    return said


def describe(run: Run) -> None:
    """Says what will run: device, data, what moves, for how long."""
    record.say(f"device: {record.device()}")
    drawn = {"train": run.config.data.train_size, "dev": run.config.data.dev_size}
    for split, notes in run.data.notes.items():
        counts = [f"{n:,} {name.replace('_', ' ')}" for name, n in notes.items() if n or name == "records"]
        if 0 < drawn.get(split, 0) < notes["rows"]:
            counts.append(f"{drawn[split]:,} of them drawn")
        record.say(f"  {split:<5} " + ", ".join(counts))
    if run.data.labels:
        record.say(f"  {len(run.data.labels)} labels: {', '.join(map(str, run.config.data.names or run.data.labels))}")
    record.say("\n".join(describe_freeze(run)))
    if run.config.frozen_dtype != "float32":
        record.say(f"frozen matrices are kept in {run.config.frozen_dtype}; the ledger is of their float32, an export has them rounded")
    record.say(f"{run.durations.total} steps of {run.config.batch} examples")
    for doubt in doubts(run):
        record.say(f"WARNING: {doubt}")


def doubts(run: Run) -> list[str]:
    """What a run starts from or learns that is allowed, and seldom meant."""
    start, found = run.config.init_from if run.config.init_weights else "", list(run.data.doubts)
    moving = {n for p in run.phases for n in p.plan.trainable}
    if not start and any(n.startswith("backbone/") and n not in moving for n in run.net.shapes()):
        found.append("nothing is loaded (init_from, init_weights): what is frozen keeps its random weights")
    if start and not hub.is_folder(start) and (Path(start) / "metrics.jsonl").exists() and not (Path(start) / "result.json").exists():
        found.append(f"{start} has not finished its training")
    return found + label_doubts(run)


def label_doubts(run: Run) -> list[str]:
    """Labels that a split hardly has or lacks, and words that are cut off."""
    train, names, found = run.data.train, run.data.labels, []
    if (label := getattr(train, "label", None)) is not None:
        for name, n in zip(names, np.bincount(label, minlength=len(names)), strict=True):
            if n < 3 and 10 * n * len(names) < len(label):
                few = f"label {shown(name)} has {n} of {len(label):,} training rows"
                found.append(f"{few}: a slip? data.labels says which labels there are")
    lost = run.data.notes["train"].get("truncated_words", 0)
    if lost > (words := int(np.sum(getattr(train, "tags", np.zeros(0)) >= 0))):
        beyond = f"{lost:,} of {lost + words:,} training words lie beyond objective.seq_len"
        found.append(f"{beyond}: is a blank line between the sentences?")
    for split, size in (("dev", run.config.data.dev_size), ("test", 0)):
        rows = getattr(run.data, split)
        if missing := sorted(classes(train) - classes(rows, size)) if rows is not None else []:
            lacks = f"{split} lacks {len(missing)} of the {len(names)} labels, {listed(names[i] for i in missing)}"
            found.append(f"{lacks}: its scores say nothing of them; shuffle a sorted table before it is parted")
    return found


def classes(rows: Rows, size: int = 0) -> set[int]:
    """The labels, or tags, of the rows that are looked at."""
    if (label := getattr(rows, "label", None)) is not None:
        return set(label[pipeline.looked_at(len(label), size, label)].tolist())
    return set(np.unique(getattr(rows, "tags", ())).tolist()) - {-1}  # -1: no word begins here


def header(run: Run, base: Flat | None = None) -> dict[str, Any]:
    """What a run's files say of where its numbers come from; `base`: the weights under a delta."""
    return {
        "config": run.config.to_dict(),
        "config_hash": configs.digest(run.config),
        "versions": record.versions(),
        "device": record.device(),
        "data": {"fingerprint": run.data.fingerprint, "notes": run.data.notes, "train_rows": len(run.used)},
        "tokenizer": run.data.tokenizer.fingerprint,
        "labels": list(run.data.labels),
        "freeze": run.plan.table(),
        "phases": [{"start": p.start, "waits": p.waits, "strategy": p.strategy} for p in run.phases],
        "base": base and ledger.digest_of({n: x for n, x in base.items() if n not in set(changing(run))}),
        "imported": {"by": run.config.init_from} if hub.is_imported(run.config.init_from) and run.config.init_weights else None,
    }
