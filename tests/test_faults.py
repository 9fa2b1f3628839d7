"""What is promised of faults, tried at length in real processes: `bash launch/test.sh --faults`.

The short forms are in the tests of each subject; tests/fault_table.py lists all.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fault_table
import flow
import numpy as np
import pytest
import zygote
from zygote import Ended, Moment, Zygote

from ptft.core import checkpoint, integrity, signals

MODEL = {"layers": 1, "hidden": 64, "max_len": 32, "dropout": 0.1}
SAVE_EVERY = 4  # of flow.finetuning
OF_TIME = ("digest", "times")  # of result.json


class Home(NamedTuple):
    page: str
    zygote: Zygote
    whole: Path  # a run that nothing disturbed
    seconds: dict[str, list[float]]  # that it was in each place
    cache: Path

    def argv(self, workdir: Path) -> list[str]:
        return ["train", "--config", self.page, "--workdir", str(workdir)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("faults")
    values = flow.finetuning(folder, Path(), init_from="", model=MODEL, freeze="full")
    page, cache = flow.page(folder / "page.py", values), folder / "compiled"
    with zygote.started(cache) as forks:
        made = Home(page, forks, folder / "whole", {}, cache)
        assert forks.run(made.argv(folder / "cold"), folder / "log").code == 0
        ended = forks.run(made.argv(made.whole), folder / "log")
        assert ended.code == 0 and contents(folder / "cold") == contents(made.whole)
        yield made._replace(seconds=ended.seconds)


def contents(run: Path) -> dict[str, Any]:
    """All of a finished run that does not depend on time."""
    best, what = checkpoint.load_params(run, None, skip="", new_ok="")
    result = json.loads((run / "result.json").read_text())
    return {
        "last": (last := checkpoint.newest(run)),
        "state": flow.state(run, last or 0),
        "best step": what.step,
        "best": {name: np.asarray(x).tobytes() for name, x in best.items()},
        "log": (run / "metrics.jsonl").read_bytes(),
        "result": {k: v for k, v in result.items() if k not in OF_TIME and not k.startswith("seconds")},
        "files": {p.name for p in run.iterdir()},
        "left": [p for p in run.rglob("*") if p.name.endswith((".new", ".part")) or ".tmp" in p.name],
    }


def moments(home: Home, seed: int, places: list[str], numbers: list[signal.Signals]) -> Iterator[Moment]:
    """Some time within a place of a run, each place in turn."""
    rng = random.Random(seed)
    while True:
        for place in places:
            spent = home.seconds[place]
            nth = rng.randrange(len(spent))
            longest = sum(home.seconds[zygote.END]) if place == "result" else spent[nth]
            yield Moment(place, nth + 1, rng.uniform(0, longest), rng.choice(numbers))


def disturbed(home: Home, folder: Path, whens: Iterator[Moment], many: int) -> list[str]:
    """A command that gets a signal each time, started again until it is done, again and again until there
    were so many; what went wrong."""
    sent, wrong, runs = 0, [], 0
    when = next(whens)
    while sent < many:
        run, log = folder / f"run{runs}", folder / f"log{runs}"
        ended = home.zygote.run(home.argv(run), log, when)
        if ended.sent:
            sent += not ended.late
            wrong += [f"{run}: {when}: {why}" for why in odd(run, when.number, ended)]
            when = next(whens)
        if ended.code == 0:
            wrong += different(home, run)
            runs += 1
        elif not ended.sent:
            wrong.append(f"{run}: ended with {ended.code}")
            runs += 1
    if (folder / f"run{runs}").exists() and home.zygote.run(home.argv(run), log).code == 0:
        wrong += different(home, run)
    return wrong


def odd(run: Path, number: signal.Signals, ended: Ended) -> list[str]:
    """What is wrong with how a process ended. Where its result was there, or a library has swallowed the
    signal (JAX, where it comes amid its collecting of garbage), it may be done, but soon."""
    if number != signal.SIGKILL:
        fine = [75, 130, *[0] * (ended.after < 2 * signals.LATE), *[-number] * ended.late]
        return [] if ended.code in fine else [f"ended with {ended.code}"]
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    reached = max((json.loads(line)["step"] for line in lines), default=0)
    saved = integrity.newest(run, integrity.RESUME, quiet=True) or 0
    return [f"of {reached} steps {saved} are there"] if reached - saved > SAVE_EVERY else []


def different(home: Home, run: Path) -> list[str]:
    mine, its = contents(run), contents(home.whole)
    return [f"{run}: another {key}" for key in its if mine[key] != its[key]]


@pytest.mark.promise("R2")
@pytest.mark.faults
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(home, tmp_path, tries, seed):
    """Every other time within a save."""
    others = [zygote.START, "load", "compile", "train", "evaluate", "final scores", "result"]
    places = [place for other in others for place in (other, ("save", "save best")[other == "train"])]
    wrong = disturbed(home, tmp_path, moments(home, seed, places, [signal.SIGKILL]), 25)
    tries(25, len(wrong))
    assert not wrong, "\n".join(wrong)


@pytest.mark.promise("R3")
@pytest.mark.faults
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_result(home, tmp_path, tries, seed):
    places, numbers = [zygote.START, *zygote.PLACES], [signal.SIGTERM, signal.SIGINT]
    wrong = disturbed(home, tmp_path, moments(home, seed, places, numbers), 30)
    tries(30, len(wrong))
    assert not wrong, "\n".join(wrong)


@pytest.mark.promise("R3")
@pytest.mark.promise("R2")
@pytest.mark.faults
def test_a_command_that_has_just_begun_is_stopped_or_killed(home, tmp_path, tries):
    """Python's own imports and those of ptft, with no zygote."""
    rng, wrong = random.Random(0), []
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL] * 2
    for i, number in enumerate(numbers):
        code = stopped(home, tmp_path / "run", number, rng.uniform(0, 4))
        if code not in {signal.SIGTERM: (75,), signal.SIGINT: (75, 130)}.get(number, (-number,)):
            wrong.append(f"{i}: {number.name}: ended with {code}")
    if home.zygote.run(home.argv(tmp_path / "run"), tmp_path / "log").code != 0:
        wrong.append("it does not go on")
    else:
        wrong += different(home, tmp_path / "run")
    tries(len(numbers), len(wrong))
    assert not wrong, "\n".join(wrong)


