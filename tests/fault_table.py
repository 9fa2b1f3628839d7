"""What is promised of each fault, which test holds it, and how often it was tried: a table at the end of a
session with `--fault-table FILE`.

A test that holds a promise says so by `@pytest.mark.promise("R7")`. One that tries many times gives how many
and how many of them were lost to the fixture `tries`; of all others each case is a try.
"""

import ast
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# (fault, promise)
PROMISES = {
    "R1": ("none: stopped at a step, and resumed", "the same bytes as without a stop"),
    "R2": ("kill -9 at any moment", "at most save_every steps are lost; resumed to the same bytes"),
    "R3": (
        "SIGTERM or SIGINT at any moment",
        "ends with 75, 130 or its result, soon; resumed to the same",
    ),
    "R4": ("SIGTERM to one of several processes", "all save the same step and end with 75"),
    "R5": ("one of several processes dies", "the others end within the heartbeat, and not with 0 or 75"),
    "R6": ("one of several processes hangs", "all end in time, with the stack of what hangs"),
    "R7": (
        "a file is flipped, cut, deleted or empty",
        "it is named, or the step before is used",
    ),
    "R8": ("the disk is full during a save", "a clear message; earlier steps are intact"),
    "R9": ("another number of devices or processes", "the same batches; the same losses within 2e-5"),
    "R10": ("another number of threads that read", "the same batches"),
    "R11": ("a loss or a parameter is no finite number", "the run stops with advice; nothing of it is saved"),
    "R12": ("a metric is NaN", "it is never the best"),
    "R13": ("the metric worsens for long", "the newest steps stay, and so does the best"),
    "R14": ("another config at a resume", "refused, with the differences"),
    "R15": ("a checkpoint of another model", "every parameter is loaded, new or unused, or it is an error"),
    "R16": ("parameters are frozen", "they stay the same to the bit"),
    "R17": ("a save fails", "the command ends with its message, and not with 0"),
    "R18": ("two runs in one folder", "the second one is refused, until the first one has ended"),
    "R19": ("a pickle from a stranger", "it is refused, and never run"),
    "R20": ("preempted under Slurm", "requeued and resumed"),
    "R21": ("2,000 steps", "memory grows by less than 5 %, open files do not"),
    "R22": ("the same command twice", "the same bytes"),
}


class Marked(NamedTuple):
    """A test that holds a promise."""

    promise: str
    test: str  # file::function
    long: bool  # runs only with --faults


def marked(folder: Path) -> list[Marked]:
    """From the source, as no single process of a session knows all of its tests."""
    out = []
    for file in sorted(folder.glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            names = [ast.unparse(d) for d in node.decorator_list]
            long = "pytest.mark.faults" in names
            for name in names:
                if name.startswith("pytest.mark.promise("):
                    promise = ast.literal_eval(name.removeprefix("pytest.mark.promise"))
                    out.append(Marked(promise, f"{file.name}::{node.name}", long))
    return out


@pytest.fixture
def tries(record_property: Callable[[str, object], None]) -> Callable[[int, int], None]:
    """`tries(many, lost)`: said before anything is asserted."""

    def say(many: int, lost: int) -> None:
        record_property("tries", (many, lost))

    return say


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", metavar="FILE", help="writes there what was promised, tried and lost")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not (file := config.getoption("--fault-table")):
        return
    reports = [r for kind in ("passed", "failed", "error") for r in terminalreporter.stats.get(kind, ())]
    text = table(marked(Path(__file__).parent), counted(reports))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text, encoding="utf-8")
    terminalreporter.section("faults")
    terminalreporter.write(text)


def counted(reports: list[Any]) -> dict[str, tuple[int, int]]:
    """`{file::function: (tries, lost)}` of the tests that ran. A test that failed has lost one at least."""
    out: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for report in reports:
        if report.when != "call" and not report.failed:
            continue
        many, lost = dict(report.user_properties).get("tries", (1, 0))
        file, _, test = report.nodeid.partition("::")
        name = f"{Path(file).name}::{test.partition('[')[0]}"
        out[name] = out[name][0] + many, out[name][1] + max(lost, int(report.failed))
    return dict(out)


def table(tests: list[Marked], counts: dict[str, tuple[int, int]]) -> str:
    rows = [("", "fault", "promise", "test", "tries", "lost")]
    for promise, (fault, what) in PROMISES.items():
        for i, one in enumerate(t for t in tests if t.promise == promise):
            shown = ("not run", "") if one.long else ("in the normal run", "")
            if one.test in counts:
                shown = tuple(f"{n:,}" for n in counts[one.test])
            first = (promise, fault, what) if i == 0 else ("", "", "")
            rows.append((*first, one.test, *shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"
