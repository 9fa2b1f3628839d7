"""The ledger says what moved, and catches what should not have."""

import json

import flow
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ptft import models
from ptft.freeze import ledger, resolve
from ptft.train import train

GROUPS = models.anatomy("bert")


@pytest.fixture(scope="module")
def pre(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    return folder, flow.pretrained(folder)


def small():
    """A plan of two moving leaves and one frozen one, and values for them."""
    before = {
        "backbone/block_0/ffn/up/kernel": jnp.ones((2, 3)),
        "backbone/pooler/bias": jnp.zeros(2),
        "head/classifier/bias": jnp.ones(3),
    }
    plan = resolve.plan([("backbone/block_0/.*", "freeze"), (".*", "train")], GROUPS, before)
    return plan, before, optax.adam(1.0).init({n: before[n] for n in plan.trainable})


def test_a_run_leaves_its_proof(pre):
    folder, start = pre
    flow.run(flow.finetuning(folder, start, freeze="pooler"), folder / "proof")
    proof = json.loads((folder / "proof" / "freeze_ledger.json").read_text())
    assert proof["holds"] and not proof["frozen_moved"] and not proof["not_moved"]
    moved = {r["name"] for r in proof["rows"] if r["verdict"] == "moved"}
    assert moved == {
        n for n in (r["name"] for r in proof["rows"]) if n.startswith(("head/", "backbone/pooler/"))
    }
    for r in proof["rows"]:
        assert (
            (r["before"] == r["after"])
            == (r["verdict"] == "frozen, the same")
            == (r["change"] == 0)
            == (r["rate"] == 0)
        )


def test_a_resumed_run_is_measured_from_its_first_step(pre, monkeypatch):
    folder, start = pre
    values = flow.finetuning(folder, start)
    flow.run(values, folder / "whole")
    flow.at_batch(monkeypatch, 5, flow.sigterm)
    with pytest.raises(SystemExit):
        flow.run(values, folder / "cut")
    monkeypatch.undo()
    flow.run(values, folder / "cut")
    whole, cut = (json.loads((folder / name / "freeze_ledger.json").read_text()) for name in ("whole", "cut"))
    assert whole == cut


def test_what_moved_and_by_how_much():
    plan, before, opt = small()
    after = {
        **before,
        "backbone/pooler/bias": jnp.asarray([0.0, 0.5]),
        "head/classifier/bias": before["head/classifier/bias"] * 1.25,
    }
    proof = ledger.make(plan, before, after, opt)
    assert proof["holds"] and [r["verdict"] for r in proof["rows"]] == ["frozen, the same", "moved", "moved"]
    assert [r["change"] for r in proof["rows"]] == [0, 0.5, 0.25] and [
        r["relative"] for r in proof["rows"]
    ] == [0, None, 0.25]
    assert "2 tensors moved, 1 frozen and the same to the bit" in ledger.describe(proof)


def test_a_frozen_leaf_that_moved_by_one_bit_is_caught():
    plan, before, opt = small()
    kernel = np.asarray(before["backbone/block_0/ffn/up/kernel"]).copy()
    kernel[1, 2] = np.nextafter(kernel[1, 2], 2)
    proof = ledger.make(
        plan, before, {n: x + 1 for n, x in before.items()} | {"backbone/block_0/ffn/up/kernel": kernel}, opt
    )
    assert not proof["holds"] and proof["frozen_moved"] == ["backbone/block_0/ffn/up/kernel"]
    assert "ERROR: frozen, but moved: backbone/block_0/ffn/up/kernel" in ledger.describe(proof)


def test_a_sign_of_zero_counts_as_a_change_and_shape_and_dtype_too():
    assert ledger.digest(np.zeros(2)) != ledger.digest(-np.zeros(2))
    assert (
        len(
            {
                ledger.digest(x)
                for x in (np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(2, np.float64))
            }
        )
        == 3
    )


def test_a_trainable_leaf_that_rested_is_named():
    plan, before, opt = small()
    proof = ledger.make(
        plan, before, {**before, "head/classifier/bias": before["head/classifier/bias"] + 1}, opt
    )
    assert proof["holds"] and proof["not_moved"] == ["backbone/pooler/bias"]
    assert "did not move: backbone/pooler/bias" in ledger.describe(proof)
    unread = ledger.describe(proof, unread=("backbone/pooler/",))
    assert "WARNING" not in unread and "the objective does not read it: backbone/pooler/bias" in unread


def test_optimizer_state_for_a_frozen_leaf_or_none_for_a_moving_one():
    plan, before, _ = small()
    after = {n: x + float(n in plan.trainable) for n, x in before.items()}
    extra = ledger.make(plan, before, after, optax.adam(1.0).init(before))
    assert not extra["holds"] and extra["optimizer"]["extra"] == ["backbone/block_0/ffn/up/kernel"]
    missing = ledger.make(
        plan, before, after, optax.adam(1.0).init({"head/classifier/bias": before["head/classifier/bias"]})
    )
    assert not missing["holds"] and missing["optimizer"]["missing"] == ["backbone/pooler/bias"]
    assert ledger.make(plan, before, after, optax.sgd(1.0).init(before))["holds"]  # no state at all


def test_a_run_whose_freeze_did_not_hold_fails(pre, monkeypatch):
    """A step that decays frozen weights, planted: the run ends as a crash, with the proof in its folder."""
    folder, start = pre
    original = train.fit

    def leaky(*args, **kwargs):
        state, pace = original(*args, **kwargs)
        return state._replace(frozen={n: x * 0.999 for n, x in state.frozen.items()}), pace

    monkeypatch.setattr(train, "fit", leaky)
    with pytest.raises(RuntimeError, match="the freeze did not hold"):
        flow.run(flow.finetuning(folder, start, freeze="head"), folder / "leaky")
    assert not json.loads((folder / "leaky" / "freeze_ledger.json").read_text())["holds"]
    assert not (folder / "leaky" / "result.json").exists()
