"""Config -> a run: data, model, phases, durations, devices."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ptft import models, objectives
from ptft.core import duration, mesh
from ptft.core import placement as placing
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean
from ptft.freeze import language, resolve
from ptft.freeze.layout import Layout
from ptft.freeze.strategies import Span
from ptft.inputs.tokenizer import SPECIALS, Tokenizer
from ptft.train import dataset, pipeline, step
from ptft.train.dataset import Data
from ptft.train.net import Net


def net(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Net:
    """The model and its objective."""
    dtype = jnp.dtype(config.dtype)
    if config.objective.seq_len > config.model.get("max_len", math.inf):
        raise UserError(
            f"objective.seq_len: {config.objective.seq_len} tokens do not fit a model of "
            f"{config.model.max_len} positions; expected at most {config.model.max_len} (texts longer than "
            "that are cut), or a larger model.max_len"
        )
    objective = objectives.build(config.objective, tokenizer, labels)
    rows = config.model.get("vocab", 0)
    if 0 < rows < tokenizer.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model's word table {rows} rows: not a "
            "pair"
        )
    backbone = models.build(config.model, tokenizer.vocab_size, dtype)
    return with_added(config, Net(backbone, objective.head(dtype, backbone.style), objective))


def with_added(config: Config, net: Net) -> Net:
    """The net with the added parameters that `config.freeze` names in any phase, and no others."""
    plain = net._replace(added=())
    return plain._replace(
        added=resolve.added(language.parse(config.freeze), models.anatomy(config.model.name), plain.shapes())
    )


def phases(config: Config, net: Net, examples: int, total: int) -> tuple[resolve.Phase, ...]:
    """What is trainable when; one phase where it is always the same."""

    def steps(text: str) -> int:
        return duration.steps(
            f"freeze={config.freeze!r}", text, batch=config.batch, examples=examples, total=total
        )

    span = Span(total, steps, config.seed)
    resolved = resolve.phases(
        language.parse(config.freeze), models.anatomy(config.model.name), net.shapes(), span
    )
    if any(p.start is None for p in resolved) and not (
        config.data.dev and config.best != "last" and steps(config.eval_every)
    ):
        raise UserError(
            f"freeze={config.freeze!r}: a plateau is seen on dev; it needs data.dev, an eval_every above 0 "
            "and a metric that chooses the best (config.best is not 'last')"
        )
    return resolved


class Durations(NamedTuple):
    """In steps; 0 means never before the end."""

    total: int
    warmup: int
    evaluate: int
    save: int
    log: int
    save_seconds: float = 0.0  # where checkpoints go by the clock; `save` is 0 then


def durations(config: Config, examples: int) -> Durations:
    """The config's durations in steps of its batch over `examples` training examples."""

    def steps(key: str, total: int | None = None) -> int:
        return duration.steps(key, config[key], batch=config.batch, examples=examples, total=total)

    total = steps("train_for")
    if total < 1:
        raise UserError(f"train_for: {config.train_for!r} is no step at all")
    warmup, evaluate, log = (steps(key, total) for key in ("warmup", "eval_every", "log_every"))
    by_clock = duration.seconds(config.save_every)
    save = 0 if by_clock else steps("save_every", total)
    return Durations(total, min(warmup, total), evaluate, save, max(log, 1), by_clock)


class Run(NamedTuple):
    """Everything of a run but its numbers."""

    config: Config
    data: Data
    used: np.ndarray  # the training rows, i64[n]
    net: Net
    phases: tuple[resolve.Phase, ...]
    durations: Durations
    mesh: Any

    @property
    def layout(self) -> Layout:
        """The parameters of the model by role."""
        return Layout(models.anatomy(self.config.model.name), self.net.shapes())

    @property
    def plan(self) -> resolve.Plan:
        """Everything that is trainable in some phase."""
        return resolve.union(self.phases)

    @property
    def placement(self) -> placing.Placement:
        """Where the parameters lie."""
        return placing.placement(self.config.shard, self.net.shapes(), self.plan.trainable, self.mesh)


def devices(config: Config) -> Any:
    """The mesh that a config asks for. Raises UserError: its batch does not fall into equal parts on it."""
    if config.shard == "none" and config.shard_over:
        raise UserError(
            f"shard_over: {config.shard_over} says how many devices hold one copy of what is cut, and "
            "shard='none' cuts nothing; expected shard='all', 'trainable', 'frozen' or rules, or 0 here"
        )
    if config.shard != "none" and config.parallel != "jit":
        raise UserError(
            f"shard: {config.shard!r} needs parallel='jit'; under {config.parallel!r} every device holds all "
            "parameters"
        )
    grid = mesh.make(config.devices, 1 if config.shard == "none" else config.shard_over)
    mesh.check_batch(config.batch, config.accumulate, grid)
    return grid


def build(config: Config, chosen: str = "") -> Run:
    """Builds all of a run; every mistake in config or data shows here, before anything is trained.

    Args:
      chosen: the strategy, where `config.freeze` leaves it to the data (`ptft.planning.auto`).
    """
    grid = devices(config)
    loaded = dataset.load_data(config)
    network = net(config, loaded.tokenizer, loaded.labels)
    if config.best not in ("", "last", *(known := metrics(network))):
        why = getattr(network.objective, "lacks", "") or did_you_mean(config.best, [*known, "last"])
        raise UserError(f"best: {config.best!r} is no metric of this objective; {why}")
    if config.early_stop and (config.best == "last" or not config.data.dev):
        raise UserError(
            "early_stop needs data.dev and a metric that chooses the best (config.best is not 'last')"
        )
    used = pipeline.subset(len(loaded.train), config.data.train_size, config.seed)
    lengths = durations(config, len(used))
    resolved = phases(config.replace(freeze=chosen) if chosen else config, network, len(used), lengths.total)
    return Run(config, loaded, used, network, resolved, lengths, grid)


def outline(config: Config) -> Run:
    """A run without its data, for what depends on shapes alone. Where the config leaves tokenizer or labels
    to the data, of the usual size: `data.vocab_size` entries, two classes, epochs of `data.train_size`
    examples or else of 1000 steps."""
    grid = devices(config)
    labels = tuple(map(str, config.data.labels or config.data.names or ("0", "1")))
    tokenizer = dataset.load_tokenizer(config)
    if tokenizer is None:
        tokenizer = Tokenizer(
            [*SPECIALS, *(f"w{i}" for i in range(config.data.vocab_size - len(SPECIALS)))],
            config.data.lowercase,
        )
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
    return run._replace(
        config=config, net=network, phases=phases(config, network, len(run.used), run.durations.total)
    )


@functools.lru_cache(maxsize=64)
def metrics(net: Net) -> list[str]:
    """Names of what an evaluation reports, found without computing any."""
    sums = jax.eval_shape(step.eval_step(net), net.shapes(), net.example(1), {})
    return list(net.objective.metrics(jax.tree.map(lambda s: np.ones(s.shape, s.dtype), sums)))


def metric(run: Run) -> str:
    """The dev metric that chooses the best step, or "last"."""
    return run.config.best or run.net.objective.best
