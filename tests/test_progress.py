"""What long steps say: nothing while they are short, then how far they are, by a clock that tests turn."""

import io
import itertools
import threading

import flow
import jax
import pytest
from rich.console import Console

from ptft.core import progress, record
from ptft.planning import auto
from ptft.train import spec


@pytest.fixture
def at(monkeypatch):
    """Sets the clock to so many seconds."""
    now = [0.0]
    monkeypatch.setattr(progress, "clock", lambda: now[0])

    def turn(seconds):
        now[0] = seconds

    return turn


@pytest.fixture
def fast(monkeypatch):
    """A clock by which every step is a long one."""
    monkeypatch.setattr(progress, "clock", itertools.count(0.0, 1000.0).__next__)


def said(capsys):
    """Standard error, by line; nothing of it may be on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_line_comes_after_ten_seconds_and_then_more_and_more_seldom(at, capsys):
    with progress.doing("tokenizing", "texts", 4_000_000) as advance:
        for second in range(1, 2000):
            at(second)
            advance(1000)
    assert said(capsys) == [
        f"tokenizing: {n * 1000:,} of 4,000,000 texts, {n} s" for n in (10, 30, 60, 120, 300, 600, 1200, 1800)
    ]


def test_a_short_step_says_nothing(at, capsys):
    with progress.doing("tokenizing", "texts") as advance:
        at(9.9)
        advance()
    at(100)
    assert said(capsys) == []


def test_what_is_counted_without_an_end_and_where_it_is(at, capsys):
    with progress.doing("reading", "records") as advance:
        advance()
        at(41)
        advance(2, place="/data/x.txt:3")
    assert said(capsys) == ["reading: 3 records, 41 s, at /data/x.txt:3"]


def test_items_are_counted_as_they_are_done(at, capsys):
    seen = []
    for one in progress.each("abc", "cutting rows", "texts", 3):
        seen.append(one)
        at(10 * len(seen))
    assert seen == list("abc")
    assert said(capsys) == ["cutting rows: 1 of 3 texts, 10 s", "cutting rows: 3 of 3 texts, 30 s"]


def test_a_thread_speaks_for_what_does_not_come_back(at, monkeypatch, capsys):
    lines, spoken = [], threading.Event()
    monkeypatch.setattr(record, "note", lambda text: (lines.append(text), spoken.set()))
    at(0)
    monkeypatch.setattr(progress, "clock", itertools.chain([0.0], itertools.repeat(30.0)).__next__)
    with progress.doing("compiling the step", watch=True):
        assert spoken.wait(60)
    assert lines == ["compiling the step: 30 s"]
    assert not [t for t in threading.enumerate() if t.name.endswith("(watch)")]  # it ends with the step


def test_a_mistake_ends_the_step(fast, monkeypatch):
    with pytest.raises(ValueError, match="mine"), progress.doing("compiling", watch=True):
        raise ValueError("mine")
    assert not [t for t in threading.enumerate() if t.name.endswith("(watch)")]


def test_one_of_many_is_silent_and_so_is_every_process_but_the_lead(fast, monkeypatch, capsys):
    def step():
        for watch in (False, True):
            with progress.doing("tokenizing", "texts", 3, watch) as advance:
                advance()

    with progress.silence():
        step()
    with progress.bar(3, 0) as advance:  # of the cells of a benchmark
        step()
        advance("")
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    step()
    assert said(capsys) == []


def test_a_terminal_gets_a_bar_that_goes(at, monkeypatch, capsys):
    screen = io.StringIO()
    monkeypatch.setattr(record, "_console", Console(file=screen, force_terminal=True, width=200))
    with progress.doing("tokenizing [x]", "texts", 40) as advance:
        at(1)
        advance(10)
        assert screen.getvalue() == ""
        at(3)
        advance(10)
        assert "━" in screen.getvalue() and "tokenizing [x]: 20 of 40 texts, 3 s" in screen.getvalue()
        at(3.1)
        advance(10)  # too soon to draw it again
        assert "30 of 40" not in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K") and said(capsys) == []


# ------------------------------------------------------------------------------------------ every long step


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    flow.run(flow.pretraining(folder, **{"model.layers": 2, "train_for": "2 steps"}), folder / "pre")
    changes = {"train_for": "8 steps", "freeze": "head", "frozen_dropout": False}
    flow.page(folder / "fine.py", flow.finetuning(folder, folder / "pre", **changes))
    return folder


def steps(capsys):
    """What was said to be done."""
    return {line.partition(":")[0] for line in capsys.readouterr().err.splitlines()}


def test_pretraining_says_what_it_does(home, fast, tmp_path, capsys):
    values = flow.pretraining(tmp_path, **{"objective.seq_len": 24})  # none that another test has compiled
    page = flow.page(tmp_path / "page.py", values)
    assert flow.ptft("train", "--config", page, "--workdir", tmp_path / "run") == 0
    known = steps(capsys)
    assert {"reading", "counting words for a tokenizer", "tokenizing", "cutting rows"} <= known
    assert {"compiling the step", "evaluating"} <= known
    assert any(what.startswith("training a tokenizer on ") for what in known)


def test_finetuning_and_its_run_say_what_they_do(home, fast, capsys):
    run = home / "fine"
    assert flow.ptft("train", "--config", home / "fine.py", "--workdir", run) == 0
    known = steps(capsys)
    assert {"reading", "tokenizing", "cutting rows", "filling the feature cache", "evaluating"} <= known
    assert flow.ptft("eval", "--workdir", run) == 0
    assert {f"loading {run}", "reading", "tokenizing", "evaluating"} <= steps(capsys)
    assert flow.ptft("export", "--workdir", run, "--to", home / "out") == 0
    assert f"exporting {run}" in steps(capsys)
    assert flow.ptft("import", home / "out", "--workdir", home / "back") == 0
    assert {f"importing {home / 'out'}", f"loading {home / 'out'}"} <= steps(capsys)


def test_a_plan_and_a_choice_say_what_they_do(home, fast, capsys):
    assert flow.ptft("plan", "--config", home / "fine.py", "--freeze", "top-1", "--json") == 0
    assert {"compiling", "compiling the step", "timing steps"} <= steps(capsys)
    c = flow.finetuning(home, home / "pre", freeze="auto(budget=0.9 params)")
    auto.decide(spec.resolve(c))
    known = steps(capsys)
    assert {"fitting a head to score with", "scoring by rgn", "measuring what choices cost"} <= known
    auto.decide(spec.resolve({**c, "freeze": "auto(budget=0.9 params, score=variability)"}))
    assert "scoring by variability" in steps(capsys)
