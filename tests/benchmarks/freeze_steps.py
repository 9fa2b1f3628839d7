"""What a freeze saves: seconds a step of every strategy against training everything, beside its share of the
FLOPs.

    python tests/benchmarks/freeze_steps.py OUT.json

Twelve layers without dropout, made-up tokens. All programs are compiled first and their numbers of FLOP
taken, then timed in turns: every turn takes STEPS steps of each in an order of its own, and a share is that
of one turn, so that what else the machine does falls on all alike.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ptft.core import config as configs
from ptft.core import mesh, record, tree
from ptft.core.tree import Flat
from ptft.freeze import adapters
from ptft.planning import plans
from ptft.train import build, programs, spec
from ptft.train.build import Run

STEPS = 2
STRATEGIES = (
    "full", "head", "top-1", "top-2", "top-6", "bottom-2", "layers=0,5,11", "every-3", "embeddings",
    "freeze-embeddings", "bitfit",
    "bitfit=query,up", "layernorm", "attention", "ffn", "pooler", "random=0.1,0", "top-2+bitfit",
    "full!embeddings&attention", "lora=8",
    "houlsby=32", "ia3", "prompt=16", "prefix=16", "fish=0.005",
)  # fmt: skip


def outline(args: argparse.Namespace) -> Run:
    """A classifier without data; weights, tokens and labels are made up."""
    values: dict[str, Any] = {
        "batch": args.batch,
        "model": {"layers": args.layers, "hidden": args.hidden, "max_len": args.seq_len, "dropout": 0.0},
        "objective": {"name": "classify", "seq_len": args.seq_len, "dropout": 0.0},
        "data": {"vocab_size": args.vocab},
    }
    return build.outline(spec.resolve(values))


def rows(run: Run) -> dict[str, np.ndarray]:
    """A batch of full rows of random tokens, as different as those of a text at most are."""
    example, rng = run.net.example(run.config.batch), np.random.default_rng(0)
    b, t = example["tokens"].shape
    tokens = rng.integers(5, run.data.tokenizer.vocab_size, (b, t)).astype(example["tokens"].dtype)
    whole = np.full(b, t, np.int32)
    return {
        **example,
        "tokens": tokens,
        "length": whole,
        "segment_b": whole,
        "label": rng.integers(0, 2, b).astype(np.int32),
    }


def stepper(run: Run, base: Flat) -> Callable[[], None]:
    """Takes a step, and waits for it; what is frozen are the arrays of `base`, what moves starts as
    copies."""
    program, everywhere = programs.program(run), mesh.replicated(run.mesh)
    params = base | run.net.init(0, tuple(n for n in run.net.shapes() if n not in base))
    # Squares of the weights stand for those of gradients: places all over a tensor.
    params = jax.device_put(
        adapters.fill(run.net.added, params, {n: jnp.square(x) for n, x in params.items()}), everywhere
    )
    inside, frozen = tree.split(params, run.plan.trainable)
    moving = [programs.fresh(run, 0, {n: x.copy() for n, x in inside.items()})]
    batch, seed = mesh.put(rows(run), run.mesh), jax.device_put(np.uint32(0), everywhere)

    def step() -> None:
        moving[0], sums = program.train(moving[0], frozen, batch, seed, {})
        jax.block_until_ready((moving[0], sums))

    return step


class Taken(NamedTuple):
    """What a step took."""

    seconds: float  # on the clock
    cpu: float  # of all threads of this process: more steady where other processes want the cores, too


def take(step: Callable[[], None]) -> Taken:
    """The mean over STEPS steps."""
    begun = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        step()
    return Taken((time.perf_counter() - begun[0]) / STEPS, (time.process_time() - begun[1]) / STEPS)


def turns(names: Sequence[str], number: int, take: Callable[[str], Taken]) -> list[dict[str, Taken]]:
    """Takes steps of each, turn by turn, in an order of the turn's own; the first turn warms up and does not
    count."""
    found = []
    for k in range(number + 1):
        found.append({n: take(n) for n in random.Random(k).sample(list(names), len(names))})
    return found[1:]


def summary(found: Sequence[dict[str, Taken]], name: str, full: str) -> dict[str, Any]:
    """Medians of one strategy, and quartiles of its shares of `full` in the same turn."""
    return {
        "seconds": statistics.median(t[name].seconds for t in found),
        "cpu_seconds": statistics.median(t[name].cpu for t in found),
        "time_share": quartiles([t[name].seconds / t[full].seconds for t in found]),
        "cpu_share": quartiles([t[name].cpu / t[full].cpu for t in found]),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def text(table: dict[str, dict[str, Any]]) -> str:
    """The table for people; shares in percent of training everything, the quartiles of the time's in
    brackets."""
    columns = (
        f"{'ms/step':>8} {'time':>6} {'(quartiles)':>15} {'CPU':>6} {'FLOPs':>6} {'formula':>8} "
        f"{'time-FLOPs':>11}"
    )
    lines = [f"{'strategy':<26} {columns}"]
    for name, r in table.items():
        low, middle, high = (100 * q for q in r["time_share"])
        flops, formula = 100 * r["flops_share"], 100 * r["analytic_flops_share"]
        spread = f"({low:.1f}-{high:.1f})"
        taken = f"{1e3 * r['seconds']:>8.1f} {middle:>6.1f} {spread:>15} {100 * r['cpu_share'][1]:>6.1f}"
        lines.append(f"{name:<26} {taken} {flops:>6.1f} {formula:>8.1f} {middle - flops:>+11.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    for name, default in (("layers", 12), ("hidden", 256), ("seq-len", 64), ("batch", 16), ("vocab", 8000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    run = outline(args)
    names = list(dict.fromkeys(["full", *args.strategies]))
    costs = {r["freeze"]: r for r in plans.rows(run, names, 0)}
    base = jax.device_put(run.net.init(0), mesh.replicated(run.mesh))
    steppers = {n: stepper(build.refrozen(run, n), base) for n in names}
    load = [os.getloadavg()[0]]
    found = turns(names, args.turns, lambda name: take(steppers[name]))
    load.append(os.getloadavg()[0])
    keys = ("flops", "flops_share", "analytic_flops_share", "trainable")
    table = {n: {**summary(found, n, "full"), **{k: costs[n][k] for k in keys}} for n in names}
    written = {
        "table": table,
        "turns": [{n: list(t) for n, t in turn.items()} for turn in found],
        "config": run.config.to_dict(),
        "config_hash": configs.digest(run.config),
        "versions": record.versions(),
        "device": record.device() | {"cores": os.cpu_count(), "load": load},
    }
    args.out.write_text(json.dumps(written, indent=1))
    print(text(table))


if __name__ == "__main__":
    main()
