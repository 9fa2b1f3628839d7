"""What `ptft plan` says, and that the contract of a run is neither too strict nor too loose (what it sees:
test_planted.py)."""

import copy
import json

import flow
import jax
import jax.numpy as jnp
import pytest

from ptft.core import tree
from ptft.planning import plans
from ptft.train import build, contract, cost, programs, spec

STRATEGIES = (
    "full", "head", "top-1", "top-3", "bottom-2", "layers=2", "every-3", "bitfit", "bitfit=query,up",
    "layernorm", "attention", "ffn",
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
    """Wide rows: the products outweigh all else."""
    values = {
        "batch": 16,
        "devices": 1,
        "model": {"layers": 4, "hidden": 128, "max_len": 64, "dropout": 0.0, **model},
    }
    return build.outline(
        spec.resolve(
            {**values, "objective": {"name": "classify", "seq_len": 64}, "data": {"vocab_size": 500}}
        )
    )


@pytest.fixture(scope="module")
def table():
    return plans.rows(outline(), STRATEGIES, probe=0)


def test_the_compiled_step_costs_what_the_formula_says(table):
    for r in table:
        assert r["flops_share"] == pytest.approx(r["analytic_flops_share"], abs=0.035), r["freeze"]
        assert 1 < r["flops"] / r["analytic_flops"] < 1.2, r["freeze"]
        assert r["problem"] is None and r["fits"]


def test_the_formula_is_that_of_the_passes():
    """Forward a third; head: nothing else; of six blocks the top three: half of what remains, but for the
    pooler and INPUTS."""
    run = outline(layers=6)
    share = {s: contract.products(build.refrozen(run, s)) for s in ("full", "head", "top-3")}
    full = share["full"]
    # attention's products have no weights
    assert full.forward == pytest.approx(full.total / 3, rel=1e-6) and full.weights < full.forward
    assert (
        share["head"].forward == full.forward
        and share["head"].activations == 0
        and share["head"].weights < 1e-4 * full.total
    )
    assert share["top-3"].total / full.total == pytest.approx(
        1 / 3 + 2 / 3 / 2 - INPUTS / full.total, abs=0.002
    )


def activations(strategy, **model):
    return contract.products(build.refrozen(outline(**model), strategy)).activations


def test_the_input_of_the_lowest_block_needs_a_gradient_only_if_something_below_it_moves():
    """BERT's norms stand after the layers; ModernBERT's before them, where training one makes the gradient
    pass through."""
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
    assert (
        rows["head"]["temporary_bytes"] < rows["top-3"]["temporary_bytes"] < rows["full"]["temporary_bytes"]
    )


def test_what_does_not_fit_is_said_and_not_tried(monkeypatch):
    monkeypatch.setattr(contract, "memory", lambda: 10**6)
    found = plans.rows(outline(), ["head"], probe=3)
    assert (
        not found[0]["fits"] and found[0]["seconds_per_step"] is None and "does not fit" in plans.text(found)
    )


def test_strategies_take_turns_so_that_a_busy_machine_slows_all_of_them(monkeypatch):
    """The time of the second is ten times as long while the machine is busy, for all, and the shares stay
    what they are."""
    clock, order = iter([1.0, 10.0, 10.0, 1.0, 1.0]), []

    def turn(run, phase, program, params, steps):
        name = run.config.freeze
        order.append(name)
        turn.slow = next(clock) if name == "full" else turn.slow
        return [{"full": 0.04, "head": 0.01}[name] * turn.slow] * steps

    monkeypatch.setattr(plans, "_turn", turn)
    one = build.outline(
        spec.resolve(flow.changed({**SMALL, "objective": {"name": "classify", "seq_len": 16}}, {}))
    )
    full, head = plans.costs([build.refrozen(one, s) for s in ("full", "head")], probe=10)
    assert order == ["full", "head"] * 5
    assert head["seconds_per_step"] / full["seconds_per_step"] == pytest.approx(1 / 4)
    assert (full["seconds_low"], full["seconds_per_step"], full["seconds_high"]) == pytest.approx(
        (0.04, 0.04, 0.4)
    )
    monkeypatch.setattr(plans, "ENOUGH", 0.0)  # slow steps: two turns are the least
    order.clear()
    run = build.refrozen(one, "head")
    plans.in_turns([(run, 0, programs.program(run))], 10)
    assert order == ["head"] * 2


def test_the_command_needs_no_data(home, capsys, tmp_path):
    page = flow.page(
        tmp_path / "page.py",
        flow.finetuning(home, home / "pre", **{"data.train": "files:nowhere.tsv", "batch": 8}),
    )
    chosen = [
        "--freeze",
        "head",
        "--freeze",
        "top-1+bitfit",
        "--freeze",
        '[["head/.*", "train"], [".*", "freeze"]]',
    ]
    assert flow.ptft("plan", "--config", page, *chosen, "--probe", 1) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "2 classes are assumed, as no data are read" in said.err
    assert (
        lines[0].split()[:2] == ["strategy", "trainable"] and len(lines) == 4 and lines[1].startswith("head ")
    )
    assert flow.ptft("plan", "--config", page, "--json", "--probe", 2) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["freeze"] == "top-1" and row["seconds_per_step"] > 0 and 0.3 < row["flops_share"] <= 1.01
    assert flow.ptft("plan", "--config", page, "--freeze", "top-9") == 2
    assert "expected top-1 … top-1" in capsys.readouterr().err


# --- the contract: no false alarm, and an alarm where the dead backward pass is alive -----------------------

ADDED = ("lora=8,query,value,dora", "houlsby=32", "prompt=16", "prefix=16", "fish=0.005", "head; 50%: top-1")


def test_what_is_added_costs_what_the_formula_says():
    for r in plans.rows(outline(), ADDED, probe=0):
        for part in r["phases"] or [r]:
            assert part["flops_share"] == pytest.approx(part["analytic_flops_share"], abs=0.035), part[
                "freeze"
            ]
            assert part["problem"] is None, part["problem"]
            # two moments, counts of steps
            assert 8 * part["trainable"] + 8 <= part["optimizer_bytes"] <= 8 * part["trainable"] + 12


SMALL = {
    "batch": 8,
    "devices": 1,
    "model": {"layers": 2, "hidden": 64, "max_len": 32},
    "data": {"vocab_size": 500, "labels": ("O", "B-X")},
}


@pytest.mark.parametrize(
    ("changes", "strategies"),
    [
        ({}, ["head", "lora=4,dora", "houlsby=8", "fish=0.01"]),
        ({"objective.name": "mlm_nsp"}, ["embeddings", "top-1"]),
        ({"objective.name": "tag"}, ["head"]),
        ({"data.labels": tuple(map(str, range(3000))), "batch": 64}, ["head"]),
        ({"accumulate": 4, "frozen_dtype": "int8"}, ["top-1"]),
        ({"accumulate": 4, "data.labels": tuple(map(str, range(3000)))}, ["top-1"]),
        ({"frozen_dtype": "bfloat16", "dtype": "bfloat16", "optim.name": "adafactor"}, ["bitfit"]),
        ({"optim.name": "lamb", "optim.bias_correction": False}, ["head; 10%: pooler; 20%: head"]),
        (
            {"model.name": "modernbert", "model.heads": 2, "model.ffn": 96, "optim.name": "sgd"},
            ["top-1", "head"],
        ),
    ],
    ids=[
        "adapters",
        "mlm_nsp",
        "tag",
        "3000 labels",
        "parts-int8",
        "parts-labels",
        "bfloat16",
        "phases",
        "modernbert",
    ],
)
def test_small_shapes_give_no_false_alarm(changes, strategies):
    """Where what is not a product weighs most."""
    values = flow.changed(
        {**copy.deepcopy(SMALL), "optim": {}, "objective": {"name": "classify", "seq_len": 16}}, changes
    )
    run = build.outline(spec.resolve(values))
    for strategy in strategies:
        assert plans.row(run, strategy, 0)["problem"] is None, strategy


REAL = {
    "BERT-base 32x128": ({"size": "base"}, 32, 128),
    "MiniLM 32x48": ({"layers": 6, "hidden": 384, "heads": 12}, 32, 48),
    "tiny 16x32": ({"size": "tiny"}, 16, 32),
    "ModernBERT 16x64": ({"name": "modernbert", "layers": 6, "hidden": 256, "heads": 4, "ffn": 384}, 16, 64),
}


@pytest.mark.parametrize(
    ("shape", "task"),
    [*((shape, "classify") for shape in REAL), ("tiny 16x32", "mlm_nsp"), ("tiny 16x32", "tag")],
)
def test_the_alarm_fires_at_real_shapes(shape, task):
    """A step whose backward pass is alive everywhere costs at least the formula's full step: that must be
    above what is allowed, and what is allowed above what the strategy costs."""
    model, batch, seq_len = REAL[shape]
    values = {
        "batch": batch,
        "devices": 1,
        "model": {"max_len": 128, **model},
        "objective": {"name": task, "seq_len": seq_len},
    }
    run = build.outline(spec.resolve({**values, "data": {"vocab_size": 30522, "labels": ("O", "B-X")}}))
    more = [] if "ModernBERT" in shape else ["bitfit", "prefix"]  # it has no more, and keys and values in one
    sure = set()
    for strategy in ("head", "lora", "houlsby", *more, "head; 50%: top-1"):
        one = build.refrozen(run, strategy)
        for i, phase in enumerate(one.phases):
            work = cost.Work(batch, seq_len, one.net.objective.head_rows, one.net.added)
            alive = cost.analytic(one.layout, list(one.net.shapes()), work).total
            formula = contract.products(one, i)
            if formula.total < 0.85 * alive:
                assert formula.total < contract.allowance(one, formula, i) < alive, phase.strategy
                sure.add(phase.strategy)
    assert sure >= {"head", "top-1", "lora", *more}


def test_peak_counts_what_is_updated_in_place_once():
    found = (
        jax.jit(lambda x: x + 1, donate_argnums=0).lower(jax.ShapeDtypeStruct((1000,), jnp.float32)).compile()
    )
    assert cost.of(found).peak_bytes == 4000
