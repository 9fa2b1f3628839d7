"""Runs the cells of a benchmark that are not there yet; one JSON line a run in `WORKDIR/runs.jsonl`."""

import json
import math
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptft import record
from ptft.bench import protocol
from ptft.config import Config, digest
from ptft.errors import UserError, did_you_mean

RESULT = ("dev", "test", "best_step", "steps", "seconds", "seconds_per_step", "trainable", "total", "trainable_share", "flops_per_step",
          "config_hash", "versions", "device")  # fmt: skip


def run(
    values: dict[str, Any], resolve: Callable[[dict[str, Any]], Config], workdir: Path, run_one: Callable[[Config, Path], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Runs what is missing, in order, and returns the newest row of every cell.

    A finished cell is never run again. A failed cell is recorded with its error (the traceback lies in its folder) and tried
    again on the next start. A stop (Ctrl-C, preemption) passes through: the same call goes on where it was.

    Args:
      values: a finetune config with a `bench` section.
      resolve: checks a finetune config and fills in its defaults.
      run_one: trains one config in a folder and returns its result; resumes when called again (`train.run`).
    Raises:
      UserError: the benchmark's config is wrong, or its metric is none of those a run reports.
      Exception: the error of the first cell, when every cell failed.
    """
    cells, bench = protocol.cells(values, resolve), protocol.section(values)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "runs.jsonl"
    _cut_torn_line(path)
    rows = {row["cell"]: row for row in read(path)}
    done = {c.cell for c in cells if rows.get(c.cell, {}).get("status") == "ok"}
    made = {"command": "ptft " + shlex.join(sys.argv[1:]), "versions": record.versions(), "device": record.device()}
    # The report shows the cells that are listed here: rows of an earlier config stay in runs.jsonl, but do not mix with these.
    listed = {c.cell: [c.strategy, c.seed] for c in cells}
    record.write_json(workdir / "bench.json", {**made, "config_hash": digest(values), **bench.to_dict(), "cells": listed, "config": values})
    if done:
        record.say(f"{len(done)} of {len(cells)} cells are there already, {len(cells) - len(done)} to run")

    spent: list[float] = []
    errors: list[Exception] = []
    for i, cell in enumerate(cells):
        folder = workdir / "cells" / cell.cell
        if cell.cell in done:
            _drop_checkpoints(folder)
            continue
        name = f"cell {i + 1}/{len(cells)} {cell.strategy} seed {cell.seed}"
        start = time.monotonic()
        try:
            result = run_one(cell.config, folder)
            score = _score(result, bench.metric)
            row = _row(cell, bench, {"status": "ok", "error": ""}, result)
            news = f"test {bench.metric} {score:.3f}"
        except (KeyboardInterrupt, SystemExit):
            record.say(f"{name}: stopped; the same command goes on from here")
            raise
        except _UnknownMetric:
            raise
        except Exception as e:
            errors.append(e)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            said = " ".join(str(e).split())[:500]
            row = _row(cell, bench, {"status": "failed", "error": said if isinstance(e, UserError) else f"{type(e).__name__}: {said}"}, {})
            news = f"FAILED: {row['error']}"
        _append(path, row)
        rows[cell.cell] = row
        if row["status"] == "ok":
            _drop_checkpoints(folder)
        spent.append(time.monotonic() - start)
        left = sum(c.cell not in done for c in cells[i + 1 :])
        record.say(f"{name}: {news} ({spent[-1]:.1f} s)" + (f", {_about(left * sum(spent) / len(spent))} left" if left else ""))
    if errors and not any(rows[c.cell]["status"] == "ok" for c in cells):
        raise errors[0]
    return [{**rows[c.cell], "strategy": c.strategy} for c in cells]


class _UnknownMetric(UserError):
    """The config's mistake, and not the cell's."""


def _score(result: dict[str, Any], metric: str) -> float:
    if metric not in result["test"]:
        raise _UnknownMetric(f"bench.metric: runs report no {metric!r}; {did_you_mean(metric, result['test'])}")
    score = result["test"][metric]
    if score is None or not math.isfinite(score):
        raise ValueError(f"test {metric} is not a finite number: training diverged")
    return score


def _row(cell: protocol.Cell, bench: Config, status: dict[str, str], result: dict[str, Any]) -> dict[str, Any]:
    plain = cell.config.to_dict()
    return {
        "cell": cell.cell,
        "strategy": cell.strategy,
        "freeze": plain.get("freeze"),
        "lr": plain.get("optim", {}).get("lr"),
        "init_from": plain.get("init_from", "") if plain.get("init_weights", True) else "",
        "seed": cell.seed,
        "task": bench.task,
        "metric": bench.metric,
        **{key: result.get(key) for key in RESULT},
        **status,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; [] if it is not there. A last line without its newline (a killed writer) does not count.

    Raises:
      UserError: a broken line, by file and number.
    """
    rows = []
    for i, line in enumerate((path.read_bytes() if path.exists() else b"").split(b"\n")[:-1]):
        try:
            row = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}:{i + 1}: not a line of JSON ({e}); remove the line or restore the file") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{i + 1}: expected a JSON object, got {line[:80].decode(errors='replace')}")
        rows.append(row)
    return rows


def _cut_torn_line(path: Path) -> None:
    """A killed process may leave half a line, to which the next line must not be glued."""
    if path.exists():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)


def _append(path: Path, row: dict[str, Any]) -> None:
    line = json.dumps(record.plain(row), ensure_ascii=False, allow_nan=False)
    with path.open("a", encoding="utf-8") as f:
        f.write(line + "\n")
        f.flush()
        os.fsync(f.fileno())


def _drop_checkpoints(folder: Path) -> None:
    """A finished cell keeps its result and its curves, not its weights."""
    for name in ("checkpoints", "best", "manifests"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _about(seconds: float) -> str:
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
