"""Forgetting is the pretraining's loss on its held-out text, under its own head."""

import json
import shutil

import flow
import numpy as np
import pytest

from ptft.bench import cell, forgetting
from ptft.core import checkpoint
from ptft.train import build, spec, train


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forgetting")
    flow.run(flow.pretraining(folder, **{"model.layers": 2, "train_for": "2 steps"}), folder / "pre")
    return folder


def finetuned(home, start, freeze="full", **changes):
    values = flow.finetuning(
        home,
        start,
        freeze=freeze,
        train_for="4 steps",
        eval_every="0",
        save_every="0",
        best="last",
        **changes,
    )
    config = spec.resolve(values)
    folder = home / f"{freeze}-{len(list(home.iterdir()))}"
    train.run(config, folder, quiet=True)
    return build.build(config), folder


@pytest.mark.parametrize("freeze", ["full", "lora=4", "head"])
def test_what_it_forgets(home, freeze):
    found = cell.forgotten(*finetuned(home, home / "pre", freeze, **{"optim.lr": 1e-2}))
    assert np.isfinite(found["before"]) and (found["before"] == found["after"]) is (freeze == "head")
    rows = [json.loads(line) for line in (home / "pre" / "metrics.jsonl").read_text().splitlines()]
    logged = [r["mlm_loss"] for r in rows if r["split"] == "dev"][-1]
    assert found["before"] == pytest.approx(logged, rel=1e-4)  # the loss that the pretraining's log has


def test_a_start_without_text_or_head_has_none(home, tmp_path):
    _, folder = finetuned(home, home / "pre")
    assert cell.forgotten(*finetuned(home, folder)) is None  # a classifier
    assert cell.forgotten(*finetuned(home, home / "pre", init_weights=False)) is None
    shutil.copytree(home / "pre", tmp_path / "pre")
    run, folder = finetuned(home, tmp_path / "pre")
    params = checkpoint.load_params(folder, None, skip="")[0]
    assert forgetting.measure(run, params)
    (home / "docs_dev.txt").rename(home / "gone.txt")
    forgetting._kept.cache_clear()
    try:
        assert forgetting.measure(run, params) is None
    finally:
        (home / "gone.txt").rename(home / "docs_dev.txt")


def test_another_backbone_has_none_and_thin_weights_forget_nothing(home):
    assert cell.forgotten(*finetuned(home, home / "pre", **{"model.layers": 1})) is None
    found = cell.forgotten(*finetuned(home, home / "pre", "head", frozen_dtype="int8"))
    assert found["before"] == found["after"]
