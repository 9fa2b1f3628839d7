"""What sharing work saves a benchmark: some of its cells once more, each alone in a process, against their
like in the grid.

    python tests/benchmarks/cells_alone.py GRID OUT.json --cells 14  # GRID: a finished benchmark's folder

Cells are drawn at random, one of a strategy and size at a time. Nothing is measured again of what a step
costs: the probes are the grid's. What was not drawn takes alone, it is assumed, as much more than in the grid
as the median of what was.
"""

import argparse
import json
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ptft.bench import results
from ptft.core import record


def alone(grid: Path, command: str, cell: str) -> tuple[float, dict[str, float]]:
    """(seconds of the process, test metrics)."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(grid / "probes", Path(folder) / "probes")
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", *shlex.split(command), "--only", cell, "--workdir", folder],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - begun, results.read_json(Path(folder) / "cells" / f"{cell}.json")["test"]


def in_the_grid(rows: list[results.Row]) -> float:
    """Seconds of a cell among its like: the median, and its part of what the first took longer, to compile
    and to fill the prefix."""
    times = [r["wall_seconds"] for r in rows]
    middle = statistics.median(times)
    return middle + (max(times) - middle) / len(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=14)
    args = parser.parse_args()
    rows, bench, *_ = results.merge([args.grid])
    rows = [r for r in rows if r["kind"] == "train" and r["status"] == "ok"]
    kinds: dict[tuple[str, int], list[results.Row]] = {}
    for r in rows:
        kinds.setdefault((r["strategy"], r["size"]), []).append(r)
    shared = {kind: in_the_grid(its) for kind, its in kinds.items()}
    found = []
    for kind in random.Random(0).sample(sorted(kinds), min(args.cells, len(kinds))):
        row = random.Random(0).choice(kinds[kind])
        seconds, test = alone(args.grid, bench["command"], row["cell"])
        numbers = {"alone": seconds, "shared": shared[kind], "test": test, "test_in_the_grid": row["test"]}
        found.append({"strategy": kind[0], "size": kind[1], **numbers})
        print(
            f"{kind[0]:18} {kind[1]:5} {seconds:6.1f} s alone, {shared[kind]:5.1f} shared, "
            f"{seconds / shared[kind]:5.1f} times; accuracy {test['accuracy']:.4f}, was "
            f"{row['test']['accuracy']:.4f}",
            flush=True,
        )
    more = statistics.median(f["alone"] - f["shared"] for f in found)
    known = {(f["strategy"], f["size"]): f["alone"] for f in found}
    whole = sum(len(its) * shared[kind] for kind, its in kinds.items())
    apart = sum(len(its) * known.get(kind, shared[kind] + more) for kind, its in kinds.items())
    sample = sum(f["alone"] for f in found) / sum(f["shared"] for f in found)
    print(
        f"sample {sample:.2f} times; {len(rows)} cells: {apart / 60:.0f} min alone, {whole / 60:.0f} shared, "
        f"{apart / whole:.2f} times"
    )
    result = {
        "cells": found,
        "sample": sample,
        "all": apart / whole,
        "versions": record.versions(),
        "device": record.device(),
    }
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
