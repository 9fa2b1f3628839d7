"""What `ptft plan` says, and that a run sees a freeze that is none."""

import json

import flow
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ptft import build, cost, freeze, models, optim, plans, step, tree
from ptft.errors import UserError

STRATEGIES = (
    "full", "head", "top-1", "top-3", "bottom-2", "layers=2", "every-3", "bitfit", "bitfit=query,up", "layernorm", "attention", "ffn",
    "embeddings", "freeze-embeddings", "pooler", "top-1+layernorm",
)  # fmt: skip

MODERNBERT = {"name": "modernbert", "heads": 2, "ffn": 192}
INPUTS = 3 * 2 * (16 * 64) * 128**2  # gradients of the input of one block's queries, keys and values


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    flow.pretrained(folder)
    return folder


def outline(**model):
    """Six blocks, wide rows: the products outweigh all else."""
    values = {"batch": 16, "devices": 1, "model": {"layers": 6, "hidden": 128, "max_len": 64, **model}}
    return build.outline(build.resolve({**values, "objective": {"name": "classify", "seq_len": 64}, "data": {"vocab_size": 500}}))


@pytest.fixture(scope="module")
def table():
    return plans.rows(outline(), STRATEGIES, probe=0)


def test_the_compiled_step_costs_what_the_formula_says(table):
    for r in table:
        assert r["flops_share"] == pytest.approx(r["analytic_flops_share"], abs=0.035), r["freeze"]
        assert 1 < r["flops"] / r["analytic_flops"] < 1.2, r["freeze"]
        assert r["problem"] is None and r["fits"]


def test_the_formula_is_that_of_the_passes():
    """Forward a third; head: nothing else; of six blocks the top three: half of what remains, but for the pooler and INPUTS."""
    run = outline()
    share = {s: plans.products(build.refrozen(run, s)) for s in ("full", "head", "top-3")}
    full = share["full"]
    assert full.forward == pytest.approx(full.total / 3, rel=1e-6) and full.weights < full.forward  # attention's products have no weights
    assert share["head"].forward == full.forward and share["head"].activations == 0 and share["head"].weights < 1e-4 * full.total
    assert share["top-3"].total / full.total == pytest.approx(1 / 3 + 2 / 3 / 2 - INPUTS / full.total, abs=0.002)


def activations(strategy, **model):
    return plans.products(build.refrozen(outline(**model), strategy)).activations


def test_the_input_of_the_lowest_block_needs_a_gradient_only_if_something_below_it_moves():
    """BERT's norms stand after the layers; ModernBERT's before them, where training one makes the gradient pass through."""
    assert activations("full") - activations("freeze-embeddings") == INPUTS
    assert activations("layers=1") == activations("layers=1!layernorm")
    assert activations("layers=1", **MODERNBERT) - activations("layers=1!layernorm", **MODERNBERT) == INPUTS


def test_bytes_follow_from_what_moves(table):
    run, rows = outline(), {r["freeze"]: r for r in table}
    whole = 4 * tree.count(run.net.shapes())
    for r in table:
        assert r["parameters_bytes"] == whole and r["gradients_bytes"] == 4 * r["trainable"]
        assert 2 * r["gradients_bytes"] <= r["optimizer_bytes"] <= 2 * r["gradients_bytes"] + 16
        assert r["checkpoint_bytes"] == whole + r["optimizer_bytes"]
        assert r["peak_bytes"] >= r["parameters_bytes"] + r["temporary_bytes"]
    assert rows["head"]["temporary_bytes"] < rows["top-3"]["temporary_bytes"] < rows["full"]["temporary_bytes"]


def test_what_does_not_fit_is_said_and_not_tried(monkeypatch):
    monkeypatch.setattr(plans, "memory", lambda: 10**6)
    found = plans.rows(outline(), ["head"], probe=3)
    assert not found[0]["fits"] and found[0]["seconds_per_step"] is None and "does not fit" in plans.text(found)


