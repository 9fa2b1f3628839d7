"""ptft.bench: which cells, running and resuming them. The training itself is faked."""

import json
import math

import pytest

from ptft.bench import protocol, runner
from ptft.config import Config, Field
from ptft.config import resolve as check
from ptft.errors import UserError

FINETUNE = {
    "seed": Field(0, lo=0),
    "init_from": Field(""),
    "freeze": Field("full", (str, tuple)),
    "log_every": Field(10),
    "train_for": Field("1 epoch"),
    "data": {"train": Field("")},
    "optim": {"lr": Field(1e-3, lo=0), "decay": Field(0.0)},
}


def resolve(values):
    return check(values, FINETUNE)


def config(**bench):
    given = {
        "strategies": [{"name": "full", "freeze": "full", "lr": 1e-4}, {"name": "head", "freeze": "head", "lr": 1e-2}],
        "seeds": [0, 1],
    }
    return {"freeze": "full", "data": {"train": "tfds:x@train"}, "optim": {"lr": 1e-3}, "bench": {**given, **bench}}


def result(accuracy=0.8):
    return {
        "dev": {"accuracy": 0.9},
        "test": {"accuracy": accuracy, "loss": 0.3},
        "best_step": 3,
        "steps": 4,
        "seconds": 2.0,
        "seconds_per_step": 0.5,
        "trainable": 10,
        "total": 100,
        "trainable_share": 0.1,
        "flops_per_step": 1e6,
        "config_hash": "c",
        "versions": {"jax": "1"},
        "device": {"kind": "cpu"},
    }


class Train:
    """A fake `train.run` that remembers what it was asked for, and may be told to fail at its n-th call."""

    def __init__(self, error=None, at=()):
        self.calls, self.error, self.at = [], error, at

    def __call__(self, config: Config, workdir):
        self.calls.append((config.freeze, config.optim.lr, config.seed))
        (workdir / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
        if self.error is not None and len(self.calls) in self.at:
            raise self.error
        (workdir / "result.json").write_text("{}")
        return result(0.8 + 0.01 * config.seed)


# ---------------------------------------------------------------- protocol


def test_cells_are_the_grid_with_strategies_inside_seeds():
    cells = protocol.cells(config(), resolve)
    assert [(c.strategy, c.seed) for c in cells] == [("full", 0), ("head", 0), ("full", 1), ("head", 1)]
    assert cells[1].config.optim.lr == 1e-2 and cells[1].config.freeze == "head" and cells[1].config.seed == 0
    assert "bench" not in cells[0].config
    assert len({c.cell for c in cells}) == 4


def test_a_cell_is_named_by_what_decides_its_result():
    def ids(**changes):
        return [c.cell for c in protocol.cells({**config(), **changes}, resolve)]

    assert ids() == ids() == ids(log_every=99)
    assert not set(ids()) & set(ids(train_for="2 epochs"))  # FREE for a resume, but not the same result
    other = config(seeds=[1, 2])
    assert len(set(ids()) & {c.cell for c in protocol.cells(other, resolve)}) == 2  # the cells of seed 1 are shared


def test_a_cell_follows_the_weights_and_not_their_folder(tmp_path):
    def first(folder):
        return protocol.cells({**config(), "init_from": str(folder)}, resolve)[0].cell

    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name / "manifests").mkdir(parents=True)
        (tmp_path / name / "manifests" / "best-10.json").write_text(content)
    assert first(tmp_path / "a") == first(tmp_path / "b") != first(tmp_path / "c")


def test_strategies_may_override_any_key_and_leave_the_config_alone():
    values = config(
        strategies=[{"name": "rules", "freeze": [["head/.*", "train"], [".*", "freeze"]], "optim.decay": 0.1, "init_from": "x"}]
    )
    before = json.dumps(values)
    cell = protocol.cells(values, resolve)[0]
    assert cell.config.optim.decay == 0.1 and cell.config.init_from == "x" and cell.config.freeze[0] == ["head/.*", "train"]
    assert json.dumps(values) == before


def test_all_problems_at_once():
    strategies = [
        {"name": "a", "optim.lrr": 1},
        {"name": "a"},
        {"freeze": "head"},
        "full",
        {"name": "b", "seed": 3},
        {"name": "c", "optim.lr.x": 3},
    ]
    with pytest.raises(UserError) as e:
        protocol.cells(config(strategies=strategies, seeds=[0, 0, -1], baseline="aa"), resolve)
    for part in (
        "unknown key optim.lrr",
        "did you mean",
        "'a' is there twice",
        "needs a name",
        "got 'full'",
        "'seed' is the benchmark's own, not",
        "0 is there twice",
        "got -1",
        "no strategy 'aa'",
        "'optim.lr' is a value",
    ):
        assert part in str(e.value)


@pytest.mark.parametrize(
    ("bench", "says"),
    [
        ({"strategies": []}, "bench.strategies: is empty"),
        ({"seeds": []}, "bench.seeds: is empty"),
        ({"strategy": []}, "unknown key bench.strategy; did you mean 'strategies'"),
        ({"seeds": 5}, "bench.seeds: expected a list"),
        ({"strategies": [{"name": "a", "lr": 1e-4}, {"name": "b", "lr": 1e-4}]}, "'a' and 'b' are the same training run"),
    ],
)
def test_bad_bench_sections(bench, says):
    with pytest.raises(UserError, match=says):
        protocol.cells(config(**bench), resolve)


