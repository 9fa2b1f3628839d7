"""Added parameters: what each computes against its formula, where it attaches, how it merges, and what is
refused."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from test_freeze import names_in

from ptft import models
from ptft.core import tree
from ptft.core.errors import UserError
from ptft.freeze import adapters, language, resolve
from ptft.models.bert import Embeddings
from ptft.models.layers import SelfAttention
from ptft.train import optim, step

MODELS = {
    "bert": ("bert", {}),
    "one": ("bert", {"layers": 1}),
    "mean": ("bert", {"layers": 1, "pooling": "mean"}),
    "electra": ("bert", {"layers": 1, "family": "electra", "embedding": 32, "pooler": "gelu"}),
    "distilbert": ("bert", {"layers": 1, "family": "distilbert", "types": 0, "pooler": "relu"}),
    "modernbert": ("modernbert", {"layers": 2}),  # a global block and a local one
    "lstm": ("lstm", {}),
}


@functools.cache
def make(name, strategy="head", task="classify"):
    """A net of one of MODELS with what the strategy adds."""
    model, values = MODELS[name]
    plain = tiny.net(model, task, dropout=0.0, **values)
    return plain._replace(
        added=resolve.added(language.parse(strategy), models.anatomy(model), plain.shapes())
    )


@functools.cache
def _start(added):
    return jax.jit(lambda body: adapters.fill(added, body | adapters.init(added, jax.random.key(1))))


def fresh(net):
    """Random weights, and what is added as a run starts with it."""
    return _start(net.added)(tiny.params(net._replace(added=())))


def moved(net):
    """The same after training: everything that is added is somewhere else, but FISH's places."""
    rng = np.random.default_rng(3)
    start = fresh(net)
    moving = {
        n: np.asarray(x) for n, x in start.items() if n.startswith("adapter/") and not n.endswith("index")
    }
    return {
        **start,
        **{
            n: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape).astype(np.float32))
            for n, x in moving.items()
        },
    }


def inputs(task="classify", n=4):
    """Rows of different length; those of a classifier are a tagger's, too."""
    net = make("bert", task=task)
    return net.objective.prepare(
        {k: jnp.asarray(v) for k, v in tiny.batch(net, n).items()}, jax.random.split(jax.random.key(0), n)
    )


@functools.cache
def _predict(net):
    return jax.jit(net.predict)


def logits(net, params, batch=None):
    return jax.tree.map(np.asarray, _predict(net)(params, inputs() if batch is None else batch))


def sites(net, kind="lora"):
    return {site for one in net.added if one.kind() == kind for site, _ in one.sites}


# ---------------------------------------------------------------------------------------- names and options


@pytest.mark.parametrize(
    ("strategy", "modules", "blocks"),
    [
        ("lora", "query value", "01"),
        ("lora=4,key", "key", "01"),
        ("lora=4,attention", "query key value out", "01"),
        ("lora=4,ffn,query", "query up down", "01"),
        ("lora=4,blocks=1", "query value", "1"),
        ("lora=4,blocks=0-1,rs,down", "down", "01"),
        ("lora=4,out,blocks=0,1,dora,alpha=3", "out", "01"),
        ("lora=4,query+lora=2,value", "query value", "01"),
        ("lora=4+lora=4", "query value", "01"),
        ("top-1&bitfit+lora=4", "query value", "01"),
        ("lora=4+full!embeddings@decay=0.9", "query value", "01"),
    ],
)
def test_where_lora_attaches(strategy, modules, blocks):
    parents = {"up": "ffn", "down": "ffn"}
    assert sites(make("bert", strategy)) == {
        f"block_{b}/{parents.get(m, 'attention')}/{m}" for b in blocks for m in modules.split()
    }


@pytest.mark.parametrize(
    ("strategy", "rank", "scale", "dora"),
    [
        ("lora", 8, 1, False),
        ("lora=4", 4, 1, False),
        ("lora=4,alpha=16", 4, 4, False),
        ("lora=4,rs", 4, 2, False),
        ("lora=16,alpha=.5,rs,dora", 16, 0.125, True),
    ],
)
def test_rank_and_scale(strategy, rank, scale, dora):
    (one,) = make("bert", strategy).added
    assert (one.rank, one.scale, one.dora) == (rank, scale, dora)
    shapes = make("bert", strategy).shapes()
    assert shapes["adapter/block_0/attention/query/lora/a"].shape == (64, rank)
    assert shapes["adapter/block_0/attention/query/lora/b"].shape == (rank, 64)
    assert ("adapter/block_0/attention/query/lora/magnitude" in shapes) == dora


