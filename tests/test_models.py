"""Backbones against independent numpy versions (float64), and the names that checkpoints depend on."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import erf, expit

from ptft import models, objectives
from ptft.core import config, tree
from ptft.core.errors import UserError
from ptft.freeze import resolve
from ptft.freeze.layout import Layout
from ptft.models import modernbert
from ptft.models.layers import NORMAL, LayerNorm, gelu
from ptft.train.net import Dropout, Net

GOLDEN = Path(__file__).parent / "golden"
T = 12
MODELS = ("bert", "modernbert", "lstm")


def backbone(model, **values):
    return tiny.net(model, dropout=0.0, **values).backbone


@functools.cache
def weights(model, **values):
    """Nested float32 weights of a backbone, far from their initial values, biases and scales too."""
    net = tiny.net(model, dropout=0.0, **values)
    return tree.unflatten(tiny.params(net, seed=3))["backbone"]


def inputs(seed=0, width=T, pad=0):
    """A batch of rows of different lengths, as `prepare` gives it."""
    rng = np.random.default_rng(seed)
    length = np.array([T, 7, 3, 1])
    mask = np.arange(width) < length[:, None]
    tokens = rng.integers(5, tiny.TOKENIZER.vocab_size, (4, T))
    types = rng.integers(0, 2, (4, T))
    tokens, types = (np.pad(x, ((0, 0), (0, width - T))) for x in (tokens, types))
    return {
        "tokens": np.where(mask, tokens, pad).astype(np.int32),
        "types": np.where(mask, types, 0).astype(np.int32),
        "mask": mask,
    }


def apply(module, w, batch):
    return jax.jit(lambda w, b: module.apply({"params": w}, b))(w, batch)


# --- BERT ---------------------------------------------------------------------------------------------------


def norm(x, p, epsilon=1e-12):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p.get(
        "bias", 0
    )


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def numpy_bert(w, batch, layers, heads):
    """The encoder written from the paper and google-research/bert's modeling.py, one head at a time."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), w)
    e = w["embeddings"]
    x = e["word"]["embedding"][batch["tokens"]] + e["type"]["embedding"][batch["types"]]
    x = norm(x + e["position"]["embedding"][: x.shape[1]], e["norm"])
    for i in range(layers):
        p = w[f"block_{i}"]
        q, k, v = (linear(x, p["attention"][n]) for n in ("query", "key", "value"))
        mixed = []
        for part in np.split(np.arange(x.shape[-1]), heads):
            scores = np.einsum("bqd,bkd->bqk", q[..., part], k[..., part]) / np.sqrt(len(part))
            scores = np.where(batch["mask"][:, None, :], scores, -np.inf)
            a = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(a / a.sum(-1, keepdims=True) @ v[..., part])
        x = norm(x + linear(np.concatenate(mixed, -1), p["attention"]["out"]), p["attention_norm"])
        up = linear(x, p["ffn"]["up"])
        x = norm(x + linear(up * 0.5 * (1 + erf(up / np.sqrt(2))), p["ffn"]["down"]), p["ffn_norm"])
    return x, np.tanh(linear(x[:, 0], w["pooler"]))


@pytest.fixture(scope="module")
def bert():
    module, w, batch = backbone("bert", hidden=128), weights("bert", hidden=128), inputs()
    return module, w, batch, apply(module, w, batch)


def test_bert_is_the_original_architecture(bert):
    _, w, batch, got = bert
    hidden, pooled = numpy_bert(w, batch, layers=2, heads=2)
    np.testing.assert_allclose(got["hidden"][batch["mask"]], hidden[batch["mask"]], atol=2e-5)
    np.testing.assert_allclose(got["pooled"], pooled, atol=2e-5)
    np.testing.assert_array_equal(got["word_table"], w["embeddings"]["word"]["embedding"])


