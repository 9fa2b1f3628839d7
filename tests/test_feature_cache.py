"""The feature cache changes nothing but the time: the same numbers to the bit, and a miss wherever anything
that decides them changed."""

import os

import flow
import numpy as np
import pytest

from ptft.train import build, feature_cache, spec, train, weights

STEPS = 50


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    flow.run(flow.pretraining(folder, **{"model.layers": 3, "train_for": "2 steps"}), folder / "pre")
    return folder


def values(home, freeze, **changes):
    """Fifty steps of dropout in what moves, five epochs of twenty rows."""
    return flow.finetuning(
        home, home / "pre", freeze=freeze, frozen_dropout=False, devices=1, train_for=f"{STEPS} steps",
        **{"eval_every": "20 steps", "save_every": "0", "log_every": "10 steps", **changes},
    )  # fmt: skip


@pytest.mark.skipif(
    "PTFT_OPTIMIZED" not in os.environ,
    reason="equal to the bit as users compile: launch/test.sh runs this file so",
)
@pytest.mark.parametrize("freeze", ["head", "top-1", "top-2", "layers=1+bitfit&top-2", "pooler"])
def test_the_run_is_the_same_to_the_bit(home, tmp_path, freeze, capsys):
    a = train.run(spec.resolve(values(home, freeze)), tmp_path / "cached")
    assert "feature cache: what lies below block" in capsys.readouterr().out
    b = train.run(spec.resolve(values(home, freeze, cache_features="off")), tmp_path / "plain")
    assert "feature cache:" not in capsys.readouterr().out
    assert flow.state(tmp_path / "cached", STEPS) == flow.state(tmp_path / "plain", STEPS)
    assert flow.lines(tmp_path / "cached") == flow.lines(tmp_path / "plain")
    assert a["test"] == b["test"] and a["dev"] == b["dev"]
    assert a["flops_per_step"] < 0.9 * b["flops_per_step"]


def test_what_makes_rows_longer_is_not_cached(home, tmp_path):
    """A prompt that a later phase freezes still stands in every row."""
    result = train.run(spec.resolve(values(home, "prompt=2; 20%: top-1")), tmp_path / "run", quiet=True)
    assert result["steps"] == STEPS


def test_a_store_that_is_there_takes_no_more_than_its_share(home, monkeypatch):
    """Another seed's rows fill the same store, as long as there is room for them."""
    feature_cache._stores.clear()
    run = build.build(spec.resolve(values(home, "top-1")))
    rows, half = run.data.train, np.arange(len(run.data.train) // 2)
    bytes_of = int(rows.batch(half)["length"].sum()) * run.net.backbone.dims.hidden * 4
    room = [bytes_of / feature_cache.SHARE]
    monkeypatch.setattr(feature_cache, "free_memory", lambda: room[0])
    store = feature_cache._store("key", run, rows, half)
    store.have[half] = True
    assert store.place == "memory" and feature_cache._store("key", run, rows, half) is store
    room[0] = 0.0
    assert feature_cache._store("key", run, rows, half) is store  # it has all of them
    assert feature_cache._store("key", run, rows, np.arange(len(rows))).place == "disk"


@pytest.mark.parametrize("room", [0, 30_000, 10**9])
def test_all_splits_lie_in_one_place(home, monkeypatch, room):
    """One compiled model reads train and dev, so a dev split that would fit alone stays with a training split
    that does not."""

    class Device:
        def memory_stats(self):
            return {"bytes_limit": room / feature_cache.SHARE}

    run = build.build(spec.resolve(values(home, "top-1")))
    params = weights.start_params(run, quiet=True)
    monkeypatch.setattr(feature_cache.jax, "local_devices", lambda: [Device()])
    short = feature_cache.shorten(run, feature_cache.Use(), params)
    assert short.net.start == 2
    assert (
        {bool(rows.constants) for rows in (short.data.train, short.data.dev)}
        == {short.net.resident}
        == {room == 10**9}
    )
