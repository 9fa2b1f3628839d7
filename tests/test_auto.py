"""`freeze=auto(…)`: what is chosen fits its budget by the compiled step, is worth as much as can be, and is
decided once."""

import itertools
import json

import flow
import jax
import numpy as np
import pytest

from ptft import models
from ptft.bench import cell as work
from ptft.bench import protocol, vectorized
from ptft.core import checkpoint
from ptft.core.errors import UserError
from ptft.freeze import resolve
from ptft.planning import auto, importance, knapsack, pieces, plans
from ptft.planning.knapsack import Ask, Items
from ptft.train import build, contract, spec, train
from ptft.train.net import Net

SMALL = {
    "devices": 1,
    "train_for": "4 steps",
    "eval_every": "0",
    "save_every": "2 steps",
    "model.dropout": 0.0,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto")
    flow.run(flow.pretraining(folder, **{"model.layers": 3, "train_for": "2 steps"}), folder / "pre")
    return folder


def config(home, freeze, **changes):
    return spec.resolve(flow.finetuning(home, home / "pre", freeze=freeze, **{**SMALL, **changes}))


def outline(**model):
    values = {
        "batch": 8,
        "devices": 1,
        "freeze": "head",
        "model": {"layers": 3, "hidden": 64, "max_len": 32, **model},
    }
    return build.outline(
        spec.resolve(
            {**values, "objective": {"name": "classify", "seq_len": 32}, "data": {"vocab_size": 300}}
        )
    )


@pytest.mark.parametrize("unit", ["flops", "bytes", "params"])
def test_the_choice_fits_by_the_compiled_step(home, unit):
    c = config(home, f"auto(budget=0.5 {unit})")
    known = auto.decide(c)
    rows = {
        r["freeze"]: r
        for r in plans.rows(build.outline(c.replace(freeze="head")), ["full", known["strategy"]], probe=0)
    }
    key = {"flops": "flops", "bytes": "peak_bytes", "params": "trainable"}[unit]
    share = rows[known["strategy"]][key] / rows["full"][key]
    assert share <= 0.5 and known["cost"] == pytest.approx(share, rel=0.01)
    assert known["strategy"] != "head", "half of everything buys more than the head"


@pytest.mark.parametrize("seed", [0, 1])
def test_no_set_that_fits_is_worth_more(seed):
    """Against every set of parts there is, at the costs of the formula."""
    run = outline()
    parts = pieces.split(run.layout)
    value = np.random.default_rng(seed).random(len(parts)).tolist()

    def price(strategy):
        return contract.products(build.refrozen(run, strategy)).total

    own, reach = auto.estimates(run, parts, "flops", price)
    full = price("full")
    # 256 sets instead of 2048
    moves = [i for i in range(len(parts)) if not parts[i].name.startswith("layernorm")]
    some = [parts[i] for i in moves]
    every = [s for k in range(len(some) + 1) for s in itertools.combinations(range(len(some)), k)]
    v, o, r = ([x[i] for i in moves] for x in (value, own, reach))
    least = {
        s: price("head") / full + (sum(o[i] for i in s) + max((r[i] for i in s), default=0)) / knapsack.GRID
        for s in every
    }
    for budget in (0.4, 0.6, 0.8):
        chosen, _ = knapsack.solve(Items(some, v, o, r), Ask(budget, "flops", "rgn"), price)
        best = max(sum(v[i] for i in s) for s in every if least[s] <= budget)
        assert sum(v[i] for i in chosen) == pytest.approx(best), (budget, pieces.named(some, chosen))


def test_a_larger_budget_is_worth_no_less():
    run = outline()
    parts = pieces.split(run.layout)
    value = np.random.default_rng(3).random(len(parts)).tolist()

    def price(strategy):
        return contract.products(build.refrozen(run, strategy)).total

    own, reach = auto.estimates(run, parts, "flops", price)
    found = []
    for budget in (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0):
        chosen, _ = knapsack.solve(Items(parts, value, own, reach), Ask(budget, "flops", "rgn"), price)
        found.append(sum(value[i] for i in chosen))
    assert found == sorted(found) and len(chosen) == len(parts), "all that there is to spend buys everything"


def test_where_the_formula_is_too_low_the_measured_cost_counts():
    run = outline()
    parts = pieces.split(run.layout)
    value = np.random.default_rng(3).random(len(parts)).tolist()

    def price(strategy):
        return contract.products(build.refrozen(run, strategy)).total * (
            1 if strategy in ("head", "full") else 1.07
        )

    own, reach = auto.estimates(run, parts, "flops", price)
    chosen, tried = knapsack.solve(Items(parts, value, own, reach), Ask(0.7, "flops", "rgn"), price)
    assert not tried[0]["fits"] and chosen and price(pieces.named(parts, chosen)) <= 0.7 * price("full")
    strategy = pieces.named(parts, chosen)
    worth = {t["strategy"]: t["value"] for t in tried}
    less = {"strategy": "worth less", "value": worth[strategy] / 2, "cost": 0.9, "fits": False}
    known = {
        "score": "rgn",
        "examples": 8,
        "budget": 0.7,
        "unit": "flops",
        "strategy": strategy,
        "cost": 0.6,
        "parts": [],
    }
    said = auto.describe({**known, "tried": [*tried, less]})
    more = [t["strategy"] for t in tried if not t["fits"] and worth[t["strategy"]] > worth[strategy]]
    assert (
        said.count("worth more, but measured to cost too much") == len(more) > 0 and "worth less" not in said
    )
    # as it was kept before
    auto.describe({**known, "tried": [{k: t[k] for k in t if k != "value"} for t in tried]})


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("sign", [-1, 1])
def test_depth_is_the_largest_that_fits_whatever_the_estimates_say(blocks, sign):
    run = outline()
    parts = pieces.split(run.layout)

    def price(strategy):  # measured costs lie to either side of what is estimated
        one = build.refrozen(run, strategy)
        moving = sum(any(n.startswith(f"backbone/block_{i}/") for n in one.plan.trainable) for i in range(3))
        return contract.products(one).total * (
            1 if strategy in ("head", "full") else 1 + sign * 0.04 * (-1) ** moving
        )

    own, reach = auto.estimates(run, parts, "flops", price)
    items = Items(parts, [1.0] * len(parts), own, reach)
    ranked = knapsack.choices(items, whole=True)
    budget = 1.0001 * price(f"top-{blocks}+pooler") / price("full")
    largest = next(
        chosen for _, _, chosen in ranked if price(pieces.named(parts, chosen)) <= budget * price("full")
    )
    chosen, tried = knapsack.solve(items, Ask(budget, "flops", "depth"), price)
    assert chosen == largest and len(tried) <= 4


@pytest.mark.parametrize("score", ["rgn", "fisher"])
def test_the_part_with_far_larger_gradients_is_chosen(home, monkeypatch, score):
    """Planted: the loss is what it was, its gradient by block 1's feed-forward matrices ten thousand times as
    long."""
    sums = Net.sums

    def steep(net, params, *rest):
        planted = {
            n: x * 1e4 - jax.lax.stop_gradient(x * (1e4 - 1))
            for n, x in params.items()
            if n.startswith("backbone/block_1/ffn/")
        }
        return sums(net, {**params, **planted}, *rest)

    freeze = f"auto(budget=0.3 params, score={score})"
    assert "ffn=1" not in [p["part"] for p in auto.decide(config(home, freeze))["parts"] if p["moves"]]
    monkeypatch.setattr(Net, "sums", steep)
    known = auto.decide(config(home, freeze))
    assert max(known["parts"], key=lambda p: p["score"])["part"] == "ffn=1"
    assert "ffn=1" in [p["part"] for p in known["parts"] if p["moves"]]


def test_the_number_of_devices_decides_nothing(home):
    found = [auto.decide(config(home, "auto(budget=0.4 params, score=fisher)", devices=n)) for n in (1, 2)]
    assert found[0]["strategy"] == found[1]["strategy"]
    assert [p["score"] for p in found[0]["parts"]] == pytest.approx(
        [p["score"] for p in found[1]["parts"]], rel=1e-3
    )


@pytest.mark.parametrize("score", ["fisher", "snr", "variability"])
def test_every_signal_gives_a_number_a_part(home, score):
    known = auto.decide(config(home, f"auto(budget=0.4 params, score={score})"))
    values = [p["score"] for p in known["parts"]]
    assert len(values) == 11 and all(np.isfinite(v) and v > 0 for v in values) and len(set(values)) > 3
    assert known["examples"] == 20


def test_the_controls_need_no_data_and_keep_the_budget(home):
    run = auto.unchosen(config(home, "auto(budget=0.6 params, score=depth)"))
    parts = pieces.split(run.layout)
    assert (
        auto.decide(run.config.replace(freeze="auto(budget=0.6 params, score=depth)"))["strategy"]
        == "layers=2+pooler"
    )
    draws = [
        importance.measure(run._replace(config=run.config.replace(seed=s)), parts, "random")
        for s in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_variability_is_within_over_between():
    """Two classes around (-1, 0) and (1, 0), each 0.5 to either side, along the line between them and then
    across it."""
    label = np.array([0, 0, 1, 1])
    along = np.array([[-1.5, 0], [-0.5, 0], [0.5, 0], [1.5, 0]])
    across = np.array([[-1, -0.5], [-1, 0.5], [1, -0.5], [1, 0.5]])
    assert importance.within_over_between(along, label) == pytest.approx(0.25 / 1 / 2)
    assert importance.within_over_between(across, label) == pytest.approx(0)


def test_names_are_those_of_strategies():
    run = outline()
    groups, shapes = models.anatomy("bert"), run.net.shapes()
    parts = pieces.split(run.layout)
    assert sorted(n for p in parts for n in p.leaves) == sorted(
        n for n in shapes if n.startswith("backbone/")
    ), "each leaf in one part"
    rng = np.random.default_rng(0)
    for k in range(1, len(parts)):
        chosen = sorted(rng.choice(len(parts), k, replace=False).tolist())
        plan = resolve.plan(pieces.named(parts, chosen), groups, shapes)
        assert {n for n in plan.trainable if not n.startswith("head/")} == {
            n for i in chosen for n in parts[i].leaves
        }
    assert pieces.named(parts, []) == "head" and pieces.named(parts, list(range(len(parts)))) == "full"


# ------------------------------------------------------------------------------------------------ runs

FREEZE = "auto(budget=0.4 params)"


def run(c, folder):
    return train.run(c, folder, quiet=True, chosen=auto.choose(c, folder))


def test_a_run_that_resumes_goes_by_what_was_chosen(home, tmp_path, monkeypatch):
    c = config(home, FREEZE)
    whole = run(c, tmp_path / "whole")
    known = json.loads((tmp_path / "whole" / "auto.json").read_text())
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["freeze"] == FREEZE
    stored = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert stored["phases"] == [{"start": 0, "waits": 0, "strategy": known["strategy"]}]
    assert {r["name"] for r in stored["freeze"] if r["rate"] and not r["name"].startswith("head/")}

    flow.at_batch(monkeypatch, 3, flow.sigterm)
    with pytest.raises(SystemExit):
        run(c, tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.setattr(auto, "decide", lambda config: pytest.fail("decided again"))
    again = run(c, tmp_path / "cut")
    assert again["test"] == whole["test"] and flow.state(tmp_path / "cut", 4) == flow.state(
        tmp_path / "whole", 4
    )
    (tmp_path / "cut" / "auto.json").unlink()
    (tmp_path / "cut" / "result.json").unlink()
    with pytest.raises(UserError, match=r"has no auto\.json"):
        run(c, tmp_path / "cut")


def test_a_start_that_trained_nothing_binds_nobody(home, tmp_path):
    """auto.json of another config, without a run beside it, is one that a killed start left."""
    (tmp_path / "run").mkdir()
    left = {"config_hash": "another", "strategy": "full", "budget": 0.5, "unit": "flops", "score": "depth"}
    more = {"examples": 1, "cost": 0.5, "parts": [], "tried": []}
    (tmp_path / "run" / "auto.json").write_text(json.dumps(left | more))
    assert (
        auto.built(config(home, "auto(budget=0.4 params, score=depth)"), tmp_path / "run").phases[0].strategy
        != "full"
    )


def test_what_reads_a_run_needs_no_data(home, tmp_path, capsys):
    run(config(home, FREEZE, checkpoint="delta"), tmp_path / "run")
    assert checkpoint.newest(tmp_path / "run") == 4
    assert flow.ptft("predict", "--workdir", tmp_path / "run", "--text", "alpha good") == 0
    assert flow.ptft("export", "--workdir", tmp_path / "run", "--to", tmp_path / "out", "--merge") == 0
    assert flow.ptft("report", tmp_path / "run") == 0
    capsys.readouterr()


def test_the_plan_says_what_was_chosen_or_why_it_cannot(home, tmp_path, capsys):
    page = flow.page(tmp_path / "page.py", flow.finetuning(home, home / "pre", **SMALL))
    assert (
        flow.ptft(
            "plan",
            "--config",
            page,
            "--freeze",
            "auto(budget=0.4 params, score=depth)",
            "--freeze",
            "head",
            "--probe",
            0,
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "at most 0.4 of the params of training everything -> layers=2+pooler" in said.splitlines()[0]
    assert [line.split()[0] for line in said.splitlines()[-2:]] == ["layers=2+pooler", "head"]
    assert (
        flow.ptft("plan", "--config", page, "--freeze", FREEZE, "--config.data.train=files:nowhere.tsv") == 2
    )
    assert f"(freeze='{FREEZE}' is decided by a sample of the training data)" in capsys.readouterr().err


def test_a_cell_of_a_benchmark_records_what_its_seed_chose(home, tmp_path):
    page = flow.finetuning(home, home / "pre", **SMALL)
    page["bench"] = {
        "strategies": [{"name": "auto", "freeze": FREEZE}],
        "seeds": [0],
        "repeat": False,
        "random_init": False,
    }
    cell = next(c for c in protocol.cells(page, spec.resolve) if c.kind == "train")
    work.check([cell], "accuracy")
    assert vectorized.group_key(cell.config) is None
    found = work.run_cell(cell, tmp_path / "cell", "accuracy")
    assert found.chosen == json.loads((tmp_path / "cell" / "auto.json").read_text())["strategy"]
    assert 0 < found.trainable_share <= 0.4 and found.bytes["optimizer"] < 8.1 * found.trainable + 100


MISTAKES = {
    "auto": "expected auto\\(budget=0.5 flops\\)",
    "auto(0.5 flops)": "expected auto\\(budget=0.5 flops\\)",
    "auto(budget=0.5 flops)+bitfit": "alone",
    "auto(budget=0.5 flops); 50%: full": "alone",
    "bitfit+auto(budget=0.5 flops)": "stands alone",
    "head; 50%: auto(budget=0.5 flops)": "stands alone",
    "auto(budget=0.5 flop)": (
        "'flop' is no unit, expected one of flops, seconds, bytes, params; did you mean 'flops'"
    ),
    "auto(budget=0.5 flops, score=rng)": "'rng' is no score.*did you mean 'rgn'",
    "auto(budget=1.5 flops)": "expected above 0 and up to 1, got 1.5",
    "auto(budget=0.01 flops, score=depth)": "less than training the head alone; expected at least 0\\.\\d",
}


def test_a_model_without_blocks_of_its_kind_is_refused(home):
    lstm = {"model": {"name": "lstm", "hidden": 16, "embedding": 16}, "init_from": "", "data.vocab_size": 120}
    values = flow.changed({**flow.finetuning(home, home / "pre", freeze=FREEZE, devices=1)}, lstm)
    with pytest.raises(UserError, match="blocks of a Transformer encoder; 'lstm' is none"):
        auto.built(spec.resolve(values))


@pytest.mark.parametrize("freeze", MISTAKES)
def test_a_mistake_is_named(home, freeze):
    with pytest.raises(UserError, match=MISTAKES[freeze]):
        auto.built(config(home, freeze))
