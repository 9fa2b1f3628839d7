"""What a model scores: sums over a split, and whether a step is the best so far."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ptft.core import mesh, record
from ptft.core.errors import UserError
from ptft.core.tree import Flat
from ptft.objectives import Rows
from ptft.train import feature_cache, pipeline, step
from ptft.train.state import Progress


def judge(falls: bool, value: float, k: int, progress: Progress) -> Progress:
    """Whether step `k` is the best so far; NaN never is.

    Args:
      falls: the lower the value, the better (`objectives.falls`).
    """
    better = math.isfinite(value) and (progress.best is None or (value < progress.best if falls else value > progress.best))
    if better:
        return progress._replace(best=value, best_step=k, evals_since_best=0)
    return progress._replace(evals_since_best=progress.evals_since_best + 1)


@functools.lru_cache(maxsize=64)
def _eval_step(net: step.Net) -> Callable[..., Any]:
    return jax.jit(step.eval_step(net))


def evaluate(net: step.Net, params: Flat, rows: Rows, batch: int, grid: Any, limit: int = 0) -> dict[str, float]:
    """Metrics over a split, from global sums; the last batch is padded with rows that do not count."""
    batch = math.ceil(batch / grid.size) * grid.size
    constants = feature_cache.constants(rows)
    parts = [_eval_step(net)(params, mesh.put(b, grid), constants) for b in pipeline.eval_batches(rows, batch, limit)]
    return net.objective.metrics(total(parts))


def total(parts: list[record.Sums]) -> record.Sums:
    """The sum of many steps' sums, added on the host after all were dispatched."""
    return functools.reduce(record.add, jax.device_get(parts), None)  # type: ignore[arg-type, return-value]


def as_sums(plain: dict[str, Any]) -> record.Sums:
    return {name: (np.asarray(s, np.float32), np.asarray(w, np.float32)) for name, (s, w) in plain.items()}


def of_window(net: step.Net, sums: record.Sums, k: int) -> dict[str, float]:
    """The metrics of the training steps since the last line; a loss that is not finite stops the run here."""
    norm = record.divide({"grad_norm": sums["grad_norm"]})
    values = net.objective.metrics({n: s for n, s in sums.items() if n != "grad_norm"}) | norm
    if not math.isfinite(values["loss"]):
        raise UserError(
            f"the training loss is {values['loss']} at step {k}: it diverged; lower optim.lr or optim.clip. Earlier checkpoints stay"
        )
    return values
