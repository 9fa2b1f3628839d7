"""Real processes that act as hosts: every verb, how they stop, and when they wait for each other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import flow
import pytest

from ptft.core import checkpoint, integrity, mesh, signals
from ptft.core.errors import UserError

ROOT = Path(__file__).parents[1]
# Runs commands, one after the other; says of each how it ended and what it printed.
VERBS = """
import contextlib, io, json, sys
from ptft.__main__ import main
for argv in json.loads(sys.argv[1]):
    sys.argv, out = ["ptft", *argv], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            code = main()
    except SystemExit as e:
        code = e.code
    print(json.dumps({"verb": argv[0], "code": code, "out": out.getvalue()}), flush=True)
"""
# Trains; process 1 gets a signal before step 4. Says how it ended, after which step, and the steps with an
# all-gather.
SIGNALLED = """
import json, os, sys
from ptft.core import mesh
mesh.start()
import jax, flow
from ptft.train import pipeline, spec, train
asked, now = [], [0]
gather, batches = mesh.multihost_utils.process_allgather, pipeline.train_batches
def counted(*args, **kwargs):
    asked.append(now[0])
    return gather(*args, **kwargs)
def numbered(*args):
    for now[0], batch in enumerate(batches(*args), 1):
        if now[0] == 4 and jax.process_index() == 1:
            flow.sigterm()
        yield batch
mesh.multihost_utils.process_allgather, pipeline.train_batches = counted, numbered
code = 0
try:
    train.run(spec.resolve(json.loads(sys.argv[1])), flow.Path(sys.argv[2]), quiet=True)
except SystemExit as e:
    code = e.code
print(json.dumps([code, now[0], sorted({k for k in asked if k})]))  # 0: weights are placed; at a save, many
"""

# Trains; ten minutes pass before step 4 for the lead, and before step 1 for the other. Says the steps with
# an all-gather.
TIMED = """
import json, sys, types
from ptft.core import mesh
mesh.start()
import jax, flow
from ptft.train import pipeline, spec, train
asked, now, gather, batches = [], [0], mesh.multihost_utils.process_allgather, pipeline.train_batches
passes = 4 if jax.process_index() == 0 else 1
def counted(*args, **kwargs):
    asked.append(now[0])
    return gather(*args, **kwargs)
def numbered(*args):
    for now[0], batch in enumerate(batches(*args), 1):
        yield batch
mesh.multihost_utils.process_allgather, pipeline.train_batches = counted, numbered
train.time = types.SimpleNamespace(perf_counter=lambda: 600.0 * (now[0] >= passes))
train.run(spec.resolve(json.loads(sys.argv[1])), flow.Path(sys.argv[2]), quiet=True)
print(json.dumps(sorted({k for k in asked if k})))
"""


def start(count: int, script: str, *args: object, devices: int = 4) -> list[subprocess.Popen[str]]:
    """Processes of one run, which have so many devices together."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", f"device_count={devices // count}")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XLA_FLAGS": flags}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, args)],
            env={**env, "JAX_PROCESS_ID": str(i)} if count > 1 else env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: int = 300) -> list[tuple[str, str]]:
    """(standard output, standard error) of each, which gloo's own lines are not a part of."""
    try:
        both = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [("\n".join(x for x in out.splitlines() if not x.startswith("[Gloo]")), err) for out, err in both]


def commands(folder: Path, home: Path, count: int, short: bool) -> list[list[str]]:
    """Every verb, each on what those before it have made; or a kind of each."""

    def page(name, values):
        return str(flow.page(folder / f"{name}.py", values))

    trained = {"pre": flow.pretraining(home)}
    for name, freeze in {"fine": "top-1", "gradual": "gradual", "lora": "lora=4"}.items():
        trained[name] = flow.finetuning(home, folder / "pre", freeze=freeze)
    trained["lora"] |= {"checkpoint": "delta", "frozen_dtype": "int8", "accumulate": 2}
    for name in ("fine", "gradual") if short else ():
        del trained[name]
    if count > 1:  # a shared folder, and parameters that no process holds all of
        for name in ("pre", "lora") if short else ("fine", "gradual", "lora"):
            trained[name] |= {"shard": "frozen" if name == "gradual" else "all"}
    run, table = ["--workdir", str(folder / "lora")], f"files:{home}/test.tsv"
    columns = ["--text-column", "sentence", "--label-column", "label"]
    back = ["--workdir", str(folder / "back")]
    whole = [
        *(["train", "--config", page(n, v), "--workdir", str(folder / n)] for n, v in trained.items()),
        ["eval", *run],
        ["predict", *run, "--text", "good alpha", "--json"],
        ["export", *run, "--merge", "--to", str(folder / "out")],
        ["import", str(folder / "out"), *back],
        ["eval", *back, "--data", table, *columns],
        ["train", "--config", str(folder / "lora.py"), *run],
        ["plan", "--config", str(folder / "lora.py"), "--freeze", "head", "--probe", "2"],
        ["report", str(folder / "lora")],
    ]
    return whole[:6] if short else whole


