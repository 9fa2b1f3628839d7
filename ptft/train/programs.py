"""The compiled training step of each phase: its optimizer, its parts without dropout, its cost."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ptft.core import mesh, progress, tree
from ptft.core.config import Config
from ptft.core.placement import Placement
from ptft.core.tree import Flat
from ptft.freeze import quantize
from ptft.train import cost, optim, step
from ptft.train.build import Run
from ptft.train.step import Recipe


class Program(NamedTuple):
    """Compiled for one shape of run; runs that differ in seed and data alone share it."""

    train: Callable[..., Any]
    cost: cost.Cost


def cohorts(run: Run, phase: int) -> dict[str, int]:
    """The cohort of every parameter that is trainable in a phase, numbered from 0: those of the same phases
    share one, and their optimizer state begins and ends together. It depends on the trainable set alone, not
    on the phases before, so that a set that comes back, as LISA's do, is not compiled again."""
    names = run.phases[phase].plan.trainable
    if run.config.optim.at_phase == "reset":
        return dict.fromkeys(names, 0)
    trainable = [set(p.plan.trainable) for p in run.phases]
    together = {n: tuple(n in phase for phase in trainable) for n in names}
    number = {when: i for i, when in enumerate(dict.fromkeys(together.values()))}
    return {n: number[together[n]] for n in names}


def came_from(run: Run, phase: int) -> list[int | None]:
    """For each cohort of a phase its number in the phase before; None: it begins."""
    old = cohorts(run, phase - 1) if run.config.optim.at_phase == "carry" else {}
    return list({c: old.get(n) for n, c in cohorts(run, phase).items()}.values())


def no_dropout(run: Run, phase: int) -> frozenset[str]:
    """The parts of the backbone that run without dropout: those without trainable parameters, if the config
    says so."""
    rows = [r for r in run.phases[phase].plan.rows if not r.name.startswith("head/")]
    parts = {r.name.split("/")[1] for r in rows}
    return (
        frozenset()
        if run.config.frozen_dropout
        else frozenset(parts - {r.name.split("/")[1] for r in rows if r.lr_mult})
    )


def optimizer(run: Run, phase: int = 0) -> optax.GradientTransformation:
    """Of the trainable parameters of a phase, and of nothing else."""
    groups = optim.groups(run.phases[phase].plan, cohorts(run, phase))
    return _optimizer(run.config.optim, tuple(groups.items()), run.durations.warmup, run.durations.total)


@functools.lru_cache(maxsize=64)
def _optimizer(
    config: Config, groups: tuple[tuple[str, optim.Group], ...], warmup: int, total: int
) -> optax.GradientTransformation:
    return optim.build(config, dict(groups), warmup, total)


def fresh(run: Run, phase: int, params: Flat) -> step.TrainState:
    """The trainable parameters of a phase, with new optimizer state."""
    where = run.placement
    of = where.of if where.cut else None
    return where.put(step.init_train_state(params, optimizer(run, phase), of))


class _Key(NamedTuple):
    """All that a compiled step depends on; shapes and dtypes, and no array."""

    recipe: Recipe
    trainable: tuple[str, ...]
    frozen_dtype: str
    constants: tuple[tuple[str, tuple[int, ...], Any], ...]
    batch: int
    parallel: str
    placement: Placement


def program(run: Run, phase: int = 0) -> Program:
    """Compiles the training step of a phase, ahead of time where there is a whole-program form (`jit`)."""
    c, trainable = run.config, run.phases[phase].plan.trainable
    recipe = Recipe(run.net, optimizer(run, phase), c.accumulate, no_dropout(run, phase))
    constants = tuple((n, x.shape, x.dtype) for n, x in getattr(run.data.train, "constants", {}).items())
    return _program(_Key(recipe, trainable, c.frozen_dtype, constants, c.batch, c.parallel, run.placement))


@functools.lru_cache(maxsize=64)
def _program(key: _Key) -> Program:
    with progress.doing("compiling the step", watch=True):
        return _compile(key)


def _compile(key: _Key) -> Program:
    net, tx, accumulate, _ = key.recipe
    where, grid = key.placement, key.placement.grid
    if key.parallel != "jit":
        return Program(step.compile_train(key.recipe, grid, key.parallel), cost.Cost(None, None, None))
    everywhere, by_rows = mesh.replicated(grid), mesh.by_rows(grid)

    def shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    trainable, frozen = tree.split(net.shapes(), key.trainable)
    kept = jax.eval_shape(lambda p: quantize.quantize(p, key.frozen_dtype), frozen)
    state = jax.eval_shape(lambda p: step.init_train_state(p, tx), trainable)
    out = (where.of(state), everywhere) if where.cut else None
    aot = (
        step.compile_train(key.recipe, grid, key.parallel, out)
        .lower(  # type: ignore[attr-defined]
            *where.like((state, kept)),
            {k: shape(v, by_rows) for k, v in net.example(key.batch).items()},
            jax.ShapeDtypeStruct((), np.uint32, sharding=everywhere),
            {n: jax.ShapeDtypeStruct(size, dtype, sharding=everywhere) for n, size, dtype in key.constants},
        )
        .compile()
    )
    return Program(aot, cost.of(aot, accumulate, grid.size))