def test_pooling_may_be_the_mean_over_real_tokens(bert):
    _, w, batch, cls = bert
    got = apply(
        backbone("bert", hidden=128, pooling="mean"), {k: v for k, v in w.items() if k != "pooler"}, batch
    )
    np.testing.assert_array_equal(got["hidden"][batch["mask"]], cls["hidden"][batch["mask"]])
    mean = np.array(
        [np.asarray(x, np.float64)[m].mean(0) for x, m in zip(cls["hidden"], batch["mask"], strict=True)]
    )
    np.testing.assert_allclose(got["pooled"], mean, atol=2e-5)


def test_the_gelu_is_exact_and_not_the_tanh_approximation():
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    exact = x * 0.5 * (1 + erf(x / np.sqrt(2)))
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact, atol=1e-6)
    assert np.abs(np.asarray(jax.nn.gelu(x, approximate=True)) - exact).max() > 1e-4


def test_a_layernorm_of_tiny_numbers_shows_the_epsilon():
    """With deviations of 1e-5 an epsilon of 1e-6 would flatten what 1e-12 leaves alone."""
    x = 1e-5 * np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    out = LayerNorm().apply(
        {"params": {"scale": np.ones(64, np.float32), "bias": np.zeros(64, np.float32)}}, jnp.asarray(x)
    )
    assert np.asarray(out).std(-1) == pytest.approx(0.995, abs=6e-3)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("bert", {}),
        ("bert", {"pooling": "mean"}),
        ("modernbert", {}),
        ("modernbert", {"pooling": "mean"}),
        ("lstm", {"pooling": "last"}),
        ("lstm", {"pooling": "mean"}),
    ],
)
def test_padding_changes_nothing(model, more):
    module, w = backbone(model, **more), weights(model, **more)
    plain, longer, other = (apply(module, w, inputs(**kw)) for kw in ({}, {"width": 20}, {"pad": 33}))
    real = inputs()["mask"]
    for out in (longer, other):
        np.testing.assert_allclose(out["pooled"], plain["pooled"], atol=2e-6)
        np.testing.assert_allclose(out["hidden"][:, :T][real], plain["hidden"][real], atol=2e-6)


def test_what_is_masked_out_is_not_seen_but_what_is_not_is(bert):
    module, w, batch, plain = bert
    tokens = batch["tokens"].copy()
    tokens[0, 5] += 1
    assert (
        np.abs(apply(module, w, {**batch, "tokens": tokens})["pooled"][0] - plain["pooled"][0]).max() > 1e-3
    )


def test_a_row_of_padding_only_gives_numbers():
    batch = inputs()
    batch["mask"] = batch["mask"] & (np.arange(4) > 0)[:, None]
    for model, more in (
        ("bert", {}),
        ("bert", {"pooling": "mean"}),
        ("modernbert", {"pooling": "mean"}),
        ("lstm", {}),
    ):
        out = apply(backbone(model, **more), weights(model), batch)
        assert all(np.isfinite(x).all() for x in out.values())


def test_bert_may_be_entered_at_any_block(bert):
    module, w, batch, whole = bert
    for start in (0, 1, 2):
        below = backbone("bert", hidden=128, layers=start) if start else None
        if start == 0:
            e = jax.tree.map(lambda x: np.asarray(x, np.float64), w["embeddings"])
            x = (
                e["word"]["embedding"][batch["tokens"]]
                + e["type"]["embedding"][batch["types"]]
                + e["position"]["embedding"][:T]
            )
            hidden = norm(x, e["norm"]).astype(np.float32)
        else:
            hidden = apply(below, w, batch)["hidden"]
        entered = jax.jit(functools.partial(module.apply, start=start))({"params": w}, batch, hidden=hidden)
        for name in ("hidden", "pooled", "word_table"):
            np.testing.assert_allclose(entered[name], whole[name], atol=3e-6)


