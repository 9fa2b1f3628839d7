import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ptft.core import mesh, record, tree
from ptft.train import optim, step
from ptft.train.net import Dropout, row_keys

N, STEPS = 16, 4


def batches(net):
    """Rows of different lengths, and rows that do not count: parts of a batch differ in weight."""
    out = []
    for k in range(STEPS):
        batch = tiny.batch(net, N, seed=k)
        batch["weight"][[0, 1, 4, 9]] = 0  # falls unevenly on devices and on accumulated parts
        out.append(batch)
    return out


@functools.cache
def trained(task, devices=1, parallel="jit", accumulate=1, seed=7):
    """Losses of every step, and the last parameters."""
    net = tiny.net("bert", task, dropout=0.0)
    start = {n: jnp.array(x) for n, x in tiny.params(net).items()}
    chosen = [n for n in start if "embeddings" not in n]  # some of each: what moves, and what is frozen
    tx = optim.build(tiny.optimizer(lr=3e-3, clip=1.0), dict.fromkeys(chosen, optim.Group()), 1, STEPS)
    grid = mesh.make(devices)
    inside, outside = tree.split(start, chosen)
    moving, frozen = jax.device_put((step.init_train_state(inside, tx), outside), mesh.replicated(grid))
    run = step.compile_train(step.Recipe(net, tx, accumulate), grid, parallel)
    losses = []
    for batch in batches(net):
        moving, sums = run(moving, frozen, mesh.put(batch, grid), jnp.uint32(seed), {})
        norm = record.divide({"grad_norm": sums.pop("grad_norm")})
        losses.append(net.objective.metrics(sums) | norm)
    return losses, jax.device_get(moving.params)


@pytest.mark.parametrize(
    ("devices", "parallel", "accumulate"),
    [
        *((n, "jit", 1) for n in (2, 4)),
        *((n, "pmap", 1) for n in (1, 2, 4)),
        *((n, "jit", parts) for n, parts in ((1, 2), (1, 4), (4, 2))),
        (4, "pmap", 4),
    ],
)
def test_losses_do_not_depend_on_devices_or_parts(devices, parallel, accumulate):
    """MLM with NSP: two terms with weights of their own, and masks that must be the same however the batch is
    split."""
    want, end = trained("mlm_nsp")
    got, params = trained("mlm_nsp", devices, parallel, accumulate)
    for k in range(STEPS):
        assert got[k].keys() == want[k].keys()
        for name, value in want[k].items():
            assert got[k][name] == pytest.approx(value, rel=2e-5), (k, name)
    for n in end:
        np.testing.assert_allclose(params[n], end[n], atol=3e-5, err_msg=n)


@pytest.mark.parametrize(("devices", "parallel", "accumulate"), [(4, "pmap", 1), (2, "jit", 2)])
def test_classification_too(devices, parallel, accumulate):
    want, got = trained("classify")[0], trained("classify", devices, parallel, accumulate)[0]
    for k in range(STEPS):
        assert got[k] == pytest.approx(want[k], rel=2e-5)


def test_the_losses_of_other_masks_would_differ():
    """So equal losses above mean equal masks; and a seed decides the masks."""
    a, b = trained("mlm_nsp")[0], trained("mlm_nsp", seed=8)[0]
    assert abs(a[0]["mlm_loss"] / b[0]["mlm_loss"] - 1) > 1e-3
    assert a[0]["nsp_accuracy"] != 0 and a[0] == trained.__wrapped__("mlm_nsp")[0][0]


def test_training_lowers_the_loss():
    net = tiny.net("bert", "classify", dropout=0.0)
    params = {n: jnp.array(x) for n, x in tiny.params(net).items()}
    tx = optim.build(tiny.optimizer(lr=1e-3), dict.fromkeys(params, optim.Group()), 1, 100)
    moving = step.init_train_state(params, tx)
    run = step.compile_train(step.Recipe(net, tx), mesh.make(1), "jit")
    batch, losses = tiny.batch(net, N), []
    for _ in range(30):
        moving, sums = run(moving, {}, batch, jnp.uint32(0), {})
        losses.append(float(sums["loss"][0] / sums["loss"][1]))
    assert losses[-1] < 0.5 * losses[0]


