"""What a step of a config costs, measured once a benchmark, in a process apart, where strategies take turns.

    WORKDIR/probes/HASH.json         FLOPs, seconds a step (median and quartiles), bytes
    WORKDIR/probes/HASH-HASH.json    the same of a phase, where the trainable set changes with time

The hash is of all that a step depends on.

The file is what a benchmark with a budget of FLOPs or seconds goes by: measured again, seconds would differ a
little, the steps that they buy with them, and so the names of the cells.
"""

import contextlib
import functools
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict

import jax

from ptft.bench import identity, results
from ptft.core import compiled, record, signals, stored, writing
from ptft.core import config as configs
from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.planning import auto, plans
from ptft.train import build

STEPS = 10
KEY = {"flops": "flops", "seconds": "seconds_per_step"}


class Row(TypedDict, total=False):
    """What a probe's file holds (`plans.costs`), as far as it is read here; of a phase, without the
    overhead."""

    freeze: Required[Any]
    flops: Required[float | None]
    seconds_per_step: float | None
    seconds_low: float | None
    seconds_high: float | None
    problem: Required[str | None]
    phases: Sequence[stored.Object]
    overhead_seconds: float


def spend(budget: str, workdir: Path, caught: Sequence[int] = ()) -> Callable[[Config], tuple[int, float]]:
    """For `protocol.cells`: the steps that a config trains for, and what a step costs in the budget's unit.

    Args:
      caught: signals (`signals.preemption`): after one, nothing more is measured.
    """

    @functools.cache
    def spent(config: Config) -> tuple[int, float]:
        run = auto.unchosen(config)
        if any(p.start is None for p in run.phases):
            raise UserError(
                f"bench.budget: when a plateau ends, and so what freeze={config.freeze!r} costs, is known "
                "only as it runs; expected budget='steps', or starts in steps or shares"
            )
        cost = measure(config, workdir)[KEY[budget]]
        if not cost:
            raise UserError(
                f"bench.budget: the {budget} of freeze={config.freeze!r} are not known on this model; "
                "expected budget='steps'"
            )
        if caught:
            record.say("stopped; the same command goes on from here")
            raise SystemExit(signals.PREEMPTED)
        return run.durations.total, cost

    return spent


def measure(config: Config, workdir: Path) -> dict[str, Any]:
    """The cost of a step (`plans.costs`), from `workdir/probes` or measured now."""
    in_turns([config], workdir)
    if (row := known(config, workdir)) is None:
        raise UserError(_failed[str(_file(config, workdir))])
    return row


def in_turns(asked: Sequence[Config], workdir: Path) -> None:
    """Measures what is not known of these, side by side, so that their times compare: on a busy machine, one
    after the other would meet other company each. What cannot be measured, `measure` says.

    Raises:
      SystemExit(75): stopped by SIGTERM or SIGINT; nothing of these is kept.
    """
    by_file = {_file(c, workdir): c for c in asked if known(c, workdir) is None}
    new = {file: c for file, c in by_file.items() if str(file) not in _failed}
    if not new:
        return
    start_time = time.perf_counter()
    code, out, err = _child(json.dumps([c.to_dict() for c in new.values()]))
    if -code in (signal.SIGTERM, signal.SIGINT):  # meant for all of us, as a scheduler's is
        record.say("stopped; the same command goes on from here")
        raise SystemExit(signals.PREEMPTED)
    if code and len(new) > 1:  # which of them ended it, shows alone
        for config in new.values():
            in_turns([config], workdir)
        return
    if code:
        file, config = next(iter(new.items()))
        _failed[str(file)] = (
            f"the cost of freeze={config.freeze!r} could not be measured: "
            f"{(err.strip() or '?').splitlines()[-1]}"
        )
        return
    rows = json.loads(out.splitlines()[-1])
    overhead = (time.perf_counter() - start_time - sum(row["timed_seconds"] for row in rows)) / len(new)
    for file, row in zip(new, rows, strict=True):
        for part in row["phases"]:
            _first(_of_phase(file, configs.digest({"freeze": part["freeze"]})), part)
        _first(file, {**row, "overhead_seconds": overhead})  # to start and to compile


def _child(given: str) -> tuple[int, str, str]:
    """Runs `main` on configs -> (exit code, output, errors). A signal ends it at once: there is nothing to
    save."""
    with contextlib.ExitStack() as open_files:
        stdin, out, err = files = [
            open_files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(3)
        ]
        stdin.write(given)
        stdin.seek(0)
        code, stopped = signals.child(
            [sys.executable, "-m", "ptft.bench.probe"], stdin=stdin, stdout=out, stderr=err
        )
        for file in files:
            file.seek(0)
        return -signal.SIGTERM if stopped else code, out.read(), err.read()


# file -> why; of this process, so that cells of one strategy do not try one after the other
_failed: dict[str, str] = {}


def known(config: Config, workdir: Path) -> dict[str, Any] | None:
    """What was measured before, if it was. Where the trainable set changes with time, its means are those of
    this config's steps."""
    file = _file(config, workdir)
    row = results.read_json(file, Row) if file.exists() else {}
    if not row.get("phases"):
        return row or None
    return plans.along(
        {**row, "phases": [results.read_json(f, Row) for f in file.parent.glob(_of_phase(file, "*").name)]},
        build.build(config),
    )


def _file(config: Config, workdir: Path) -> Path:
    return workdir / "probes" / f"{name(config)}.json"


def _of_phase(file: Path, which: str) -> Path:
    return file.with_name(f"{file.stem}-{which}.json")


def name(config: Config) -> str:
    """Of a config on the devices that are here. Learning rate, seed, number of examples and steps, first
    weights and what is evaluated on decide nothing of what a step of a phase costs; where auto(…) chooses,
    all but the rate and the steps may decide it."""
    same = config.replace(
        train_for="1 step", **{"optim.lr": 1.0, "data.dev": "", "data.dev_size": 0, "data.test": ""}
    )
    if not auto.ask(config.freeze):
        same = same.replace(seed=0, init_weights=True, **{"data.train_size": 0})
    return configs.digest(
        {"step": identity.of(same, identity.content(same), "train"), "device": record.device()}
    )


def peaks() -> dict[str, int | None]:
    """The most memory that this process has held, in bytes: of the machine, and of its device where that
    keeps count."""
    unit = 1 if sys.platform == "darwin" else 1024
    on_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak_device": on_device}


def _first(file: Path, row: Mapping[str, Any]) -> None:
    """Of several shards that measure the same, all go by whose file is there first."""
    own = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with writing.room_for(file), contextlib.suppress(FileExistsError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            own.write_text(json.dumps(stored.sealed(row)), encoding="utf-8")
            os.link(own, file)
        finally:
            own.unlink(missing_ok=True)


def main() -> None:
    """The child: resolved configs on standard input, their rows on standard output."""
    compiled.start()
    runs = [_chosen(auto.built(Config(values))) for values in json.loads(sys.stdin.read())]
    rows = plans.costs(runs, STEPS)
    # of several, whose peak?
    about = {**(peaks() if len(rows) == 1 else {}), "versions": record.versions(), "device": record.device()}
    print(json.dumps([{**record.plain(row), **about} for row in rows]))


def _chosen(run: build.Run) -> build.Run:
    """The run under what auto(…) has chosen."""
    return build.refrozen(run, run.phases[0].strategy) if auto.ask(run.config.freeze) else run


if __name__ == "__main__":
    main()
