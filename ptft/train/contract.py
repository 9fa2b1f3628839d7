"""The cost contract: a compiled step must be the one that its plan promises."""

import os
from collections.abc import Collection
from typing import Any

import jax

from ptft.core import record, tree
from ptft.core.errors import UserError
from ptft.freeze import ledger, resolve
from ptft.train import cost, optim, programs
from ptft.train.build import Run
from ptft.train.programs import Program


def products(run: Run, phase: int = 0) -> cost.Products | None:
    """The formula's FLOPs; None for a model that is no Transformer encoder."""
    c, layout, net = run.config, run.layout, run.net
    if not layout.anatomy.values:
        return None
    work = cost.Work(
        c.batch, c.objective.seq_len, net.objective.head_rows, net.added, layout.below(net.start)
    )
    return cost.analytic(layout, run.phases[phase].plan.trainable, work)


def problem(run: Run, program: Program, opt: Any, phase: int = 0) -> str | None:
    """Why the compiled step is not the one that the plan promises, or None: state of the optimizer for what
    is frozen, none for what is trainable, or more than its kind needs; a step that was compiled for another
    plan; a backward pass that is alive where nothing is trainable."""
    plan = run.phases[phase].plan
    return _of_optimizer(run, opt, plan) or _of_names(program, plan) or _of_flops(run, program, phase)


def _of_optimizer(run: Run, opt: Any, plan: resolve.Plan) -> str | None:
    trainable, name = set(plan.trainable), run.config.optim.name
    if extra := ledger.optimizer_names(opt, stand_ins=True) - trainable:
        return f"the optimizer keeps state for {_some(extra)} frozen"
    had = ledger.optimizer_names(opt)
    if missing := trainable - had if had else set():
        return (
            f"the optimizer has no state for {_some(missing)} trainable: they would get gradients and no "
            "update"
        )
    kept, most = cost.size(opt), optim.state_bytes(name, plan.counts()[0], len(trainable))
    if kept > most:
        return (
            f"the optimizer keeps {kept:,} bytes of state, {name} needs at most {most:,} for what is "
            "trainable"
        )
    return None


def _of_names(program: Program, plan: resolve.Plan) -> str | None:
    """Only a step that is compiled ahead of time knows what it was compiled for."""
    if not isinstance(program.train, jax.stages.Compiled):
        return None
    trainable, takes = set(plan.trainable), set(program.train.args_info[0][0].params)
    if extra := takes - trainable:
        return f"the compiled step updates {_some(extra)} frozen"
    return (
        f"the compiled step does not update {_some(trainable - takes)} trainable"
        if trainable - takes
        else None
    )


def _some(names: Collection[str]) -> str:
    return f"{len(names)} parameters, {min(names)} among them, that are"


def _of_flops(run: Run, program: Program, phase: int) -> str | None:
    formula, flops = products(run, phase), program.cost.flops
    if formula is None or flops is None or flops <= allowance(run, formula, phase):
        return None
    return (
        f"the compiled step costs {flops / 1e9:.3g} GFLOP, this freeze should cost "
        f"{formula.total / 1e9:.3g}: something keeps the backward pass of frozen parameters alive"
    )


def allowance(run: Run, formula: cost.Products, phase: int = 0) -> float:
    """The most FLOPs that a step with these matrix products may cost. The rest of a step comes on top: some
    250 FLOPs a token and channel of each norm, for norms, softmax, activations and dropout; some twenty a
    trainable parameter for the optimizer; two to dequantize a parameter. With accumulation, the optimizer's
    count once a part, because `cost.of` multiplies the whole step by the number of parts."""
    plan = run.phases[phase].plan
    channels = sum(s.shape[0] for n, s in run.net.shapes().items() if n.endswith("/scale"))
    tokens = run.config.batch * run.config.objective.seq_len
    dequantized = 2 * plan.counts()[1] * (run.config.frozen_dtype != "float32")
    return (
        1.15 * formula.total
        + 250 * tokens * channels
        + run.config.accumulate * (20 * plan.counts()[0] + dequantized)
    )


def check(run: Run, program: Program, phase: int = 0) -> None:
    """Says at the start of a phase that its step is not what its plan promises; a UserError with
    `strict_cost`."""
    strict, strategy = run.config.strict_cost, run.phases[phase].strategy
    trainable = tree.split(run.net.shapes(), run.phases[phase].plan.trainable)[0]
    why = problem(run, program, jax.eval_shape(lambda p: programs.fresh(run, phase, p), trainable).opt, phase)
    if why and strict:
        raise UserError(f"freeze={strategy!r}: {why}; strict_cost=False makes a warning of this")
    if why:
        record.say(f"WARNING: freeze={strategy!r}: {why}")


def memory() -> int | None:
    """Bytes of memory of a device; of the machine, where the device has none of its own. None: not known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
