"""The loop from end to end: resuming, stopping, choosing the best, starting from another run."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import flow
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny

from ptft import objectives
from ptft.core import checkpoint, integrity, record, signals, times
from ptft.core import config as configs
from ptft.core.errors import UserError
from ptft.train import build, dataset, evaluate, programs, spec, train, weights
from ptft.train import state as states

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data, a finished pretraining run in `pre` and a finished finetuning of its top block in `fine`."""
    folder = tmp_path_factory.mktemp("home")
    flow.pretrained(folder)
    flow.run(flow.finetuning(folder, folder / "pre"), folder / "fine")
    return folder


def values_of(home, stage):
    return flow.pretraining(home) if stage == "pre" else flow.finetuning(home, home / "pre")


def same_run(a, b, step=8):
    """Weights, optimizer and log are equal to the last byte."""
    one, two = flow.state(a, step), flow.state(b, step)
    assert one == two and any(n.startswith("opt ") for n in one)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    first, second = (json.loads((w / "result.json").read_text()) for w in (a, b))
    assert all(first[k] == second[k] for k in ("dev", "best_step", "steps", "config_hash", "trainable"))


# ------------------------------------------------------------------------------------ stopping and going on


@pytest.mark.promise("R1")
@pytest.mark.parametrize("stage", ["pre", "fine"])
# 5: amid an epoch, no line, no evaluation, no checkpoint due; 6: a line and an evaluation
@pytest.mark.parametrize("k", [5, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(home, stage, k, tmp_path, monkeypatch, capsys):
    values = values_of(home, stage)
    with monkeypatch.context() as m:
        flow.at_batch(m, k, flow.sigterm)
        with pytest.raises(SystemExit) as e:
            flow.run(values, tmp_path / "run")
    assert e.value.code == signals.PREEMPTED == 75
    assert checkpoint.newest(tmp_path / "run") == k
    assert not (tmp_path / "run" / "result.json").exists()
    assert f"stopped by signal {signal.SIGTERM.value} and saved step {k}" in capsys.readouterr().out
    flow.run(values, tmp_path / "run")
    assert f"resuming at step {k} of 8" in capsys.readouterr().out
    same_run(tmp_path / "run", home / stage)


@pytest.mark.promise("R22")
def test_the_same_command_gives_the_same_bytes(home, tmp_path):
    flow.run(values_of(home, "fine"), tmp_path / "run")
    same_run(tmp_path / "run", home / "fine")


@pytest.mark.promise("R17")
def test_a_save_that_fails_ends_the_command_and_the_next_one_goes_on(home, tmp_path, monkeypatch, capsys):
    save = ocp.Checkpointer.save

    def fails(self, path, *args, **kwargs):
        if path.name == "8.new":
            raise OSError(errno.EIO, "Input/output error")
        return save(self, path, *args, **kwargs)

    page = flow.page(tmp_path / "page.py", values_of(home, "fine"))
    argv = ["train", "--config", page, "--workdir", tmp_path / "run"]
    with monkeypatch.context() as m:
        m.setattr(ocp.Checkpointer, "save", fails)
        assert flow.ptft(*argv) == 2
    assert re.search("could not write step 8 .*\n?.*earlier steps are intact", capsys.readouterr().err)
    assert checkpoint.newest(tmp_path / "run") == 4
    assert flow.ptft(*argv) == 0
    same_run(tmp_path / "run", home / "fine")


def test_the_comparison_sees_another_seed(home, tmp_path):
    flow.run(flow.finetuning(home, home / "pre", seed=1), tmp_path / "run")
    one, two = flow.state(tmp_path / "run", 8), flow.state(home / "fine", 8)
    frozen = {n for n in one if n.startswith("params backbone/embeddings")}
    assert frozen and all(one[n] == two[n] for n in frozen)
    assert all(one[n] != two[n] for n in one if n.startswith("params head/"))


KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
import flow
folder, workdir, k = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def kill():
    flow.on_disk()
    os.kill(os.getpid(), signal.SIGKILL)
flow.at_batch(pytest.MonkeyPatch(), k, kill)
flow.run(flow.finetuning(folder, folder / "pre"), workdir)
"""


@pytest.mark.promise("R2")
def test_a_killed_process_leaves_a_run_that_goes_on(home, tmp_path):
    """Step 7 dies without a word; the checkpoint of step 4 carries on, in another process, to the same
    bytes."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, home, tmp_path / "run", "7"],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL
    assert checkpoint.newest(tmp_path / "run") == 4
    spent = flow.run(flow.finetuning(home, home / "pre"), tmp_path / "run")["times"]
    same_run(tmp_path / "run", home / "fine")
    assert (spent["starts"], spent["lost_steps"]) == (2, 2)  # the last line was of step 6
    assert spent["seconds"]["lost"] > 0 and 0 < spent["goodput"] < 1
    saved = [one for line in times.read(tmp_path / "run") for one in line.get("saved", ())]
    assert ("checkpoints", 8) in [(one["kind"], one["step"]) for one in saved]
    assert all(one["stall"] >= 0 and one["seconds"] > 0 for one in saved)


def test_checkpoints_by_the_clock_change_nothing_and_a_run_goes_on_from_them(home, tmp_path, monkeypatch):
    """Ten minutes pass before step 5, amid the log's lines; one run goes on, one dies at step 7."""
    passed, values = [0.0], flow.finetuning(home, home / "pre", save_every="10 minutes")
    flow.run({**values, "save_every": "0"}, tmp_path / "whole")
    with monkeypatch.context() as m:
        m.setattr(train, "time", SimpleNamespace(perf_counter=lambda: passed[0]))
        flow.at_batch(m, 5, lambda: passed.__setitem__(0, passed[0] + 600.0))
        flow.run(values, tmp_path / "run")
        flow.at_batch(m, 7, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            flow.run(values, tmp_path / "dies")
    assert integrity.steps(tmp_path / "run", "checkpoints") == [8, 5]
    assert integrity.steps(tmp_path / "dies", "checkpoints") == [5]
    flow.run(values, tmp_path / "dies")
    for name in ("run", "dies"):
        same_run(tmp_path / name, tmp_path / "whole")


def test_what_is_saved_is_the_step_and_not_what_was_trained_since(home, tmp_path, monkeypatch):
    """Step 4 is written only once step 7 has begun; a run that stopped at step 4 has it too."""
    values = flow.finetuning(home, home / "pre", freeze="full", eval_every="0", keep=9)
    with monkeypatch.context() as m, pytest.raises(SystemExit):
        flow.at_batch(m, 4, flow.sigterm)
        flow.run(values, tmp_path / "stopped")
    write, trained = checkpoint._write, threading.Event()

    def late(*args):
        assert trained.wait(60)
        write(*args)

    monkeypatch.setattr(checkpoint, "_write", late)
    flow.at_batch(monkeypatch, 7, trained.set)
    flow.run(values, tmp_path / "run")
    assert integrity.steps(tmp_path / "run", "checkpoints") == [8, 4]
    stopped, saved = (flow.state(tmp_path / name, 4) for name in ("stopped", "run"))
    assert saved == stopped != flow.state(tmp_path / "run", 8)


@pytest.mark.parametrize(("step", "lines"), [(4, [2, 3, 4]), (8, [2, 3, 4, 6, 8])])
def test_a_save_that_fails_ends_the_run_at_the_next_line_of_the_log(home, tmp_path, monkeypatch, step, lines):
    write = checkpoint._write

    def full(workdir, kind, k, *rest):
        if (kind, k) == ("checkpoints", step):
            raise UserError("not enough disk space")
        write(workdir, kind, k, *rest)

    monkeypatch.setattr(checkpoint, "_write", full)
    flow.at_batch(monkeypatch, 5, flow.on_disk)
    with pytest.raises(UserError, match="not enough disk space"):
        flow.run(flow.finetuning(home, home / "pre"), tmp_path / "run")
    assert [x["step"] for x in flow.lines(tmp_path / "run") if x["split"] == "train"] == lines
    assert not (tmp_path / "run" / "result.json").exists()
    assert checkpoint.newest(tmp_path / "run") == (None if step == 4 else 4)


def test_a_finished_run_gives_its_result_without_training(home, monkeypatch, capsys):
    before = flow.listing(home / "pre")
    monkeypatch.setattr(build, "build", lambda config: pytest.fail("it builds again"))
    result = train.run(spec.resolve(flow.pretraining(home)), home / "pre")
    assert result == spec.read_run(home / "pre", "result.json")
    assert flow.listing(home / "pre") == before
    assert "finished; its result" in capsys.readouterr().out


def test_devices_and_parallelism_may_change_on_resume(home, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        flow.at_batch(m, 5, flow.sigterm)
        with pytest.raises(SystemExit):
            flow.run(flow.finetuning(home, home / "pre", **{"objective.dropout": 0.0}), tmp_path / "run")
    result = flow.run(
        flow.finetuning(
            home,
            home / "pre",
            **{"objective.dropout": 0.0},
            parallel="pmap",
            devices=2,
            log_every="1 step",
            keep=1,
        ),
        tmp_path / "run",
    )
    assert result["steps"] == 8 and result["device"]["count"] == 4
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["8"]


def test_a_run_of_the_old_names_goes_on(home, tmp_path, monkeypatch):
    """Keys that were renamed: a folder that was written before is read, resumed and finished as if it were of
    today."""
    values = flow.finetuning(home, home / "pre")
    with monkeypatch.context() as m:
        flow.at_batch(m, 5, flow.sigterm)
        with pytest.raises(SystemExit):
            flow.run(values, tmp_path / "run")
    file = tmp_path / "run" / "config.json"

    def aged(stored, kind):
        old = {new: old for old, new in configs.RENAMED[kind].items()}
        return {old.get(k, k): v for k, v in stored.items()}

    file.write_text(json.dumps(aged(json.loads(file.read_text()), "config")))
    assert "cache_prefix" in file.read_text()
    read_meta = checkpoint.read_meta
    monkeypatch.setattr(
        checkpoint,
        "read_meta",
        lambda *a: (m := read_meta(*a)) | {"progress": aged(m["progress"], "progress")},
    )
    result = flow.run(values, tmp_path / "run")
    assert (
        result["steps"] == 8
        and result["test"] == json.loads((home / "fine" / "result.json").read_text())["test"]
    )
    with pytest.raises(UserError, match="unknown key cache_prefix; it is called cache_features now"):
        spec.resolve({**values, "cache_prefix": "off"})


def test_changed_data_stop_a_resume(home, tmp_path, monkeypatch):
    values = flow.finetuning(home, home / "pre", **{"data.train": f"files:{tmp_path}/mine.tsv"})
    flow.table(tmp_path / "mine.tsv", 20)
    with monkeypatch.context() as m:
        flow.at_batch(m, 3, flow.sigterm)
        with pytest.raises(SystemExit):
            flow.run(values, tmp_path / "run")
    flow.table(tmp_path / "mine.tsv", 20, seed=9)
    dataset._load_data.cache_clear()
    before = flow.listing(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"the data changed since step 3 of .*run: the files that config.data names"
    ):
        flow.run(values, tmp_path / "run")
    assert flow.listing(tmp_path / "run") == before


@pytest.mark.promise("R14")
def test_another_config_in_the_folder_is_a_difference(home):
    before = flow.listing(home / "fine")
    with pytest.raises(UserError) as e:
        flow.run(flow.finetuning(home, home / "pre", seed=3, **{"optim.lr": 0.5}), home / "fine")
    assert "\n  seed: 0 -> 3\n  optim.lr: 0.001 -> 0.5\nchoose another --workdir" in str(e.value)
    assert flow.listing(home / "fine") == before


def test_a_list_of_rules_resumes(home, tmp_path, monkeypatch):
    rules = [("head/.*", "train"), ("backbone/pooler/.*", "train(lr=0.1)"), (".*", "freeze")]
    values = flow.finetuning(home, home / "pre", freeze=rules)
    with monkeypatch.context() as m:
        flow.at_batch(m, 3, flow.sigterm)
        with pytest.raises(SystemExit):
            flow.run(values, tmp_path / "run")
    assert flow.run(values, tmp_path / "run")["steps"] == 8


# -------------------------------------------------------------------------------------- the folder of a run


def test_the_log_has_each_line_once_and_no_times(home):
    found = [(line["step"], line["split"]) for line in flow.lines(home / "fine")]
    train_lines = [(k, "train") for k in (2, 3, 4, 6, 8)]
    best = json.loads((home / "fine" / "result.json").read_text())["best_step"]
    assert sorted(found) == sorted([*train_lines, *((k, "dev") for k in (3, 6, 8)), (best, "test")])
    assert not any("second" in key or "time" in key for line in flow.lines(home / "fine") for key in line)


def test_the_result_says_what_the_run_was(home):
    result = json.loads((home / "fine" / "result.json").read_text())
    run = json.loads((home / "fine" / "run.json").read_text())
    config = spec.resolve(json.loads((home / "fine" / "config.json").read_text()))
    assert result["steps"] == 8 and result["best_step"] in (3, 6, 8)
    assert result["versions"] == record.versions() and result["device"]["count"] == 4
    assert result["flops_per_step"] > 0 and result["seconds"] > 0 and result["seconds_per_step"] > 0
    trained = sum(math.prod(row["shape"]) for row in run["freeze"] if row["rate"])
    total = sum(math.prod(row["shape"]) for row in run["freeze"])
    assert (result["trainable"], result["total"]) == (trained, total) and result[
        "trainable_share"
    ] == trained / total
    assert run["labels"] == ["0", "1"] and run["config_hash"] == result[
        "config_hash"
    ] == train.configs.digest(config)
    assert run["data"]["notes"]["test"]["rows"] == 11


def test_the_result_is_that_of_the_best_step(home):
    result = json.loads((home / "pre" / "result.json").read_text())
    dev = {line["step"]: line for line in flow.lines(home / "pre") if line["split"] == "dev"}
    assert result["best_step"] == min(dev, key=lambda k: dev[k]["mlm_loss"])
    assert result["dev"]["mlm_loss"] == dev[result["best_step"]]["mlm_loss"]


# -------------------------------------------------------------------------------------- best and early stop


def scripted(monkeypatch, scores):
    """The dev accuracies of a run, in order."""
    left = iter(scores)
    monkeypatch.setattr(
        evaluate,
        "evaluate",
        lambda *args: {"loss": 1.0, "accuracy": next(left), "macro_f1": 0.0, "matthews": 0.0},
    )


def test_early_stopping_counts_evaluations_without_a_better_one(home, tmp_path, monkeypatch):
    scripted(monkeypatch, [math.nan, 0.5, 0.7, math.nan, 0.7, 0.9, 0.9, 0.9])
    values = flow.finetuning(home, home / "pre", eval_every="1 step", early_stop=2, **{"data.test": ""})
    result = flow.run(values, tmp_path / "run")
    # NaN is never the best, an equal one is not better
    assert (result["best_step"], result["steps"]) == (3, 5)
    assert [p.name for p in (tmp_path / "run" / "best").iterdir()] == ["3"]
    assert checkpoint.newest(tmp_path / "run") == 5


def test_a_run_stopped_early_stays_stopped(home, tmp_path, monkeypatch):
    """Killed after the last checkpoint and before the result: going on does not train further."""
    values = flow.finetuning(home, home / "pre", eval_every="1 step", early_stop=2, **{"data.test": ""})
    scripted(monkeypatch, [0.7, 0.6, 0.5, 0.7])
    flow.run(values, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    scripted(monkeypatch, [0.7])
    assert flow.run(values, tmp_path / "run")["steps"] == 3


@pytest.mark.promise("R12")
def test_nan_everywhere_leaves_the_last_step(home, tmp_path, monkeypatch):
    scripted(monkeypatch, [math.nan] * 4)
    result = flow.run(flow.finetuning(home, home / "pre", **{"data.test": ""}), tmp_path / "run")
    assert result["best_step"] == 8 and not (tmp_path / "run" / "best").exists()
    assert dev_lines(tmp_path / "run") == [3, 6, 8]


def dev_lines(workdir):
    return [line["step"] for line in flow.lines(workdir) if line["split"] == "dev"]


@pytest.mark.parametrize(("every", "steps"), [("4", [4, 8]), ("3", [3, 6, 8]), ("0", [8])])
def test_the_last_step_may_be_asked_for(every, steps, home, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.9, 0.5, 0.4, 0.4])
    result = flow.run(
        flow.finetuning(home, home / "pre", best="last", eval_every=every, **{"data.test": ""}),
        tmp_path / "run",
    )
    assert result["best_step"] == 8 and not (tmp_path / "run" / "best").exists()
    assert dev_lines(tmp_path / "run") == steps  # each once


@pytest.mark.parametrize(
    ("task", "metric", "values", "best"),
    [
        ("classify", "accuracy", [0.1, 0.3, 0.2], 2),
        ("mlm_nsp", "mlm_loss", [3.0, math.nan, 2.0], 3),
        ("mlm_nsp", "perplexity", [5.0, 9.0, 5.0], 1),
    ],
)
def test_which_metric_rises(task, metric, values, best):
    progress, falls = states.Progress(), objectives.falls(tiny.objective(task), metric)
    for k, value in enumerate(values, 1):
        progress = evaluate.judge(falls, value, k, progress)
    assert progress.best_step == best and progress.evals_since_best == 3 - best


@pytest.mark.promise("R11")
def test_a_diverged_run_stops_with_advice_and_keeps_what_it_has(home, tmp_path):
    with pytest.raises(
        UserError, match=r"the training loss is (nan|inf) at step \d: it diverged; lower optim.lr"
    ):
        flow.run(
            flow.finetuning(home, home / "pre", freeze="full", **{"optim.lr": 1e38, "optim.clip": 0.0}),
            tmp_path / "run",
        )
    assert checkpoint.newest(tmp_path / "run") is None


# ----------------------------------------------------------------------------------------- from another run


def test_finetuning_starts_from_the_backbone_to_the_bit(home, capsys):
    built = build.build(spec.resolve(flow.finetuning(home, home / "pre")))
    params = weights.start_params(built, quiet=False)
    best = json.loads((home / "pre" / "result.json").read_text())["best_step"]
    stored, _ = checkpoint.load_params(
        home / "pre", {n: s for n, s in built.net.shapes().items() if n.startswith("backbone/")}
    )
    assert len(stored) > 15
    for name, x in stored.items():
        assert np.asarray(params[name]).tobytes() == np.asarray(x).tobytes(), name
    said = capsys.readouterr().out
    assert f"(step {best}): loaded {len(stored)} tensors" in said
    assert "new: head/classifier/bias, head/classifier/kernel" in said
    assert "unused: head/decoder/bias, " in said


def test_frozen_parts_end_as_the_pretrained_ones(home):
    start, end = flow.state(home / "pre", 8), flow.state(home / "fine", 8)
    best = json.loads((home / "pre" / "result.json").read_text())["best_step"]
    if best == 8:
        assert all(end[n] == x for n, x in start.items() if n.startswith("params backbone/embeddings/"))
    assert all(
        end[n] != start[n] for n in end if n.startswith("params backbone/block_0/") and n.endswith("kernel")
    )


def test_without_weights_only_tokenizer_and_size_are_taken(home):
    def first(**changes):
        built = build.build(spec.resolve(flow.finetuning(home, home / "pre", **changes)))
        return built, {n: np.asarray(x) for n, x in weights.start_params(built, quiet=True).items()}

    loaded_run, loaded = first()
    run, fresh = first(init_weights=False)
    assert run.data.tokenizer.fingerprint == loaded_run.data.tokenizer.fingerprint
    assert {n: x.shape for n, x in fresh.items()} == {n: x.shape for n, x in loaded.items()}
    assert run.config.model.hidden == 64 and run.config.model.layers == 1
    kernels = [n for n in fresh if n.startswith("backbone/") and n.endswith("kernel")]
    assert kernels and not any(np.array_equal(fresh[n], loaded[n]) for n in kernels)
    # The head of a seed is the same for every strategy and with or without the weights.
    for changes in ({}, {"freeze": "head"}, {"freeze": "full", "init_weights": False}):
        head = first(**changes)[1]
        assert np.array_equal(head["head/classifier/kernel"], fresh["head/classifier/kernel"])
    assert not np.array_equal(first(seed=1)[1]["head/classifier/kernel"], fresh["head/classifier/kernel"])


def test_a_finetuned_run_can_be_started_from_too(home):
    built = build.build(spec.resolve(flow.finetuning(home, home / "fine")))
    assert np.isfinite(np.asarray(weights.start_params(built, quiet=True)["head/classifier/kernel"])).all()


# ---------------------------------------------------------------------------------------- other ways to run


def test_pmap_gives_the_losses_of_jit(home, tmp_path):
    """Dropout is drawn per device under pmap, so it is off."""

    def losses(name, **changes):
        values = flow.finetuning(
            home,
            home / "pre",
            train_for="3 steps",
            **{"objective.dropout": 0.0, "model.dropout": 0.0, **changes},
        )
        flow.run(values, tmp_path / name)
        return [line["loss"] for line in flow.lines(tmp_path / name)]

    jit = losses("jit")
    assert len(jit) == 4
    np.testing.assert_allclose(losses("pmap", parallel="pmap"), jit, rtol=1e-5)


def test_accumulation_gives_the_losses_of_the_whole_batch(home, tmp_path):
    def losses(name, **changes):
        flow.run(
            flow.pretraining(home, train_for="3 steps", **{"model.dropout": 0.0, **changes}), tmp_path / name
        )
        return [line["loss"] for line in flow.lines(tmp_path / name)]

    np.testing.assert_allclose(losses("parts", accumulate=2), losses("whole"), rtol=1e-5)


def test_bfloat16_trains(home, tmp_path):
    result = flow.run(
        flow.finetuning(home, home / "pre", train_for="1 step", dtype="bfloat16"), tmp_path / "run"
    )
    assert math.isfinite(result["dev"]["loss"])
    config = spec.resolve(flow.finetuning(home, home / "pre"))
    params, _ = checkpoint.load_params(tmp_path / "run", build.build(config).net.shapes(), skip="", new_ok="")
    assert {x.dtype.name for x in params.values()} == {"float32"}


def test_without_a_dev_split_the_last_step_counts(home, tmp_path):
    result = flow.run(
        flow.finetuning(home, home / "pre", train_for="2 steps", **{"data.dev": ""}), tmp_path / "run"
    )
    assert result["best_step"] == 2 and "dev" not in result and "accuracy" in result["test"]


@pytest.mark.promise("R3")
def test_a_second_signal_ends_at_once_but_no_echo(monkeypatch):
    with signals.preemption() as caught:  # a scheduler signals the process, and its parent does so once more
        flow.sigterm()
        flow.sigterm()
        assert caught == [signal.SIGTERM]
    monkeypatch.setattr(signals, "ECHO", 0.0)
    with pytest.raises(KeyboardInterrupt), signals.preemption() as caught:
        flow.sigterm()
        assert caught == [signal.SIGTERM]
        flow.sigterm()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_runs_of_one_shape_share_the_compiled_step(home):
    one, two = (
        programs.program(build.build(spec.resolve(flow.finetuning(home, home / "pre", seed=s))))
        for s in (0, 1)
    )
    assert one is two
    assert (
        programs.program(build.build(spec.resolve(flow.finetuning(home, home / "pre", **{"optim.lr": 0.5}))))
        is not one
    )
    assert jax.tree.leaves(one.cost)


@pytest.mark.parametrize("cache_features", ["auto", "off"])
def test_a_step_gets_nothing_that_is_not_on_the_device(home, tmp_path, monkeypatch, cache_features):
    """An array or a number of the host would be sent at every step, and the loop would wait for it."""
    original, steps = programs.program, []

    def guarded(*args):
        found = original(*args)

        def call(*given):
            steps.append(1)
            with jax.transfer_guard("disallow"):
                return found.train(*given)

        return found._replace(train=call)

    monkeypatch.setattr(programs, "program", guarded)
    flow.run(
        flow.finetuning(home, home / "pre", freeze="head; 4: full", cache_features=cache_features),
        tmp_path / "run",
    )
    assert len(steps) == 8
