"""What a model scores and says: sums over a split, outputs row by row, and whether a step is the best so
far."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ptft import objectives
from ptft.core import mesh, progress, record
from ptft.core.errors import UserError
from ptft.core.tree import Flat
from ptft.objectives import Rows
from ptft.train import build, feature_cache, pipeline, step
from ptft.train.build import Run
from ptft.train.net import Net
from ptft.train.state import Progress


class Split(NamedTuple):
    """What an evaluation goes over, and how."""

    rows: Rows
    batch: int
    grid: Mesh
    limit: int = 0  # look at so many of the rows; 0: all


def splits(run: Run) -> dict[str, Split]:
    """Those of dev and test that a run has."""
    c = run.config
    by_name = {"dev": (run.data.dev, c.data.dev_size), "test": (run.data.test, 0)}
    return {
        name: Split(rows, c.eval_batch or c.batch, run.mesh, limit)
        for name, (rows, limit) in by_name.items()
        if rows is not None
    }


def judged(run: Run, values: Mapping[str, float], k: int, progress: Progress) -> Progress:
    """The progress after an evaluation on dev at step `k`, by the metric that chooses the best step."""
    metric = build.metric(run)
    if metric == "last":
        return progress
    return judge(objectives.falls(run.net.objective, metric), values[metric], k, progress)


def judge(falls: bool, value: float, k: int, progress: Progress) -> Progress:
    """Whether step `k` is the best so far; NaN never is.

    Args:
      falls: the lower the value, the better.
    """
    better = math.isfinite(value) and (
        progress.best is None or (value < progress.best if falls else value > progress.best)
    )
    if better:
        return progress._replace(best=value, best_step=k, evals_since_best=0)
    return progress._replace(evals_since_best=progress.evals_since_best + 1)


def evaluate(net: Net, params: Flat, split: Split) -> dict[str, float]:
    """Metrics over a split."""
    return net.objective.metrics(sums(functools.partial(_eval_step(net), params), split))


def outputs(net: Net, params: Flat, split: Split) -> dict[str, np.ndarray]:
    """The objective's outputs of every row, [N, …] in the order of the rows, on every process the same."""
    parts = jax.device_get(_over(functools.partial(_output_step(net, split.grid), params), split))
    looked_at = pipeline.looked_at(len(split.rows), split.limit, getattr(split.rows, "label", None))
    return (
        {name: np.concatenate([part[name] for part in parts])[: len(looked_at)] for name in parts[0]}
        if parts
        else {}
    )


def sums(compiled: Callable[..., Any], split: Split) -> record.Sums:
    """Global sums over a split.

    Args:
      compiled: `(batch, constants) -> sums`.
    """
    return total(_over(compiled, split))


def _over(compiled: Callable[..., Any], split: Split) -> list[Any]:
    """What a compiled step gives for each batch; the last is filled up with rows that do not count."""
    size = math.ceil(split.batch / split.grid.size) * split.grid.size
    constants, made = feature_cache.constants(split.rows), list[Any]()
    batches = math.ceil(min(len(split.rows), split.limit or len(split.rows)) / size)
    with progress.doing("evaluating", "batches", batches, watch=True) as advance:  # the first compiles
        for batch in pipeline.eval_batches(split.rows, size, split.limit, split.grid):
            made.append(compiled(mesh.put(batch, split.grid), constants))
            # with hidden states batches are large: few wait on the devices
            jax.block_until_ready(made[-3:-2])
            advance()
    return made


@functools.lru_cache(maxsize=64)
def _eval_step(net: Net) -> Callable[..., Any]:
    return jax.jit(step.eval_step(net))


@functools.lru_cache(maxsize=8)
def _output_step(net: Net, grid: Mesh) -> Callable[..., Any]:
    return jax.jit(step.output_step(net), out_shardings=mesh.replicated(grid))


def total(parts: list[record.Sums]) -> record.Sums:
    """The sum of many steps' sums, added on the host."""
    return functools.reduce(record.add, jax.device_get(parts), None)  # type: ignore[arg-type, return-value]


def as_sums(plain: dict[str, Any]) -> record.Sums:
    return {name: (np.asarray(s, np.float32), np.asarray(w, np.float32)) for name, (s, w) in plain.items()}


def as_plain(sums: record.Sums) -> dict[str, Any]:
    """`as_sums`, the other way: what JSON can hold."""
    return jax.tree.map(lambda x: np.asarray(x).tolist(), sums)  # type: ignore[return-value]


def of_window(net: Net, sums: record.Sums, k: int) -> dict[str, float]:
    """The metrics of the training steps since the last line; a loss that is not finite stops the run here."""
    norm = record.divide({"grad_norm": sums["grad_norm"]})
    values = net.objective.metrics({n: s for n, s in sums.items() if n != "grad_norm"}) | norm
    if not math.isfinite(values["loss"]):
        raise UserError(
            f"the training loss is {values['loss']} at step {k}: it diverged; lower optim.lr or optim.clip. "
            "Earlier checkpoints stay"
        )
    return values
