"""Runs the cells of a benchmark that are not there yet; one JSON file a cell.

    WORKDIR/bench.json          what the benchmark is: its cells by hash, its config, its command
    WORKDIR/cells/HASH.json     a cell's row, written when it has finished or failed
    WORKDIR/cells/HASH/         its run, while it is not finished; a killed benchmark goes on there
    WORKDIR/lock                what is run now, and by which process (`locks`)

A finished cell is never run again; a failed one is recorded with its error and tried again on the next start.
Several shards may share a WORKDIR, or have one each: `ptft report A B` reads both.
"""

import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptft.bench import protocol, results, schedule, section
from ptft.bench.cell_result import Row, row_of
from ptft.bench.protocol import Cell
from ptft.core import config as configs
from ptft.core import locks, progress, record, signals
from ptft.core.errors import UserError, did_you_mean


class Workers(NamedTuple):
    """How cells are run."""

    attempt: Callable[[Cell], Row]  # one of them
    # several; gives some of the rows at a time, by number
    together: Callable[[Sequence[Cell]], Iterator[dict[int, Row]]] | None = None
    group_key: Callable[[Cell], str | None] = lambda cell: None  # those that run together have the same
    # a cell that another process has taken is left to it; False where the attempts see to that
    locked: bool = True


def pick(cells: Sequence[Cell], shard: tuple[int, int] = (1, 1), only: str = "") -> list[Cell]:
    """The cells of shard i of n, or the one with a hash. Shards differ by at most one cell, and none has a
    strategy to itself. They go by what cells are called: seconds measured on another machine change a
    budget's steps, and with them the hashes."""
    if only:
        named = [c for c in cells if c.cell == only]
        if not named:
            raise UserError(
                f"--only {only}: this benchmark has no such cell; config, data or starting weights are not "
                f"what they were. {did_you_mean(only, [c.cell for c in cells])} (with a budget of seconds, a "
                "new folder needs the old one's probes/)"
            )
        return named
    place, many = shard
    mine = {c.cell for c in sorted(cells, key=lambda c: configs.digest(c.labels))[place - 1 :: many]}
    return [c for c in cells if c.cell in mine]


def describe(values: Mapping[str, Any], cells: Sequence[Cell], command: str) -> dict[str, Any]:
    """`bench.json`: what a report must know beside the rows. The same from every shard of one machine."""
    bench = section.of(values).to_dict()
    return {
        "command": command, "versions": record.versions(), "device": record.device(),
        "config_hash": configs.digest(values),
        **{k: bench[k] for k in ("task", "metric", "baseline", "budget", "repeat", "seeds")},
        "order": list(dict.fromkeys(c.strategy for c in cells)), "cells": {c.cell: c.labels for c in cells},
        "config": values,
    }  # fmt: skip


def run(
    cells: Sequence[Cell], workdir: Path, workers: Workers, expected: Mapping[str, float] = schedule.EXPECTED
) -> list[Row]:
    """Runs what is missing of these cells, in order, and returns the row of every one.

    A stop (Ctrl-C, preemption) passes through, or ends it after the cell in whose training it did not fall:
    the same call goes on.

    Args:
      expected: seconds of cells whose like has not finished yet, by hash.
    Raises:
      SystemExit(75): stopped by SIGTERM or SIGINT.
    """
    have = {row["cell"]: row for row in results.read(workdir)}
    rows = {c.cell: have[c.cell] for c in cells if c.cell in have}
    todo = left_of(cells, list(rows.values()))
    for cell in cells:
        if cell not in todo:
            # killed between the row and this
            shutil.rmtree(workdir / "cells" / cell.cell, ignore_errors=True)
    if len(todo) < len(cells):
        record.say(f"{len(cells) - len(todo)} of {len(cells)} cells are there already, {len(todo)} to run")
    with (
        progress.bar(len(cells), len(cells) - len(todo)) as advance,
        signals.preemption() as caught,
        locks.of(workdir) as held,
    ):
        tally = _Tally(cells, rows, todo, expected, advance)
        waiting = groups(todo, workers.group_key if workers.together else lambda cell: None)
        taken = _taken(waiting, workdir, held, caught) if workers.locked else ((g, []) for g in waiting)
        for group, elsewhere in taken:
            for cell, row in elsewhere:
                tally.keep(cell, row, "another process")
            try:
                for some in _ran(group, workers):
                    for i, row in some.items():
                        tally.keep(group[i], row, f"{row['wall_seconds']:.1f} s")
                    if caught and tally.todo:
                        raise SystemExit(signals.PREEMPTED)
            except (KeyboardInterrupt, SystemExit):
                tally.stopped(group)
                raise
    return [row_of(rows[c.cell], c.labels) for c in cells]