@pytest.mark.parametrize("model", ["bert", "modernbert"])
def test_a_sequence_that_is_too_long_for_the_positions(model):
    with pytest.raises(UserError, match=r"40 tokens do not fit 32 positions; lower objective.seq_len"):
        jax.eval_shape(lambda w, b: backbone(model).apply({"params": w}, b), weights(model), inputs(width=40))


def test_a_width_that_is_no_multiple_of_a_head():
    with pytest.raises(
        UserError, match="100 is not divisible into heads that are 64 wide; expected a multiple"
    ):
        tiny.net("bert", hidden=100)


@pytest.mark.parametrize(
    ("size", "published"),  # of google-research/bert, vocabulary 30,522
    [
        ("tiny", 4_385_920),
        ("mini", 11_170_560),
        ("small", 28_763_648),
        ("medium", 41_373_184),
        ("base", 109_482_240),
        ("large", 335_141_888),
    ],
)
def test_sizes_have_the_published_numbers_of_parameters(size, published):
    values = {"name": "bert", "size": size}
    module = models.build(config.resolve(values, models.spec(values)), 30522, jnp.float32)
    shapes = jax.eval_shape(lambda b: module.init(jax.random.key(0), b), inputs())["params"]
    assert tree.count(tree.flatten(shapes)) == published


# --- ModernBERT ---------------------------------------------------------------------------------------------