def results(folder: Path, count: int, home: Path, short: bool) -> list[list[dict]]:
    """What each process says of every verb."""
    folder.mkdir()
    outs = ended(start(count, VERBS, json.dumps(commands(folder, home, count, short))))
    said = [[json.loads(x) for x in out.splitlines() if x.startswith('{"verb"')] for out, _ in outs]
    assert {s["code"] for s in said[0]} == {0}, outs[0][1][-3000:]
    return said


@pytest.mark.parametrize(
    ("count", "short"),
    [(2, True), *(pytest.param(n, False, marks=pytest.mark.faults) for n in (2, 4))],
)
def test_verbs_run_in_several_processes_as_in_one(tmp_path, count, short):
    folder, one = tmp_path / "many", tmp_path / "one"
    (alone,) = results(one, 1, tmp_path, short)
    lead, *others = results(folder, count, tmp_path, short)
    assert [s["verb"] for s in lead] == [s["verb"] for s in alone]
    for other in others:  # one speaks
        assert [(s["code"], s["out"]) for s in other] == [(0, "")] * len(alone)
    for name in ("pre", "lora") if short else ("pre", "fine", "gradual", "lora"):
        mine, its = (json.loads((f / name / "result.json").read_text()) for f in (folder, one))
        for split in ("dev", "test"):
            assert mine.get(split) == pytest.approx(its.get(split), abs=1e-5), (name, split)
        assert mine["best_step"] == its["best_step"] and mine["device"]["processes"] == count
    assert checkpoint.newest(folder / "lora") == 8
    evals = [[json.loads(s["out"]) for s in all_ if s["verb"] == "eval"] for all_ in (lead, alone)]
    for a, b in zip(*evals, strict=True):
        assert a["rows"] == b["rows"] == 11 and a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert sorted(p.name for p in (folder / "out").iterdir()) == sorted(
        p.name for p in (one / "out").iterdir()
    )


@pytest.mark.faults
def test_processes_of_a_launcher_part_the_cells_of_a_benchmark(tmp_path):
    entries = [{"name": name, "freeze": name, "lr": 1e-3} for name in ("full", "head")]
    bench = {"strategies": entries, "seeds": [0], "repeat": False}
    model = {"layers": 1, "hidden": 64, "max_len": 32}
    values = flow.finetuning(tmp_path, Path(), init_from="", model=model, bench=bench)
    argv = [
        "bench",
        "--config",
        str(flow.page(tmp_path / "b.py", values)),
        "--workdir",
        str(tmp_path / "bench"),
    ]
    outs = ended(start(2, VERBS, json.dumps([argv])))
    said = [json.loads(out.splitlines()[-1]) for out, _ in outs]
    assert [s["code"] for s in said] == [0, 0], [err[-2000:] for _, err in outs]
    cells = [json.loads(f.read_text()) for f in (tmp_path / "bench" / "cells").glob("*.json")]
    whole = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert {c["status"] for c in cells} == {"ok"} and len(cells) == len(whole["cells"])


@pytest.mark.promise("R4")
def test_a_signal_to_one_stops_all_at_a_line_of_the_log(tmp_path):
    values = flow.pretraining(
        tmp_path, train_for="12 steps", log_every="3 steps", eval_every="0", save_every="0"
    )
    both = start(2, SIGNALLED, json.dumps(values), tmp_path / "run", devices=8)
    outs = ended(both)
    assert [process.returncode for process in both] == [0, 0], [err[-2000:] for _, err in outs]
    assert [json.loads(out.splitlines()[-1]) for out, _ in outs] == [[signals.PREEMPTED, 6, [3, 6]]] * 2
    assert checkpoint.newest(tmp_path / "run") == 6


