"""What the wall time of a run went to, over starts that were killed and went on."""

import json
from types import SimpleNamespace

import pytest

from ptft.core import clock, compiled, times
from ptft.core.clock import Clock


def line(start, begins, done, **seconds):
    whole = dict.fromkeys(times.PARTS, 0.0) | seconds
    return {
        "start": start, "from": begins, "step": done, "of": 100, "at": 1.0, "doing": "step", "seconds": whole
    }  # fmt: skip


def test_what_a_later_start_trained_again_is_lost():
    lines = [
        line(1, 0, 5, step=2.0),  # the last line of a start counts
        line(1, 0, 50, step=10.0, compile=4.0),
        line(2, 40, 45, step=1.0, restore=2.0),
        line(3, 40, 80, step=8.0, save=1.0),
        line(4, 20, 100, step=20.0),  # its checkpoints were damaged: it fell back
    ]
    spent = times.summary(lines)
    assert (
        spent["starts"] == 4 and spent["lost_steps"] == 30 + 5 + 40
    )  # 20 of the first stay, and 80 of the last
    assert spent["seconds"]["lost"] == pytest.approx(6 + 1 + 8)
    assert spent["seconds"]["step"] == pytest.approx(4 + 20) and spent["seconds"]["compile"] == 4
    assert (
        spent["goodput"] == pytest.approx(24 / (10 + 4 + 1 + 2 + 8 + 1 + 20)) and spent["peak_bytes"] is None
    )
    said = times.describe(spent)
    assert said == (
        "46.0 s in 4 starts, 52% in steps that count (compiling 9%, restoring 4%, saving 2%, 75 steps "
        "trained again 33%)"
    )
    one = times.summary([line(1, 0, 100, step=3.0) | {"peak_bytes": 3 * 2**20}])
    assert times.describe(one) == "3.0 s in 1 start, 100% in steps; peak device memory 3 MiB"
    assert times.summary([]) is None


def test_lines_that_cannot_be_read_are_left_out(tmp_path):
    good = line(1, 0, 5)
    bad = [b"{", b"[1]", b"7", b"", json.dumps(good | {"seconds": {"step": 1}}).encode()]
    bad += [json.dumps(good | {key: "x"}).encode() for key in ("start", "step", "at", "doing", "peak_bytes")]
    (tmp_path / times.FILE).write_bytes(b"\n".join([*bad, json.dumps(good).encode(), b'{"start": 2, "fr']))
    assert times.read(tmp_path) == [good] and times.read(tmp_path / "none") == []


def test_each_moment_belongs_to_one_part_and_compiling_to_itself(tmp_path, monkeypatch):
    now, seen = [100.0], SimpleNamespace(busy=0.0)
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0], time=lambda: now[0]))
    monkeypatch.setattr(compiled, "seen", seen)
    monkeypatch.setattr(clock, "peak_bytes", lambda: 5)

    def passes(seconds, compiling=0.0):
        now[0], seen.busy = now[0] + seconds, seen.busy + compiling

    def starts(before, step):
        one = Clock(before)
        passes(1.0)
        one.turn("data")
        passes(2.0)
        one.turn("step")
        one.open(tmp_path, step, 9)
        passes(4.0, compiling=3.0)
        with one.during("evaluate"):
            passes(5.0, compiling=0.5)
        one.write(step + 2, saved=[{"step": 1}])

    starts(0.5, 0)
    with (tmp_path / times.FILE).open("a") as f:
        f.write('{"start": 1')  # killed as it wrote
    starts(0.0, 1)
    first, long, last, *more = times.read(tmp_path)
    assert (first["step"], first["doing"], long["doing"], last["doing"]) == (0, "step", "evaluate", "step")
    want = {"start": 1.5, "data": 2, "compile": 3.5, "step": 1, "evaluate": 4.5}
    assert last["seconds"] == dict.fromkeys(times.PARTS, 0.0) | want
    assert (last["step"], last["of"], last["saved"], last["peak_bytes"]) == (2, 9, [{"step": 1}], 5)
    assert [(x["start"], x["from"]) for x in more] == [(2, 1)] * 3
    assert times.summary([last, more[-1]])["lost_steps"] == 1
