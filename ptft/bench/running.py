"""Running cells: in this process, as a group, or each in a process of its own; their rows."""

import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptft.bench import probe, results
from ptft.bench.baselines import Unavailable
from ptft.bench.cell_result import CellResult, Row, row_of
from ptft.bench.protocol import Cell
from ptft.core import config as configs
from ptft.core import locks, signals
from ptft.core.errors import UserError

Outcome = CellResult | Exception
Work = Callable[[Cell, Path], CellResult]
Together = Callable[[Sequence[Cell]], Iterator[Mapping[int, Outcome]]]


class Bench(NamedTuple):
    """What the cells of a benchmark have in common."""

    workdir: Path
    metric: str
    command: str  # that of the whole, without a folder
    budget: str = "steps"


def run_in_process(cell: Cell, bench: Bench, do: Work, alone: bool = False) -> Row:
    """Runs a cell in this process, writes its row, and clears its folder away once it is done.

    Args:
      alone: nothing else has run in this process, so that what it held and took is the cell's.
    """
    folder = bench.workdir / "cells" / cell.cell
    _start_over(folder, cell.config.to_dict())
    start_time = time.perf_counter()
    outcome: Outcome
    try:
        outcome = do(cell, folder)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as e:
        outcome = e
    took = {"wall_seconds": time.perf_counter() - start_time, "isolated": alone}
    row = row_of(_judged(cell, outcome, bench), took, probe.peaks() if alone else {})
    results.write(bench.workdir, row)
    if row["status"] == "ok":
        shutil.rmtree(folder, ignore_errors=True)
    return row


def run_group(cells: Sequence[Cell], bench: Bench, do: Together) -> Iterator[dict[int, Row]]:
    """Runs cells of one group in this process and writes their rows; those that are done at once took equal
    parts of the time."""
    missing = set(range(len(cells)))

    def keep(outcomes: Mapping[int, Outcome], seconds: float) -> dict[int, Row]:
        known = {"wall_seconds": seconds / len(outcomes), "isolated": False}
        rows = {i: row_of(_judged(cells[i], outcome, bench), known) for i, outcome in outcomes.items()}
        for row in rows.values():
            results.write(bench.workdir, row)
        missing.difference_update(rows)
        return rows

    start_time = time.perf_counter()
    try:
        for outcomes in do(cells):
            yield keep(outcomes, time.perf_counter() - start_time)
            start_time = time.perf_counter()
    except Exception as e:
        yield keep(dict.fromkeys(sorted(missing), e), time.perf_counter() - start_time)


def _judged(cell: Cell, outcome: Outcome, bench: Bench) -> Row:
    """The row of a cell that gave this result, or ended with this error."""
    if isinstance(outcome, CellResult):
        # a network of NaN still has an accuracy: that of one class
        numbers = {bench.metric: None, **(outcome.test or {})}
        if bad := [name for name, value in numbers.items() if value is None or not math.isfinite(value)]:
            outcome = ValueError(f"test {bad[0]} is not a finite number: training diverged")
    status = {"status": "ok", "error": "", "traceback": None}
    if isinstance(outcome, Unavailable):
        status |= {"status": "skipped", "error": str(outcome)}
    elif isinstance(outcome, Exception):
        said = " ".join(str(outcome).split())[:500]
        error = said if isinstance(outcome, UserError) else f"{type(outcome).__name__}: {said}"
        status |= {
            "status": "failed",
            "error": error,
            "traceback": "".join(traceback.format_exception(outcome)),
        }
    return _row(cell, status, outcome if isinstance(outcome, CellResult) else CellResult(), bench)


def _row(cell: Cell, status: Mapping[str, Any], result: CellResult, bench: Bench) -> Row:
    plain = cell.config.to_dict()
    known = {
        "freeze": plain.get("freeze"), "train_for": plain.get("train_for"),
        "budget": {"kind": bench.budget, "share": cell.share},
        "init_from": plain.get("init_from", "") if plain.get("init_weights", True) else "",
    }  # fmt: skip
    own = {
        "cell": cell.cell,
        **cell.labels,
        **status,
        "metric": bench.metric,
        **(known if cell.kind == "train" else {}),
    }
    numbers = {
        "dev": None,
        "test": None,
        "bytes": None,
        "peak_rss": None,
        "peak_device": None,
        **result.to_row(),
    }
    again = {"command": f"{bench.command} --only {cell.cell} --workdir runs/{cell.cell}", "config": plain}
    return row_of(own, numbers, again)


def _start_over(folder: Path, config: Mapping[str, Any]) -> None:
    """A run that was stopped goes on; but with weights or data under another path, though the same, it could
    not."""
    if (folder / "config.json").is_file() and configs.difference(
        results.read_json(folder / "config.json"), config
    ):
        shutil.rmtree(folder)


def run_in_subprocess(cell: Cell, bench: Bench, argv: Sequence[str]) -> Row:
    """Runs a cell in a process of its own and returns the row that it wrote.

    Args:
      argv: the command of the benchmark, to which `--only HASH --workdir DIR` is added.
    """
    workdir = bench.workdir
    file, said = workdir / "cells" / f"{cell.cell}.json", workdir / "cells" / f"{cell.cell}.log"
    before = _stamp(file)  # of the row of a failed try
    said.parent.mkdir(parents=True, exist_ok=True)
    start_time = time.perf_counter()
    with said.open("wb") as log:
        code, stopped = signals.child(
            [*argv, "--only", cell.cell, "--workdir", str(workdir)], stdout=log, stderr=log
        )
    if stopped:
        raise SystemExit(signals.PREEMPTED)
    if _stamp(file) != before or results.finished(workdir, cell.cell):
        row = results.read_row(file)
    else:  # it ended without a word, as a process does that runs out of memory
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        status = {
            "status": "failed",
            "error": " ".join([f"its process {how}:", *last]).rstrip(":"),
            "traceback": None,
        }
        row = row_of(_row(cell, status, CellResult(), bench), {"isolated": True})
        with locks.of(workdir) as held:
            if held.take(cell.cell) and not results.finished(workdir, cell.cell):
                results.write(workdir, row)
    said.unlink()
    return row_of(row, {"wall_seconds": time.perf_counter() - start_time})


def _stamp(file: Path) -> tuple[int, int] | None:
    """What another writing of the file changes."""
    if not file.exists():
        return None
    at = file.stat()
    return at.st_ino, at.st_mtime_ns