def test_the_clock_of_the_lead_says_when_all_save(tmp_path):
    values = flow.pretraining(
        tmp_path, train_for="8 steps", log_every="3 steps", eval_every="0", save_every="10 minutes", keep=9
    )
    both = start(2, TIMED, json.dumps(values), tmp_path / "run", devices=8)
    outs = ended(both)
    assert [process.returncode for process in both] == [0, 0], [err[-2000:] for _, err in outs]
    assert [json.loads(out.splitlines()[-1]) for out, _ in outs] == [[3, 6, 8]] * 2
    assert integrity.steps(tmp_path / "run", "checkpoints") == [8, 6]


def test_processes_with_other_configs_are_told_so(tmp_path):
    pages = [flow.page(tmp_path / f"{seed}.py", flow.pretraining(tmp_path, seed=seed)) for seed in range(2)]
    script = VERBS.replace(
        "json.loads(sys.argv[1])", "[json.loads(sys.argv[1])[int(os.environ['JAX_PROCESS_ID'])]]"
    )
    argvs = [["train", "--config", str(p), "--workdir", str(tmp_path / "run")] for p in pages]
    both = start(2, "import os\n" + script, json.dumps(argvs))
    outs = ended(both)
    assert {process.returncode for process in both} == {2}, [err[-2000:] for _, err in outs]
    assert all("the 2 processes of this run have different config; expected" in err for _, err in outs)
    assert not (tmp_path / "run").exists()


@pytest.mark.promise("R5")
@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_process_ends_the_others(tmp_path, victim):
    values = flow.pretraining(tmp_path, train_for="100000 steps", eval_every="0", save_every="0")
    page = flow.page(tmp_path / "long.py", values)
    argv = ["train", "--config", str(page), "--workdir", str(tmp_path / "run")]
    both = start(2, VERBS, json.dumps([argv]))
    try:
        log = tmp_path / "run" / "metrics.jsonl"
        while not (log.exists() and log.stat().st_size) and both[0].poll() is None:
            time.sleep(0.2)
        both[victim].send_signal(signal.SIGKILL)
    finally:
        ended(both, 3 * mesh.HEARTBEAT)  # JAX ends it, with SIGABRT; 30 s are promised
    assert both[1 - victim].returncode not in (0, 75)


@pytest.mark.promise("R6")
@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_ends_all_with_its_stack(tmp_path, victim):
    script = """
import time
import jax
from ptft.core import watchdog
from ptft.train import pipeline
watchdog.LEAST, watchdog.TIMES, batches = 10, 1, pipeline.train_batches
def stuck(*args):
    for k, batch in enumerate(batches(*args), 1):
        while k == 5 and jax.process_index() == VICTIM:
            time.sleep(1)  # where it hangs
        yield batch
pipeline.train_batches = stuck
""".replace("VICTIM", str(victim))
    values = flow.pretraining(tmp_path, train_for="100000 steps", eval_every="0", save_every="0")
    page = flow.page(tmp_path / "long.py", values)
    argv = ["train", "--config", str(page), "--workdir", str(tmp_path / "run")]
    both = start(2, script + VERBS, json.dumps([argv]))
    outs = ended(both, 240)
    assert all(process.returncode not in (0, 75) for process in both)
    assert any("Timeout" in err and "in stuck" in err for _, err in outs), [err[:3000] for _, err in outs]


@pytest.mark.promise("R5")
def test_processes_look_after_each_other(monkeypatch):
    """The short form: JAX is asked to end the others of one that is dead."""
    asked: dict[str, object] = {}
    monkeypatch.setattr(mesh.jax.distributed, "initialize", lambda *_, **more: asked.update(more))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    mesh.start()
    assert asked == {"heartbeat_timeout_seconds": mesh.HEARTBEAT} and mesh.HEARTBEAT <= 30


HANGS = """
import time
import jax
jax.process_count = lambda: 2
from ptft.core import watchdog
watchdog.LEAST, watchdog.TIMES = 0.3, 1
with watchdog.watching() as dog:
    dog.step()
    dog.pause()
    time.sleep(0.6)  # evaluating takes longer, and may
    dog.resume()
    dog.step()
    time.sleep(60)  # where it hangs
"""


@pytest.mark.promise("R6")
def test_a_process_that_hangs_ends_with_its_stack():
    """The short form: one that believes it is one of two."""
    done = subprocess.run(
        [sys.executable, "-c", HANGS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    line = HANGS.splitlines().index("    time.sleep(60)  # where it hangs") + 1
    assert done.returncode == 1 and "Timeout" in done.stderr and f"line {line} in <module>" in done.stderr


def test_fewer_devices_than_all_leave_no_process_out(monkeypatch):
    monkeypatch.setattr(mesh.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="devices: 2 of 4 leaves out those of some process; expected 0"):
        mesh.make(2)
