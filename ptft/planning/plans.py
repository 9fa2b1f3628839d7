"""`ptft plan`: what strategies train and cost, without data and without training, from the compiled step of
each."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptft.core import mesh, progress, record, tree
from ptft.core.placement import Placement
from ptft.core.tree import Flat
from ptft.freeze import quantize, resolve
from ptft.train import build, contract, cost, programs, weights
from ptft.train.build import Run
from ptft.train.programs import Program

TIMES = ("seconds_per_step", "seconds_low", "seconds_high")  # the median and the quartiles of timed steps
TURN = 2  # timed steps
ENOUGH = 20.0  # seconds of turns for each that takes part; after them no further turn begins


def rows(run: Run, strategies: Sequence[Any], probe: int) -> list[dict[str, Any]]:
    """One row a strategy, the shares of each measured against training everything.

    Args:
      probe: time so many steps of each on this device, with made-up tokens; 0: none.
    """
    full = row(run, "full", 0)
    costed = costs([build.refrozen(run, strategy) for strategy in strategies], probe)
    for one in costed:
        for part in (one, *one["phases"]):
            for key in ("flops", "analytic_flops"):
                part[f"{key}_share"] = part[key] / full[key] if part[key] and full[key] else None
    return costed


def row(run: Run, strategy: Any, probe: int) -> dict[str, Any]:
    """What one strategy costs."""
    return costs([build.refrozen(run, strategy)], probe)[0]


def costs(runs: Sequence[Run], probe: int) -> list[dict[str, Any]]:
    """What each run's strategy costs; bytes are of one device, FLOPs of a step over all of them. Where the
    trainable set changes with time, the FLOPs and seconds are a step's on average (phases that end at a
    plateau count alike), the bytes the largest of any phase."""
    known: list[dict[int, dict[str, Any]]] = []
    timed: list[tuple[Run, int, Program]] = []
    into: list[dict[str, Any]] = []
    with progress.doing("compiling", "strategies", len(runs)) as advance:
        for run in runs:
            known.append({i: _phase(run, i) for i in _different(run).values()})
            fitting = [i for i, its in known[-1].items() if probe and its["fits"]]
            timed += [(run, i, programs.program(run, i)) for i in fitting]
            into += [known[-1][i] for i in fitting]
            advance(place=str(run.config.freeze))
    for its, taken in zip(into, in_turns(timed, probe), strict=True):
        times = map(float, np.quantile(taken, (0.5, 0.25, 0.75)))
        its |= {**dict(zip(TIMES, times, strict=True)), "timed_seconds": sum(taken)}
    return [_row(run, its) for run, its in zip(runs, known, strict=True)]


def _different(run: Run) -> dict[resolve.Plan, int]:
    """Phases with the same trainable set, such as LISA's, cost the same."""
    return {p.plan: i for i, p in enumerate(run.phases)}