def _ran(group: Sequence[Cell], workers: Workers) -> Iterator[dict[int, Row]]:
    """Some of the rows of a group at a time, by number."""
    if workers.together and len(group) > 1:
        return workers.together(group)
    return ({i: workers.attempt(cell)} for i, cell in enumerate(group))


class _Tally:
    """What is done and what is left, told as it changes."""

    def __init__(
        self,
        cells: Sequence[Cell],
        rows: dict[str, Row],
        todo: list[Cell],
        expected: Mapping[str, float],
        advance: Callable[[str], None],
    ):
        self.cells, self.rows, self.todo = cells, rows, todo
        self.expected, self.advance = expected, advance

    def keep(self, cell: Cell, row: Row, what: str) -> None:
        self.rows[cell.cell] = row
        self.todo = [c for c in self.todo if c is not cell]
        left = schedule.about(schedule.predict(self.todo, list(self.rows.values()), self.expected))
        record.say(f"{self._name(0, cell)}: {news(row)} ({what})" + (f", {left} left" if left else ""))
        self.advance(left and f"{left} left")

    def stopped(self, group: Sequence[Cell]) -> None:
        cell = next((c for c in group if c in self.todo), self.todo[0])
        record.say(f"{self._name(1, cell)}: stopped; the same command goes on from here")

    def _name(self, next_one: int, cell: Cell) -> str:
        number = len(self.cells) - len(self.todo) + next_one
        return f"cell {number}/{len(self.cells)} {protocol.describe(cell.labels)}"


def _taken(
    waiting: list[list[Cell]], workdir: Path, held: locks.Locks, caught: Sequence[int]
) -> Iterator[tuple[list[Cell], list[tuple[Cell, Row]]]]:
    """Group by group, those that no other process runs now, and the rows of those that one has finished; the
    others come last.

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
            yield (
                [c for cell, c in mine.items() if cell not in finished],
                [(mine[cell], row) for cell, row in finished.items()],
            )
            for cell in mine:
                held.give_back(cell)
        in_vain = 0 if mine else in_vain + 1
        if in_vain and caught:
            raise SystemExit(signals.PREEMPTED)
        if in_vain >= max(1, len(waiting)):
            time.sleep(0.5)


def left_of(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
    """The cells that have not finished; first the references, which take little and are the floor of whatever
    is there after a stop."""
    done = {row["cell"] for row in rows if row["status"] == "ok"}
    return sorted((c for c in cells if c.cell not in done), key=lambda c: c.kind == "train")


def groups(cells: Sequence[Cell], group_key: Callable[[Cell], str | None]) -> list[list[Cell]]:
    """Cells of one group side by side, in the order of the first of each; one without a key is alone."""
    by_key: dict[str, list[Cell]] = {}
    for cell in cells:
        by_key.setdefault(group_key(cell) or cell.cell, []).append(cell)
    return list(by_key.values())


def news(row: Row) -> str:
    if row["status"] != "ok":
        return f"{'FAILED' if row['status'] == 'failed' else 'skipped'}: {row['error']}"
    return f"test {row['metric']} {results.score(row, 'test', row['metric']):.3f}" + (
        f", {row['chosen']}" if row.get("chosen") else ""
    )


def command_line(page: str, overrides: Sequence[str]) -> list[str]:
    """The arguments that name a benchmark: its page and what is changed of it."""
    return ["bench", "--config", page, *(f"--config.{o}" for o in overrides)]


def quoted(arguments: Sequence[str]) -> str:
    return "ptft " + shlex.join(arguments)
