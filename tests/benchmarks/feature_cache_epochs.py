"""What the cached frozen prefix saves: seconds of an epoch with it, without it, and to fill it.

    python tests/benchmarks/feature_cache_epochs.py INIT DATA OUT.json  # INIT: a run or a Hugging Face folder

An epoch of both, in turns; both see the same batches. That the results are the same to the bit is
tests/test_feature_cache.py's.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptft.core import mesh, pages, record, tree
from ptft.train import build, feature_cache, pipeline, programs, spec, weights

PAGE = Path(__file__).parents[2] / "configs" / "finetune.py"
STRATEGIES = ("head", "top-1", "top-2")


def epochs(here: build.Run, params: Any, steps: int) -> Callable[[], float]:
    """A function that trains an epoch more and returns its seconds."""
    inside, frozen = tree.split(params, here.plan.trainable)
    state = [programs.fresh(here, 0, jax.tree.map(jnp.copy, inside))]
    program, constants = programs.program(here), feature_cache.constants(here.data.train)
    source = pipeline.train_batches(here.data.train, here.used, 0, here.config.batch, 0, 10**6)

    def epoch() -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            state[0], sums = program.train(
                state[0], frozen, mesh.put(next(source), here.mesh), np.uint32(0), constants
            )
        jax.block_until_ready(sums)
        return time.perf_counter() - begun

    return epoch


def measure(args: argparse.Namespace, freeze: str) -> dict[str, Any]:
    values = pages.load(f"{PAGE}:task=sst2,init={args.init},root={args.data},seq_len=32,freeze={freeze}")
    values["data"] |= {"train_size": args.examples, "dev": "", "test": ""}
    values |= {
        "train_for": "3 epochs",
        "frozen_dropout": False,
        "eval_every": 0,
        "save_every": 0,
        "best": "last",
    }
    run = build.build(spec.resolve(values))
    params, steps = weights.start_params(run, quiet=True), args.examples // run.config.batch
    few = run._replace(used=run.used[: run.config.batch])
    feature_cache.shorten(few, feature_cache.Use(many=True), params)  # compiles
    begun = time.perf_counter()
    here = feature_cache.shorten(run, feature_cache.Use(), params)
    filled = time.perf_counter() - begun
    both = {"cached": epochs(here, params, steps), "anew": epochs(run, params, steps)}
    found = [{name: epoch() for name, epoch in both.items()} for _ in range(args.turns + 1)][1:]
    low, middle, high = statistics.quantiles([t["cached"] / t["anew"] for t in found], n=4)
    seconds = {name: statistics.median(t[name] for t in found) for name in both}
    print(
        f"{freeze:6} an epoch of {args.examples}: {seconds['cached']:.2f} s cached, {seconds['anew']:.2f} s "
        f"anew, {middle:.3f} ({low:.3f}-{high:.3f}); to fill {filled:.2f} s",
        flush=True,
    )
    return {"freeze": freeze, "seconds": seconds, "ratio": [low, middle, high], "fill_seconds": filled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("init", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--examples", type=int, default=640)
    parser.add_argument("--turns", type=int, default=6)
    args = parser.parse_args()
    rows = [measure(args, freeze) for freeze in STRATEGIES]
    said = {
        "versions": record.versions(),
        "device": record.device(),
        "examples": args.examples,
        "turns": args.turns,
        "rows": rows,
    }
    args.out.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