def test_the_shapes_of_all_other_kinds():
    shapes = make("bert", "houlsby=3+pfeiffer+ia3+prompt=5+prefix+fish=0.01").shapes()
    added = {n.removeprefix("adapter/"): s.shape for n, s in shapes.items() if n.startswith("adapter/")}
    assert (
        added["block_1/attention/out/houlsby/down_kernel"]
        == (64, 3)
        == added["block_1/ffn/down/houlsby/up_kernel"][::-1]
    )
    assert (
        added["block_1/ffn/down/pfeiffer/down_kernel"] == (64, 32)
        and "block_1/attention/out/pfeiffer/up_bias" not in added
    )
    assert added["block_0/ffn/down/ia3/factor"] == (256,) and added["block_0/attention/key/ia3/factor"] == (
        64,
    )
    assert added["embeddings/prompt/vectors"] == (5, 64) and added[
        "block_0/attention/value/prefix/vectors"
    ] == (16, 64)
    for name, s in shapes.items():
        if name.startswith("backbone/"):
            size = max(1, round(0.01 * math.prod(s.shape)))
            assert (
                added[f"{name.removeprefix('backbone/')}/fish/values"]
                == (size,)
                == added[f"{name.removeprefix('backbone/')}/fish/index"]
            )
    # behind the projection
    assert make("electra", "prompt=2").shapes()["adapter/embeddings/prompt/vectors"].shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "strategy", "says"),
    [
        ("bert", "lora=four", "lora: expected a whole number from 1 to 1000000, such as lora=8, not 'four'"),
        ("bert", "lora=0", "expected a whole number from 1 to 1000000"),
        ("bert", "lora=1000001", "expected a whole number from 1 to 1000000"),
        ("bert", "lora=query", "such as lora=8, not 'query'"),
        ("bert", "lora=8,16", "such as lora=8, not '8,16'"),
        ("bert", "houlsby=1.5", "such as houlsby=8"),
        ("bert", "lora=8,qurey", "this model no matrix 'qurey'; did you mean 'query'"),
        ("bert", "lora=8,embeddings", "this model no matrix 'embeddings'"),
        ("bert", "lora=8,dorra", "did you mean 'dora'"),
        ("bert", "lora=8,alpha=x", "did you mean 'alpha=A'"),
        ("bert", "lora=8,alpha=0", "did you mean 'alpha=A'"),
        ("bert", "lora=8,alpha=.", "did you mean 'alpha=A'"),
        ("bert", "lora=8,blocks=2", "'blocks=2' names no blocks of this model"),
        ("bert", "lora=8,blocks=", "'blocks=' names no blocks of this model; expected such as blocks=0,2-3"),
        ("bert", "lora=8+lora=4", "adds lora to block_0/attention/query twice, in different ways"),
        ("bert", "prompt=4+prompt=5", "adds prompt to embeddings twice"),
        ("bert", "ia3=4", "ia3 has no option '4'; expected ia3"),
        ("bert", "prefix=4,value", "prefix has no option 'value'"),
        ("bert", "fish", "expected fish=SHARE or fish=SHARE,EXAMPLES"),
        ("bert", "fish=1", "a share above 0 and below 1, such as fish=0.005"),
        ("bert", "fish=.", "a share above 0 and below 1"),
        ("bert", "fish=0.1,64,8", "expected fish=SHARE or fish=SHARE,EXAMPLES"),
        ("bert", "fish=0.1,many", "from 1 to 1000000, such as fish=0.1,256, not 'many'"),
        ("bert", "lora=8&top-1", "'lora=8' is added to other sets with"),
        ("bert", "full&lora=8", "'lora=8' is added to other sets with"),
        ("bert", "full!ia3", "'ia3' is added to other sets with"),
        ("bert", "lora=8!attention", "'lora=8' is added to other sets with"),
        ("bert", "lora=8+top-1&bitfit", "& and ! are for what the model has, and come before it"),
        (
            "lstm",
            "lora=8",
            "lora needs the group 'attention', which this model does not have; it has stem, bias",
        ),
        ("lstm", "houlsby", "houlsby needs the group 'attention'"),
        ("lstm", "ia3", "ia3 needs the group 'attention'"),
        ("lstm", "prompt", "prompt needs the group 'attention'"),
        ("lstm", "prefix", "prefix needs the group 'prefix'"),
        ("modernbert", "prefix=4", "prefix needs the group 'prefix', which this model does not have"),
    ],
)
def test_nonsense_gets_the_nearest_valid_thing(name, strategy, says):
    with pytest.raises(UserError, match=re.escape(says)):
        make(name, strategy)