def test_a_broken_finetune_config_is_said_once():
    with pytest.raises(UserError) as e:
        protocol.cells({**config(), "sed": 1}, resolve)
    assert str(e.value).count("unknown key sed") == 1


# ---------------------------------------------------------------- runner


def test_one_line_a_run_and_checkpoints_go(tmp_path, capsys):
    train = Train()
    rows = runner.run(config(), resolve, tmp_path, train)
    assert rows == runner.read(tmp_path / "runs.jsonl") and len(rows) == 4
    assert {
        "cell",
        "strategy",
        "freeze",
        "lr",
        "seed",
        "task",
        "dev",
        "test",
        "best_step",
        "steps",
        "seconds",
        "seconds_per_step",
        "trainable",
        "total",
        "trainable_share",
        "flops_per_step",
        "config_hash",
        "versions",
        "device",
        "status",
        "error",
    } <= rows[0].keys()
    assert rows[1]["lr"] == 1e-2 and rows[1]["task"] == "tfds:x@train" and rows[1]["status"] == "ok"
    folder = tmp_path / "cells" / rows[0]["cell"]
    assert (folder / "result.json").exists() and not (folder / "checkpoints").exists()
    said = capsys.readouterr().out
    assert "cell 2/4 head seed 0: test accuracy 0.800" in said and "left" in said
    bench = json.loads((tmp_path / "bench.json").read_text())
    assert bench["baseline"] == "full" and bench["cells"][rows[1]["cell"]] == ["head", 0]


def test_finished_cells_are_not_run_again(tmp_path):
    runner.run(config(), resolve, tmp_path, Train())
    again = Train()
    rows = runner.run(config(seeds=[0, 1, 2]), resolve, tmp_path, again)
    assert [seed for _, _, seed in again.calls] == [2, 2] and len(rows) == 6


def test_a_renamed_strategy_keeps_its_runs(tmp_path):
    runner.run(config(), resolve, tmp_path, Train())
    again = Train()
    renamed = [{"name": "all", "freeze": "full", "lr": 1e-4}, {"name": "head", "freeze": "head", "lr": 1e-2}]
    rows = runner.run(config(strategies=renamed), resolve, tmp_path, again)
    assert again.calls == [] and rows[0]["strategy"] == "all"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(75)])
def test_a_stop_passes_through_and_the_same_call_goes_on(tmp_path, stop):
    with pytest.raises(type(stop)):
        runner.run(config(), resolve, tmp_path, Train(stop, at=[3]))
    assert len(runner.read(tmp_path / "runs.jsonl")) == 2
    again = Train()
    assert len(runner.run(config(), resolve, tmp_path, again)) == 4
    assert len(again.calls) == 2


def test_a_torn_last_line_is_cut_and_its_cell_runs_again(tmp_path):
    rows = runner.run(config(), resolve, tmp_path, Train())
    path = tmp_path / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = Train()
    assert runner.run(config(), resolve, tmp_path, again) == rows
    assert len(again.calls) == 1 and len(runner.read(path)) == 4


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"cell": "a"}\n{"cell": \n')
    with pytest.raises(UserError, match=r"runs\.jsonl:2: not a line of JSON"):
        runner.run(config(), resolve, tmp_path, Train())


def test_a_failed_cell_is_recorded_shown_and_tried_again(tmp_path, capsys):
    rows = runner.run(config(), resolve, tmp_path, Train(RuntimeError("out of\nmemory"), at=[2]))
    assert [r["status"] for r in rows] == ["ok", "failed", "ok", "ok"]
    assert rows[1]["error"] == "RuntimeError: out of memory" and rows[1]["seed"] == 0
    assert "FAILED: RuntimeError: out of memory" in capsys.readouterr().out
    assert "Traceback" in (tmp_path / "cells" / rows[1]["cell"] / "error.txt").read_text()
    assert (tmp_path / "cells" / rows[1]["cell"] / "checkpoints").exists()  # to go on from
    again = Train()
    assert [r["status"] for r in runner.run(config(), resolve, tmp_path, again)] == ["ok"] * 4
    assert len(again.calls) == 1


def test_when_every_cell_fails_the_error_surfaces(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        runner.run(config(), resolve, tmp_path, Train(UserError("no such folder"), at=range(9)))
    assert [r["error"] for r in runner.read(tmp_path / "runs.jsonl")] == ["no such folder"] * 4


def test_a_diverged_run_is_a_failed_cell(tmp_path):
    def train(config, workdir):
        return result(math.nan if config.freeze == "head" else 0.8)

    rows = runner.run(config(), resolve, tmp_path, train)
    assert [r["status"] for r in rows] == ["ok", "failed", "ok", "failed"] and "diverged" in rows[1]["error"]


def test_an_unknown_metric_stops_at_once(tmp_path):
    train = Train()
    with pytest.raises(UserError, match="no 'acuracy'; did you mean 'accuracy'"):
        runner.run(config(metric="acuracy"), resolve, tmp_path, train)
    assert len(train.calls) == 1
