import errno
import io
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from ptft.core import record, writing
from ptft.core.errors import UserError


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_sums_are_divided_once_and_not_per_batch():
    batches = [
        (np.array([1.0, 2.0, 3.0]), np.array([1, 1, 1])),
        (np.array([10.0, 0.0, 0.0]), np.array([1, 0, 0])),
    ]
    total = None
    for losses, mask in batches:
        total = record.add(total, {"loss": (jnp.sum(losses * mask), jnp.sum(mask))})
    assert record.divide(total) == {"loss": pytest.approx(16 / 4)}  # the mean of the two means would be 6


def test_sums_may_be_arrays_and_names_may_differ():
    a = {"confusion": (np.array([[1, 2], [3, 4]]), 1), "mlm": (jnp.float32(2), jnp.float32(4))}
    b = {"confusion": (np.array([[1, 0], [0, 1]]), 1), "nsp": (3.0, 2.0)}
    total = record.divide(record.add(record.add(None, a), b))
    np.testing.assert_array_equal(total["confusion"], [[1, 1], [1.5, 2.5]])
    assert total["mlm"] == 0.5 and total["nsp"] == 1.5
    assert isinstance(total["mlm"], float)


def test_adding_leaves_the_arguments_alone():
    a, b = {"x": (1.0, 1.0)}, {"x": (2.0, 1.0)}
    record.add(record.add(None, a), b)
    assert a == {"x": (1.0, 1.0)} and b == {"x": (2.0, 1.0)}


def test_weight_zero_is_nan_without_a_warning():
    out = record.divide({"loss": (0.0, 0), "matrix": (np.zeros((2, 2)), 0)})
    assert np.isnan(out["loss"]) and np.isnan(out["matrix"]).all()


def test_add_works_under_jit_and_keeps_device_arrays():
    added = jax.jit(record.add)({"x": (jnp.ones(3), jnp.float32(1))}, {"x": (jnp.ones(3), jnp.float32(1))})
    assert isinstance(added["x"][0], jax.Array)
    np.testing.assert_array_equal(record.divide(added)["x"], np.ones(3))


def test_log_writes_json_lines_that_are_on_disk_at_once(tmp_path):
    log = record.Log(tmp_path / "run", quiet=True)
    log.write(1, "train", {"loss": np.float32(0.5), "rate": jnp.float32(0.25)})
    assert lines(tmp_path / "run") == [{"step": 1, "split": "train", "loss": 0.5, "rate": 0.25}]
    log.write(2, "dev", {"loss": float("nan"), "worst": float("inf"), "matrix": np.array([[1.0, np.nan]])})
    assert lines(tmp_path / "run")[1] == {
        "step": 2,
        "split": "dev",
        "loss": None,
        "worst": None,
        "matrix": [[1.0, None]],
    }
    log.close()
    log.close()


def test_log_without_a_workdir_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = record.Log(None)
    log.write(1, "dev", {"loss": 0.5})
    log.close()
    assert list(tmp_path.iterdir()) == [] and "loss 0.5" in capsys.readouterr().out


def test_resume_cuts_later_lines_and_a_torn_one(tmp_path):
    log = record.Log(tmp_path, quiet=True)
    for step in (0, 10, 20, 30):
        log.write(step, "train", {"loss": step / 7})
    log.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + b'{"step": 15, "split": "tr')
    log = record.Log(tmp_path, resume_step=20, quiet=True)
    assert path.read_bytes() == b"".join(whole[:3])
    log.write(30, "train", {"loss": 30 / 7})
    log.close()
    assert path.read_bytes() == b"".join(whole)  # as if never stopped


@pytest.mark.parametrize("torn", [b"", b"\n", b"7\n", b"\xff\xfe\n", b'{"loss": 1}\n', b'{"step": null}\n'])
def test_resume_survives_any_torn_line(tmp_path, torn):
    good = b'{"step": 1, "split": "train", "loss": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + torn)
    record.Log(tmp_path, resume_step=1, quiet=True).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


@pytest.mark.parametrize("step", [0, 3])
def test_resume_says_which_lines_it_cannot_read_and_keeps_them(tmp_path, step, capsys):
    path, good = tmp_path / "metrics.jsonl", [b'{"step": %d, "split": "dev"}\n' % k for k in (1, 2, 3)]
    torn = [good[0].replace(b"step", b"stfp"), good[1].replace(b"}", b"}\x00"), good[2], b'{"step": 4']
    damaged = b"".join(torn)
    for copy in ("metrics.damaged.jsonl", "metrics.damaged1.jsonl"):
        path.write_bytes(damaged)
        record.Log(tmp_path, resume_step=step, quiet=True).close()
        assert path.read_bytes() == (good[2] if step else b"")
        assert (tmp_path / copy).read_bytes() == damaged
        said = f"WARNING: {path}: 2 of 3 lines cannot be read (the first is line 1) and are left out"
        assert capsys.readouterr().out == f"{said}; the file as it was is kept as {tmp_path / copy}\n"