def test_an_unknown_kind_shows_the_nearest():
    with pytest.raises(UserError, match="'lorra=8' is no strategy; did you mean 'lora"):
        resolve.plan("lorra=8", models.anatomy("bert"), make("bert", "lorra=8").shapes())


def test_phases_share_what_they_add():
    groups, shapes = models.anatomy("bert"), make("bert").shapes()
    found = [resolve.added(language.parse(s), groups, shapes) for s in ("head", "ia3+lora=8", "lora=8+full")]
    assert [one.kind() for one in adapters.union(found)] == ["lora", "ia3"]
    with pytest.raises(
        UserError, match="freeze='lora=8; 50%: lora=8,key': its phases add lora in different ways"
    ):
        resolve.added(language.parse("lora=8; 50%: lora=8,key"), groups, shapes)


def test_what_moves_is_what_is_added_and_the_head():
    groups = models.anatomy("bert")
    for kind in ("lora=2,dora", "houlsby=2", "pfeiffer=2", "ia3", "prompt=2", "prefix=2", "fish=0.01"):
        shapes = make("bert", kind).shapes()
        want = {n for n in shapes if n.startswith(("adapter/", "head/")) and not n.endswith("index")}
        assert set(resolve.plan(kind, groups, shapes).trainable) == want
        assert set(resolve.plan("head", groups, shapes).trainable) == {
            n for n in want if n.startswith("head/")
        }
    shapes = make("bert", "lora=2+bitfit").shapes()
    moving = set(resolve.plan("lora=2+bitfit", groups, shapes).trainable)
    assert moving == {n for n in shapes if n.startswith(("adapter/", "head/")) or n.endswith("/bias")}


# ------------------------------------------------------------------------------------------------ formulas


class Layers(nn.Module):
    """Modules with names that added parameters ask for."""

    @nn.compact
    def __call__(self, x):
        return {m: nn.Dense(5, name=m)(x) for m in ("key", "down")}


class Around(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, *args):
        return self.inner.clone(name="part", parent=self)(*args)


def by_hand(kind, scale=1.0, dora=False):
    """For `key` and `down`, everywhere of random numbers: weight, bias, what is added, input and output."""
    rng = np.random.default_rng(0)
    options = (scale, dora) if kind == "lora" else ()
    one = adapters.kinds()[kind](
        (("part/key", (6, 5)), ("part/down", (6, 5))), *([] if kind == "ia3" else [2]), *options
    )
    shapes = jax.eval_shape(lambda: adapters.init([one], jax.random.key(0)))
    p = {n: jnp.asarray(1 + rng.standard_normal(s.shape), jnp.float32) for n, s in shapes.items()}
    w = {m: {"kernel": rng.standard_normal((6, 5)), "bias": rng.standard_normal(5)} for m in ("key", "down")}
    w, x = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), (w, rng.standard_normal((3, 6))))
    with adapters.attach([one], p):
        found = Around(Layers()).apply({"params": {"part": w}}, x)
    p, w, x = jax.tree.map(np.asarray, (p, w, x))
    own = {
        m: {n.rpartition("/")[2]: v for n, v in p.items() if n.startswith(f"adapter/part/{m}/")} for m in w
    }
    return {m: (w[m]["kernel"], w[m]["bias"], own[m], x, found[m]) for m in w}


def test_lora_by_hand():
    for w, bias, p, x, y in by_hand("lora", scale=0.7).values():
        np.testing.assert_allclose(y, x @ w + bias + 0.7 * (x @ p["a"]) @ p["b"], rtol=1e-5, atol=1e-5)