def turned(x, theta):
    """Rotary positions as complex numbers: features i and i + half are one, turned by its position times its
    frequency."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    z = z * np.exp(1j * np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], -1)


def numpy_modernbert(w, batch, pooling):
    """The encoder written from the paper, one head at a time, with the sizes of `tiny`; and what each block
    gets."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), w)
    size, gelu = tiny.SIZES["modernbert"], lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2)))
    x = norm(w["embeddings"]["word"]["embedding"][batch["tokens"]], w["embeddings"]["norm"], 1e-5)
    inside, at = [], np.arange(x.shape[1])
    for i in range(size["layers"]):
        inside.append(x.astype(np.float32))
        p, local = w[f"block_{i}"], i % size["global_every"] > 0
        seen = batch["mask"][:, None, :] & ((not local) | (np.abs(at[:, None] - at) <= size["window"] // 2))
        y = norm(x, p["attention_norm"], 1e-5) if i else x
        q, k, v = (linear(y, p["attention"][n]) for n in ("query", "key", "value"))
        mixed = []
        for part in np.split(np.arange(x.shape[-1]), size["heads"]):
            q_part, k_part = (turned(y[..., part], 10_000 if local else 160_000) for y in (q, k))
            scores = np.where(seen, np.einsum("bqd,bkd->bqk", q_part, k_part) / np.sqrt(len(part)), -1e9)
            a = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(a / a.sum(-1, keepdims=True) @ v[..., part])
        x = x + linear(np.concatenate(mixed, -1), p["attention"]["out"])
        y = norm(x, p["ffn_norm"], 1e-5)
        x = x + linear(gelu(linear(y, p["ffn"]["up"])) * linear(y, p["ffn"]["gate"]), p["ffn"]["down"])
    inside.append(x.astype(np.float32))
    x = norm(x, w["final_norm"], 1e-5)
    first = (
        np.array([row[m].mean(0) for row, m in zip(x, batch["mask"], strict=True)])
        if pooling == "mean"
        else x[:, 0]
    )
    return x, norm(gelu(linear(first, w["pooler"]["dense"])), w["pooler"]["norm"], 1e-5), inside


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_is_the_published_architecture(pooling):
    module, w, batch = backbone("modernbert", pooling=pooling), weights("modernbert"), inputs()
    got = apply(module, w, batch)
    hidden, pooled, _ = numpy_modernbert(w, batch, pooling)
    np.testing.assert_allclose(got["hidden"][batch["mask"]], hidden[batch["mask"]], atol=2e-5)
    np.testing.assert_allclose(got["pooled"], pooled, atol=2e-5)
    np.testing.assert_array_equal(got["word_table"], w["embeddings"]["word"]["embedding"])
    assert module.style == ("gelu", 1e-5, False)  # of heads on it


def test_modernbert_may_be_entered_at_any_block():
    module, w, batch = backbone("modernbert"), weights("modernbert"), inputs()
    whole, inside = apply(module, w, batch), numpy_modernbert(w, batch, "cls")[-1]
    for start, hidden in enumerate(inside):  # after the last block there is still the last norm
        entered = jax.jit(functools.partial(module.apply, start=start))({"params": w}, batch, hidden=hidden)
        np.testing.assert_allclose(
            entered["hidden"][batch["mask"]], whole["hidden"][batch["mask"]], atol=2e-5
        )
        np.testing.assert_allclose(entered["pooled"], whole["pooled"], atol=2e-5)


@pytest.mark.parametrize(("block", "first"), [(1, T - 1 - 3), (2, 0)])
def test_a_local_block_sees_half_a_window_to_each_side_and_a_global_one_everything(block, first):
    module, w, batch = backbone("modernbert", layers=block + 1), weights("modernbert"), inputs()
    hidden = np.random.default_rng(0).standard_normal((4, T, 64)).astype(np.float32)
    other = hidden.copy()
    other[0, -1] += 1
    run = jax.jit(functools.partial(module.apply, start=block))
    before, after = (np.asarray(run({"params": w}, batch, hidden=x)["hidden"]) for x in (hidden, other))
    moved = np.abs(after - before)[0].max(-1)
    assert np.flatnonzero(moved).tolist() == list(range(first, T))


def test_rotary_positions_are_far_apart_by_their_distance_alone():
    """Scores of turned vectors depend on how far apart they stand, at the far end of 8192 positions, too."""
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 64)).astype(np.float32)
    cos, sin = modernbert.turns(8192, 64, 160_000.0)
    q, k = (
        np.asarray(modernbert.rotate(jnp.broadcast_to(x, (1, 8192, 1, 64)), (cos, sin)))[0, :, 0]
        for x in (q, k)
    )
    for distance in (0, 1, 100):
        scores = (q[distance:] * k[: 8192 - distance]).sum(-1)
        np.testing.assert_allclose(scores, scores[0], atol=0.02)
    assert np.abs(q[0] @ k[0] - q[100] @ k[0]) > 0.1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"hidden": 60, "heads": 8},
            r"model.hidden: 60 is not divisible into 8 heads; expected a multiple, or another model.heads",
        ),
        (
            {"hidden": 60, "heads": 4},
            r"model.heads: 4 heads are 15 wide; rotary positions turn pairs, so expected an even width",
        ),
    ],
)
def test_a_modernbert_of_a_width_that_cannot_be(sizes, message):
    with pytest.raises(UserError, match=message):
        tiny.net("modernbert", **sizes)


@pytest.mark.parametrize(
    ("sizes", "published"),  # of transformers' ModernBertModel, vocabulary 50,368
    [({}, 149_014_272), ({"layers": 28, "hidden": 1024, "heads": 16, "ffn": 2624}, 394_781_696)],
)
def test_modernbert_has_the_published_number_of_parameters(sizes, published):
    values = {"name": "modernbert", **sizes}
    module = models.build(config.resolve(values, models.spec(values)), 50368, jnp.float32)
    shapes = tree.flatten(jax.eval_shape(lambda b: module.init(jax.random.key(0), b), inputs())["params"])
    # there, it belongs to the heads
    pooler = tree.count({n: s for n, s in shapes.items() if n.startswith("pooler/")})
    assert tree.count(shapes) - pooler == published


def test_training_the_top_of_modernbert_trains_its_last_norm():
    net = tiny.net("modernbert")
    plan = resolve.plan("top-1", models.anatomy("modernbert"), net.shapes())
    assert {n.split("/")[1] for n in plan.trainable if n.startswith("backbone/")} == {
        "block_2",
        "final_norm",
        "pooler",
    }


