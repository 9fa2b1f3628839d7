"""The eleven ways in which a freeze in JAX is silently none, each planted into the real step, optimizer or
loader of a real run.

Every one must go red by what ptft itself says: the cost contract before the first step (a warning, an error
with `strict_cost`), the ledger at the end, the loader's diff, or the rules. What a plant takes away is what
keeps the mistake out of ptft:

  mistake                                      what sees it, though this rules it out:
   1 optax.masked passes raw gradients         contract, ledger (values): the optimizer sees no frozen leaf
   2 set_to_zero before AdamW                  the same
   3 clip or norm over all gradients           contract (FLOPs): gradients exist for the trainable alone
   4 zero gradients of full size               contract (optimizer, names of the step): the same
   5 masks on stacked layers                   the rules: blocks are unrolled, rules name leaves
   6 MaskedNode in optimizer state             contract, ledger (stand-ins): the optimizer sees no frozen leaf
   7 trainable flag ignored after compilation  contract (names of the step): programs are found by plan
   8 restore of a smaller model                the loader's diff: both sides of a load are compared
   9 FrozenDict against dict                   nothing, the run is the same: every tree is a flat dict
  10 activated layers get no update            contract and ledger (missing): each phase has an own optimizer
  11 state of layers frozen again is kept      contract and ledger (extra): the same
"""

import json
import re

import flow
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn
from flax.core import freeze

from ptft import models
from ptft.core import checkpoint, tree
from ptft.core.errors import UserError
from ptft.freeze import ledger as ledgers
from ptft.models import bert
from ptft.train import build, optim, programs, spec, step, train
from ptft.train.net import Net