def test_dora_by_hand():
    """Equation 5 of the paper: the direction is that of W + s AB, the length of every output's column is the
    magnitude."""
    for w, bias, p, x, y in by_hand("lora", scale=0.7, dora=True).values():
        v = w + 0.7 * p["a"] @ p["b"]
        np.testing.assert_allclose(
            y, x @ (p["magnitude"] * v / np.linalg.norm(v, axis=0)) + bias, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer"])
def test_bottlenecks_by_hand(kind):
    act = {
        "houlsby": np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2)))),
        "pfeiffer": lambda v: np.maximum(v, 0),
    }[kind]
    for w, bias, p, x, y in by_hand(kind).values():
        inner = x @ w + bias
        want = inner + act(inner @ p["down_kernel"] + p["down_bias"]) @ p["up_kernel"] + p["up_bias"]
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_ia3_by_hand():
    found = by_hand("ia3")
    w, bias, p, x, y = found["key"]
    np.testing.assert_allclose(y, (x @ w + bias) * p["factor"], rtol=1e-5, atol=1e-5)
    w, bias, p, x, y = found["down"]
    np.testing.assert_allclose(y, (x * p["factor"]) @ w + bias, rtol=1e-5, atol=1e-5)


def test_a_prefix_by_hand():
    """Softmax over N keys more, whose values come with them; no query and no position is added, padding stays
    unseen."""
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((2, 5, 8)), np.arange(5) < np.array([[5], [3]])
    own = {
        m: {"kernel": rng.standard_normal((8, 8)), "bias": rng.standard_normal(8)}
        for m in ("query", "key", "value", "out")
    }
    more = {m: rng.standard_normal((3, 8)) for m in ("key", "value")}
    one = adapters.kinds()["prefix"]((("part/key", (8, 8)), ("part/value", (8, 8))), 3)
    narrow = functools.partial(jax.tree.map, lambda v: jnp.asarray(v, jnp.float32))
    with adapters.attach([one], narrow({f"adapter/part/{m}/prefix/vectors": v for m, v in more.items()})):
        around = Around(SelfAttention(2, 0.0, jnp.float32))
        found = around.apply({"params": {"part": narrow(own)}}, narrow(x), jnp.asarray(mask), False)
    q, k, v = (x @ own[m]["kernel"] + own[m]["bias"] for m in ("query", "key", "value"))
    for row in range(2):
        seen = np.r_[[True] * 3, mask[row]]
        keys, values = np.r_[more["key"], k[row]][seen], np.r_[more["value"], v[row]][seen]
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            e = np.exp(q[row, :, h] @ keys[:, h].T / 2)
            heads.append(e / e.sum(1, keepdims=True) @ values[:, h])
        want = np.concatenate(heads, 1) @ own["out"]["kernel"] + own["out"]["bias"]
        np.testing.assert_allclose(found[row], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mean", "modernbert"])
def test_a_prompt_is_that_many_tokens_more(name):
    """Entered behind the embeddings by hand, with masks, windows and rotary positions of the longer row."""
    net = make(name, "prompt=5", "tag")
    params, batch = moved(net), inputs()
    body = tree.unflatten(params)["backbone"]
    embedded = (
        Embeddings(net.backbone.dims).apply(
            {"params": body["embeddings"]}, batch["tokens"], batch["types"], False
        )
        if name != "modernbert"
        else models.modernbert.Embeddings(net.backbone.dims).apply(
            {"params": body["embeddings"]}, batch["tokens"], False
        )
    )
    more = jnp.broadcast_to(params["adapter/embeddings/prompt/vectors"], (4, 5, 64))
    wide = {
        **batch,
        "mask": jnp.concatenate([batch["mask"][:, :1], jnp.ones((4, 5), bool), batch["mask"][:, 1:]], 1),
    }
    hidden = jnp.concatenate([embedded[:, :1], more, embedded[:, 1:]], 1)
    want = jax.jit(lambda p, b, h: net.backbone.apply({"params": p}, b, hidden=h))(body, wide, hidden)
    with adapters.attach(net.added, params):
        found = jax.jit(lambda p, b: net.backbone.apply({"params": p}, b))(body, batch)
    np.testing.assert_allclose(found["pooled"], want["pooled"], atol=1e-5)
    np.testing.assert_allclose(found["hidden"], np.delete(want["hidden"], np.s_[1:6], 1), atol=1e-5)
    assert found["hidden"].shape == embedded.shape


@pytest.mark.parametrize(("name", "strategy"), [("mean", "prefix=2+prompt=3"), ("modernbert", "prompt=3")])
def test_a_row_says_the_same_alone_and_beside_longer_ones(name, strategy):
    net = make(name, strategy)
    params, batch = moved(net), inputs()
    together = logits(net, params, batch)
    assert len(set(np.asarray(batch["length"]).tolist())) > 1
    row = int(jnp.argmin(batch["length"]))
    n = int(batch["length"][row])
    alone = {k: v[row : row + 1, :n] if v.ndim > 1 else v[row : row + 1] for k, v in batch.items()}
    np.testing.assert_allclose(logits(net, params, alone)[0], together[row], atol=1e-5)
    plain = net._replace(added=())
    assert np.abs(logits(plain, params, batch) - together).max() > 1e-3  # they are seen


# -------------------------------------------------------------------------------------- start, merge, order


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *(
            (n, s)
            for n in ("one", "modernbert")
            for s in ("lora=2,attention,ffn,alpha=3,rs", "ia3+lora=2,dora,key,value,down")
        ),
        ("electra", "lora=2,query+lora=3,up,dora"),
        ("distilbert", "ia3"),
        ("one", "lora=2,dora+fish=0.05"),
        ("lstm", "fish=0.1"),
        *((n, "houlsby=4+pfeiffer=4+ia3+lora=2,out,down") for n in ("one", "modernbert", "electra")),
    ],
)
def test_what_is_added_starts_as_the_backbone_and_merges_into_it(name, strategy):
    net = make(name, strategy, "tag")
    plain, start, now = net._replace(added=()), fresh(net), moved(net)
    backbone, after = logits(plain, start), logits(net, now)
    np.testing.assert_allclose(logits(net, start), backbone, atol=1e-5 if "dora" in strategy else 2e-6)
    assert np.abs(after - backbone).max() > 1e-3
    if "houlsby" not in strategy:
        whole = adapters.merge(net.added, now)
        assert {n: x.shape for n, x in whole.items()} == {n: s.shape for n, s in plain.shapes().items()}
        np.testing.assert_allclose(logits(plain, whole), after, atol=1e-5)