# --- LSTM ---------------------------------------------------------------------------------------------------


def numpy_lstm(w, batch):
    """Hochreiter & Schmidhuber with a forget gate, one row and one token at a time."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), w)
    c, rows = w["block_0"], []
    for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
        h = cell = np.zeros(c["hi"]["bias"].shape)
        states = []
        for t in tokens[: mask.sum()]:
            x = w["embeddings"]["embedding"][t]
            i, f, g, o = (
                x @ c[f"i{n}"]["kernel"] + h @ c[f"h{n}"]["kernel"] + c[f"h{n}"]["bias"] for n in "ifgo"
            )
            cell = expit(f) * cell + expit(i) * np.tanh(g)
            h = expit(o) * np.tanh(cell)
            states.append(h)
        rows.append(np.array(states))
    return rows


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_lstm_and_its_pooling(pooling):
    module, w, batch = backbone("lstm", pooling=pooling), weights("lstm", pooling=pooling), inputs()
    got = apply(module, w, batch)
    rows = numpy_lstm(w, batch)
    for i, states in enumerate(rows):
        np.testing.assert_allclose(got["hidden"][i, : len(states)], states, atol=1e-5)
    np.testing.assert_allclose(
        got["pooled"], [s[-1] if pooling == "last" else s.mean(0) for s in rows], atol=1e-5
    )


def test_lstm_may_be_entered_after_its_block():
    module, w, batch = backbone("lstm"), weights("lstm"), inputs()
    whole = apply(module, w, batch)
    entered = jax.jit(functools.partial(module.apply, start=1))({"params": w}, batch, hidden=whole["hidden"])
    np.testing.assert_array_equal(entered["pooled"], whole["pooled"])


# --- names, dtypes, initial values --------------------------------------------------------------------------


def named(model):
    """Names and shapes of a small net of each kind, per objective."""
    sizes = {
        "bert": {"size": "tiny"},
        "modernbert": {"layers": 2, "hidden": 128, "heads": 2, "ffn": 192},
        "lstm": {},
    }[model]
    values = {"name": model, **sizes}
    out = {}
    for task in ("classify", "mlm_nsp"):
        module = models.build(
            config.resolve(values, models.spec(values)), tiny.TOKENIZER.vocab_size, jnp.float32
        )
        objective = tiny.objective(task)
        shapes = Net(module, objective.head(jnp.float32, module.style), objective).shapes()
        assert {s.dtype for s in shapes.values()} == {jnp.dtype("float32")}
        out[task] = {n: list(s.shape) for n, s in sorted(shapes.items())}
    return out


@pytest.mark.parametrize("model", MODELS)
def test_golden_names_and_shapes(model):
    """Names are a file format: whoever changes them changes every checkpoint. `python tests/test_models.py`
    writes the files anew."""
    assert named(model) == json.loads((GOLDEN / f"{model}.json").read_text())


@pytest.mark.parametrize("model", MODELS)
def test_every_group_is_live_and_stem_and_blocks_do_not_overlap(model):
    names = [n for n in named(model)["mlm_nsp"] if n.startswith("backbone/")]
    anatomy = models.anatomy(model)
    groups, (stack,) = anatomy.groups, anatomy.stacks.values()
    for role, pattern in groups.items():
        assert 0 in tree.match(names, [(pattern, "train"), (".*", "freeze")]).values(), role
    layout = Layout(anatomy, dict.fromkeys(names))
    depth = len(layout.blocks)
    assert {n for n in names if layout.rows(n, 7)} == {n for n in names if n.endswith("/kernel")}
    for pattern in anatomy.products:
        assert layout.matching(pattern), pattern
    # ModernBERT's first block has no norm before attention.
    shapes = tiny.net(model, **({} if model == "lstm" else {"layers": 2})).shapes()
    inside = {re.sub(stack.format(r"\d+").removesuffix(".*"), "", n) for n in shapes if "/block_" in n}
    for module in anatomy.order:
        assert any(re.match(f"{module}/", n) for n in inside), module
    order = ["stem", *range(depth)]
    patterns = [groups["stem"], *(stack.format(i) for i in range(depth))]
    if "pooler" in groups:
        order, patterns = [*order, "pooler"], [*patterns, groups["pooler"]]
    # total: together they are the whole backbone
    claimed = tree.match(names, [(p, "train") for p in patterns])
    assert set(claimed.values()) == set(range(len(order)))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", ["classify", "mlm_nsp"])
def test_bfloat16_computes_in_bfloat16_and_reports_in_float32(model, task):
    net = tiny.net(model, task, dtype="bfloat16")
    shapes = net.shapes()
    assert {s.dtype for s in shapes.values()} == {jnp.dtype("float32")}

    def outputs(p, batch, key):
        keys = jax.random.split(key, 4)
        ready = net.objective.prepare(batch, keys)
        out = net.backbone.apply({"params": tree.unflatten(p)["backbone"]}, ready)
        return out, net.sums(p, batch, key, Dropout(key))

    out, sums = jax.eval_shape(outputs, shapes, tiny.batch(net, 4), jax.random.key(0))
    assert out["hidden"].dtype == out["pooled"].dtype == jnp.bfloat16
    assert {s.dtype for s in jax.tree.leaves(sums)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("model", ["bert", "modernbert"])
def test_bfloat16_is_near_float32(model):
    w, batch = weights(model), inputs()
    rough, exact = (
        apply(tiny.net(model, dtype=dtype, dropout=0.0).backbone, w, batch)
        for dtype in ("bfloat16", "float32")
    )
    difference = np.abs(np.asarray(rough["pooled"], np.float32) - exact["pooled"])
    assert 0 < difference.max() < 0.1


@pytest.mark.parametrize("model", ["bert", "modernbert"])
def test_initial_values(model):
    """Biases 0, scales 1, all else small; names and shapes are those foretold without computing."""
    net = tiny.net(model, "classify", layers=1)
    params = net.init(5)
    for name, x in params.items():
        if name.endswith("/bias"):
            assert not np.any(x), name
        elif name.endswith("norm/scale"):
            assert np.all(np.asarray(x) == 1), name
        else:
            deep = model == "modernbert" and re.search(r"/(out|down|pooler/dense)/kernel", name)
            assert 0 < np.abs(x).max() <= (0.0400001 / np.sqrt(2) if deep else 0.0400001), name
    assert {n: s.shape for n, s in net.shapes().items()} == {n: x.shape for n, x in params.items()}


def test_weights_are_drawn_as_berts():
    """TensorFlow's truncated_normal_initializer(0.02): a normal of deviation 0.02 cut at two of them, which
    leaves 0.0176."""
    x = np.asarray(NORMAL(jax.random.key(0), (200, 200)))
    assert np.abs(x).max() == pytest.approx(0.04, rel=1e-2)
    assert x.std() == pytest.approx(0.02 * 0.87962566, rel=0.01)


def test_a_model_that_does_not_exist_lists_those_that_do():
    with pytest.raises(UserError, match=r"there is no models/brt.py; did you mean 'bert'"):
        models.spec({"name": "brt"})
    with pytest.raises(UserError, match=r"there is no objectives/x.py; there is: classify, mlm_nsp"):
        objectives.spec({"name": "x"})


if __name__ == "__main__":
    for name in MODELS:
        text = json.dumps(named(name), indent=1)
        # a shape is one line
        text = re.sub(r"\[[^\]]*\]", lambda shape: json.dumps(json.loads(shape[0])), text)
        (GOLDEN / f"{name}.json").write_text(text + "\n")