def _row(run: Run, known: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    trainable, total = run.plan.counts()
    same = _different(run)
    return {
        "freeze": run.config.freeze, "trainable": trainable, "total": total,
        "trainable_share": trainable / total,
        "device_bytes": contract.memory(),
        **_of_phases(run, [known[same[p.plan]] for p in run.phases]),
        "timed_seconds": sum(its.get("timed_seconds", 0.0) for its in known.values()),
    }  # fmt: skip


def along(measured: Mapping[str, Any], run: Run) -> dict[str, Any] | None:
    """A row with phases, for a run that has them for other lengths; None if the run has a phase that the row
    lacks."""
    known = {json.dumps(record.plain(p["freeze"])): p for p in measured["phases"]}
    parts = [known.get(json.dumps(record.plain(p.strategy))) for p in run.phases]
    return None if None in parts else {**measured, **_of_phases(run, [p for p in parts if p])}


def _of_phases(run: Run, costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the phases of a run come to, by what each costs."""
    parts = [
        {**cost, "freeze": p.strategy, "start": p.start, "waits": p.waits}
        for p, cost in zip(run.phases, costs, strict=True)
    ]
    starts = [p.start for p in run.phases]
    if len(parts) == 1 or None in starts:
        lengths = [1.0] * len(parts)
    else:
        lengths = [float(b - a) for a, b in zip(starts, [*starts[1:], run.durations.total], strict=True)]  # type: ignore[operator]
    mean = {k: _mean([p.get(k) for p in parts], lengths) for k in ("flops", "analytic_flops", *TIMES)}
    most = {
        k: max(p[k] for p in parts) if parts[0][k] is not None else None
        for k in parts[0]
        if k.endswith("_bytes")
    }
    problems = [p["problem"] for p in parts if p["problem"]]
    return {
        **mean, **most, "fits": all(p["fits"] for p in parts), "problem": problems[0] if problems else None,
        # or one that was drawn
        "phases": parts if len(parts) > 1 or parts[0]["freeze"] != run.config.freeze else [],
    }  # fmt: skip


def _phase(run: Run, phase: int) -> dict[str, Any]:
    program, this = programs.program(run, phase), run.phases[phase]
    shapes = run.net.shapes()
    inner, frozen = tree.split(shapes, this.plan.trainable)
    state = jax.eval_shape(lambda p: programs.fresh(run, phase, p), inner)
    on_device = jax.eval_shape(lambda p: quantize.quantize(p, run.config.frozen_dtype), frozen)
    stored = {n: shapes[n] for n in weights.changing(run)} if run.config.checkpoint == "delta" else shapes
    trainable, total = this.plan.counts()
    formula = contract.products(run, phase)
    peak, limit = program.cost.peak_bytes, contract.memory()
    fits = peak is None or limit is None or peak <= limit
    return {
        "freeze": this.strategy, "start": this.start, "waits": this.waits, "trainable": trainable,
        "trainable_share": trainable / total,
        "flops": program.cost.flops, "analytic_flops": formula and formula.total,
        **_bytes(run.placement, (inner, on_device), state.opt, stored),
        "temporary_bytes": program.cost.temp_bytes, "peak_bytes": peak, "fits": fits,
        **dict.fromkeys(TIMES),
        "problem": contract.problem(run, program, state.opt, phase),
    }  # fmt: skip


def _bytes(where: Placement, params: tuple[Flat, Flat], opt: Any, stored: Flat) -> dict[str, int]:
    """What follows from shapes alone: what a device keeps of the parameters (trainable, frozen), of their
    gradients and of the optimizer's state; and what a checkpoint holds, before compression."""
    return {
        "parameters_bytes": where.size(params),
        "gradients_bytes": where.size(params[0]),
        "optimizer_bytes": where.size(opt),
        "checkpoint_bytes": cost.size((stored, opt)),
    }


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    known = [v for v in values if v is not None]
    return (
        sum(v * w for v, w in zip(known, weights, strict=True)) / sum(weights)
        if len(known) == len(values)
        else None
    )


def in_turns(timed: Sequence[tuple[Run, int, Program]], steps: int) -> list[list[float]]:
    """Seconds of so many steps of each run's phase, as compiled. They take turns (A B C A B C …), so that
    what else the machine does meets all of them; nothing but the weights that a turn begins with lives on
    between turns. Of slow ones fewer steps, at least two turns."""
    keys = [(run.net, run.placement) for run, *_ in timed]
    starts = {(net, where): where.put(net.init(0)) for net, where in set(keys)}
    taken: list[list[float]] = [[] for _ in timed]
    start_time, turns = time.perf_counter(), 0
    with progress.doing("timing steps", "turns") as advance:
        while turns * TURN < steps and (turns < 2 or time.perf_counter() - start_time < ENOUGH * len(timed)):
            for (run, phase, program), key, mine in zip(timed, keys, taken, strict=True):
                mine += _turn(run, phase, program, starts[key], min(TURN, steps - len(mine)))
                advance(place=str(run.config.freeze))
            turns += 1
    return taken


def _turn(run: Run, phase: int, program: Program, params: Flat, steps: int) -> list[float]:
    """Seconds of steps, after one to warm up."""
    trainable, frozen = tree.split(params, run.phases[phase].plan.trainable)
    state = programs.fresh(run, phase, jax.tree.map(jnp.copy, trainable))  # a step writes over its state
    on_device = run.placement.put(_quantized(frozen, run.config.frozen_dtype))
    own, seed = mesh.mine(run.config.batch), mesh.place(np.uint32(0), run.mesh)
    batch = mesh.put({k: x[own] for k, x in run.net.example(run.config.batch).items()}, run.mesh)
    taken = []
    for _ in range(steps + 1):
        start_time = time.perf_counter()
        state, sums = program.train(state, on_device, batch, seed, {})
        jax.block_until_ready((state, sums))
        taken.append(time.perf_counter() - start_time)
    return taken[1:]


_quantized = jax.jit(quantize.quantize, static_argnums=1)


def text(costed: Sequence[dict[str, Any]]) -> str:
    """The rows as a table for people."""
    head = [
        "strategy",
        "trainable",
        "share",
        "GFLOP",
        "x full",
        "formula",
        "params",
        "grads",
        "optimizer",
        "temporary",
        "peak",
        "checkpoint",
        "s/step",
    ]
    lines = [
        head,
        *(
            _cells(str(r["freeze"]), r) if part is r else _cells(f"  {_when(part)}: {part['freeze']}", part)
            for r in costed
            for part in (r, *r["phases"])
        ),
    ]
    warnings = [f"WARNING: {r['freeze']}: {r['problem']}" for r in costed if r["problem"]]
    return "\n".join([aligned(lines), *warnings])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def mebibytes(row: Mapping[str, Any], kind: str) -> str:
    size = row[f"{kind}_bytes"]
    return "?" if size is None else f"{size / 2**20:,.0f} MiB"


def _when(phase: dict[str, Any]) -> str:
    return (
        f"from step {phase['start']}"
        if phase["start"] is not None
        else f"after a plateau of {phase['waits']}"
    )


def _cells(name: str, r: dict[str, Any]) -> list[str]:
    kinds = ("parameters", "gradients", "optimizer", "temporary", "peak", "checkpoint")
    sizes = [mebibytes(r, k) for k in kinds]
    timed = "" if r["seconds_per_step"] is None else f"{r['seconds_per_step']:.3g}"
    timed = timed if r["fits"] else "does not fit"
    scales = (("flops", 1e-9), ("flops_share", 1), ("analytic_flops_share", 1))
    flops = ["?" if r[k] is None else f"{r[k] * scale:.3g}" for k, scale in scales]
    return [name, f"{r['trainable']:,}", f"{r['trainable_share']:.2%}", *flops, *sizes, timed]
