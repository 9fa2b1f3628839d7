import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from ptft import models
from ptft.core import duration, mesh, tree
from ptft.core.errors import UserError
from ptft.freeze import language, resolve, strategies
from ptft.train import optim, step
from ptft.train.description import describe_plan

BERT = (
    "full", "head", "top-1", "top-2", "bottom-1", "embeddings", "freeze-embeddings", "bitfit", "layernorm",
    "attention", "ffn", "pooler",
    "layers=0", "every-2", "bitfit=query,up", "top-1+layernorm", "top-1&bitfit", "full!attention",
    "bitfit+pooler!embeddings",
    "attention=1+layernorm=0",
)  # fmt: skip
LSTM = ("full", "head", "top-1", "bottom-1", "embeddings", "freeze-embeddings", "bitfit")
CASES = [
    *(("bert", "classify", s) for s in BERT),
    *(("bert", "mlm_nsp", s) for s in BERT[:11]),
    *(("lstm", "classify", s) for s in LSTM),
    ("lstm", "mlm_nsp", "freeze-embeddings"),
]
# compiles in half the time; the FLOPs are those of the same program
FAST = {"xla_backend_optimization_level": 0}


@functools.cache
def build(model, task, **values):
    net = tiny.net(model, task, dropout=0.0, **values)
    return net, tiny.params(net)


def resolved(model, task, strategy):
    _, params = build(model, task)
    return resolve.plan(strategy, models.anatomy(model), params)


def compile_step(net, plan, batch, tx):
    """The real step, compiled; parameters that move and that do not are two arguments."""
    shapes = net.shapes()
    moving, frozen = tree.split(shapes, plan.trainable)
    jitted = step.compile_train(step.Recipe(net, tx), mesh.make(1), "jit")
    return jitted.lower(
        jax.eval_shape(lambda p: step.init_train_state(p, tx), moving), frozen, batch, np.uint32(0), {}
    ).compile(FAST)


