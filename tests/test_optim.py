"""Optimizers recomputed by hand in numpy (float64)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ptft.train import optim

NAMES = (
    "backbone/block_0/ffn/up/kernel",
    "backbone/block_0/ffn/up/bias",
    "backbone/block_0/ffn_norm/scale",
    "head/classifier/kernel",
)
SHAPES = ((3, 4), (4,), (4,), (4, 2))
WARMUP, TOTAL = 2, 6


def numbers(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {n: scale * rng.standard_normal(s) for n, s in zip(NAMES, SHAPES, strict=True)}


# the first is below a clip of 1, the second far above
GRADS = [numbers(1, 0.05), numbers(2, 2.0), numbers(3, 0.4)]


def run(config, grads=None, params=None, rates=None):
    """The parameters after each step."""
    params = numbers(0) if params is None else params
    groups = {n: optim.Group((rates or {}).get(n, 1.0)) for n in params}
    tx = optim.build(config, groups, WARMUP, TOTAL)
    p = {n: jnp.asarray(x, jnp.float32) for n, x in params.items()}
    state, out = tx.init(p), []
    update = jax.jit(tx.update)
    for g in GRADS if grads is None else grads:
        updates, state = update({n: jnp.asarray(x, jnp.float32) for n, x in g.items()}, state, p)
        p = {n: p[n] + updates[n] for n in p}
        out.append(p)
    return out


def rate(t, lr):
    """Linear warm-up, linear decay."""
    return lr * ((t + 1) / WARMUP if t < WARMUP else (TOTAL - t) / (TOTAL - WARMUP))


def clipped(grads, limit):
    norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
    return {n: g * min(1.0, limit / norm) for n, g in grads.items()}


def by_hand(direction, *, lr, weight_decay=0.0, clip=0.0, rates=None, trust=False):
    """clip -> direction(name, gradient, step) -> decay -> trust ratio -> rate."""
    p, out = numbers(0), []
    for t, grads in enumerate(GRADS):
        grads = clipped(grads, clip) if clip else grads
        for n in p:
            u = direction(n, grads[n], t)
            if not n.endswith(("/bias", "norm/scale")):
                u = u + weight_decay * p[n]
            if trust:
                u = u * np.linalg.norm(p[n]) / np.linalg.norm(u)
            p[n] = p[n] - rate(t, lr) * (rates or {}).get(n, 1.0) * u
        out.append(dict(p))
    return out


def adam(b1, b2, eps, correct):
    m, v = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0.0)

    def direction(n, g, t):
        m[n] = b1 * m[n] + (1 - b1) * g
        v[n] = b2 * v[n] + (1 - b2) * g**2
        scale = (1 - b1 ** (t + 1), 1 - b2 ** (t + 1)) if correct else (1.0, 1.0)
        return m[n] / scale[0] / (np.sqrt(v[n] / scale[1]) + eps)

    return direction


def same(got, want, rtol=2e-5):
    assert len(got) == len(want) == 3
    for g, w in zip(got, want, strict=True):
        for n in w:
            np.testing.assert_allclose(g[n], w[n], rtol=rtol, atol=2e-6, err_msg=n)


@pytest.mark.parametrize("correct", [True, False])
def test_adamw(correct):
    """With `correct=False` this is Google's BERT: eps 1e-6 outside the root, clip 1, decay 0.01 but not on
    biases and LayerNorms."""
    config = tiny.optimizer(name="adamw", lr=0.01, bias_correction=correct)
    assert (config.eps, config.clip, config.weight_decay) == (1e-6, 1.0, 0.01)
    same(run(config), by_hand(adam(0.9, 0.999, 1e-6, correct), lr=0.01, weight_decay=0.01, clip=1.0))


def test_epsilon_stands_outside_the_root():
    config = tiny.optimizer(lr=0.1, bias_correction=False, eps=0.5, clip=0, weight_decay=0)
    same(run(config), by_hand(adam(0.9, 0.999, 0.5, False), lr=0.1))


def test_lamb():
    config = tiny.optimizer(name="lamb", lr=0.01, weight_decay=0.1, b1=0.8, b2=0.99)
    same(
        run(config),
        by_hand(adam(0.8, 0.99, 1e-6, True), lr=0.01, weight_decay=0.1, clip=1.0, trust=True),
        rtol=1e-4,
    )


def test_sgd_with_momentum():
    trace = dict.fromkeys(NAMES, 0.0)

    def direction(n, g, t):
        trace[n] = 0.7 * trace[n] + g
        return trace[n]

    config = tiny.optimizer(name="sgd", lr=0.1, momentum=0.7, weight_decay=0.02, clip=0.5)
    same(run(config), by_hand(direction, lr=0.1, weight_decay=0.02, clip=0.5))


def test_adafactor():
    """Row and column means of the squares (Shazeer & Stern 2018, algorithm 4) for a large matrix, all squares
    for a vector."""
    rng = np.random.default_rng(0)
    names = ("head/x/kernel", "head/x/bias")
    shapes = {names[0]: (130, 140), names[1]: (140,)}
    params = {n: rng.standard_normal(s) for n, s in shapes.items()}
    grads = [{n: k * rng.standard_normal(s) for n, s in shapes.items()} for k in (0.1, 3.0, 0.01)]
    got = run(tiny.optimizer(name="adafactor", lr=0.01, weight_decay=0.0, clip=0), grads, params)
    row, column, square, p = 0.0, 0.0, 0.0, dict(params)
    for t, g in enumerate(grads):
        b = 1 - (t + 1.0) ** -0.8
        g2 = g[names[0]] ** 2 + 1e-30
        row, column = b * row + (1 - b) * g2.mean(1), b * column + (1 - b) * g2.mean(0)
        square = b * square + (1 - b) * (g[names[1]] ** 2 + 1e-30)
        u = {
            names[0]: g[names[0]] / np.sqrt(np.outer(row, column) / row.mean()),
            names[1]: g[names[1]] / np.sqrt(square),
        }
        for n in names:
            p[n] = p[n] - rate(t, 0.01) * u[n] / max(1.0, np.sqrt((u[n] ** 2).mean()))
            np.testing.assert_allclose(got[t][n], p[n], rtol=1e-4, atol=1e-5)
    start = {n: jnp.asarray(x, jnp.float32) for n, x in params.items()}
    groups = dict.fromkeys(names, optim.Group())
    state = optim.build(tiny.optimizer(name="adafactor"), groups, 0, 9).init(start)
    assert sum(x.size for x in jax.tree.leaves(state)) < 1000  # and not 130 * 140


def test_the_clip_is_over_all_given_gradients_together():
    plain = tiny.optimizer(name="sgd", lr=0.1, momentum=0, weight_decay=0, clip=1.0)
    moved = run(plain, [numbers(2, 2.0)] * 3)[0]
    start = numbers(0)
    norm = math.sqrt(sum(((np.asarray(moved[n]) - start[n]) ** 2).sum() for n in start))
    assert norm == pytest.approx(rate(0, 0.1), rel=1e-3)


def test_a_rate_multiplies_the_step_of_its_parameter_alone_decay_included():
    config = tiny.optimizer(lr=0.01, weight_decay=0.5)
    rates = {NAMES[0]: 0.1, NAMES[1]: 1.0, NAMES[2]: 0.25, NAMES[3]: 1.0}
    same(
        run(config, rates=rates),
        by_hand(adam(0.9, 0.999, 1e-6, True), lr=0.01, weight_decay=0.5, clip=1.0, rates=rates),
    )


@pytest.mark.parametrize(
    ("name", "decays"),
    [
        ("backbone/embeddings/word/embedding", True),
        ("backbone/block_1/attention/query/kernel", True),
        ("backbone/block_1/attention/query/bias", False),
        ("backbone/block_1/attention_norm/scale", False),
        ("backbone/block_1/attention_norm/bias", False),
        ("backbone/embeddings/norm/scale", False),
        ("head/norm/scale", False),
        ("head/decoder/bias", False),
        ("head/transform/kernel", True),
    ],
)
def test_what_decays(name, decays):
    params = {name: np.ones((2, 2))}
    config = tiny.optimizer(lr=0.1, weight_decay=0.5)
    after = run(config, [{name: np.zeros((2, 2))}] * 3, params)[-1][name]
    assert (float(after[0, 0]) < 1) == decays


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_schedules(decay):
    warmup, total, lr = 4, 12, 0.5
    at = optim.schedule(tiny.optimizer(lr=lr, decay=decay), warmup, total)
    got = np.array([at(jnp.int32(t)) for t in range(total + 3)])
    # step 0 moves, too
    np.testing.assert_allclose(got[:warmup], lr * np.array([0.25, 0.5, 0.75, 1.0]), rtol=1e-6)
    assert got[warmup] == pytest.approx(lr)
    share = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "constant": lambda x: 1.0,
    }[decay]
    want = [lr * share((t - warmup) / (total - warmup)) for t in range(warmup, total + 1)]
    np.testing.assert_allclose(got[warmup : total + 1], want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got[total:], want[-1], atol=1e-7)  # the end value stays
    assert got[total] == pytest.approx(lr if decay == "constant" else 0.0, abs=1e-7)


def test_schedules_without_and_with_nothing_but_a_warm_up():
    assert optim.schedule(tiny.optimizer(lr=1.0), 0, 10)(jnp.int32(0)) == 1.0
    only = optim.schedule(tiny.optimizer(lr=1.0), 10, 10)
    np.testing.assert_allclose([only(jnp.int32(t)) for t in (0, 9)], [0.1, 1.0], rtol=1e-6)


def test_the_state_holds_nothing_but_the_given_parameters():
    p = {n: jnp.asarray(x, jnp.float32) for n, x in numbers(0).items()}
    size = sum(x.nbytes for x in p.values())
    for config, copies in (
        (tiny.optimizer(), 2),
        (tiny.optimizer(name="sgd"), 1),
        (tiny.optimizer(name="lamb"), 2),
    ):
        state = optim.build(config, dict.fromkeys(p, optim.Group()), 1, 2).init(p)
        assert copies * size <= sum(x.nbytes for x in jax.tree.leaves(state)) <= copies * size + 16


# --- cohorts: what begins later has a state, and a count of steps, of its own -------------------------------

EARLY, LATE = NAMES[:2], NAMES[2:]


def cohorts(first, second):
    return {n: optim.Group(cohort=int(n in second)) for n in NAMES}


KINDS = [
    {"name": "adamw"}, {"name": "adamw", "bias_correction": False}, {"name": "lamb"}, {"name": "adafactor"},
    {"name": "sgd"},
]  # fmt: skip


def part(tree, names):
    return {n: jnp.asarray(tree[n], jnp.float32) for n in names}


def late(config, steps, came_from=(0, None), total=TOTAL):
    """The updates of each of `GRADS[:steps]`: EARLY moves from the first on, LATE from the third."""
    p = part(numbers(0), NAMES)
    alone = optim.build(config, dict.fromkeys(EARLY, optim.Group()), 0, total)
    both = optim.build(config, cohorts(EARLY, LATE), 0, total)
    state, out = alone.init(part(p, EARLY)), []
    for g in GRADS[:2]:
        updates, state = alone.update(part(g, EARLY), state, part(p, EARLY))
        out.append(updates)
    state = optim.carry(state, both.init(p), came_from)
    for g in GRADS[2:steps]:
        updates, state = both.update(part(g, NAMES), state, p)
        out.append(updates)
    return out, state


@pytest.mark.parametrize("values", KINDS, ids=lambda v: "-".join(map(str, v.values())))
def test_a_late_comer_moves_as_if_it_had_begun_alone_and_the_others_as_if_it_had_not(values):
    config = tiny.optimizer(lr=0.01, clip=0.0, decay="constant", **values)
    out, _ = late(config, 3)
    p = part(numbers(0), NAMES)
    for names, grads in ((EARLY, GRADS), (LATE, GRADS[2:])):
        tx = optim.build(config, dict.fromkeys(names, optim.Group()), 0, TOTAL)
        state = tx.init(part(p, names))
        for g in grads:
            updates, state = tx.update(part(g, names), state, part(p, names))
        for n in names:
            np.testing.assert_allclose(out[2][n], updates[n], rtol=1e-5, err_msg=n)


def test_the_first_step_of_a_late_comer_is_as_long_as_the_learning_rate():
    """Adam's first is: with the count of the others its correction would be missing, and the step three times
    too long."""
    config = tiny.optimizer(lr=0.01, clip=0.0, weight_decay=0.0, decay="constant", eps=1e-12)
    out, state = late(config, 3)
    for n in LATE:
        np.testing.assert_allclose(np.abs(out[2][n]), 0.01, rtol=1e-4)
    counts = [int(x) for path, x in jax.tree_util.tree_leaves_with_path(state[1]) if "count" in str(path[-1])]
    assert counts == [3, 1]
    shared = optim.build(config, dict.fromkeys(NAMES, optim.Group()), 0, TOTAL)
    # one count for all
    told = jax.tree.map(lambda x: x + 1000 if x.ndim == 0 else x, shared.init(part(numbers(0), NAMES)))
    updates, _ = shared.update(part(GRADS[2], NAMES), told, part(numbers(0), NAMES))
    assert np.abs(updates[LATE[1]]).min() > 0.02  # the mistake that this test is for


def test_the_schedule_goes_on_for_a_late_comer():
    config = tiny.optimizer(lr=0.01, clip=0.0, weight_decay=0.0, eps=1e-12, decay="linear")
    out, state = late(config, 3, total=4)
    for n in LATE:
        np.testing.assert_allclose(np.abs(out[2][n]), 0.01 * (4 - 2) / 4, rtol=1e-4)
    assert [int(x) for x in jax.tree.leaves(state[2:])] == [3]


@pytest.mark.parametrize("values", KINDS, ids=lambda v: "-".join(map(str, v.values())))
def test_a_reset_gives_everything_new_state(values):
    config = tiny.optimizer(lr=0.01, **values)
    _, state = late(config, 2, came_from=(None, None))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(state[1]))
    _, carried = late(config, 2)
    assert any((np.asarray(x) != 0).any() for x in jax.tree.leaves(carried[1][0]))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(carried[1][1]))


def test_the_clip_is_over_all_cohorts():
    """One global norm, whatever the cohorts: they change no number but the counts."""
    config = tiny.optimizer(lr=0.01, clip=0.5)
    p, g = part(numbers(0), NAMES), part(GRADS[1], NAMES)
    one = optim.build(config, dict.fromkeys(NAMES, optim.Group()), 0, TOTAL)
    two = optim.build(config, cohorts(LATE, EARLY), 0, TOTAL)
    a, b = (tx.update(g, tx.init(p), p)[0] for tx in (one, two))
    assert list(a) == list(b)
    for n in NAMES:
        np.testing.assert_array_equal(a[n], b[n])