@pytest.mark.parametrize("kind", ["houlsby=2", "pfeiffer=2", "prompt=2", "prefix=2"])
def test_what_no_weight_can_compute_is_not_merged(kind):
    net = make("one", f"lora=2+{kind}")
    with pytest.raises(
        UserError,
        match=f"{kind[:-2]} cannot be merged into the backbone's weights; those that can are lora, ia3, fish",
    ):
        adapters.merge(net.added, {})


def test_the_order_of_names_does_not_count():
    """A prefix lengthens what LoRA and (IA)3 compute, so it comes after both."""
    one, two = make("one", "lora=2,value+ia3+prefix=2"), make("one", "prefix=2+ia3+lora=2,value")
    assert one == two and [a.kind() for a in one.added] == ["lora", "ia3", "prefix"]
    params = moved(one)
    without = {n: x for n, x in params.items() if "prefix" not in n}
    merged = adapters.merge(one.added[:2], without) | {n: x for n, x in params.items() if "prefix" in n}
    np.testing.assert_allclose(logits(one, params), logits(make("one", "prefix=2"), merged), atol=1e-5)


def test_dora_starts_at_the_lengths_of_the_columns():
    net = make("one", "lora=2,dora")
    params = fresh(net)
    for site in sites(net):
        kernel = np.asarray(params[f"backbone/{site}/kernel"])
        np.testing.assert_allclose(
            params[f"adapter/{site}/lora/magnitude"], np.linalg.norm(kernel, axis=0), rtol=1e-6
        )
        assert not params[f"adapter/{site}/lora/b"].any() and params[f"adapter/{site}/lora/a"].std() > 0.05


def test_dora_on_a_dead_output_is_a_number():
    net = make("one", "lora=2,dora,query")
    name = "backbone/block_0/attention/query/kernel"
    params = fresh(net)
    params = adapters.fill(net.added, {**params, name: params[name].at[:, 3].set(0)})
    assert (
        np.isfinite(logits(net, params)).all() and np.isfinite(adapters.merge(net.added, params)[name]).all()
    )


def test_each_site_is_drawn_for_itself_and_in_bounds():
    made = adapters.init(make("bert", "lora=2").added, jax.random.key(0))
    a = [np.asarray(x) for n, x in made.items() if n.endswith("/a")]
    assert len({x.tobytes() for x in a}) == len(a) == 4 and max(np.abs(x).max() for x in a) <= 64**-0.5


# ------------------------------------------------------------------------------------------------ training


