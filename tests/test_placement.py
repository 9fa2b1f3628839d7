import json
import os
import subprocess
import sys
from pathlib import Path

import flow
import jax
import pytest

from ptft.cli.main import main
from ptft.core import mesh, placement
from ptft.core.errors import UserError
from ptft.planning import scaling
from ptft.train import build, programs, spec, stage, state, train, weights

TABLES = [(".*/embedding", "shard"), (".*", "replicate")]
CUT = {"shard": "all", "devices": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with data, and `pre`, a pretrained run in it."""
    folder = tmp_path_factory.mktemp("placement")
    train.run(spec.resolve(flow.pretraining(folder)), folder / "pre", quiet=True)
    return folder


def values(home, **changes):
    return flow.finetuning(home, home / "pre", **changes)


def scores(result):
    return [result["dev"][k] for k in ("loss", "accuracy")] + [result["test"]["loss"]]


def test_an_array_is_cut_along_its_largest_dimension_that_fits():
    assert [placement.spec(s, 4) for s in ((8, 12), (12, 8), (6, 4), (6, 9), (8,), ())] == [
        jax.sharding.PartitionSpec(*x) for x in ((None, "shard"), ("shard",), (None, "shard"), (), (), ())
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": "full", "optim.clip": 0.1},
        {"freeze": "lora=4", "accumulate": 2, "frozen_dtype": "int8", "checkpoint": "delta"},
        {"freeze": "gradual", "shard": "frozen"},
        {"freeze": "full", "optim.name": "adafactor", "shard": "trainable", "shard_over": 2},
        {"freeze": "top-1", "shard": TABLES, "frozen_dtype": "bfloat16"},
    ],
    ids=lambda changes: changes["freeze"],
)  # fmt: skip
def test_a_run_does_not_depend_on_where_its_parameters_lie(home, tmp_path, changes):
    """And its freeze ledger holds, which the run itself checks."""
    changes = {"model.dropout": 0.1, **changes}
    whole = {k: v for k, v in changes.items() if not k.startswith("shard")}
    a = train.run(spec.resolve(values(home, **whole)), tmp_path / "whole", quiet=True)
    b = train.run(spec.resolve(values(home, **(CUT | changes))), tmp_path / "cut", quiet=True)
    assert scores(a) == pytest.approx(scores(b), abs=1e-5) and a["best_step"] == b["best_step"]


def test_each_device_holds_its_part_alone_of_weights_and_optimizer(home):
    run = build.build(spec.resolve(values(home, freeze="full", **CUT)))
    at = stage.enter(run, state.start(run, weights.start_params(run, quiet=True)), quiet=True)
    batch = next(at.batches(0))
    for _ in range(2):  # before a step and after it
        train_state = at.state.train_state
        for arrays in (train_state.params, train_state.opt):
            first = [x.addressable_shards[0].data for x in jax.tree.leaves(arrays)]
            held = sum(x.nbytes for x in first)
            assert held == run.placement.size(arrays)
            assert held < 0.3 * sum(x.nbytes for x in jax.tree.leaves(arrays))
        at, _ = at.step(batch, mesh.place(jax.numpy.uint32(0), run.mesh))
    whole = programs.program(build.build(spec.resolve(values(home, freeze="full", devices=4))))
    assert at.program.cost.argument_bytes < 0.5 * whole.cost.argument_bytes


@pytest.mark.parametrize(
    ("before", "after"), [({}, CUT), (CUT, {"devices": 2}), (CUT, {"shard": "frozen", "devices": 2})]
)
def test_a_run_resumes_with_its_parameters_elsewhere(home, tmp_path, before, after, monkeypatch):
    want = train.run(spec.resolve(values(home, freeze="full")), tmp_path / "want", quiet=True)
    with monkeypatch.context() as m, pytest.raises(SystemExit, match="75"):
        flow.at_batch(m, 5, flow.sigterm)
        train.run(spec.resolve(values(home, freeze="full", **before)), tmp_path / "run", quiet=True)
    result = train.run(spec.resolve(values(home, freeze="full", **after)), tmp_path / "run", quiet=True)
    assert scores(result) == pytest.approx(scores(want), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shard": "trainble"}, "trainable"),
        ({"shard": [(".*", "cut")]}, "expected a pair"),
        ({"shard": [("backbone/nothing", "shard"), (".*", "replicate")]}, "backbone/nothing"),
        ({"shard": [("backbone/.*", "shard")]}, "head/"),
        ({"shard": "all", "shard_over": 3, "devices": 4}, "shard_over: 3 does not divide 4 devices.*1, 2, 4"),
        ({"shard_over": 2}, "shard='none' cuts nothing"),
        ({"shard": "all", "parallel": "pmap"}, "shard: 'all' needs parallel='jit'"),
    ],
)
def test_a_mistake_is_named(home, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        train.run(spec.resolve(values(home, **changes)), tmp_path / "run", quiet=True)


def test_a_plan_shows_the_bytes_of_a_device(home, tmp_path, capsys):
    rows = []
    for more in ([], ["--config.shard=all"]):
        page = flow.page(tmp_path / "page.py", values(home, freeze="full", devices=4))
        assert main(["plan", "--config", str(page), "--probe", "0", "--json", *more]) == 0
        rows.append(json.loads(capsys.readouterr().out)["rows"][0])
    for key in ("parameters_bytes", "gradients_bytes", "optimizer_bytes"):
        assert rows[1][key] < 0.3 * rows[0][key]
    assert rows[1]["peak_bytes"] < rows[0]["peak_bytes"]
    assert rows[1]["checkpoint_bytes"] == rows[0]["checkpoint_bytes"] and not rows[1]["problem"]


def test_a_plan_of_more_devices_than_there_are(home, tmp_path):
    """A process that has not used its devices yet pretends."""
    page = flow.page(tmp_path / "page.py", values(home, freeze="full", shard="all"))
    done = subprocess.run(
        [sys.executable, "-m", "ptft", "plan", "--config", page, "--devices", "1,12"],
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parents[1])},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, many = (line.split() for line in done.stdout.splitlines() if line.startswith("full "))
    assert one[1:3] == ["1", "8"] and many[1:3] == ["12", "12"]


@pytest.mark.parametrize("text", ["", "0", "1,x"])
def test_devices_of_a_plan_are_numbers(text):
    with pytest.raises(UserError, match="expected numbers above 0"):
        scaling.counts(text)