@functools.cache
def compiled_sums(task, dropout):
    net = tiny.net("bert", task, dropout=dropout)
    params = {n: jnp.array(x) for n, x in tiny.params(net).items()}

    def sums(batch, number, train):
        key = jax.random.fold_in(jax.random.key(3), number)
        return net.sums(params, batch, key, Dropout(jax.random.fold_in(key, 1)) if train else None)

    return net, jax.jit(sums, static_argnums=2)


def test_rows_that_are_not_valid_do_not_count():
    """Whatever stands in them, labels included; and the sums of two halves are the sums of the whole."""
    for task in ("classify", "mlm_nsp"):
        net, sums = compiled_sums(task, 0.0)
        a = tiny.batch(net, 8, seed=1)
        a["weight"][5:] = 0
        other = tiny.batch(net, 8, seed=2)
        b = {
            k: np.concatenate([a[k][:5], other[k][5:]]) if k not in ("example_id", "weight") else a[k]
            for k in a
        }
        first, second = net.objective.metrics(sums(a, 0, False)), net.objective.metrics(sums(b, 0, False))
        assert first == pytest.approx(second, rel=1e-6)
        everything = tiny.batch(net, 8, seed=1)
        none = {**a, "weight": np.zeros(8, np.float32)}
        rest = {**everything, "weight": 1 - a["weight"]}
        whole = record.add(sums(a, 0, False), sums(rest, 0, False))
        assert net.objective.metrics(whole) == pytest.approx(
            net.objective.metrics(sums(everything, 0, False)), rel=1e-5
        )
        assert all(float(s[0].sum()) == 0 for s in sums(none, 0, False).values())


def test_dropout_is_drawn_anew_each_step_and_only_in_training():
    net, sums = compiled_sums("classify", 0.5)
    batch = tiny.batch(net, 8)
    a, b, again = (float(sums(batch, k, True)["loss"][0]) for k in (0, 1, 0))
    assert a == again and abs(a - b) > 1e-3
    plain = [float(sums(batch, k, False)["loss"][0]) for k in (0, 1)]
    assert plain[0] == plain[1] and abs(plain[0] - a) > 1e-3
    _, without = compiled_sums("classify", 0.0)
    assert plain[0] == pytest.approx(float(without(batch, 0, True)["loss"][0]), rel=1e-6)


def test_evaluation_draws_the_same_masks_every_time_and_no_dropout():
    net = tiny.net("bert", "mlm_nsp", dropout=0.5)
    evaluate, batch = jax.jit(step.eval_step(net)), tiny.batch(net, 8)
    params = tiny.params(net)
    first = evaluate(params, batch, {})
    assert jax.device_get(first) == jax.device_get(evaluate(params, batch, {}))
    # Rows are masked by their place in the data set, not in the batch.
    turned = {k: x[::-1].copy() for k, x in batch.items()}
    assert net.objective.metrics(evaluate(params, turned, {})) == pytest.approx(
        net.objective.metrics(first), rel=1e-5
    )


def test_row_keys_differ_by_row_and_by_key():
    keys = [np.asarray(jax.random.key_data(row_keys(jax.random.key(s), jnp.arange(5)))) for s in (0, 1)]
    assert len({tuple(k) for k in np.concatenate(keys)}) == 10


def test_what_moves_is_donated_and_what_is_frozen_is_not():
    net = tiny.net("lstm", dropout=0.0)
    inside, outside = tree.split(
        {n: jnp.array(x) for n, x in tiny.params(net).items()},
        ["head/classifier/kernel", "head/classifier/bias"],
    )
    tx = optim.build(tiny.optimizer(), dict.fromkeys(inside, optim.Group()), 1, 2)
    moving = step.init_train_state(inside, tx)
    step.compile_train(step.Recipe(net, tx), mesh.make(1), "jit")(
        moving, outside, tiny.batch(net, 4), jnp.uint32(0), {}
    )
    assert all(x.is_deleted() for x in inside.values())
    assert not any(x.is_deleted() for x in outside.values())


def test_equal_nets_are_one_net():
    """Compiled steps are shared through them, so they must be equal and hash alike when built twice."""
    for task in ("classify", "mlm_nsp"):
        a, b = tiny.net("bert", task), tiny.net("bert", task)
        assert a == b and hash(a) == hash(b) and a != tiny.net("bert", task, layers=3)