def test_the_command_needs_no_data(home, capsys, tmp_path):
    page = flow.page(tmp_path / "page.py", flow.finetuning(home, home / "pre", **{"data.train": "files:nowhere.tsv", "batch": 8}))
    chosen = ["--freeze", "head", "--freeze", "top-1+bitfit", "--freeze", '[["head/.*", "train"], [".*", "freeze"]]']
    assert flow.ptft("plan", "--config", page, *chosen, "--probe", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["strategy", "trainable"] and len(lines) == 4 and lines[1].startswith("head ")
    assert flow.ptft("plan", "--config", page, "--json", "--probe", 2) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["freeze"] == "top-1" and row["seconds_per_step"] > 0 and 0.3 < row["flops_share"] <= 1.01
    assert flow.ptft("plan", "--config", page, "--freeze", "top-9") == 2
    assert "expected top-1 … top-1" in capsys.readouterr().err


# --- planted mistakes: a freeze that is none ------------------------------------------------------------------------------


def everything(net, tx, accumulate=1, axis=None, still=frozenset(), *, spread=lambda grads, frozen: {}, scale=lambda grads: 1.0):
    """A step with the classic mistake: it differentiates all parameters; `spread` is what it does to the frozen ones."""

    def mistaken(moving, frozen, batch, seed):
        def loss(p):
            sums = net.sums(p, batch, jax.random.key(seed))
            return sums["loss"][0] / sums["loss"][1], sums

        grads, sums = jax.grad(loss, has_aux=True)({**frozen, **moving.params})
        factor = scale(grads)
        mine = {n: grads[n] * factor for n in moving.params}
        updates, opt = tx.update(mine, moving.opt, moving.params)
        sums["grad_norm"] = (optax.tree.norm(mine), jnp.float32(1))
        return step.Moving(moving.step + 1, {n: p + updates[n] for n, p in moving.params.items()}, opt), sums

    return mistaken


def clip_over_all(net, tx, accumulate=1, axis=None, still=frozenset()):
    return everything(net, tx, scale=lambda grads: 1.0 / jnp.maximum(1.0, optax.tree.norm(grads)))


@pytest.fixture
def wide(home):
    """A finetuning whose products outweigh all else, frozen but for the head."""
    return flow.finetuning(
        home, home / "pre", freeze="head", **{"init_from": "", "devices": 1, "model": {"layers": 4, "hidden": 128, "dropout": 0.0}}
    )


def test_a_clip_over_all_gradients_is_seen_before_the_first_step(wide, tmp_path, monkeypatch, capsys):
    build._program.cache_clear()
    monkeypatch.setattr(step, "train_step", clip_over_all)
    try:
        with pytest.raises(UserError, match=r"this freeze should cost .*keeps the backward pass of frozen parameters alive; strict_cost"):
            flow.run({**wide, "strict_cost": True}, tmp_path / "strict")
        flow.run(wide, tmp_path / "warned")
        assert "WARNING: freeze='head': the compiled step costs" in capsys.readouterr().out
    finally:
        build._program.cache_clear()
    assert not (tmp_path / "strict" / "metrics.jsonl").exists()


def test_the_real_step_gives_no_warning(wide, tmp_path, capsys):
    flow.run({**wide, "strict_cost": True}, tmp_path / "run")
    assert "WARNING" not in capsys.readouterr().out


def test_optimizer_state_for_everything_is_seen(wide, tmp_path, monkeypatch):
    """`set_to_zero` after AdamW over all parameters: the state of what is frozen is kept, and decay moves it."""
    run = build.outline(build.resolve(wide))
    program = build.program(run)
    whole = optim.build(run.config.optim, dict.fromkeys(run.net.shapes(), 1.0), 1, 5)
    state = jax.eval_shape(whole.init, dict(run.net.shapes()))
    assert "the optimizer keeps state for" in (plans.problem(run, program, state) or "")
    names = plans.ledger.optimizer_names(jax.eval_shape(program.init, tree.split(run.net.shapes(), run.plan.trainable)[0]).opt)
    assert names == set(run.plan.trainable)


def test_the_optimizer_state_holds_arrays_only(wide):
    """No MaskedNode or other stand-ins, which code that maps over leaves trips over."""
    run = build.outline(build.resolve(wide))
    state = jax.eval_shape(build.program(run).init, tree.split(run.net.shapes(), run.plan.trainable)[0])
    kinds = {type(x) for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.MaskedNode))}
    assert kinds == {jax.ShapeDtypeStruct}


def test_another_freeze_is_another_program(wide):
    """A plan that changes after compilation is not ignored."""
    programs = {s: build.program(build.outline(build.resolve({**wide, "freeze": s}))) for s in ("head", "top-1", "full")}
    assert len({id(p) for p in programs.values()}) == 3
    assert programs["head"].cost.flops < programs["top-1"].cost.flops < programs["full"].cost.flops


def test_gradients_exist_for_what_moves_alone(wide):
    """No zeros of full size for frozen leaves: what the step returns is what moves."""
    run = build.outline(build.resolve(wide))
    shapes = run.net.shapes()
    inside, outside = tree.split(shapes, run.plan.trainable)
    tx = optim.build(run.config.optim, run.plan.rates, 1, 5)
    moving = jax.eval_shape(lambda p: step.init_moving(p, tx), inside)
    after, _ = jax.eval_shape(step.train_step(run.net, tx), moving, outside, run.net.example(8), np.uint32(0))
    assert set(after.params) == set(run.plan.trainable)


def test_blocks_are_not_stacked():
    """Slices of stacked layers cannot be frozen: each block has its own leaves."""
    for model in ("bert", "modernbert"):
        shapes = outline(**{"name": model, **({"heads": 2, "ffn": 64} if model == "modernbert" else {})}).net.shapes()
        depth = freeze.depth_of(models.groups(model), shapes)
        assert depth == 6 and all(len(s.shape) <= 2 for s in shapes.values())


def test_peak_counts_what_is_updated_in_place_once():
    found = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jax.ShapeDtypeStruct((1000,), jnp.float32)).compile()
    assert cost.of(found).peak_bytes == 4000