def test_the_rates_of_lora_plus_reach_the_second_matrix_alone():
    net = make("one", "lora=2,dora+bitfit")
    plan = resolve.plan("lora=2,dora+bitfit@plus=16", models.anatomy("bert"), net.shapes())
    assert {n for n, r in plan.rates.items() if r == 16} == {n for n in net.shapes() if n.endswith("lora/b")}
    assert set(plan.rates.values()) == {1.0, 16.0}
    tx = optim.build(
        tiny.optimizer(name="sgd", lr=0.5, momentum=0.0, clip=0.0, weight_decay=0.0, decay="constant"),
        optim.groups(plan),
        0,
        9,
    )
    inside = {n: np.ones(net.shapes()[n].shape, np.float32) for n in plan.trainable}
    updates = jax.jit(lambda p: tx.update(p, tx.init(p), p)[0])(inside)
    for n, u in updates.items():
        np.testing.assert_allclose(u, -8.0 if n.endswith("lora/b") else -0.5)
    with pytest.raises(UserError, match="@plus is for LoRA, and there is none here"):
        resolve.plan("ia3@plus=16", models.anatomy("bert"), make("one", "ia3").shapes())


def test_rates_of_blocks_hold_for_what_is_added_to_them():
    plan = resolve.plan(
        "lora=2+prompt=2@decay=0.5", models.anatomy("bert"), make("bert", "lora=2+prompt=2").shapes()
    )
    assert (
        plan.rates["adapter/block_1/attention/query/lora/a"] == 0.5
        and plan.rates["adapter/block_0/attention/query/lora/b"] == 0.25
    )
    assert (
        plan.rates["adapter/embeddings/prompt/vectors"] == 0.125 and plan.rates["head/classifier/bias"] == 1
    )


def test_factors_and_biases_do_not_decay():
    strategy = "lora=2,dora+houlsby=2+ia3+prefix=2+fish=0.01"
    net = make("one", strategy)
    plan = resolve.plan(strategy, models.anatomy("bert"), net.shapes())
    tx = optim.build(tiny.optimizer(lr=0.1, weight_decay=0.1, decay="constant"), optim.groups(plan), 0, 5)
    inside = {n: np.ones(net.shapes()[n].shape, np.float32) for n in plan.trainable}
    updates = jax.jit(lambda p: tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)[0])(inside)
    still = {n for n, u in updates.items() if not np.asarray(u).any()}
    ends = ("/bias", "_bias", "ia3/factor", "lora/magnitude", "bias/fish/values", "norm/scale/fish/values")
    assert still == {n for n in inside if n.endswith(ends)}


def products(net, strategy):
    """(shapes of all products of the training step that run over the tokens of a batch, FLOPs before XLA)."""
    plan = resolve.plan(strategy, models.anatomy("bert"), net.shapes())
    tx = optim.build(tiny.optimizer(), optim.groups(plan), 1, 5)
    inside, outside = tree.split(net.shapes(), plan.trainable)
    state = jax.eval_shape(lambda p: step.init_train_state(p, tx), inside)
    assert names_in(state.opt) == set(plan.trainable)
    traced = jax.jit(step.train_step(step.Recipe(net, tx))).trace(
        state, outside, tiny.batch(net, 32), np.uint32(0), {}
    )
    found, todo = set(), [traced.jaxpr.jaxpr]
    while todo:
        for eqn in todo.pop().eqns:
            todo += [
                getattr(p, "jaxpr", p)
                for p in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns"))
                if hasattr(getattr(p, "jaxpr", p), "eqns")
            ]
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                if math.prod(eqn.invars[0].aval.shape[d] for d in contracted) == 32 * 16:
                    found.add(eqn.outvars[0].aval.shape)
    return found, traced.lower().cost_analysis()["flops"]


def test_no_gradient_of_a_full_weight_is_computed():
    """A gradient of a matrix is a product over all tokens, in the shape of the matrix."""
    plain = make("one")
    attention, cost = products(plain, "attention")
    assert (64, 64) in attention and not {(64, 256), (256, 64)} & attention
    for strategy in ("lora=2", "lora=2,attention,dora", "houlsby=2", "ia3"):
        found, flops = products(make("one", strategy), strategy)
        assert not {(64, 64), (64, 256), (256, 64)} & found, strategy
        # four matrices, whose gradients are not there
        assert flops < cost - 0.8 * 2 * 32 * 16 * 64 * 64 * 4 or "attention" in strategy
    assert {(64, 2), (2, 64)} & products(make("one", "lora=2"), "lora=2")[0]


