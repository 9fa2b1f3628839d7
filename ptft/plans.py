"""`ptft plan`: what strategies train and cost, without data and without training, from the compiled step of each."""

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ptft import build, cost, ledger, mesh, models, record, step, tree
from ptft.build import Program, Run
from ptft.errors import UserError


def rows(run: Run, strategies: Sequence[Any], probe: int) -> list[dict[str, Any]]:
    """One row a strategy, the shares of each measured against training everything.

    Args:
      probe: time so many steps of each on this device, with made-up tokens; 0: none.
    """
    full = row(run, "full", 0)
    found = []
    for strategy in strategies:
        one = row(run, strategy, probe)
        for key in ("flops", "analytic_flops"):
            one[f"{key}_share"] = one[key] / full[key] if one[key] and full[key] else None
        found.append(one)
    return found


def row(run: Run, strategy: Any, probe: int) -> dict[str, Any]:
    """What one strategy costs; bytes are of one device, FLOPs of a step over all of them."""
    config = run.config.replace(freeze=strategy)
    one = run._replace(config=config, plan=build.plan(config, run.net))
    program = build.program(one)
    shapes, moving = run.net.shapes(), one.plan.trainable
    state = jax.eval_shape(program.init, tree.split(shapes, moving)[0])
    trainable, total = one.plan.counts()
    formula = products(one)
    peak, limit = program.cost.peak_bytes, memory()
    fits = peak is None or limit is None or peak <= limit
    return {
        "freeze": strategy, "trainable": trainable, "total": total, "trainable_share": trainable / total,
        "flops": program.cost.flops, "analytic_flops": formula and formula.total,
        **{f"{k}_bytes": n for k, n in cost.of_plan(shapes, moving, state.opt)._asdict().items()},
        "temporary_bytes": program.cost.temp_bytes, "peak_bytes": peak, "device_bytes": limit, "fits": fits,
        "seconds_per_step": seconds(one, program, probe) if probe and fits else None,
        "problem": problem(one, program, state.opt),
    }  # fmt: skip


def products(run: Run) -> cost.Products | None:
    """The formula's FLOPs; None for a model that is no Transformer encoder."""
    shapes, c = run.net.shapes(), run.config
    if not any(n.endswith("attention/value/kernel") for n in shapes):
        return None
    predictions = getattr(run.net.objective, "predictions", 0)
    return cost.analytic(shapes, run.plan.trainable, models.groups(c.model.name), c.batch, c.objective.seq_len, predictions)


def problem(run: Run, program: Program, opt: Any) -> str | None:
    """Why the compiled step is not the one that the plan promises, or None: a backward pass that is alive where nothing moves,
    or optimizer state for what does not move."""
    extra = ledger.optimizer_names(opt) - set(run.plan.trainable)
    if extra:
        return f"the optimizer keeps state for {len(extra)} parameters that are frozen, {sorted(extra)[0]} among them"
    formula, flops = products(run), program.cost.flops
    if formula is None or flops is None:
        return None
    # What is not a product comes on top: some 250 FLOPs a token and norm's channel for norms, softmax, activations and dropout,
    # some twenty of the optimizer a parameter.
    channels = sum(s.shape[0] for n, s in run.net.shapes().items() if n.endswith("/scale"))
    tokens = run.config.batch * run.config.objective.seq_len
    allowed = 1.15 * formula.total + 250 * tokens * channels + 20 * run.plan.counts()[0]
    if flops > allowed:
        return (
            f"the compiled step costs {flops / 1e9:.3g} GFLOP, this freeze should cost {formula.total / 1e9:.3g}: "
            "something keeps the backward pass of frozen parameters alive"
        )
    return None


def check(run: Run, program: Program) -> None:
    """Says at the start of a run that its step is not what its plan promises; a UserError with `strict_cost`."""
    strict = run.config.strict_cost
    why = problem(run, program, jax.eval_shape(program.init, tree.split(run.net.shapes(), run.plan.trainable)[0]).opt)
    if why and strict:
        raise UserError(f"freeze={run.config.freeze!r}: {why}; strict_cost=False makes a warning of this")
    if why:
        record.say(f"WARNING: freeze={run.config.freeze!r}: {why}")


def memory() -> int | None:
    """Bytes of memory of a device; of the machine, where the device has none of its own. None: not known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def seconds(run: Run, program: Program, steps: int) -> float:
    """The median of `steps` timed steps, after one to warm up."""
    everywhere = mesh.replicated(run.mesh)
    params = jax.device_put(run.net.init(0), everywhere)
    inside, frozen = tree.split(params, run.plan.trainable)
    moving: step.Moving = program.init(inside)
    batch, seed = mesh.put(run.net.example(run.config.batch), run.mesh), jax.device_put(np.uint32(0), everywhere)
    taken = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        moving, sums = program.train(moving, frozen, batch, seed)
        jax.block_until_ready((moving, sums))
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


def text(found: Sequence[dict[str, Any]]) -> str:
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
    lines = [head]
    for r in found:
        sizes = [
            f"{(r[f'{k}_bytes'] or 0) / 2**20:,.0f} MiB"
            for k in ("parameters", "gradients", "optimizer", "temporary", "peak", "checkpoint")
        ]
        timed = "does not fit" if not r["fits"] else "" if r["seconds_per_step"] is None else f"{r['seconds_per_step']:.3g}"
        flops = [
            "?" if r[k] is None else f"{r[k] * scale:.3g}"
            for k, scale in (("flops", 1e-9), ("flops_share", 1), ("analytic_flops_share", 1))
        ]
        lines.append([str(r["freeze"]), f"{r['trainable']:,}", f"{r['trainable_share']:.2%}", *flops, *sizes, timed])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines]
    return "\n".join([*table, *(f"WARNING: {r['freeze']}: {r['problem']}" for r in found if r["problem"])])
