"""Members of a population are the runs that they would be alone, and do not touch each other."""

import flow
import pytest

from ptft.bench import cell as work
from ptft.bench import vectorized
from ptft.bench.protocol import Cell
from ptft.core.errors import UserError
from ptft.train import build, spec, train


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("population")
    flow.run(flow.pretraining(folder, **{"model.layers": 2, "train_for": "2 steps"}), folder / "pre")
    return folder


def together(asked):
    """The results in order."""
    found = {i: outcome for some in vectorized.train_together(asked) for i, outcome in some.items()}
    return [found[i] for i in range(len(asked))]


def config(home, freeze, seed=0, lr=1e-3, **changes):
    start = {
        "frozen_dropout": False,
        "devices": 1,
        "train_for": "16 steps",
        "eval_every": "8 steps",
        "save_every": "0",
    }
    return spec.resolve(
        flow.finetuning(
            home,
            home / "pre",
            freeze=freeze,
            seed=seed,
            **{**start, "optim.lr": lr, "data.train_size": 16, **changes},
        )
    )


@pytest.mark.parametrize(
    ("freeze", "wide"), [("top-1", False), ("bitfit", True)], ids=["in turns", "side by side"]
)
def test_members_are_the_solo_runs(home, tmp_path, monkeypatch, freeze, wide):
    monkeypatch.setattr(vectorized, "wide", lambda: wide)
    asked = [config(home, freeze, seed, lr) for seed in (0, 3) for lr in (1e-3, 3e-3)]
    assert len({vectorized.group_key(c) for c in asked}) == 1 and vectorized.group_key(asked[0])
    found = together(asked)
    for i, c in enumerate(asked):
        alone = train.run(c, tmp_path / str(i), quiet=True)
        for split in ("dev", "test"):
            assert getattr(found[i], split)["loss"] == pytest.approx(alone[split]["loss"], rel=1e-4), (
                i,
                split,
            )
        # of the last step, whichever was the best
        ledger = spec.read_run(tmp_path / str(i), "freeze_ledger.json")
        moved = {r["name"]: r["relative"] for r in ledger["rows"] if r["verdict"] == "moved"}
        # What was zero has no relative change; the softmax takes the keys' biases out, so that they follow
        # rounding.
        told = [n for n, x in moved.items() if x is not None and not n.endswith("attention/key/bias")]
        assert [found[i].drift[n] for n in told] == pytest.approx([moved[n] for n in told], rel=1e-2) and told
        assert found[i].drift.keys() == moved.keys()
        forgotten = work.forgotten(build.build(c), tmp_path / str(i))
        assert (
            found[i].forgetting["after"]
            == pytest.approx(forgotten["after"], rel=1e-5)
            != found[i].forgetting["before"]
        )
        assert {
            k: getattr(found[i], k) for k in ("best_step", "steps", "chosen_by", "trainable", "config_hash")
        } == {k: alone[k] for k in ("best_step", "steps", "chosen_by", "trainable", "config_hash")}
    assert len({r.test["loss"] for r in found}) == len(asked)


@pytest.mark.parametrize("other", ["lora=8", "lora=4,alpha=64", "lora=4,rs"])
def test_what_computes_otherwise_is_no_kin(home, other):
    """Equal names of what moves are not enough."""
    assert vectorized.group_key(config(home, "lora=4")) != vectorized.group_key(config(home, other))


def test_a_member_that_diverges_touches_no_other(home, monkeypatch):
    monkeypatch.setattr(vectorized, "wide", lambda: True)
    good, bad = [config(home, "top-1", seed) for seed in (0, 1)], config(home, "top-1", 2, lr=1e38)
    want = together([*good, config(home, "top-1", 2)])
    got = together([*good, bad])
    assert isinstance(got[2], FloatingPointError)
    assert [r.test for r in got[:2]] == [r.test for r in want[:2]]


