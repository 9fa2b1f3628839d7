"""Steps of several members at once against steps of one: is it worth training runs side by side on this
device?

    python tests/benchmarks/vectorized_steps.py INIT DATA OUT.json  # INIT: a run or a Hugging Face folder

Members differ in seed; all start above the cached prefix, as in a benchmark. Seconds a member and step, in
turns: of the step that `ptft train` compiles, and of the population's with one and with several members.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptft.bench import vmapped
from ptft.core import mesh, pages, record, tree
from ptft.train import build, feature_cache, pipeline, programs, spec, weights

PAGE = Path(__file__).parents[2] / "configs" / "finetune.py"
SIZES = {"head": (1, 15), "top-1": (1, 4, 15), "top-2": (1, 4), "bitfit": (1, 4), "full": (1, 3)}


def runs(init: Path, data: Path, freeze: str, members: int) -> list[build.Run]:
    values = pages.load(f"{PAGE}:task=sst2,init={init},root={data},seq_len=32,freeze={freeze}")
    values["data"] |= {"train_size": 256, "dev": "", "test": ""}
    values |= {
        "train_for": "1000 steps",
        "frozen_dropout": False,
        "eval_every": 0,
        "save_every": 0,
        "best": "last",
    }
    return [build.build(spec.resolve({**values, "seed": seed})) for seed in range(members)]


def solo(run: build.Run, params: Any) -> Callable[[], None]:
    here = feature_cache.shorten(run, feature_cache.Use(many=True), params)
    inside, frozen = tree.split(params, run.plan.trainable)
    state = [programs.fresh(here, 0, jax.tree.map(jnp.copy, inside))]
    program, source = (
        programs.program(here),
        pipeline.train_batches(here.data.train, run.used, 0, run.config.batch, 0, 1000),
    )

    def step() -> None:
        state[0], sums = program.train(state[0], frozen, mesh.put(next(source), run.mesh), np.uint32(0), {})
        jax.block_until_ready(sums)

    return step


def together(members: list[build.Run], starts: list[Any]) -> Callable[[], None]:
    first, n = members[0], len(members)
    use = feature_cache.Use(many=True)
    here = [feature_cache.shorten(run, use, p) for run, p in zip(members, starts, strict=True)]
    c, d, moves = first.config, first.durations, first.plan.trainable
    program = vmapped.program(
        vmapped.Recipe(
            here[0].net, (), programs.no_dropout(first, 0), c.optim.replace(lr=1.0), d.warmup, d.total
        )
    )
    frozen = tree.split(starts[0], moves)[1]
    state = [program.init({name: jnp.stack([p[name] for p in starts]) for name in moves})]
    sources: list[Iterator[Any]] = [
        pipeline.train_batches(h.data.train, h.used, i, c.batch, 0, d.total) for i, h in enumerate(here)
    ]
    factors = dict.fromkeys(moves, np.ones(n, np.float32))
    seeds, lrs = np.arange(n, dtype=np.uint32), np.full(n, c.optim.lr, np.float32)

    def step() -> None:
        parts = [next(source) for source in sources]
        batch = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
        state[0], losses = program.train(
            state[0], frozen, vmapped.put(batch, first.mesh), seeds, lrs, factors
        )
        jax.block_until_ready(losses)

    return step


def measure(init: Path, data: Path, freeze: str, turns: int) -> list[dict[str, Any]]:
    """A row for each number of members; the first step of each compiles and does not count."""
    members = runs(init, data, freeze, max(SIZES[freeze]))
    starts = [weights.start_params(run, quiet=True) for run in members]
    steppers = {n: together(members[:n], starts[:n]) for n in SIZES[freeze]}
    alone, found = solo(members[0], starts[0]), []
    for turn in range(turns + 1):
        taken = {}
        for n, step in {0: alone, **steppers}.items():
            begun = time.perf_counter()
            step()
            taken[n] = (time.perf_counter() - begun) / max(n, 1)
        found += [taken] if turn else []
    rows = []
    for n in steppers:
        low, middle, high = statistics.quantiles([t[n] / t[0] for t in found], n=4)
        rows.append(
            {
                "freeze": freeze,
                "members": n,
                "alone": statistics.median(t[0] for t in found),
                "ratio": [low, middle, high],
            }
        )
        print(
            f"{freeze:8} {n:3} members: {middle:.2f} ({low:.2f}-{high:.2f}) of a step alone, "
            f"{rows[-1]['alone'] * 1e3:.1f} ms",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("init", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--turns", type=int, default=12)
    args = parser.parse_args()
    rows = [row for freeze in SIZES for row in measure(args.init, args.data, freeze, args.turns)]
    args.out.write_text(
        json.dumps(
            {"versions": record.versions(), "device": record.device(), "turns": args.turns, "rows": rows},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
