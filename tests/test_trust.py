"""What a run's folder says is believed only where it is whole, and one process at a time works in it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import flow
import numpy as np
import pytest

from ptft.core import checkpoint, locks
from ptft.core.errors import UserError
from ptft.train import spec, state, train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    model = {"layers": 1, "hidden": 64, "max_len": 32, "dropout": 0.1}
    values = flow.finetuning(folder, Path(), init_from="", model=model, freeze="full")
    (folder / "values.json").write_text(json.dumps(values))
    flow.run(values, folder / "fine")
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "fine", tmp_path / "run"))


def values(home: Path, **changes: object) -> dict[str, object]:
    return flow.changed(json.loads((home / "values.json").read_text()), changes)


def refused(capsys, *args: object) -> str:
    capsys.readouterr()
    assert flow.ptft(*args) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


def damage(run: Path) -> Path:
    """Flips a bit in the best step."""
    file = max((p for p in (run / "best").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(data)
    return file


READS = (["eval"], ["predict", "--text", "good", "--json"], ["export", "--to", "{tmp}/out"])


@pytest.mark.parametrize("args", READS, ids=lambda args: args[0])
def test_the_last_step_is_no_stand_in_for_a_best_one_that_is_damaged(run, tmp_path, capsys, args):
    damage(run)
    err = refused(capsys, args[0], "--workdir", run, *(a.format(tmp=tmp_path) for a in args[1:]))
    assert f"the best step of {run} is damaged: " in err and "was changed after it was written" in err
    assert f"restore {run}/best, or remove that folder to take the last step instead" in err
    assert not (tmp_path / "out").exists()
    shutil.rmtree(run / "best")
    assert flow.ptft(args[0], "--workdir", run, *(a.format(tmp=tmp_path) for a in args[1:])) == 0


def test_a_resume_neither_forgets_nor_replaces_a_damaged_best(home, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as m:
        flow.at_batch(m, 6, flow.sigterm)
        with pytest.raises(SystemExit):
            flow.run(values(home), tmp_path / "run")
    damage(tmp_path / "run")
    before = flow.listing(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"the best step of .*run is damaged: .*; restore .*run/best, or remove"
    ):
        flow.run(values(home), tmp_path / "run")
    assert flow.listing(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "run" / "best")
    capsys.readouterr()
    result = train.run(flow.spec.resolve(values(home)), tmp_path / "run")
    said = capsys.readouterr().out
    assert "WARNING: the best step so far, 3, is not in" in said and result["best_step"] in (6, 8)


def test_a_best_that_is_of_another_step_is_refused(home, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "load_params", _of_step(checkpoint.load_params, 2))
        with pytest.raises(
            UserError, match=r"best holds step 2, and the best of this run is step 3; restore"
        ):
            flow.run(values(home), tmp_path / "run")


def _of_step(load, step):
    def other(*args, **kwargs):
        params, what = load(*args, **kwargs)
        return params, what._replace(step=step)

    return other


@pytest.mark.parametrize("splits", [{}, {"data.dev": "", "data.test": ""}], ids=["dev", "no splits"])
def test_a_network_of_nan_is_no_result(home, tmp_path, splits):
    one = {"train_for": "1 steps", "warmup": "0", "optim.lr": 1e38, "optim.clip": 0.0, **splits}
    with pytest.raises(UserError, match=r"the loss on (dev|train) is nan: the run diverged; lower optim\.lr"):
        flow.run(values(home, **one), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_answer_that_is_no_number_is_not_given(run, capsys):
    params, what = checkpoint.load_params(run, None, skip="")
    huge = params["head/classifier/kernel"].at[:].set(3e38)
    checkpoint.save_best(run, what.step, params | {"head/classifier/kernel": huge}, what.meta)
    err = refused(capsys, "predict", "--workdir", run, "--text", "good", "--json")
    assert "the weights make no numbers of these texts: their training diverged" in err


@pytest.mark.parametrize("args", READS, ids=lambda args: args[0])
def test_weights_that_are_no_numbers_are_not_used(run, tmp_path, capsys, args):
    params, what = checkpoint.load_params(run, None, skip="")
    name = "backbone/block_0/ffn/up/bias"
    params[name] = params[name].at[3].set(np.nan)
    checkpoint.save_best(run, what.step, params, what.meta)
    err = refused(capsys, args[0], "--workdir", run, *(a.format(tmp=tmp_path) for a in args[1:]))
    assert f"{run}: {name} holds values that are no finite numbers" in err


@pytest.mark.parametrize("lost", [["config.json"], ["config.json", "run.json"]], ids=len)
def test_without_its_config_a_folder_is_still_of_its_run(home, run, lost):
    for name in lost:
        (run / name).unlink()
    with pytest.raises(UserError, match=r"holds a run of another config; .*\n  freeze: 'full' -> 'head'"):
        train.finished(flow.spec.resolve(values(home, freeze="head")), run)
    assert train.finished(flow.spec.resolve(values(home)), run)["steps"] == 8


def test_a_result_of_nothing_known_is_refused(home, run):
    for name in ("config.json", "run.json"):
        (run / name).unlink()
    for name in ("best", "checkpoints"):
        shutil.rmtree(run / name)
    with pytest.raises(UserError, match="holds a result, and neither"):
        train.finished(flow.spec.resolve(values(home)), run)


@pytest.mark.promise("R7")
@pytest.mark.parametrize("name", ["run.json", "result.json", "freeze_ledger.json"])
def test_another_number_in_a_file_of_a_run_is_noticed(run, tmp_path, capsys, name):
    text = (run / name).read_text()
    at = max(i for i, letter in enumerate(text[: text.index('"digest"')]) if letter in "234567")
    (run / name).write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
    err = refused(capsys, "report", run, "--to", tmp_path / "out")
    assert f"{run / name} is damaged (its digest is not that of what it holds" in err


@pytest.mark.parametrize("args", READS, ids=lambda args: args[0])
def test_labels_in_another_order_than_they_were_trained_in_are_noticed(run, tmp_path, capsys, args):
    known = spec.read_run(run, "run.json")  # written again without its digest, as there was none before
    (run / "run.json").write_text(json.dumps({**known, "labels": known["labels"][::-1]}))
    err = refused(capsys, args[0], "--workdir", run, *(a.format(tmp=tmp_path) for a in args[1:]))
    assert f"files of {run} were changed after it was trained" in err
    assert "run.json: labels: ['0', '1'] -> ['1', '0']" in err


def test_a_config_that_was_changed_after_training_is_noticed(run, capsys):
    config = json.loads((run / "config.json").read_text())
    config["model"]["pooling"], config["log_every"] = "mean", "7 steps"
    (run / "config.json").write_text(json.dumps(config))
    err = refused(capsys, "predict", "--workdir", run, "--text", "good")
    assert "config.json: model.pooling: 'cls' -> 'mean'" in err and "log_every" not in err


HOLD = """
import sys
from pathlib import Path
from ptft.core import locks
with locks.only(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@pytest.mark.promise("R18")
def test_a_folder_in_use_is_refused_and_free_again_when_its_process_is_killed(home, run):
    before = {k: v for k, v in flow.listing(run).items() if k != "lock"}
    argv = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=rf"run is in use by process {other.pid} on \S+, since 20.*; wait"
        ):
            flow.run(values(home), run)
        other.kill()
    assert flow.run(values(home), run)["steps"] == 8
    assert {k: v for k, v in flow.listing(run).items() if k != "lock"} == before


def test_where_no_locks_are_kept_a_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    with locks.only(tmp_path):
        pass
    assert "keeps no locks (No locks available)" in capsys.readouterr().err


def test_finite_is_what_every_trainable_parameter_must_be():
    good = state.step.TrainState(np.int32(1), {"a": np.ones(3), "b": np.zeros((2, 2))}, ())
    state.must_be_finite(state.RunState(good, {}, {}, state.Progress()), 1)
    bad = good._replace(params={"a": np.ones(3), "b": np.asarray([[0, np.inf], [0, 0]])})
    with pytest.raises(UserError, match="after step 7 some parameter"):
        state.must_be_finite(state.RunState(bad, {}, {}, state.Progress()), 7)
