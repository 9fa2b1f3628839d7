"""A signal at any moment: 75 or 130, whatever the program does at that moment."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import flow
import pytest

from ptft.__main__ import main as entry
from ptft.core import checkpoint, signals

ROOT = Path(__file__).parents[1]
# Sends itself a signal where the first argument says, inside of the guard.
CHILD = """
import os, signal, sys, time
from ptft.core import signals
signals.LATE = 0.2
where, number = sys.argv[1], int(sys.argv[2])
def kill():
    os.kill(os.getpid(), number)
with signals.guard():
    if where == "plain":
        kill()
    elif where == "swallowed":
        try:
            kill()
        except BaseException:
            pass
        time.sleep(30)
    elif where == "one long call":  # in C, where no handler of Python's runs
        import threading
        threading.Timer(0.3, kill).start()
        import hashlib
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)
    elif where == "import":
        sys.path.insert(0, sys.argv[3])
        import killer
sys.exit(3)
"""


@pytest.mark.promise("R3")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("where", ["plain", "swallowed", "one long call", "import"])
def test_a_signal_ends_a_command_whatever_it_does(tmp_path, where, number, code):
    own = f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\nexcept Exception:\n    pass\n"
    (tmp_path / "killer.py").write_text(own)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, where, str(int(number)), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code and "Traceback" not in done.stderr
    assert where == "one long call" or f"stopped by {number.name}; run the same" in done.stderr


def test_what_saves_is_not_cut_off_and_all_is_as_it_was_afterwards(monkeypatch):
    forced = []
    monkeypatch.setattr(signals, "LATE", 0.0)
    monkeypatch.setattr(signals.os, "_exit", forced.append)
    before = signal.getsignal(signal.SIGTERM)
    with signals.guard():
        with signals.preemption() as caught:
            flow.sigterm()
            time.sleep(0.2)  # or the thread could not have forced anything
        assert caught == [signal.SIGTERM] and forced == []
        with pytest.raises(signals.Stopped) as e:
            os.kill(os.getpid(), signal.SIGINT)
        assert e.value.status == 130
    assert signal.getsignal(signal.SIGTERM) is before and set(forced) <= {130}


def test_what_saves_stops_by_a_signal_that_was_swallowed_before(monkeypatch):
    """As XLA swallows one while it compiles: the run would otherwise go on to its end, or be cut off."""
    forced = []
    monkeypatch.setattr(signals, "LATE", 0.1)
    monkeypatch.setattr(signals.os, "_exit", forced.append)
    with signals.guard():
        with contextlib.suppress(signals.Stopped):
            flow.sigterm()
        with signals.preemption() as caught:
            time.sleep(0.3)
            assert caught == [signal.SIGTERM] and forced == []
    with signals.preemption() as caught:
        assert caught == []


@pytest.mark.parametrize("code", [0, 1, 2, None])
def test_an_error_that_a_library_makes_of_a_signal_is_a_stop(monkeypatch, capsys, code):
    """As Orbax does while it reads; but a command that is done all the same is done."""

    def run(argv):
        with contextlib.suppress(signals.Stopped):
            flow.sigterm()
        if code is None:
            raise RuntimeError("of the library")
        return code

    monkeypatch.setattr("ptft.cli.main.main", run)
    assert entry([]) == (75 if code != 0 else 0)
    assert "Traceback" not in capsys.readouterr().err


# What a run does first, and where in it the signal comes.
MOMENTS = {
    "loading": ("ptft.train.dataset", "load_data"),
    "compiling": ("ptft.train.programs", "program"),
    "starting": ("ptft.train.weights", "start_params"),
    "the ledger": ("ptft.train.ending", "prove"),
    "the last scores": ("ptft.train.ending", "final_metrics"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    model = {"layers": 1, "hidden": 64, "max_len": 32, "dropout": 0.1}
    values = flow.finetuning(folder, Path(), init_from="", model=model, freeze="full")
    return values, flow.run(values, folder / "whole")


@pytest.mark.promise("R3")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_stopped_outside_of_its_loop_goes_on_to_the_same_result(
    whole, tmp_path, monkeypatch, moment
):
    values, result = whole
    module, name = MOMENTS[moment]
    page, do = flow.page(tmp_path / "page.py", values), getattr(sys.modules[module], name)

    def stopped(*args, **kwargs):
        flow.sigterm()
        return do(*args, **kwargs)

    argv = ["ptft", "train", "--config", str(page), "--workdir", str(tmp_path / "run")]
    with monkeypatch.context() as m, pytest.raises(signals.Stopped) as e, signals.guard():
        m.setattr(sys.modules[module], name, stopped)
        flow.ptft(*argv[1:])
    assert e.value.status == 75
    assert flow.ptft(*argv[1:]) == 0
    again = flow.run(values, tmp_path / "run")
    for key in ("dev", "test", "best_step", "steps"):
        assert again[key] == result[key]


def test_a_signal_at_the_last_step_does_not_wait_for_the_last_scores(whole, tmp_path, monkeypatch):
    values, result = whole
    save = checkpoint.save

    def stopped(workdir, step, *args, **kwargs):
        if step == 8:
            flow.sigterm()
        save(workdir, step, *args, **kwargs)

    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(checkpoint, "save", stopped)
        flow.run(values, tmp_path / "run")
    assert e.value.code == 75 and checkpoint.newest(tmp_path / "run") == 8
    assert not (tmp_path / "run" / "result.json").exists()
    again = flow.run(values, tmp_path / "run")
    assert all(again[key] == result[key] for key in ("dev", "test", "best_step", "steps"))