MOVES = {"head/classifier/kernel", "head/classifier/bias"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with data, and in it a run of the head alone with nothing planted."""
    folder = tmp_path_factory.mktemp("planted")
    flow.run(config(folder, strict_cost=True), folder / "honest")
    return folder


@pytest.fixture(autouse=True)
def _no_program_of_another_test():
    """Programs and optimizers are shared by their plans, and know nothing of what is planted."""
    programs._program.cache_clear(), programs._optimizer.cache_clear()
    yield
    programs._program.cache_clear(), programs._optimizer.cache_clear()


def config(home, freeze="head", **changes):
    values = {
        "devices": 1,
        "train_for": "4 steps",
        "eval_every": "0",
        "save_every": "0",
        "best": "last",
        "data.dev": "",
        "data.test": "",
    }
    values |= {"init_from": "", "model": {"layers": 1, "hidden": 64, "max_len": 16}}
    return flow.finetuning(home, home, freeze=freeze, **{**values, **changes})


def refused(values, folder, message):
    """With `strict_cost` the run is an error before the first step."""
    with pytest.raises(UserError, match=message):
        flow.run({**values, "strict_cost": True}, folder / "strict")
    assert not (folder / "strict" / "metrics.jsonl").exists()


def disproved(values, folder, capsys, warning):
    """Without it, it is warned of; the run ends as an error, with its ledger."""
    with pytest.raises(RuntimeError, match=r"the freeze did not hold: see .*freeze_ledger\.json"):
        flow.run(values, folder / "run")
    assert re.search(f"WARNING: freeze='[^']*': {warning}", capsys.readouterr().out)
    assert not (folder / "run" / "result.json").exists()
    return ledger(folder / "run")


def ledger(folder):
    return json.loads((folder / "freeze_ledger.json").read_text())


def frozen(proof):
    return {r["name"] for r in proof["rows"] if not r["rate"]}


def relaxed(tx):
    """optax mixes dtypes, which the strict promotion of the tests refuses."""

    def update(grads, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(grads, state, params)

    return optax.GradientTransformation(tx.init, update)


def unsplit(monkeypatch, tx):
    """Everything in one tree that is differentiated as a whole, as most code has it: leaving out what is
    frozen is left to the optimizer `tx(mask)`."""
    monkeypatch.setattr(tree, "split", lambda flat, chosen: (dict(flat), {}))
    monkeypatch.setattr(
        optim, "build", lambda c, rates, *rest: relaxed(tx(lambda p: {n: n in rates for n in p}))
    )


def test_nothing_planted(home):
    proof = ledger(home / "honest")
    assert proof["holds"] and {r["name"] for r in proof["rows"] if r["verdict"] == "moved"} == MOVES


def test_1_a_masked_optimizer_passes_raw_gradients(home, tmp_path, monkeypatch, capsys):
    unsplit(monkeypatch, lambda mask: optax.masked(optax.adamw(1e-3), mask))
    why = (
        r"the optimizer keeps state for \d+ parameters, backbone/block_0/attention/key/bias among them, "
        r"that are frozen"
    )
    refused(config(home), tmp_path, why)
    proof = disproved(config(home), tmp_path, capsys, why)
    # Without dropout's help everything frozen has moved, against its gradient.
    assert (
        len(proof["frozen_moved"]) > 0.8 * len(frozen(proof))
        and "backbone/block_0/ffn/up/kernel" in proof["frozen_moved"]
    )


def test_1_even_where_the_optimizer_has_no_state(home, tmp_path, monkeypatch, capsys):
    unsplit(
        monkeypatch,
        lambda mask: optax.stateless(
            lambda grads, p: {n: -1e-2 * g if mask(p)[n] else g for n, g in grads.items()}
        ),
    )
    why = (
        r"the compiled step updates \d+ parameters, backbone/block_0/attention/key/bias among them, that "
        r"are frozen"
    )
    refused(config(home), tmp_path, why)
    assert disproved(config(home), tmp_path, capsys, why)["frozen_moved"]


def test_2_set_to_zero_before_adamw(home, tmp_path, monkeypatch, capsys):
    def zeroed(mask):
        return optax.chain(
            optax.masked(optax.set_to_zero(), lambda p: {n: not m for n, m in mask(p).items()}),
            optax.adamw(1e-2, weight_decay=0.1),
        )

    unsplit(monkeypatch, zeroed)
    why = r"the optimizer keeps state for \d+ parameters, .* that are frozen"
    refused(config(home), tmp_path, why)
    proof = disproved(config(home), tmp_path, capsys, why)
    # Decay moves whatever is not zero, and by the same share: the key's bias started at zero and rests.
    assert "backbone/block_0/ffn/up/kernel" in proof["frozen_moved"]
    assert set(proof["optimizer"]["extra"]) == frozen(proof)


def everything(scale=lambda grads: 1.0, norm=lambda grads, mine: mine, stopped=False):
    """A step that differentiates all parameters and hands those that move to the optimizer."""

    def made(recipe, axis=None):
        net, tx = recipe.net, recipe.tx

        def mistaken(moving, frozen, batch, seed, constants):
            def loss(p):
                p = {n: jax.lax.stop_gradient(x) if stopped and n in frozen else x for n, x in p.items()}
                sums = net.sums(p, batch, jax.random.key(seed))
                return sums["loss"][0] / sums["loss"][1], sums

            grads, sums = jax.grad(loss, has_aux=True)({**frozen, **moving.params})
            mine = {n: grads[n] * scale(grads) for n in moving.params}
            updates, opt = tx.update(mine, moving.opt, moving.params)
            sums["grad_norm"] = (optax.tree.norm(norm(grads, mine)), jnp.float32(1))
            return step.TrainState(
                moving.step + 1, {n: p + updates[n] for n, p in moving.params.items()}, opt
            ), sums

        return mistaken

    return made


@pytest.mark.parametrize(
    "mistake",
    [
        {"scale": lambda grads: 1 / jnp.maximum(1.0, optax.tree.norm(grads))},
        {"norm": lambda grads, mine: grads},
    ],
    ids=["clipped", "logged"],
)
def test_3_a_norm_over_all_gradients(home, tmp_path, monkeypatch, capsys, mistake):
    monkeypatch.setattr(step, "train_step", everything(**mistake))
    why = (
        r"the compiled step costs [\d.]+ GFLOP, .* [\d.]+: something keeps the backward pass of frozen "
        r"parameters alive"
    )
    refused(config(home), tmp_path, why)
    flow.run(config(home), tmp_path / "run")  # no value is wrong, so the ledger holds
    assert (
        re.search(f"WARNING: freeze='head': {why}", capsys.readouterr().out)
        and ledger(tmp_path / "run")["holds"]
    )


def test_4_zero_gradients_of_full_size(home, tmp_path, monkeypatch, capsys):
    """stop_gradient on what is frozen: no value is wrong and no FLOP too many, but each zero is stored, and
    so are its moments."""
    predict = Net.predict

    def stopped(net, params, *rest):
        return predict(
            net, {n: x if n in MOVES else jax.lax.stop_gradient(x) for n, x in params.items()}, *rest
        )

    monkeypatch.setattr(Net, "predict", stopped)
    unsplit(monkeypatch, lambda mask: optax.sgd(1e-2, momentum=0.9))
    why = r"the optimizer keeps state for \d+ parameters, .* that are frozen"
    refused(config(home), tmp_path, why)
    proof = disproved(config(home), tmp_path, capsys, why)
    assert not proof["frozen_moved"] and set(proof["optimizer"]["extra"]) == frozen(proof)


def test_4_zeros_that_nobody_reads_cost_nothing(home, monkeypatch):
    """Why a stop_gradient that is left in a step of ptft is no mistake: the optimizer takes what moves, XLA
    drops the rest."""
    run = build.outline(spec.resolve(config(home)))
    honest = programs.program(run).cost
    programs._program.cache_clear()
    monkeypatch.setattr(step, "train_step", everything(stopped=True))
    assert programs.program(run).cost.temp_bytes <= 1.05 * honest.temp_bytes


def test_4_and_6_the_optimizer_sees_what_moves(home):
    """What rules them out: updates and state exist for what moves alone, and are arrays, not stand-ins."""
    run = build.outline(spec.resolve(config(home)))
    inside, outside = tree.split(run.net.shapes(), run.plan.trainable)
    tx = optim.build(run.config.optim, optim.groups(run.plan), 1, 5)
    moving = jax.eval_shape(lambda p: step.init_train_state(p, tx), inside)
    after, _ = jax.eval_shape(
        step.train_step(step.Recipe(run.net, tx)), moving, outside, run.net.example(8), np.uint32(0), {}
    )
    for state in (moving, after):
        assert set(state.params) == ledgers.optimizer_names(state.opt, stand_ins=True) == MOVES


class Stacked(bert.Bert):
    """BERT with its blocks scanned: each parameter has the layers as its first axis."""

    @nn.compact
    def __call__(self, batch, train=False, start=0, hidden=None):
        s = self.dims
        embeddings = bert.Embeddings(s, name="embeddings")
        x = embeddings(batch["tokens"], batch["types"], train)
        layers = nn.scan(
            lambda block, x, _: (block(x, batch["mask"], train), None),
            variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=s.layers,
        )  # fmt: skip
        x, _ = layers(bert.Block(s, name="blocks"), x, None)
        return {
            "hidden": x,
            "pooled": bert.dense(s.hidden, s.dtype, "pooler")(x[:, 0]),
            "word_table": embeddings.word.embedding,
        }


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("top-1", "freeze='top-1': the model has no blocks, no parameter backbone/block_0/"),
        (
            [["backbone/block_0/.*", "freeze"], [".*", "train"]],
            r"rule \('backbone/block_0/\.\*', 'freeze'\) matches no parameter",
        ),
    ],
)
def test_5_stacked_layers(home, tmp_path, monkeypatch, freeze, message):
    build_bert = bert.build
    monkeypatch.setattr(bert, "build", lambda *args: Stacked(build_bert(*args).dims))
    with pytest.raises(UserError, match=message):
        flow.run(config(home, freeze, **{"model.layers": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["bert", "modernbert"])
def test_5_each_block_has_its_own_leaves(model):
    shapes = tiny.net(model, layers=3).shapes()
    blocks = [
        {
            n.replace(f"block_{i}/", "")
            for n in shapes
            if re.fullmatch(models.anatomy(model).stacks[""].format(i), n)
        }
        for i in range(3)
    ]
    assert all(blocks) and all(len(s.shape) <= 2 for s in shapes.values())


def test_6_masked_nodes_in_the_optimizer_state(home, tmp_path, monkeypatch, capsys):
    """optax.partition with set_to_zero keeps every value and every FLOP, and fills the state with
    stand-ins."""

    def partition(mask):
        return optax.partition(
            {True: optax.sgd(1e-2, momentum=0.9), False: optax.set_to_zero()},
            lambda p: {n: bool(m) for n, m in mask(p).items()},
        )

    unsplit(monkeypatch, partition)
    why = r"the optimizer keeps state for \d+ parameters, .* that are frozen"
    refused(config(home), tmp_path, why)
    proof = disproved(config(home), tmp_path, capsys, why)
    assert not proof["frozen_moved"] and set(proof["optimizer"]["extra"]) == frozen(proof)


@pytest.mark.parametrize(
    ("compiled_for", "asked", "why"),
    [
        ("pooler", "head", "updates 2 parameters, backbone/pooler/bias among them, that are frozen"),
        (
            "head",
            "pooler",
            "does not update 2 parameters, backbone/pooler/bias among them, that are trainable",
        ),
    ],
)
def test_7_a_plan_that_changes_after_compilation(home, tmp_path, monkeypatch, compiled_for, asked, why):
    program = programs.program

    def stale(run, phase=0):
        old = program(build.refrozen(run, compiled_for), phase)
        return program(run, phase)._replace(train=old.train, cost=old.cost)

    monkeypatch.setattr(programs, "program", stale)
    refused(config(home, asked), tmp_path, f"the compiled step {why}")


def test_7_another_plan_is_another_program(home):
    run = build.outline(spec.resolve(config(home)))
    head, pooler = (programs.program(build.refrozen(run, s)) for s in ("head", "pooler"))
    assert head is not pooler and programs.program(run) is head


def test_8_a_smaller_model_is_not_restored(home, tmp_path):
    with pytest.raises(UserError, match=r"is of another model:\n.*\n +backbone/block_1/\S+ +missing"):
        flow.run(config(home, **{"init_from": str(home / "honest"), "model.layers": 2}), tmp_path / "start")
    assert not (tmp_path / "start").exists()


def test_8_a_smaller_state_is_not_resumed_from(home, tmp_path, monkeypatch):
    """The folder of a run whose checkpoint has fewer leaves than its config says."""
    flow.at_batch(monkeypatch, 2, flow.sigterm)
    with pytest.raises(SystemExit):
        flow.run(config(home), tmp_path / "run")
    monkeypatch.undo()
    asked = spec.resolve(config(home, "pooler")).to_dict()
    (tmp_path / "run" / "config.json").write_text(json.dumps(asked))
    with pytest.raises(
        UserError,
        match=r"(?s)does not fit this model and optimizer:.*\.mu\['backbone/pooler/bias'\] +missing",
    ):
        flow.run(config(home, "pooler"), tmp_path / "run")


def test_9_a_frozen_dict_is_as_good_as_a_dict(home, tmp_path, monkeypatch):
    """There are no masks, and a tree of another kind becomes a plain dict where it is loaded and where it is
    split."""
    load, init, seen = checkpoint.load_params, step.init_train_state, []

    def frozen_dict(*args, **kwargs):
        params, what = load(*args, **kwargs)
        return freeze(params), what

    monkeypatch.setattr(checkpoint, "load_params", frozen_dict)
    monkeypatch.setattr(step, "init_train_state", lambda p, *more: seen.append(p) or init(p, *more))
    flow.run(config(home, init_from=str(home / "honest"), strict_cost=True), tmp_path / "run")
    assert ledger(tmp_path / "run")["holds"] and {type(p) for p in seen} == {dict}
    assert {type(p) for p in tree.split(freeze({"head/a": 1, "backbone/b": 2}), ["head/a"])} == {dict}


LATER = "head; 2 steps: pooler"
ACTIVATED = {"backbone/pooler/kernel", "backbone/pooler/bias"}


def test_10_an_activated_layer_that_the_optimizer_never_registered(home, tmp_path, monkeypatch, capsys):
    """The optimizer is made once, when the run is, for what moves then."""
    make, first = optim.build, []

    def once(c, groups, *steps):
        first[:] = first or [groups]
        known = make(c, first[0], *steps)

        def update(grads, state, params):
            updates, state = known.update(
                {n: grads[n] for n in first[0]}, state, {n: params[n] for n in first[0]}
            )
            return {n: updates.get(n, jnp.zeros_like(g)) for n, g in grads.items()}, state

        return optax.GradientTransformation(
            lambda params: known.init({n: params[n] for n in first[0]}), update
        )

    monkeypatch.setattr(optim, "build", once)
    monkeypatch.setattr(programs, "came_from", lambda run, phase: [0])
    why = (
        r"the optimizer has no state for 2 parameters, backbone/pooler/bias among them, that are trainable: "
        r"they would get gradients"
    )
    proof = disproved(config(home, LATER), tmp_path, capsys, why)
    assert set(proof["not_moved"]) == set(proof["optimizer"]["missing"]) == ACTIVATED


def test_10_an_activated_layer_whose_updates_are_lost(home, tmp_path, monkeypatch, capsys):
    """State there is, and gradients; the ledger names what rested all the same."""
    make = optim.build

    def lost(c, groups, *steps):
        tx = make(c, groups, *steps)

        def update(grads, state, params):
            updates, state = tx.update(grads, state, params)
            return {n: 0 * x if n in ACTIVATED else x for n, x in updates.items()}, state

        return optax.GradientTransformation(tx.init, update)

    monkeypatch.setattr(optim, "build", lost)
    train.run(spec.resolve(config(home, LATER)), tmp_path / "run")
    said = "WARNING: trainable, but did not move: backbone/pooler/bias, backbone/pooler/kernel"
    assert said in capsys.readouterr().out and set(ledger(tmp_path / "run")["not_moved"]) == ACTIVATED


def test_11_the_state_of_layers_that_are_frozen_again_is_kept(home, tmp_path, monkeypatch, capsys):
    """The optimizer goes on to hold what it once had."""
    make, carry, had = optim.build, optim.carry, {}

    def hoarding(c, groups, *steps):
        tx = make(c, groups, *steps)

        def init(params):
            had.update({n: p.shape for n, p in params.items()})
            return (*tx.init(params), {n: jnp.zeros(s) for n, s in had.items() if n not in params})

        def update(grads, state, params):
            updates, new = tx.update(grads, state[:-1], params)
            return updates, (*new, state[-1])

        return optax.GradientTransformation(init, update)

    monkeypatch.setattr(optim, "build", hoarding)
    monkeypatch.setattr(
        optim, "carry", lambda old, new, came_from: (*carry(old, new, came_from)[:-1], new[-1])
    )
    values = config(home, "pooler; 2 steps: head")
    why = "the optimizer keeps state for 2 parameters, backbone/pooler/bias among them, that are frozen"
    proof = disproved(values, tmp_path, capsys, why)
    assert set(proof["optimizer"]["extra"]) == ACTIVATED


def test_11_a_second_copy_of_the_moments_is_too_much(home, tmp_path, monkeypatch):
    """State for what moves alone, but more of it than the optimizer needs."""
    make = optim.build
    monkeypatch.setattr(optim, "build", lambda *args: optax.chain(make(*args), optax.trace(0.0)))
    refused(
        config(home),
        tmp_path,
        r"the optimizer keeps [\d,]+ bytes of state, adamw needs at most [\d,]+ for what is trainable",
    )
