"""`ptft status` says of any folder how far it is; it reads only."""

import json
import os
import subprocess
import sys
import time

import flow
import pytest
from test_times import line
from test_trust import HOLD

from ptft.core import locks, times
from ptft.core.errors import UserError


@pytest.fixture
def run(tmp_path):
    """Killed at step 47 of 100; a save of step 40 is whole, one of step 45 is not."""
    folder = tmp_path / "run"
    for step in (40, 45):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "manifests").mkdir()
    (folder / "manifests" / "checkpoints-40.json").write_text("{}")
    (folder / "run.json").write_text("{}")
    (folder / "lock").write_text("process 7 on node3, since 2020-01-01 00:00:00")
    (folder / times.FILE).write_text(json.dumps(line(1, 0, 46, step=2.0) | {"at": time.time() + 60}) + "\n")
    metrics = [(40, "train", 2.5), (40, "dev", 1.5), (46, "train", 1.25)]
    text = "".join(json.dumps({"step": k, "split": s, "loss": x}) + "\n" for k, s, x in metrics)
    (folder / "metrics.jsonl").write_text(text + '{"step": 4')
    return folder


def said(capsys, *args):
    before = flow.listing(args[0])
    assert flow.ptft("status", *args) == 0
    assert flow.listing(args[0]) == before
    return capsys.readouterr().out


def test_a_run_that_was_killed(run, capsys):
    told = json.loads(said(capsys, run, "--json"))
    assert (told["kind"], told["state"], told["by"], told["doing"]) == ("run", "stopped", None, None)
    assert (told["step"], told["steps"], told["saved"]["step"]) == (46, 100, 40)
    assert told["lines"]["train"]["loss"] == 1.25 and told["times"]["goodput"] == 1
    assert said(capsys, run).splitlines() == [
        f"{run}: stopped",
        "  step 46 of 100 (46%)",
        "  saved: step 40, 0 seconds ago",
        "  train at step 46: loss 1.25",
        "  dev at step 40: loss 1.5",
        "  wall time: 2.0 s in 1 start, 100% in steps",
    ]


def test_a_run_that_goes_on_and_one_that_begins(run, capsys):
    argv = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        text = said(capsys, run)
        assert (
            f"{run}: running by process {other.pid} on " in text and "\n  now: training, last line " in text
        )
        os.utime(run / "lock", (time.time() + 120, time.time() + 120))
        assert "\n  now: starting, last line " in said(capsys, run)
        # what status asked has let nobody in
        with pytest.raises(UserError, match="is in use"), locks.only(run):
            pass
        other.kill()
    assert f"{run}: stopped\n" in said(capsys, run)


def test_a_finished_run_and_one_of_an_older_version(run, capsys):
    (run / "result.json").write_text("{}")
    assert f"{run}: finished\n" in said(capsys, run)
    for name in (times.FILE, "metrics.jsonl", "lock", "manifests/checkpoints-40.json"):
        (run / name).unlink()
    assert said(capsys, run) == f"{run}: finished\n  saved: nothing to resume from\n"


def test_a_benchmark(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    (tmp_path / "bench.json").write_text(json.dumps({"cells": {"a": {}, "b": {}, "c": {}}}))
    assert "stopped\n  3 cells: none has ended" in said(capsys, tmp_path)
    for cell, how in {"a": "ok", "b": "failed", "c": "ok", "other": "ok"}.items():
        (tmp_path / "cells" / f"{cell}.json").write_text(json.dumps({"status": how}))
    assert "finished\n  3 cells: 2 ok, 1 failed" in said(capsys, tmp_path)
    (tmp_path / "bench.json").write_text("{")
    assert flow.ptft("status", tmp_path) == 2 and "bench.json is damaged" in capsys.readouterr().err


def test_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    for folder, why in (
        (tmp_path / "runz", "does not exist; did you mean 'runs'"),
        (tmp_path, "has no run.json"),
    ):
        assert flow.ptft("status", folder) == 2
        assert why in capsys.readouterr().err
