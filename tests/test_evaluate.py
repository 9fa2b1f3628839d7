"""Evaluation row by row: what the model says of every row, in the order of the data set."""

import jax
import numpy as np
import pytest
import tiny

from ptft.core import mesh
from ptft.objectives import ArrayRows
from ptft.train import evaluate, pipeline, step
from ptft.train.evaluate import Split


def rows(net, n):
    batch = tiny.batch(net, n)
    return ArrayRows({k: x for k, x in batch.items() if k not in ("example_id", "weight")}, {})


def one_by_one(net, params, held):
    """A batch of one for each row, with the place of the row, which keys what an objective draws."""
    compiled, found = jax.jit(step.output_step(net)), []
    for i in range(len(held)):
        place = {"example_id": np.array([i], np.int32), "weight": np.ones(1, np.float32)}
        found.append(jax.device_get(compiled(params, {**held.batch(np.array([i])), **place}, {})))
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("task", ["classify", "tag", "mlm_nsp"])
def test_outputs_are_those_of_a_batch_of_one_in_the_order_of_the_rows(task, devices):
    """Eleven rows in batches of three, or as many as the devices ask for: the last is filled up, and what
    fills it is dropped."""
    net = tiny.net("bert", task, dropout=0.0, layers=1)
    grid, held = mesh.make(devices), rows(net, 11) if task != "tag" else tagged(net, 11)
    params = tiny.params(net)
    want = one_by_one(net, params, held)
    got = evaluate.outputs(net, jax.device_put(params, mesh.replicated(grid)), Split(held, 3, grid))
    assert got.keys() == want.keys() and {len(x) for x in got.values()} == {11}
    for name, x in want.items():
        assert got[name].dtype == x.dtype and got[name].shape == x.shape, name
        np.testing.assert_allclose(got[name], x, rtol=1e-5, atol=1e-6, err_msg=name)
    assert len({x.tobytes() for x in next(iter(want.values()))}) > 5  # rows differ, so that their order shows


def tagged(net, n):
    """Rows of words, each with a tag."""
    held = tiny.batch(tiny.net("bert", "classify"), n)
    words = np.arange(net.objective.seq_len)[None] < held["length"][:, None]
    return ArrayRows(
        {
            **{k: held[k] for k in ("tokens", "length", "segment_b")},
            "tags": np.where(words, 0, -1).astype(np.int32),
        },
        {},
    )


def test_outputs_of_some_rows_are_those_of_the_rows_that_are_looked_at():
    net = tiny.net("bert", "classify", dropout=0.0, layers=1)
    held, params, grid = rows(net, 11), tiny.params(net), mesh.make(1)
    whole, some = (
        evaluate.outputs(net, params, Split(held, 4, grid, limit))["probabilities"] for limit in (0, 5)
    )
    np.testing.assert_allclose(some, whole[pipeline.looked_at(11, 5)], rtol=1e-5)


def test_outputs_of_no_rows_are_none():
    net = tiny.net("bert", "classify", dropout=0.0, layers=1)
    none = ArrayRows({"tokens": np.zeros((0, 16), np.uint16)}, {})
    assert evaluate.outputs(net, tiny.params(net), Split(none, 4, mesh.make(1))) == {}