def names_in(state):
    """Every parameter name that occurs in the paths of an optimizer state."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    return {k.key for path in paths for k in path if isinstance(k, jax.tree_util.DictKey)}


# What a strategy must move, said a second time and without patterns.
def expected(strategy, model, name):
    part, top, bottom = name.split("/")[1], {"bert": "block_1", "lstm": "block_0"}[model], "block_0"
    if strategy == "full" or name.startswith("head/"):
        return True
    return {
        "head": False,
        "top-1": part in (top, "pooler"),
        "top-2": part in ("block_0", "block_1", "pooler"),
        "bottom-1": part == bottom,
        "embeddings": part == "embeddings",
        "freeze-embeddings": part != "embeddings",
        "bitfit": name.endswith("/bias"),
        "layernorm": "norm" in name,
        "attention": "/attention/" in name,
        "ffn": "/ffn/" in name,
        "pooler": part == "pooler",
        "layers=0": part == "block_0",
        "every-2": part == "block_1",
        "bitfit=query,up": name.endswith(("/query/bias", "/up/bias")),
        "top-1+layernorm": part in (top, "pooler") or "norm" in name,
        "top-1&bitfit": part in (top, "pooler") and name.endswith("/bias"),
        "full!attention": "/attention/" not in name,
        "attention=1+layernorm=0": "block_1/attention/" in name or (part == "block_0" and "norm" in name),
        "bitfit+pooler!embeddings": (name.endswith("/bias") or part == "pooler") and part != "embeddings",
    }[strategy]


@pytest.mark.promise("R16")
@pytest.mark.parametrize(("model", "task", "strategy"), CASES)
def test_what_is_frozen_stays_bit_identical_and_costs_nothing(model, task, strategy):
    net, start = build(model, task)
    plan = resolved(model, task, strategy)
    assert set(plan.trainable) == {n for n in start if expected(strategy, model, n)}

    # Both would move frozen weights, were they handed to the optimizer: decay without any gradient, and a
    # clip that is in force.
    tx = optim.build(tiny.optimizer(lr=0.01, weight_decay=0.1, clip=0.01), optim.groups(plan), 1, 5)
    inside, outside = tree.split(start, plan.trainable)
    moving = step.init_train_state({n: jnp.array(x) for n, x in inside.items()}, tx)
    frozen = {n: jnp.array(x) for n, x in outside.items()}

    # No bytes for what is frozen: two moments of what moves, and counters.
    assert names_in(moving.opt) == set(plan.trainable)
    moments = 2 * sum(x.nbytes for x in inside.values())
    assert moments <= sum(x.nbytes for x in jax.tree.leaves(moving.opt)) <= moments + 16

    compiled = compile_step(net, plan, tiny.batch(net, 8), tx)
    for k in range(5):
        moving, sums = compiled(moving, frozen, tiny.batch(net, 8, seed=k), np.uint32(0), {})
    assert float(sums["grad_norm"][0]) > 0.01 and int(moving.step) == 5
    assert set(moving.params) == set(plan.trainable)
    still = [n for n in inside if np.array_equal(moving.params[n], inside[n])]
    assert not still, f"did not move: {still}"
    for n, x in outside.items():
        np.testing.assert_array_equal(frozen[n], x, err_msg=n)
    assert names_in(moving.opt) == set(plan.trainable)


@functools.cache
def flops(strategy):
    """FLOPs of a compiled step of four blocks, wide rows, so that the blocks outweigh everything else."""
    net, params = build("bert", "classify", layers=4)
    plan = resolve.plan(strategy, models.anatomy("bert"), params)
    tx = optim.build(tiny.optimizer(), optim.groups(plan), 1, 5)
    return compile_step(net, plan, tiny.batch(net, 32), tx).cost_analysis()["flops"]


def check_saving(share):
    """Shares of the full step: forward 1/3; the blocks from the top down to the lowest that moves cost 1/3
    for the gradient that passes through them, and 1/3 for the matrices that move."""
    assert 0.30 < share["head"] < 0.38, share
    assert 0.45 < share["top-1"] < 0.56, share
    assert 0.60 < share["bitfit"] < 0.74, share
    assert share["head"] < share["top-1"] < share["bitfit"] < 0.8 < 1, share


def test_the_flops_of_the_compiled_step_fall():
    check_saving({s: flops(s) / flops("full") for s in ("head", "top-1", "bitfit")})


def test_the_flops_test_catches_a_clip_over_all_gradients():
    """The classic mistake: differentiate everything, clip by the global norm, then throw the frozen gradients
    away."""
    net, params = build("bert", "classify", layers=4)
    plan = resolve.plan("head", models.anatomy("bert"), params)
    tx = optim.build(tiny.optimizer(), optim.groups(plan), 1, 5)

    def mistaken(moving, frozen, batch, seed):
        def loss(p):
            sums = net.sums(p, batch, jax.random.key(seed))
            return sums["loss"][0] / sums["loss"][1]

        grads = jax.grad(loss)({**frozen, **moving.params})
        norm = optax.tree.norm(grads)
        grads = {n: grads[n] / jnp.maximum(1.0, norm) for n in moving.params}
        updates, opt = tx.update(grads, moving.opt, moving.params)
        return step.TrainState(moving.step + 1, {n: p + updates[n] for n, p in moving.params.items()}, opt)

    inside, outside = tree.split(net.shapes(), plan.trainable)
    state = jax.eval_shape(lambda p: step.init_train_state(p, tx), inside)
    wasted = (
        jax.jit(mistaken)
        .lower(state, outside, tiny.batch(net, 32), np.uint32(0))
        .compile(FAST)
        .cost_analysis()["flops"]
    )
    share = {s: flops(s) / flops("full") for s in ("head", "top-1", "bitfit")} | {
        "head": wasted / flops("full")
    }
    assert share["head"] > 0.9  # nothing saved, and nothing warns
    with pytest.raises(AssertionError):
        check_saving(share)


def test_a_rule_list_sets_rates():
    rules = [
        ("head/.*", "train"),
        (r"backbone/pooler/.*", "train(lr=0.1)"),
        (r".*/block_1/.*", "train(lr=2e-2)"),
        (".*", "freeze"),
    ]
    plan = resolved("bert", "classify", rules)
    assert plan.rates["head/classifier/kernel"] == 1.0
    assert plan.rates["backbone/pooler/bias"] == 0.1
    assert plan.rates["backbone/block_1/ffn/up/kernel"] == 0.02
    assert not any("block_0" in n or "embeddings" in n for n in plan.trainable)
    assert plan == resolved("bert", "classify", [list(r) for r in rules])  # as JSON has them


def test_counts_table_and_text():
    plan = resolved("bert", "classify", "head")
    _, params = build("bert", "classify")
    assert plan.counts() == (64 * 3 + 3, sum(x.size for x in params.values()))
    assert {
        "name": "head/classifier/bias",
        "shape": [3],
        "rule": "head",
        "rate": 1.0,
        "decay": 1.0,
    } in plan.table()
    assert [r["name"] for r in plan.table()] == list(params)
    text = describe_plan(plan)
    assert "trainable 195 of" in text and "head/classifier" in text and "freeze" in text
    assert "train(lr=0.1)" in describe_plan(
        resolved("bert", "classify", [("head/.*", "train(lr=0.1)"), (".*", "freeze")])
    )


def test_the_documented_names_are_those_that_exist():
    strategies.load()
    for name, one in strategies.TRAINS.items():
        concrete = (
            name.replace("K", "1")
            .replace("N", "1")
            .replace("SHARE,SEED", "0.3,0")
            .replace("LIST", "0")
            .replace("MODULES", "query")
        )
        assert resolved("bert", "classify", concrete).trainable
        assert len(one.function.__doc__) > 8


@pytest.mark.parametrize("strategy", ["top-0", "top-3", "bottom-3", "bottom-0"])
def test_more_blocks_than_the_model_has(strategy):
    which = strategy.split("-")[0]
    with pytest.raises(UserError, match=rf"the model has 2 blocks; expected {which}-1 … {which}-2"):
        resolved("bert", "classify", strategy)


def test_an_unknown_strategy_shows_the_nearest():
    with pytest.raises(UserError, match="'bitft' is no strategy; did you mean 'bitfit'"):
        resolved("bert", "classify", "bitft")
    with pytest.raises(UserError, match="'BitFit' is no strategy; did you mean 'bitfit'"):
        resolved("bert", "classify", "BitFit")


@pytest.mark.parametrize("strategy", ["layernorm", "attention", "ffn"])
def test_a_group_that_the_model_does_not_have(strategy):
    with pytest.raises(UserError, match="does not have; it has stem, bias"):
        resolved("lstm", "classify", strategy)


def test_nothing_to_train():
    with pytest.raises(UserError, match="leaves nothing to train"):
        resolved("bert", "classify", [(".*", "freeze")])


@pytest.mark.parametrize(
    "action", ["move", "train(0.1)", "train(lr=0)", "train(lr=-1)", "train(lr=inf)", "train(lr=1e)", "Freeze"]
)
def test_an_action_that_is_none(action):
    with pytest.raises(UserError, match="expected 'freeze', 'train' or 'train"):
        resolved("bert", "classify", [(".*", action)])


@pytest.mark.parametrize("rule", ["head/.*", ("head/.*",), ("head/.*", "train", "more")])
def test_a_rule_that_is_no_pair(rule):
    with pytest.raises(UserError, match="expected a pair"):
        resolved("bert", "classify", [rule])


def test_blocks_by_number():
    net, _ = build("bert", "classify", layers=4)
    groups, shapes = models.anatomy("bert"), net.shapes()

    def blocks(strategy):
        return {n.split("/")[1] for n in resolve.plan(strategy, groups, shapes).trainable if "block_" in n}

    assert blocks("layers=0,2-3") == {"block_0", "block_2", "block_3"}
    assert blocks("every-2") == {"block_1", "block_3"} and blocks("every-3") == {"block_2"}
    assert blocks("top-2") == {"block_2", "block_3"} == blocks("layers=2-3+head")


def test_rates_fall_from_the_head_down():
    plan = resolved("bert", "classify", "full@decay=0.5")
    assert plan.rates["head/classifier/bias"] == plan.rates["backbone/pooler/bias"] == 1
    assert (
        plan.rates["backbone/block_1/ffn/up/bias"] == 0.5
        and plan.rates["backbone/block_0/ffn/up/bias"] == 0.25
    )
    assert plan.rates["backbone/embeddings/word/embedding"] == 0.125
    assert len(plan.trainable) == len(plan.rows)
    part = resolved("bert", "classify", "top-1+bitfit@ulmfit")
    assert part.trainable == resolved("bert", "classify", "top-1+bitfit").trainable
    assert part.rates["backbone/block_1/ffn/up/kernel"] == pytest.approx(1 / 2.6, rel=1e-5)
    assert part.rates["backbone/embeddings/norm/bias"] == pytest.approx(2.6**-3, rel=1e-5)


def test_random_tensors_hold_the_share_and_hang_on_the_seed():
    _, params = build("bert", "classify")
    backbone = {n: p for n, p in params.items() if n.startswith("backbone/")}
    for share in (0.1, 0.5, 1):
        chosen = {
            n: params[n] for n in resolved("bert", "classify", f"random={share},7").trainable if n in backbone
        }
        assert share <= tree.count(chosen) / tree.count(backbone)
        assert share == 1 or len(chosen) < len(backbone)
    assert resolved("bert", "classify", "random=0.1,7") == resolved("bert", "classify", "random=0.1,7")
    assert len({resolved("bert", "classify", f"random=0.1,{seed}").trainable for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("layers=2", r"has the blocks 0 … 1, not 2"),
        ("layers=", "'layers=' is no strategy; expected layers=LIST; LIST: numbers from low to high such as"),
        ("layers=1-0", "'layers=1-0' is no strategy; expected layers=LIST; LIST: numbers from low to high"),
        ("top", "'top' is no strategy; expected top-K; K: a number"),
        ("lora-8", "'lora-8' is no strategy; expected lora=R,OPTION…"),
        ("lora8", "'lora8' is no strategy; expected lora=R,OPTION…"),
        ("lora=", "'lora=' is no strategy; expected lora=R,OPTION…"),
        ("top-1+bitft", "'bitft' is no strategy; did you mean 'bitfit'"),
        ("top-1+", r"'' is no strategy; expected one before and after \+, &, !"),
        ("every-3", "expected every-1 … every-2"),
        ("bitfit=quary", "no module 'quary' has a bias; did you mean 'query'"),
        ("random=2,0", "freeze='random=2,0': random=2,0: expected a share above 0 and up to 1"),
        ("full@decay=2", "the rate 2 is out of range; expected a factor above 0 and up to 1"),
        ("full@decai=0.5", "'decai=0.5' is no rule for rates; did you mean 'decay=R'"),
        ("full@", "trains|is no rule for rates"),
        ("layernorm&pooler", "trains nothing but the head"),
        ("layers=0-99999999999", "is no strategy"),
    ],
)
def test_nonsense_gets_the_nearest_valid_thing(strategy, says):
    with pytest.raises(UserError, match=says):
        resolved("bert", "classify", strategy)


def test_weight_decay_has_factors_too():
    rules = [
        (r".*/block_1/ffn/.*", "train(lr=0.5, wd=3)"),
        (r".*/block_0/ffn/.*", "train(wd=0)"),
        ("head/.*", "train"),
        (".*", "freeze"),
    ]
    plan = resolved("bert", "classify", rules)
    assert (
        plan.decays["backbone/block_1/ffn/up/kernel"] == 3
        and plan.rates["backbone/block_1/ffn/up/kernel"] == 0.5
    )
    assert "train(lr=0.5, wd=3)" in describe_plan(plan) and "train(wd=0)" in describe_plan(plan)
    # With no gradient at all the decay alone moves weights: by lr x decay x both factors, and never a bias.
    _, params = build("bert", "classify")
    inside = {n: jnp.asarray(params[n]) for n in plan.trainable}
    tx = optim.build(tiny.optimizer(lr=0.1, weight_decay=0.01, decay="constant"), optim.groups(plan), 0, 5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, inside), tx.init(inside), inside)
    for name, share in (
        ("block_1/ffn/up/kernel", 1.5),
        ("block_0/ffn/up/kernel", 0),
        ("block_1/ffn/up/bias", 0),
    ):
        np.testing.assert_allclose(
            updates[f"backbone/{name}"], -0.1 * 0.01 * share * inside[f"backbone/{name}"], rtol=1e-5
        )


def test_a_rule_list_must_be_total_and_live():
    with pytest.raises(UserError, match="no rule claims backbone/"):
        resolved("bert", "classify", [("head/.*", "train")])
    with pytest.raises(
        UserError, match=r"'backbone/blocks_1/.*matches no parameter; did you mean 'backbone/block_1/"
    ):
        resolved("bert", "classify", [("backbone/blocks_1/ffn/up/kernel", "train"), (".*", "freeze")])


@pytest.mark.parametrize(
    ("model", "word"),
    [("bert", "backbone/embeddings/word/embedding"), ("lstm", "backbone/embeddings/embedding")],
)
def test_tied_tables_move_or_rest_as_one(model, word):
    """Under MLM the decoder is the word table: with `embeddings` it moves, with `head` and
    `freeze-embeddings` it does not."""
    names = resolved(model, "mlm_nsp", "full").trainable
    assert "head/decoder/bias" in names and "head/decoder/kernel" not in names
    assert word in resolved(model, "mlm_nsp", "embeddings").trainable
    for strategy in ("head", "freeze-embeddings"):
        moving = resolved(model, "mlm_nsp", strategy).trainable
        assert word not in moving and {n for n in names if n.startswith("head/")} <= set(moving)


# --- what moves changes with time ---------------------------------------------------------------------------


def phases(strategy, total=100, depth=4, task="classify", seed=0, batch=8, examples=80):
    """(start or plateau, strategy) of every phase; an epoch is ten steps."""

    def steps(text):
        return duration.steps(f"freeze={strategy!r}", text, batch=batch, examples=examples, total=total)

    net, _ = build("bert", task, layers=depth)
    found = resolve.phases(
        language.parse(strategy), models.anatomy("bert"), net.shapes(), strategies.Span(total, steps, seed)
    )
    for p in found:
        by_hand = resolve.plan(p.strategy, models.anatomy("bert"), net.shapes())
        assert p.plan == by_hand
    return [(f"plateau={p.waits}" if p.start is None else p.start, p.strategy) for p in found]


RULES = [["head/.*", "train"], [".*", "freeze"]]
ALL = [[".*", "train"]]
GRADUAL = ("head", "top-1", "top-2", "top-3", "top-4", "full")


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("top-1", [(0, "top-1")]),
        ("head; 20: top-1", [(0, "head"), (20, "top-1")]),
        ("0: head; 20 steps: top-1", [(0, "head"), (20, "top-1")]),
        ((
            "\n  head ;\n 20 % : top-1 @ ulmfit;\n plateau = 2 : "
            "full\n"
        ), [(0, "head"), (20, "top-1 @ ulmfit"), ("plateau=2", "full")]),
        ("head;2 epochs:full", [(0, "head"), (20, "full")]),
        ("head; 400 examples: full", [(0, "head"), (50, "full")]),
        ("head; 50%: head; 60%: layers=0,2", [(0, "head"), (50, "head"), (60, "layers=0,2")]),
        ("gradual", [(0, "head"), (17, "top-1"), (33, "top-2"), (50, "top-3"), (67, "top-4"), (83, "full")]),
        (" gradual = 10 steps @ulmfit\n", [(10 * i, f"{s}@ulmfit") for i, s in enumerate(GRADUAL)]),
        ("gradual=1 epoch", [(10 * i, s) for i, s in enumerate(GRADUAL)]),
        ("gradual=plateau,3", [(0, "head"), *(("plateau=3", s) for s in GRADUAL[1:])]),
        ([("0", RULES), ("30%", ALL)], [(0, RULES), (30, ALL)]),
        ([(0, "head"), (30, ALL), ["plateau=1", "top-1"]], [(0, "head"), (30, ALL), ("plateau=1", "top-1")]),
    ],
)  # fmt: skip
def test_phases_are_read(strategy, says):
    assert phases(strategy) == says


def test_lisa_draws_blocks_by_the_seed():
    found = phases("lisa=2, 10 steps@ulmfit")
    assert (
        [start for start, _ in found]
        == list(range(0, 100, 10))
        == [start for start, _ in phases("lisa=2,10%")]
    )
    drawn = [s.removeprefix("embeddings+layers=").removesuffix("@ulmfit") for _, s in found]
    assert all(re.fullmatch(r"[0-3],[0-3]", d) for d in drawn) and len(set(drawn)) > 2
    assert found == phases("lisa=2, 10 steps@ulmfit") != phases("lisa=2, 10 steps@ulmfit", seed=1)
    assert len(phases("lisa=4,30")) == 4  # the last is a short one


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("head; top-1", r"'top-1' has no start; expected START: top-1, such as 50%: top-1"),
        ("head; : top-1", r"'top-1' has no start"),
        (": head", r"'head' has no start"),
        ("head;", r"'' has no start"),
        ("head; 50%:", r"'' is no strategy"),
        ("; 50%: full", r"'' is no strategy"),
        ("10: head; 20: full", r"the first phase, 'head', begins at '10'; expected 0"),
        ("plateau=2: head", r"the first phase, 'head', begins at 'plateau=2'; expected 0"),
        (
            "head; 20: top-1; 20%: full",
            r"'full' would begin at step 20 \('20%'\), one before it at step 20; expected each phase later",
        ),
        (
            "head; 20: top-1; plateau=1: top-2; 10: full",
            r"'full' would begin at step 10 \('10'\), one before it at step 20",
        ),
        ("head; 0: full", r"'full' would begin at step 0"),
        (
            "head; 100: full",
            r"'full' would begin at step 100, the run has 100; begin it earlier or train for longer",
        ),
        ("head; 101%: full", r"'101%' is more than the whole"),
        ("head; soon: full", r"expected a duration such as '10%', .* got 'soon'; or plateau=N"),
        ("head; plateau: full", r"'plateau' is no start; expected plateau=N"),
        ("head; plateau=0: full", r"'plateau=0' is no start; expected plateau=N"),
        ("head; 50%: bitft", r"'bitft' is no strategy; did you mean 'bitfit'"),
        ("head; 50%: top-9", r"expected top-1 … top-4"),
        ("head; 50%: gradual", r"gradual decides what is trainable when, so it stands alone"),
        ("gradual; 50%: full", r"gradual decides what is trainable when, so it stands alone"),
        ("lisa=1,5; 50%: full", r"lisa decides what is trainable when, so it stands alone"),
        ("gradual+bitfit", r"gradual decides what is trainable when, so it stands alone"),
        ("bitfit+lisa=1,5", r"lisa decides what is trainable when, so it stands alone"),
        ("gradual=50", r"'top-2' would begin at step 100, the run has 100"),
        ("gradual=0", r"'0' is no step at all"),
        ("gradual=often", r"expected a duration such as .* got 'often'; or gradual=plateau,N"),
        ("gradual=5,5", r"expected a duration such as .* got '5,5'; or gradual=plateau,N"),
        ("gradual=plateau", r"'plateau=' is no start; expected plateau=N"),
        ("gradual=plateau,x", r"'plateau=x' is no start; expected plateau=N"),
        ("gradual@decai=2", r"'decai=2' is no rule for rates; did you mean 'decay=R'"),
        ("gradul", r"'gradul' is no strategy; did you mean 'gradual'"),
        ("lisa", r"expected lisa=K,EVERY with 1 to 4 blocks at a time, such as lisa=2,50 steps"),
        ("lisa=9,5", r"expected lisa=K,EVERY with 1 to 4 blocks"),
        ("lisa=0,5", r"expected lisa=K,EVERY with 1 to 4 blocks"),
        ("lisa=1,0", r"'0' is no step at all"),
        ("lisa=1,plateau=2", r"expected a duration such as .* got 'plateau=2'"),
        (
            [("0", RULES), ("50%", RULES), RULES[0][1]],
            r"freeze phase 'train': expected a pair \(start, rules\)",
        ),
        (
            [("0", RULES), ("50%", [["head/clasifier/bias", "train"], *ALL])],
            r"matches no parameter; did you mean 'head/c",
        ),
        ([("50%", RULES)], r"the first phase, .*, begins at '50%'"),
        (3, r"freeze=3: expected a strategy's name, a list"),
        (None, r"freeze=None: expected a strategy's name, a list"),
        ([("head/.*", 5), (".*", "freeze")], r"freeze action '5': expected 'freeze', 'train'"),
    ],
)
def test_nonsense_in_time_gets_one_clear_message(strategy, says):
    with pytest.raises(UserError, match=says) as e:
        phases(strategy)
    assert str(e.value).count("freeze") >= 1 and len(str(e.value)) < 700


def test_a_run_too_short_for_its_phases():
    with pytest.raises(
        UserError,
        match=(
            r"'top-2' would begin at step 1 .* expected each phase later than those before it \(the run has "
            r"4 steps\)"
        ),
    ):
        phases("gradual", total=4)


def test_the_documented_names_of_what_changes_with_time():
    strategies.load()
    for name, one in strategies.CHANGES.items():
        assert len(one.function.__doc__) > 8
        assert len(phases(name.replace("K", "1").replace("EVERY", "10"))) > 1


def test_what_moves_in_some_phase_goes_by_the_rule_that_moved_it_first():
    net, _ = build("bert", "classify", layers=4)
    found = resolve.phases(
        language.parse("head; 50: top-1@decay=0.5; 60: full"),
        models.anatomy("bert"),
        net.shapes(),
        strategies.Span(100, int, 0),
    )
    rates = resolve.union(found).rates
    assert len(rates) == len(net.shapes())
    assert rates["backbone/block_3/ffn/up/kernel"] == 0.5 and rates["backbone/block_0/ffn/up/kernel"] == 1
    assert set(resolve.union(found[:2]).trainable) == set(found[1].plan.trainable)


def test_a_table_that_is_tied_moves_for_both_its_uses():
    """With mlm_nsp a word that no text has still learns, as an output; with a classifier's head it does
    not."""
    word = "backbone/embeddings/word/embedding"
    for task, tied in (("mlm_nsp", True), ("classify", False)):
        net, params = build("bert", task)
        batch = {k: jnp.asarray(x) for k, x in tiny.batch(net, 4).items()}
        batch["tokens"] = jnp.where(batch["tokens"] == 7, jnp.uint16(8), batch["tokens"])

        def loss(table, net=net, params=params, batch=batch):
            sums = net.sums({**params, word: table}, batch, jax.random.key(0))
            return sum(sums[n][0] for n in net.objective.loss)

        grad = np.abs(jax.jit(jax.grad(loss))(jnp.asarray(params[word]))).max(1)
        assert (grad[7] > 0) == tied and grad[8] > 0

        # Where the table rests, so does the decoder: what is left of it is its bias.
        moving = resolve.plan("freeze-embeddings", models.anatomy("bert"), params).trainable
        assert word not in moving and not any(
            n.startswith("head/decoder") and n != "head/decoder/bias" for n in moving
        )


@pytest.mark.parametrize("text", ["2-0,1", "1-0", "0,3-2"])
def test_a_range_that_falls_is_none(text):
    assert strategies.numbers(text) == []


def test_a_decay_is_finite():
    with pytest.raises(UserError, match="finite"):
        resolve._factors("train(lr=0.1, wd=1e999)")