SIDE_BY_SIDE = {"top-1": 1e-3, "layers=1": 3e-3, "top-1&bitfit": 2e-3, "top-1@decay=0.5": 1e-3}


def test_strategies_of_one_depth_train_side_by_side(home, tmp_path, monkeypatch):
    """Each of a group moves what it moves alone, by as much, and nothing else changes a bit."""
    monkeypatch.setattr(vectorized, "wide", lambda: True)
    asked = [config(home, freeze, 0, lr, **{"model.dropout": 0.0}) for freeze, lr in SIDE_BY_SIDE.items()]
    asked.append(config(home, "top-1", 3, 1e-3, **{"model.dropout": 0.0}))
    kins = [vectorized.group_key(c) for c in asked]
    assert kins[0] and set(kins) == {kins[0]}
    for i, (c, found) in enumerate(zip(asked, together(asked), strict=True)):
        alone = train.run(c, tmp_path / str(i), quiet=True)
        assert found.members == len(asked)
        assert found.test["loss"] == pytest.approx(alone["test"]["loss"], rel=1e-4), c.freeze
        ledger = spec.read_run(tmp_path / str(i), "freeze_ledger.json")
        assert found.drift.keys() == {r["name"] for r in ledger["rows"] if r["verdict"] == "moved"}, c.freeze
        assert found.trainable == alone["trainable"]


@pytest.mark.parametrize("other", ["full", "head", "lora=4", "top-2"])
def test_another_depth_is_another_kin(home, monkeypatch, other):
    monkeypatch.setattr(vectorized, "wide", lambda: True)
    assert vectorized.group_key(config(home, "top-1")) != vectorized.group_key(config(home, other))


def test_on_a_cpu_each_strategy_is_a_kin(home):
    assert not vectorized.wide()
    assert vectorized.group_key(config(home, "top-1")) != vectorized.group_key(config(home, "top-1&bitfit"))


def test_other_settings_are_another_kin(home):
    for change in ({"devices": 2}, {"cache_features": "off"}, {"log_every": "3 steps"}):
        assert vectorized.group_key(config(home, "top-1")) != vectorized.group_key(
            config(home, "top-1", **change)
        )


def test_a_strategy_that_breaks_its_promise_fails_alone(home, tmp_path, monkeypatch):
    monkeypatch.setattr(vectorized, "wide", lambda: True)
    cost = {"seconds_per_step": 1.0, "flops": 1.0, "peak_bytes": 1}
    bad = {"top-1": None, "layers=1": "it costs too much"}
    monkeypatch.setattr(
        work.probe, "measure", lambda config, workdir: {**cost, "problem": bad[config.freeze]}
    )
    asked = [config(home, freeze, strict_cost=True, **{"model.dropout": 0.0}) for freeze in bad]
    cells = [Cell(c.freeze, 0, c, c.freeze, "t", "", 0, 1e-3) for c in asked]
    found = {i: outcome for some in work.run_group(cells, tmp_path) for i, outcome in some.items()}
    assert isinstance(found[1], UserError) and found[0].test["loss"] > 0 and found[0].seconds_per_step == 1.0


def test_what_cells_share_is_expected_to_take_its_time_once(home, tmp_path, monkeypatch):
    """Three seeds: as a group, one after the other in one process, or each in a process of its own."""
    cost = {"seconds_per_step": 0.1, "overhead_seconds": 30.0}
    monkeypatch.setattr(work.probe, "known", lambda config, workdir: cost)
    monkeypatch.setattr(work.probe, "measure", lambda config, workdir: cost)
    cells = [
        Cell("full", seed, config(home, "full", seed), f"full{seed}", "t", "", 0, 1e-3) for seed in range(3)
    ]

    def total(groups, **how):
        return sum(work.expected(groups, tmp_path, **how).values())

    alone = [[cell] for cell in cells]
    assert total(alone, isolated=True) - total(alone) == pytest.approx(60)
    assert total([cells]) == pytest.approx(total(alone))  # nothing is frozen: there is no prefix to share