# ------------------------------------------------------------------------------------------------ FISH


def test_fish_takes_the_largest_squared_gradients_of_single_examples():
    net = make("lstm", "fish=0.05,6")
    plain = net._replace(added=())
    params, batch = {n: jnp.asarray(x) for n, x in tiny.params(plain).items()}, tiny.batch(plain, 6)
    squares = jax.jit(net.squares)(params, {k: jnp.asarray(v) for k, v in batch.items()})

    @jax.jit
    @jax.grad
    def slow(p, row):
        out = plain.predict(p, plain.objective.prepare(row, jax.random.split(jax.random.key(0), 1)))
        return -jax.nn.log_softmax(out)[0, row["label"][0]]

    want = {n: np.zeros(x.shape) for n, x in params.items()}
    for i in range(6):
        for n, g in slow(params, {k: jnp.asarray(v[i : i + 1]) for k, v in batch.items()}).items():
            want[n] += np.asarray(g, np.float64) ** 2
    assert set(squares) == {n for n in params if n.startswith("backbone/")}
    for n, s in squares.items():
        np.testing.assert_allclose(s, want[n], rtol=1e-3, atol=1e-9 + 1e-5 * want[n].max())

    filled = adapters.fill(net.added, params | adapters.init(net.added, jax.random.key(0)), squares)
    for site, shape in net.added[0].sites:
        index, values = (np.asarray(filled[f"adapter/{site}/fish/{k}"]) for k in ("index", "values"))
        assert len(index) == max(1, round(0.05 * math.prod(shape))) and (np.diff(index) > 0).all()
        chosen, left = (
            want[f"backbone/{site}"].reshape(-1)[index],
            np.delete(want[f"backbone/{site}"].reshape(-1), index),
        )
        assert chosen.min() >= left.max() * (1 - 1e-3)
        np.testing.assert_array_equal(values, np.asarray(params[f"backbone/{site}"]).reshape(-1)[index])


def test_fish_moves_its_elements_and_no_others():
    net = make("lstm", "fish=0.05")
    start, now = fresh(net), moved(net)
    whole = adapters.merge(net.added, now)
    for site, _ in net.added[0].sites:
        changed = np.flatnonzero(np.asarray(whole[f"backbone/{site}"] != start[f"backbone/{site}"]))
        np.testing.assert_array_equal(changed, now[f"adapter/{site}/fish/index"])


# ------------------------------------------------------------------------------------------------ ties


def test_fish_moves_the_tied_table_in_both_of_its_places():
    """Under MLM the decoder is the word table: FISH's elements of it move the decoder, too."""
    net = make("one", "fish=0.05", "mlm_nsp")
    start, word = fresh(net), "embeddings/word/embedding"
    # Elements of the rows from 1 on, and a batch of the token 0 alone: the embeddings do not read them, the
    # decoder does.
    index = start[f"adapter/{word}/fish/index"] + 64
    base = start[f"backbone/{word}"].reshape(-1)[index]
    still, now = (
        {**start, f"adapter/{word}/fish/index": index, f"adapter/{word}/fish/values": v}
        for v in (base, base + 1)
    )
    batch = {**inputs("mlm_nsp"), "tokens": jnp.zeros((4, 16), jnp.int32)}
    before, after = logits(net, still, batch), logits(net, now, batch)
    np.testing.assert_array_equal(after["nsp"], before["nsp"])
    moved_rows = np.unique(np.asarray(index) // 64)
    assert (np.abs(after["mlm"] - before["mlm"]).max((0, 1)) > 0).nonzero()[0].tolist() == moved_rows.tolist()


@pytest.mark.parametrize("strategy", ["head", "lora=2", "prompt=2", "houlsby=2"])
def test_the_tied_table_rests_with_what_is_added_beside_it(strategy):
    net = make("one", strategy, "mlm_nsp")
    moving = resolve.plan(strategy, models.anatomy("bert"), net.shapes()).trainable
    assert "backbone/embeddings/word/embedding" not in moving and "head/decoder/bias" in moving
    if strategy == "prompt=2":  # the masked positions are those of the tokens, not of the longer row
        assert logits(net, moved(net), inputs("mlm_nsp"))["mlm"].shape == (
            4,
            net.objective.predictions,
            tiny.TOKENIZER.vocab_size,
        )