def stopped(home: Home, run: Path, number: signal.Signals, delay: float) -> int:
    """How `python -m ptft train` ends that gets a signal so long after it is more than Python's own start."""
    argv = [sys.executable, "-m", "ptft", *home.argv(run)]
    with subprocess.Popen(argv, env=zygote.environment(home.cache), stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(number)
        return process.wait(zygote.PATIENCE)


@pytest.mark.promise("R21")
@pytest.mark.faults
def test_two_thousand_steps_need_no_more_than_some_hundred(home, tmp_path, tries):
    often = {"log_every": "10 steps", "eval_every": "100 steps", "save_every": "100 steps"}
    values = flow.finetuning(tmp_path, Path(), init_from="", model=MODEL, freeze="full", **often)
    page = flow.page(tmp_path / "long.py", values | {"train_for": "2000 steps"})
    argv = [sys.executable, "-m", "ptft", "train", "--config", page, "--workdir", str(tmp_path / "run")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(argv, env=zygote.environment(home.cache), stdout=log, stderr=log)
        samples = list(needs(process, tmp_path / "run" / "metrics.jsonl"))
    early = [need for step, *need in samples if 300 <= step < 900]
    late = [need for step, *need in samples if step >= 1400]
    assert process.returncode == 0 and early and late, samples
    (pages, files), (more_pages, more_files) = (map(min, zip(*part, strict=True)) for part in (early, late))
    wrong = [more_pages >= 1.05 * pages, more_files > files]
    tries(2000, 2000 * any(wrong))
    assert not any(wrong), (pages, more_pages, files, more_files)


def needs(process: subprocess.Popen[bytes], metrics: Path) -> Iterator[tuple[int, int, int]]:
    """(step, pages of memory, open files) of a training run, again and again until it has ended."""
    folder = Path(f"/proc/{process.pid}")
    while process.poll() is None:
        time.sleep(0.05)
        last = metrics.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2] if metrics.exists() else b""
        with contextlib.suppress(OSError):  # it is just ending
            pages = int((folder / "statm").read_text().split()[1])
            yield int(json.loads(last or '{"step": 0}')["step"]), pages, len(os.listdir(folder / "fd"))


def test_every_promise_has_a_test():
    tests = fault_table.marked(Path(__file__).parent)
    assert {one.promise for one in tests} == set(fault_table.PROMISES)


def test_the_table_counts_tries_and_what_was_lost():
    class Report(NamedTuple):
        nodeid: str
        failed: bool = False
        user_properties: tuple[Any, ...] = ()
        when: str = "call"

    many = (("tries", (30, 2)),)
    reports = [Report("tests/test_a.py::test_x[0]"), Report("tests/test_a.py::test_x[1]", failed=True)]
    reports += [Report("tests/test_b.py::test_y", failed=True, user_properties=many)]
    reports += [Report("tests/test_b.py::test_z", when="teardown")]
    counts = fault_table.counted(reports)
    assert counts == {"test_a.py::test_x": (2, 1), "test_b.py::test_y": (30, 2)}
    tests = [
        fault_table.Marked(*one)
        for one in (
            ("R1", "test_a.py::test_x", False),
            ("R2", "test_b.py::test_y", True),
            ("R3", "test_c.py::test_s", False),
            ("R4", "test_c.py::test_l", True),
        )
    ]
    lines = fault_table.table(tests, counts).splitlines()[1:]
    ends = [re.split(" {2,}", line)[3:] for line in lines]
    assert ends == [
        ["test_a.py::test_x", "2", "1"], ["test_b.py::test_y", "30", "2"],
        ["test_c.py::test_s", "in the normal run"], ["test_c.py::test_l", "not run"],
    ]  # fmt: skip