def test_a_torn_line_at_the_end_is_no_damage(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "split": "dev"}\n{"step": 2, "sp')
    record.Log(tmp_path, resume_step=1, quiet=True).close()
    assert capsys.readouterr().out == "" and [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_complete_last_line_without_its_newline_is_not_glued_to_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}')
    log = record.Log(tmp_path, resume_step=1, quiet=True)
    log.write(2, "train", {})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_fresh_start_begins_the_file_anew(tmp_path):
    for _ in range(2):
        log = record.Log(tmp_path, quiet=True)
        log.write(0, "dev", {"loss": 1.0})
        log.close()
    assert len(lines(tmp_path)) == 1


def test_plain_lines_are_not_wrapped_and_not_marked_up(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "loaded [bold]backbone/block_0/attention/query/kernel[/bold] and then many other names " * 3
    record.say(text)
    assert capsys.readouterr().out == text + "\n"
    log = record.Log(None, total_steps=100)
    log.write(10, "train", {"loss": 0.123456, "examples": 320})
    assert capsys.readouterr().out == "step 10/100  train  loss 0.1235  examples 320\n"


def test_quiet_prints_nothing(tmp_path, capsys):
    log = record.Log(tmp_path, total_steps=3, quiet=True)
    log.write(1, "dev", {"loss": 1.0})
    log.close()
    assert capsys.readouterr().out == "" and len(lines(tmp_path)) == 1


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(record, "_console", Console(file=screen, force_terminal=True, width=200))
    log = record.Log(None, total_steps=10, resume_step=4)
    log.write(5, "train", {"loss": 0.75})
    log.write(5, "dev", {"accuracy": 0.9})
    log.close()
    shown = screen.getvalue()
    assert "5/10" in shown and "loss 0.75" in shown and "step 5/10  dev    accuracy 0.9" in shown


def test_write_json_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "result.json"
    record.write_json(
        path, {"a": np.float32(1.5), "b": [float("nan"), -np.inf], "c": jnp.arange(2), 3: True, "d": None}
    )
    assert json.loads(path.read_text()) == {"a": 1.5, "b": [None, None], "c": [0, 1], "3": True, "d": None}
    before = path.read_bytes()
    with pytest.raises(TypeError):
        record.write_json(path, {"a": object()})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("No space left on device (os error 28)"),  # as tokenizers says it
    ],
)
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path, error):
    file = tmp_path / "result.json"
    file.write_text("before")
    with pytest.raises(UserError) as e, writing.at_once(file) as part:
        part.write_text("half")
        raise error
    assert re.fullmatch(
        rf"{file} cannot be written: (no space left on device|disk quota exceeded) \([\d,.]+ MiB are free in "
        rf"{tmp_path}\); free some space, and run the same command again",
        str(e.value),
    )
    with pytest.raises(UserError), writing.folder_at_once(tmp_path / "run") as part:
        (part / "config.json").write_text("half")
        raise error
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), ValueError("x"), UserError("os error 28")])
def test_other_errors_are_no_full_disk(tmp_path, error):
    with pytest.raises(type(error)) as e, writing.at_once(tmp_path / "a"):
        raise error
    assert e.value is error and list(tmp_path.iterdir()) == []


def test_only_the_lead_process_writes_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    record.say("hello")
    record.write_json(tmp_path / "a.json", {})
    log = record.Log(tmp_path / "run", total_steps=1)
    log.write(1, "train", {"loss": 1.0})
    log.close()
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_tensorboard_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"ptft\[tensorboard\]"):
        record.Log(tmp_path, tensorboard=True, quiet=True)


def test_tensorboard_gets_every_finite_number(tmp_path, monkeypatch):
    events = []

    class Writer:
        def __init__(self, folder, purge_step):
            events.append(("open", folder, purge_step))

        def add_scalar(self, name, value, step):
            events.append((name, value, step))

        def close(self):
            events.append("close")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    log = record.Log(tmp_path, tensorboard=True, resume_step=4, quiet=True)
    log.write(5, "dev", {"loss": 0.5, "bad": float("nan"), "matrix": np.eye(2)})
    log.close()
    assert events == [("open", str(tmp_path / "tensorboard"), 5), ("dev/loss", 0.5, 5), "close"]


def test_versions_and_device_name_what_decides_numbers():
    found = record.versions()
    assert {"python", "ptft", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"} <= set(
        found
    )
    assert found["jax"] == jax.__version__ and all(isinstance(v, str) for v in found.values())
    assert record.device() == {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": 1,
    }
    json.dumps(record.device())
