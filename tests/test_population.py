"""Members of a population are the runs that they would be alone, and do not touch each other."""

import flow
import pytest

from ptft import build, train
from ptft.bench import population


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("population")
    flow.run(flow.pretraining(folder, **{"model.layers": 2, "train_for": "2 steps"}), folder / "pre")
    return folder


def config(home, freeze, seed=0, lr=1e-3, **changes):
    start = {"frozen_dropout": False, "devices": 1, "train_for": "16 steps", "eval_every": "8 steps", "save_every": "0"}
    return build.resolve(
        flow.finetuning(home, home / "pre", freeze=freeze, seed=seed, **{**start, "optim.lr": lr, "data.train_size": 16, **changes})
    )


@pytest.mark.parametrize("freeze", ["top-1", "bitfit"])
def test_members_are_the_solo_runs(home, tmp_path, freeze):
    asked = [config(home, freeze, seed, lr) for seed in (0, 3) for lr in (1e-3, 3e-3)]
    assert len({population.kin(c) for c in asked}) == 1 and population.kin(asked[0])
    found = population.train_together(asked)
    for i, c in enumerate(asked):
        alone = train.run(c, tmp_path / str(i), quiet=True)
        for split in ("dev", "test"):
            assert found[i][split]["loss"] == pytest.approx(alone[split]["loss"], rel=1e-4), (i, split)
        assert {k: found[i][k] for k in ("best_step", "steps", "chosen_by", "trainable", "config_hash")} == {
            k: alone[k] for k in ("best_step", "steps", "chosen_by", "trainable", "config_hash")
        }
    assert len({r["test"]["loss"] for r in found}) == len(asked)


@pytest.mark.parametrize("other", ["lora=8", "lora=4,alpha=64", "lora=4,rs"])
def test_what_computes_otherwise_is_no_kin(home, other):
    """Equal names of what moves are not enough."""
    assert population.kin(config(home, "lora=4")) != population.kin(config(home, other))


def test_a_member_that_diverges_touches_no_other(home):
    good, bad = [config(home, "top-1", seed) for seed in (0, 1)], config(home, "top-1", 2, lr=1e38)
    want = population.train_together([*good, config(home, "top-1", 2)])
    got = population.train_together([*good, bad])
    assert isinstance(got[2], FloatingPointError)
    assert [r["test"] for r in got[:2]] == [r["test"] for r in want[:2]]
