"""The verbs bench and report."""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptft.cli import training
from ptft.core.errors import UserError

if TYPE_CHECKING:
    from ptft.bench import protocol, runner, running


def bench_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    # A process that took most of an accelerator's memory for itself would leave none to those that measure.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from ptft.bench import cell, results, runner, running, schedule, section
    from ptft.core import record

    values, workdir = training.load_config(args, overrides), args.workdir
    record.claim(workdir, "bench.json")
    bench = section.of(values)
    cells = _cells(values, workdir)
    mine = runner.pick(cells, _shard(args.shard), args.only)
    cell.check(mine, bench.metric)
    group_key = (lambda cell: None) if args.isolated or args.only else cell.group_key
    there, ours = results.read(workdir), {c.cell for c in cells}
    have = [row for row in there if row["cell"] in ours]
    if others := len(there) - len(have):
        record.say(
            f"{others} cells in {workdir} are of another config, or of other data or weights: they do not "
            "count here"
        )
    waiting = runner.groups(runner.left_of(mine, have), group_key)
    if args.check:
        record.say(schedule.schedule(waiting, mine, have))
        return
    words = runner.command_line(args.config, overrides)
    command = runner.quoted(words)
    # one cell alone changes nothing of what the benchmark is
    if not (args.only and (workdir / "bench.json").exists()):
        whole = f"{command} --workdir {shlex.quote(str(workdir))}"
        results.write_json(
            workdir / "bench.json", runner.describe(values, mine if args.only else cells, whole)
        )
    expected = {} if args.only else cell.expected(waiting, workdir, args.isolated)
    if not args.only:
        record.say(schedule.schedule(waiting, mine, have, expected))
    benchmark = running.Bench(workdir, bench.metric, command, bench.budget)
    workers = _workers(benchmark, args, words)
    rows = runner.run(mine, workdir, workers, expected)
    if not args.only:
        record.say(f"next: ptft report {workdir}")
    if failed := sum(row["status"] == "failed" for row in rows):
        record.say(f"{failed} of {len(rows)} cells failed; the same command tries them again")
        raise SystemExit(1)


def _cells(values: Mapping[str, Any], workdir: Path) -> list[protocol.Cell]:
    """All cells of the benchmark. Where a budget needs prices, they are measured first, in WORKDIR/probes."""
    from ptft.bench import identity, probe, protocol, section
    from ptft.core import signals
    from ptft.planning import auto
    from ptft.train import spec

    budget = section.of(values).budget
    if budget != "steps":  # what the price of each strategy is compared with is measured beside it
        known = protocol.cells({**values, "bench": {**values["bench"], "budget": "steps"}}, spec.resolve)
        probe.in_turns(
            [c.config for c in known if c.kind == "train" and not auto.ask(c.config.freeze)], workdir
        )
    with signals.preemption() as caught:
        cells = protocol.cells(values, spec.resolve, identity.content, probe.spend(budget, workdir, caught))
        if caught:
            raise SystemExit(signals.PREEMPTED)
    return cells


def _workers(benchmark: running.Bench, args: argparse.Namespace, words: Sequence[str]) -> runner.Workers:
    """How cells are run: each in a process of its own, or in this one, those of a group together.

    Args:
      words: arguments of the command line that name the benchmark.
    """
    from ptft.bench import cell, runner, running

    if args.isolated:  # each process takes its cell
        argv = [sys.executable, "-m", "ptft", *words]
        return runner.Workers(lambda c: running.run_in_subprocess(c, benchmark, argv), locked=False)
    do, alone = functools.partial(cell.run_cell, metric=benchmark.metric), bool(args.only)
    share = functools.partial(cell.run_group, workdir=benchmark.workdir)
    return runner.Workers(
        lambda c: running.run_in_process(c, benchmark, do, alone),
        lambda group: running.run_group(group, benchmark, share),
        (lambda c: None) if alone else cell.group_key,
    )


def _shard(text: str) -> tuple[int, int]:
    """The part of the cells that is asked for. Of processes that were launched together, each takes one."""
    from ptft.core import mesh

    number, count = mesh.launched()
    if count > 1 and text != "1/1":
        raise UserError(f"--shard {text}: {count} processes were launched, and each takes a shard by itself")
    return (number + 1, count) if count > 1 else shard(text)


def shard(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    place, many = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= place <= many:
        raise UserError(f"--shard {text}: expected i/n, the i-th of n parts, such as 1/4 … 4/4")
    return place, many


def report_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.core import record
    from ptft.report import files, markdown

    paths = files.write(*args.folder, to=args.to, table=args.csv)
    print(markdown.first_screen(paths["md"].read_text(encoding="utf-8")) + "\n")
    for kind, path in paths.items():
        record.say(f"{kind}: {path}")
