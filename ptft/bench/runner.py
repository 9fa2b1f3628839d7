"""Runs the cells of a benchmark that are not there yet; one JSON file a cell.

    WORKDIR/bench.json          what the benchmark is: its cells by hash, its config, its command
    WORKDIR/cells/HASH.json     a cell's row, written when it has finished or failed
    WORKDIR/cells/HASH/         its run, while it is not finished; a killed benchmark goes on there
    WORKDIR/lock                what is run now, and by which process (`locks`)

A finished cell is never run again; a failed one is recorded with its error and tried again on the next start. Several shards
may share a WORKDIR, or have one each: `ptft report A B` reads both.
"""

import math
import shlex
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptft.bench import locks, probe, protocol, results
from ptft.bench.baselines import Unavailable
from ptft.bench.protocol import Cell
from ptft.bench.results import Row
from ptft.core import config as configs
from ptft.core import mesh, record
from ptft.core.errors import UserError, did_you_mean
from ptft.train import train

Work = Callable[[Cell, Path], dict[str, Any]]
Attempt = Callable[[Cell], Row]
Together = Callable[[Sequence[Cell]], Iterator[dict[int, Row]]]
EXPECTED: Mapping[str, float] = {}  # nothing is known


def pick(cells: Sequence[Cell], shard: tuple[int, int] = (1, 1), only: str = "") -> list[Cell]:
    """The cells of shard i of n, or the one with a hash. Shards differ by at most one cell, and none has a strategy to itself. They go
    by what cells are called: seconds measured on another machine change a budget's steps, and with them the hashes."""
    if only:
        found = [c for c in cells if c.cell == only]
        if not found:
            raise UserError(
                f"--only {only}: this benchmark has no such cell; config, data or starting weights are not what they were. "
                f"{did_you_mean(only, [c.cell for c in cells])} (with a budget of seconds, a new folder needs the old one's probes/)"
            )
        return found
    place, many = shard
    mine = {c.cell for c in sorted(cells, key=lambda c: configs.digest(c.labels))[place - 1 :: many]}
    return [c for c in cells if c.cell in mine]


def describe(values: Mapping[str, Any], cells: Sequence[Cell], command: str) -> dict[str, Any]:
    """`bench.json`: what a report must know beside the rows. The same from every shard of one machine."""
    bench = protocol.section(values).to_dict()
    return {
        "command": command, "versions": record.versions(), "device": record.device(), "config_hash": configs.digest(values),
        **{k: bench[k] for k in ("task", "metric", "baseline", "budget", "repeat", "seeds")},
        "order": list(dict.fromkeys(c.strategy for c in cells)), "cells": {c.cell: c.labels for c in cells}, "config": values,
    }  # fmt: skip


def run(
    cells: Sequence[Cell],
    workdir: Path,
    attempt: Attempt,
    together: Together | None = None,
    group_key: Callable[[Cell], str | None] = lambda cell: None,
    expected: Mapping[str, float] = EXPECTED,
    locked: bool = True,
) -> list[Row]:
    """Runs what is missing of these cells, in order, and returns the row of every one.

    A stop (Ctrl-C, preemption) passes through, or ends it after the cell in whose training it did not fall: the same call goes on.

    Args:
      attempt: runs one cell.
      together: runs cells of one `group_key` side by side, and yields the rows of some of them at a time, by number.
      expected: seconds of cells whose like has not finished yet, by hash.
      locked: a cell that another process has taken is left to it; False where the attempts see to that.
    Raises:
      SystemExit(75): stopped by SIGTERM or SIGINT.
    """
    have = {row["cell"]: row for row in results.read(workdir)}
    rows = {c.cell: have[c.cell] for c in cells if c.cell in have}
    todo = left_of(cells, list(rows.values()))
    for cell in cells:
        if cell not in todo:
            shutil.rmtree(workdir / "cells" / cell.cell, ignore_errors=True)  # killed between the row and this
    if len(todo) < len(cells):
        record.say(f"{len(cells) - len(todo)} of {len(cells)} cells are there already, {len(todo)} to run")
    with record.bar(len(cells), len(cells) - len(todo)) as advance, mesh.preemption() as caught, locks.of(workdir) as held:

        def keep(cell: Cell, row: Row, what: str) -> None:
            nonlocal todo
            rows[cell.cell] = row
            todo = [c for c in todo if c is not cell]
            left = about(predict(todo, list(rows.values()), expected))
            name = f"cell {len(cells) - len(todo)}/{len(cells)} {protocol.describe(cell.labels)}"
            record.say(f"{name}: {news(row)} ({what})" + (f", {left} left" if left else ""))
            advance(left and f"{left} left")

        waiting = groups(todo, group_key if together else lambda cell: None)
        for group, elsewhere in _taken(waiting, workdir, held, caught) if locked else ((g, []) for g in waiting):
            for cell, row in elsewhere:
                keep(cell, row, "another process")
            try:
                for found in together(group) if together and len(group) > 1 else ({i: attempt(c)} for i, c in enumerate(group)):
                    for i, row in found.items():
                        keep(group[i], row, f"{row['wall_seconds']:.1f} s")
                    if caught and todo:
                        raise SystemExit(train.PREEMPTED)
            except (KeyboardInterrupt, SystemExit):
                cell = next((c for c in group if c in todo), todo[0])
                name = f"cell {len(cells) - len(todo) + 1}/{len(cells)} {protocol.describe(cell.labels)}"
                record.say(f"{name}: stopped; the same command goes on from here")
                raise
    return [{**rows[c.cell], **c.labels} for c in cells]


def _taken(
    waiting: list[list[Cell]], workdir: Path, held: locks.Locks, caught: Sequence[int]
) -> Iterator[tuple[list[Cell], list[tuple[Cell, Row]]]]:
    """Group by group, those that no other process runs now, and the rows of those that one has finished; the others come last.

    Raises:
      SystemExit(75): stopped while there was only to wait.
    """
    told, in_vain = False, 0
    while waiting:
        group = waiting.pop(0)
        mine = {c.cell: c for c in group if held.take(c.cell)}
        if theirs := [c for c in group if c.cell not in mine]:
            waiting.append(theirs)
            if not told:
                record.say(f"another process runs cells of {workdir}; they are left to it")
            told = True
        if mine:
            finished = {cell: row for cell in mine if (row := results.finished(workdir, cell))}
            yield [c for cell, c in mine.items() if cell not in finished], [(mine[cell], row) for cell, row in finished.items()]
            for cell in mine:
                held.give_back(cell)
        in_vain = 0 if mine else in_vain + 1
        if in_vain and caught:
            raise SystemExit(train.PREEMPTED)
        if in_vain >= max(1, len(waiting)):
            time.sleep(0.5)


def left_of(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
    """The cells that have not finished; first the references, which take little and are the floor of whatever is there after a stop."""
    done = {row["cell"] for row in rows if row["status"] == "ok"}
    return sorted((c for c in cells if c.cell not in done), key=lambda c: c.kind == "train")


def groups(cells: Sequence[Cell], group_key: Callable[[Cell], str | None]) -> list[list[Cell]]:
    """Cells of one group side by side, in the order of the first of each; one without a key is alone."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(group_key(cell) or cell.cell, []).append(cell)
    return list(found.values())


def news(row: Row) -> str:
    if row["status"] != "ok":
        return f"{'FAILED' if row['status'] == 'failed' else 'skipped'}: {row['error']}"
    return f"test {row['metric']} {results.score(row, 'test', row['metric']):.3f}" + (f", {row['chosen']}" if row.get("chosen") else "")


def run_in_process(cell: Cell, workdir: Path, do: Work, metric: str, command: str, budget: str = "steps", alone: bool = False) -> Row:
    """Runs a cell in this process, writes its row, and clears its folder away once it is done.

    Args:
      alone: nothing else has run in this process, so that what it held and took is the cell's.
    """
    folder = workdir / "cells" / cell.cell
    _start_over(folder, cell.config.to_dict())
    begun = time.perf_counter()
    outcome: dict[str, Any] | Exception
    try:
        outcome = do(cell, folder)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as e:
        outcome = e
    row = _judged(cell, outcome, metric, command, budget)
    row |= {"wall_seconds": time.perf_counter() - begun, "isolated": alone, **(probe.peaks() if alone else {})}
    results.write(workdir, row)
    if row["status"] == "ok":
        shutil.rmtree(folder, ignore_errors=True)
    return row


def run_group(
    cells: Sequence[Cell],
    workdir: Path,
    do: Callable[[Sequence[Cell]], Iterator[Mapping[int, dict[str, Any] | Exception]]],
    metric: str,
    command: str,
    budget: str = "steps",
) -> Iterator[dict[int, Row]]:
    """Runs cells of one group in this process and writes their rows; those that are done at once took equal parts of the time."""
    missing = set(range(len(cells)))

    def keep(found: Mapping[int, dict[str, Any] | Exception], seconds: float) -> dict[int, Row]:
        known = {"wall_seconds": seconds / len(found), "isolated": False}
        rows = {i: {**_judged(cells[i], outcome, metric, command, budget), **known} for i, outcome in found.items()}
        for row in rows.values():
            results.write(workdir, row)
        missing.difference_update(rows)
        return rows

    begun = time.perf_counter()
    try:
        for found in do(cells):
            yield keep(found, time.perf_counter() - begun)
            begun = time.perf_counter()
    except Exception as e:
        yield keep(dict.fromkeys(sorted(missing), e), time.perf_counter() - begun)


def _judged(cell: Cell, outcome: dict[str, Any] | Exception, metric: str, command: str, budget: str) -> Row:
    """The row of a cell that gave this result, or ended with this error."""
    if isinstance(outcome, dict):
        numbers = {metric: None, **(outcome.get("test") or {})}  # a network of NaN still has an accuracy: that of one class
        if bad := [name for name, value in numbers.items() if value is None or not math.isfinite(value)]:
            outcome = ValueError(f"test {bad[0]} is not a finite number: training diverged")
    status = {"status": "ok", "error": "", "traceback": None, "metric": metric}
    if isinstance(outcome, Unavailable):
        status |= {"status": "skipped", "error": str(outcome)}
    elif isinstance(outcome, Exception):
        said = " ".join(str(outcome).split())[:500]
        error = said if isinstance(outcome, UserError) else f"{type(outcome).__name__}: {said}"
        status |= {"status": "failed", "error": error, "traceback": "".join(traceback.format_exception(outcome))}
    return _row(cell, status, outcome if isinstance(outcome, dict) else {}, command, budget)


def _row(cell: Cell, status: Mapping[str, Any], result: Mapping[str, Any], command: str, budget: str) -> Row:
    plain = cell.config.to_dict()
    known = {
        "freeze": plain.get("freeze"), "train_for": plain.get("train_for"), "budget": {"kind": budget, "share": cell.share},
        "init_from": plain.get("init_from", "") if plain.get("init_weights", True) else "",
    }  # fmt: skip
    again = {"command": f"{command} --only {cell.cell} --workdir runs/{cell.cell}"}
    numbers = {"dev": None, "test": None, "bytes": None, "peak_rss": None, "peak_device": None, **result}
    return {"cell": cell.cell, **cell.labels, **status, **(known if cell.kind == "train" else {}), **numbers, **again, "config": plain}


def _start_over(folder: Path, config: Mapping[str, Any]) -> None:
    """A run that was stopped goes on; but with weights or data under another path, though the same, it could not."""
    if (folder / "config.json").is_file() and configs.difference(results.read_json(folder / "config.json"), config):
        shutil.rmtree(folder)


def run_in_subprocess(cell: Cell, workdir: Path, argv: Sequence[str], metric: str, command: str, budget: str = "steps") -> Row:
    """Runs a cell in a process of its own and returns the row that it wrote.

    Args:
      argv: the command of the benchmark, to which `--only HASH --workdir DIR` is added.
    """
    file, said = workdir / "cells" / f"{cell.cell}.json", workdir / "cells" / f"{cell.cell}.log"
    before = _stamp(file)  # of the row of a failed try
    said.parent.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with said.open("wb") as log:
        code, stopped = mesh.child([*argv, "--only", cell.cell, "--workdir", str(workdir)], stdout=log, stderr=log)
    if stopped:
        raise SystemExit(train.PREEMPTED)
    if _stamp(file) != before or results.finished(workdir, cell.cell):
        row = results.read_json(file)
    else:  # it ended without a word, as a process does that runs out of memory
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        status = {"status": "failed", "error": " ".join([f"its process {how}:", *last]).rstrip(":"), "traceback": None, "metric": metric}
        row = {**_row(cell, status, {}, command, budget), "isolated": True}
        with locks.of(workdir) as held:
            if held.take(cell.cell) and not results.finished(workdir, cell.cell):
                results.write(workdir, row)
    said.unlink()
    return {**row, "wall_seconds": time.perf_counter() - begun}


def _stamp(file: Path) -> tuple[int, int] | None:
    """What another writing of the file changes."""
    if not file.exists():
        return None
    at = file.stat()
    return at.st_ino, at.st_mtime_ns


def predict(todo: Sequence[Cell], rows: Sequence[Row], expected: Mapping[str, float] = EXPECTED) -> float | None:
    """Seconds that cells will take: as the median of what is finished of their like, else as expected, else as of anything that is
    finished; None where nothing is known."""

    def nearest(labels: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        near = tuple(labels[k] for k in ("kind", "task", "model", "size", "strategy"))
        return [near, near[:-1], near[:1]]

    times: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["status"] == "ok" and row.get("wall_seconds") is not None:
            for key in nearest(row):
                times.setdefault(key, []).append(row["wall_seconds"])
    medians = {key: statistics.median(found) for key, found in times.items()}
    everything = times.get(("train",), []) or list(expected.values())
    if not everything and any(c.kind == "train" for c in todo):
        return None

    def one(cell: Cell) -> float:
        own, *others = nearest(cell.labels)
        if own in medians or cell.cell in expected:
            return medians.get(own, expected.get(cell.cell, 0.0))
        return next((medians[key] for key in others if key in medians), statistics.median(everything) if cell.kind == "train" else 0.0)

    return sum(map(one, todo))


def schedule(
    waiting: Sequence[Sequence[Cell]], cells: Sequence[Cell], rows: Sequence[Row], expected: Mapping[str, float] | None = None
) -> str:
    """What would run and for how long, without running it.

    Args:
      waiting: what is to run, those together that run together (`groups`); cells: all, the finished ones among them.
      expected: as of `run`; None: not measured yet.
    """
    unknown = "for how long shows once a cell has run"
    if expected is None:
        expected, unknown = EXPECTED, "how long is measured when the run starts"
    todo = [cell for group in waiting for cell in group]
    lines = []
    for task, model, size in dict.fromkeys((c.task, c.model, c.size) for c in cells if c.kind == "train"):
        mine = [c for c in cells if (c.task, c.model, c.size, c.kind) == (task, model, size, "train")]
        lines.append(", ".join(filter(None, [task, model, f"{size} examples" if size else "all examples"])))
        for name in dict.fromkeys(c.strategy for c in mine):
            own = [c for c in mine if c.strategy == name]
            rates = ", ".join(f"{lr:g}" for lr in dict.fromkeys(c.lr for c in own if c.lr is not None))
            beside = sum(len(group) > 1 for group in waiting if any(c in own for c in group))
            time = about(predict([c for c in own if c in todo], rows, expected)) if any(c in todo for c in own) else "finished"
            parts = [_count(own), f"lr {rates}", own[0].config.to_dict().get("train_for"), "one program" * bool(beside), time]
            lines.append(f"  {name}: {', '.join(filter(None, parts))}")
    references = [c for c in cells if c.kind != "train"]
    lines += [f"references: {_count(references)}"] * bool(references)
    seconds = predict(todo, rows, expected)
    left = f", {about(seconds)}" if about(seconds) else f"; {unknown}" * bool(todo)
    return "\n".join([*lines, f"{_count(cells)}, {len(cells) - len(todo)} finished, {len(todo)} to run{left}"])


def _count(cells: Sequence[Cell]) -> str:
    return f"{len(cells)} cell" + "s" * (len(cells) != 1)


def about(seconds: float | None) -> str:
    if not seconds:
        return ""
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def command_line(page: str, overrides: Sequence[str]) -> list[str]:
    """The arguments that name a benchmark: its page and what is changed of it."""
    return ["bench", "--config", page, *(f"--config.{o}" for o in overrides)]


def quoted(arguments: Sequence[str]) -> str:
    return "ptft " + shlex.join(arguments)
