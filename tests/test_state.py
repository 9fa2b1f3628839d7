"""What moves changes with time: stopping and going on in any phase, what the optimizer keeps, what is
compiled, what is freed."""

import dataclasses
import gc
import json

import flow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ptft import models
from ptft.core import checkpoint, mesh, signals, tree
from ptft.core.errors import UserError
from ptft.freeze import ledger, quantize
from ptft.freeze.layout import Layout
from ptft.train import build, cost, evaluate, programs, spec, state, step, weights
from ptft.train.net import Dropout

EXPLICIT = "head; 3 steps: top-1@decay=0.5; 6 steps: bitfit"
CALM = {"model.dropout": 0.0, "objective.dropout": 0.0}
RULES = [["head/.*", "train"], ["backbone/pooler/.*", "train(lr=0.5)"], [".*", "freeze"]]
# name -> (what a run changes, the steps that it is stopped at and saved). Phases begin after steps 3 and 6,
# those of gradual and lisa after every second one: 3 is the boundary itself, 4 the first step of a phase.
CASES = {
    "explicit": ({"freeze": EXPLICIT}, (2, 3, 4, 7)),
    "reset": ({"freeze": EXPLICIT, "optim.at_phase": "reset"}, (3, 7)),
    "gradual": (
        {"freeze": "gradual", "frozen_dtype": "int8", "checkpoint": "delta", **CALM},
        (1, 2, 3, 5, 7),
    ),
    "lisa": ({"freeze": "lisa=1,2 steps", "frozen_dtype": "bfloat16", "frozen_dropout": False}, (2, 5, 7)),
    "plateau": (
        {"freeze": "gradual=plateau,1", "eval_every": "1 step", "best": "accuracy", "optim.lr": 1e-5},
        (2, 3, 5),
    ),
    "rules": (
        {"freeze": [["0", RULES], ["3 steps", [[".*", "train"]]]], "parallel": "pmap", "checkpoint": "delta"},
        (3, 4),
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    quick = {"model.layers": 2, "train_for": "2 steps", "save_every": "0", "eval_every": "0"}
    flow.run(flow.pretraining(folder, **quick), folder / "pre")
    return folder


@pytest.fixture(scope="module")
def whole(home):
    """The folder of an uninterrupted run of each case, and the digests of all parameters before every
    step."""
    steps, due = {}, state.due

    def get(case):
        if case not in steps:
            mine = steps[case] = {}

            def noted(run, here, done):
                mine[done] = {
                    n: ledger.digest(x) for n, x in {**here.frozen, **here.train_state.params}.items()
                }
                return due(run, here, done)

            with pytest.MonkeyPatch.context() as m:
                m.setattr(state, "due", noted)
                flow.run(values(home, case), home / case)
        return home / case, steps[case]

    return get


def values(home, case, **more):
    return flow.finetuning(
        home, home / "pre", **{"keep": 20, "save_every": "0", "data.dev_size": 4, **CASES[case][0], **more}
    )


def read(workdir, name):
    return json.loads((workdir / name).read_text())


def built(home, freeze="head", **more):
    return build.build(spec.resolve(flow.finetuning(home, home / "pre", freeze=freeze, **more)))


def outline(strategy, layers=2, total=8, **more):
    """A run's phases, without data."""
    changes = {
        "model": {"layers": layers, "hidden": 64, "max_len": 32},
        "train_for": f"{total} steps",
        "freeze": strategy,
        **more,
    }
    return build.outline(
        spec.resolve(
            {
                "batch": 8,
                "objective": {"name": "classify", "seq_len": 16},
                "data": {"vocab_size": 100},
                **changes,
            }
        )
    )


# ------------------------------------------------------------------------------------ stopping and going on


@pytest.mark.promise("R1")
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_stopped_in_every_phase_ends_in_the_same_bytes(
    home, whole, case, tmp_path, monkeypatch
):
    cut = tmp_path / "cut"
    for k in CASES[case][1]:
        with monkeypatch.context() as m:
            flow.at_batch(m, k, flow.sigterm)
            with pytest.raises(SystemExit) as e:
                flow.run(values(home, case), cut)
        assert e.value.code == signals.PREEMPTED and checkpoint.newest(cut) == k
    flow.run(values(home, case), cut)
    once = whole(case)[0]
    one, two = flow.state(cut, 8), flow.state(once, 8)
    assert one == two and any(n.startswith("opt ") for n in one)
    assert (cut / "metrics.jsonl").read_bytes() == (once / "metrics.jsonl").read_bytes()
    assert read(cut, "freeze_ledger.json") == read(once, "freeze_ledger.json")
    first, second = (read(w, "result.json") for w in (cut, once))
    assert all(
        first[k] == second[k] for k in ("dev", "test", "best_step", "steps", "trainable", "flops_per_step")
    )


def test_the_cases_are_what_they_say(whole):
    """Each has phases at the steps at which it is stopped; carrying and resetting are not the same."""
    begun = {
        case: [p["began"] for p in read(whole(case)[0], "freeze_ledger.json")["phases"]] for case in CASES
    }
    assert begun["explicit"] == begun["reset"] == [0, 3, 6] and begun["rules"] == [0, 3]
    assert begun["gradual"] == [0, 2, 4, 6] == begun["lisa"]
    # the first evaluation is the best so far
    assert begun["plateau"][:2] == [0, 2] and 2 < begun["plateau"][2] < 8
    carried, reset = (whole(case)[1] for case in ("explicit", "reset"))
    assert [carried[k]["head/classifier/kernel"] == reset[k]["head/classifier/kernel"] for k in (3, 4)] == [
        True,
        False,
    ]
    flops = [read(whole(case)[0], "result.json")["flops_per_step"] for case in ("explicit", "rules")]
    assert flops[0] > 0 and flops[1] is None  # unknown under pmap


@pytest.mark.promise("R9")
def test_another_number_of_devices_goes_on_with_the_same_losses(home, whole, tmp_path, monkeypatch):
    """Four devices, then two under pmap, in the phase after."""
    with monkeypatch.context() as m:
        flow.at_batch(m, 4, flow.sigterm)
        with pytest.raises(SystemExit):
            flow.run(values(home, "gradual"), tmp_path / "run")
    flow.run(values(home, "gradual", parallel="pmap", devices=2), tmp_path / "run")
    one, two = flow.lines(tmp_path / "run"), flow.lines(whole("gradual")[0])
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)


# ---------------------------------------------------------------------------- what moves, and what does not


@pytest.mark.parametrize("case", ["explicit", "gradual", "lisa", "plateau"])
def test_every_step_moves_what_its_phase_says_and_nothing_else(home, whole, case):
    """From one step to the next change the trainable parameters of that phase alone."""
    run = build.build(spec.resolve(values(home, case)))
    folder, steps = whole(case)
    begun = [p["began"] for p in read(folder, "freeze_ledger.json")["phases"]]
    assert list(steps) == list(range(8))
    for k in range(7):
        phase = max(i for i, b in enumerate(begun) if b is not None and b <= k)
        moved = {n for n, x in steps[k].items() if steps[k + 1][n] != x}
        assert moved == set(run.phases[phase].plan.trainable), k


def test_the_ledger_of_a_phased_run(whole):
    """A leaf that moved in the second phase alone has moved; one that never did is the same to the bit."""
    proof = read(whole("explicit")[0], "freeze_ledger.json")
    verdicts = {r["name"]: r["verdict"] for r in proof["rows"]}
    assert proof["holds"] and not proof["not_moved"]
    assert verdicts["backbone/block_1/ffn/up/kernel"] == "moved" == verdicts["backbone/block_0/ffn/up/bias"]
    assert (
        verdicts["backbone/block_0/ffn/up/kernel"]
        == "frozen, the same"
        == verdicts["backbone/embeddings/norm/scale"]
    )
    rates = {r["name"]: r["rate"] for r in proof["rows"]}
    assert rates["backbone/block_1/ffn/up/kernel"] == 0.5 and rates["backbone/block_0/ffn/up/kernel"] == 0


def test_a_phase_that_never_begins_is_said_and_no_error(home, tmp_path, capsys):
    values = flow.finetuning(home, home / "pre", freeze="head; plateau=50: full")
    result = flow.run(values, tmp_path / "run")
    proof = read(tmp_path / "run", "freeze_ledger.json")
    assert proof["holds"] and result["steps"] == 8
    assert proof["phases"] == [{"strategy": "head", "began": 0}, {"strategy": "full", "began": None}]
    assert {r["verdict"] for r in proof["rows"] if r["name"].startswith("backbone/")} == {"frozen, the same"}
    assert "WARNING: phases that never began: full" in ledger.describe(proof)


def test_a_time_does_not_wait_for_a_plateau_before_it():
    """`plateau=9: top-1; 4 steps: full`: at step 4 everything moves, after one step of what was to come
    before."""
    run = outline("head; plateau=9: top-1; 4 steps: full", data={"vocab_size": 100, "dev": "files:dev.tsv"})

    def at(phase, waited, done):
        progress = state.Progress(phase_starts=[0] * (phase + 1), evals_since_best=waited)
        return state.due(run, state.RunState(step.TrainState(np.int32(done), {}, ()), {}, {}, progress), done)

    assert not at(0, 8, 3) and at(0, 9, 1) and at(0, 0, 4)
    assert not at(1, 9, 3) and at(1, 0, 4) and not at(2, 99, 7)


def test_a_best_step_before_the_last_phase_gives_the_final_numbers(home, tmp_path, monkeypatch, capsys):
    """Kept thin, the best step's frozen matrices count as they did then, not as those of the last phase."""
    monkeypatch.setattr(
        evaluate,
        "judge",
        lambda m, v, k, p: p._replace(best=v, best_step=k, evals_since_best=0) if k == 3 else p,
    )
    values = flow.finetuning(
        home, home / "pre", freeze="head; 4 steps: full", frozen_dtype="int8", **{"optim.lr": 0.05}
    )
    result = flow.run(values, tmp_path / "run")
    assert (
        result["best_step"] == 3 and read(tmp_path / "run", "freeze_ledger.json")["phases"][1]["began"] == 4
    )
    by_step = {line["step"]: line for line in flow.lines(tmp_path / "run") if line["split"] == "dev"}
    assert (
        result["dev"]["loss"]
        == pytest.approx(by_step[3]["loss"], rel=1e-6)
        != pytest.approx(by_step[8]["loss"], rel=1e-2)
    )
    capsys.readouterr()
    for split in ("dev", "test"):
        assert flow.ptft("eval", "--workdir", tmp_path / "run", "--split", split) == 0
        assert json.loads(capsys.readouterr().out)["loss"] == result[split]["loss"]


def test_early_stop_waits_for_the_last_phase(home, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluate,
        "judge",
        lambda m, v, k, p: p._replace(best=0.0, best_step=1, evals_since_best=p.evals_since_best + 1),
    )
    values = flow.finetuning(
        home, home / "pre", freeze="head; 4 steps: top-1", early_stop=2, eval_every="1 step"
    )
    # two evaluations in the last phase, whatever was before it
    assert flow.run(values, tmp_path / "run")["steps"] == 6


def test_a_plateau_needs_something_to_see_it_on(home):
    for change in ({"eval_every": "0"}, {"best": "last"}, {"data.dev": ""}):
        with pytest.raises(
            UserError,
            match=r"a plateau is seen on dev; it needs data.dev, an eval_every above 0 and a metric",
        ):
            built(home, "head; plateau=1: full", **change)


def test_starts_are_steps_shares_epochs_or_examples(home):
    # 20 rows in batches of 8
    for start, at in (("2 steps", 2), ("25%", 2), ("1 epoch", 3), ("24 examples", 3), (5, 5)):
        assert [p.start for p in built(home, [[0, RULES], [start, [[".*", "train"]]]]).phases] == [0, at]


def test_a_plan_without_data_has_epochs_too():
    assert [p.start for p in outline("head; 1 epoch: full", train_for="3 epochs").phases] == [0, 1000]
    assert [p.start for p in outline("head; 4000 steps: full", total=5000).phases] == [0, 4000]
    run = outline("head; 1 epoch: full", train_for="3 epochs", data={"vocab_size": 100, "train_size": 80})
    assert [p.start for p in run.phases] == [0, 10] and run.durations.total == 30


# ------------------------------------------------------------------------------------------ optimizer state


def enter(run, here, phase, done):
    return state.enter(run, here, done)


def by_name(opt, field):
    """{parameter: array} of a field of Adam's state, whatever its cohort; {number: count} of the counts."""
    out = {}
    for path, x in jax.tree_util.tree_leaves_with_path(opt[1]):
        if any(getattr(p, "name", "") == field for p in path):
            out[next((p.key for p in path if isinstance(p, jax.tree_util.DictKey)), str(path[0]))] = (
                np.asarray(x)
            )
    return out


@pytest.mark.parametrize("at_phase", ["carry", "reset"])
def test_what_goes_on_keeps_its_state_what_begins_has_new_what_stops_loses_it(home, at_phase):
    run = built(home, "top-1; 4 steps: pooler+bitfit", **{"optim.at_phase": at_phase, "devices": 1})
    here = state.start(run, weights.start_params(run, quiet=True))
    opt = jax.tree.map(lambda x: jnp.full(x.shape, 7, x.dtype), here.train_state.opt)
    here = here._replace(train_state=here.train_state._replace(opt=opt, step=jnp.int32(4)))
    after = enter(run, here, 1, 4)
    moments, counts = by_name(after.train_state.opt, "mu"), by_name(after.train_state.opt, "count")
    assert set(moments) == set(run.phases[1].plan.trainable) == set(after.train_state.params)
    old = set(run.phases[0].plan.trainable) if at_phase == "carry" else set()
    for name, x in moments.items():
        assert (x == (7 if name in old else 0)).all(), name
    assert sorted(int(x) for x in counts.values()) == ([0, 7] if at_phase == "carry" else [0])
    schedule = [int(x) for x in jax.tree.leaves(after.train_state.opt[2:])]
    assert schedule == [7] and int(after.train_state.step) == 4  # the schedule goes on in any case
    assert after.progress.phase_starts == [0, 4]
    everything = {**here.frozen, **here.train_state.params}
    assert all(
        np.array_equal(x, everything[n]) for n, x in {**after.frozen, **after.train_state.params}.items()
    )


def test_what_moves_together_shares_a_cohort_however_it_came_about():
    run = outline("head; 2 steps: top-1; 4 steps: full; 6 steps: top-1")
    for phase, sizes in enumerate((1, 2, 3, 2)):
        found = programs.cohorts(run, phase)
        assert set(found) == set(run.phases[phase].plan.trainable) and set(found.values()) == set(
            range(sizes)
        )
    assert programs.cohorts(run, 1) == programs.cohorts(run, 3)
    numbers = programs.cohorts(run, 2)
    came = dict(enumerate(programs.came_from(run, 2)))
    assert (
        came[numbers["head/classifier/bias"]] is not None
        and came[numbers["backbone/pooler/bias"]] is not None
    )
    assert came[numbers["backbone/embeddings/norm/bias"]] is None
    assert None not in programs.came_from(run, 3)
    reset = outline("head; 2 steps: top-1; 4 steps: full; 6 steps: top-1", optim={"at_phase": "reset"})
    assert programs.came_from(reset, 2) == [None] and set(programs.cohorts(reset, 2).values()) == {0}


# ------------------------------------------------------------------------------------- compiling and memory


def test_a_set_that_comes_back_is_not_compiled_again(home, tmp_path):
    """Eight phases of LISA draw one of two blocks: two programs, whatever moved before."""
    before = programs._program.cache_info().misses
    flow.run(flow.finetuning(home, home / "pre", freeze="lisa=1,1", **{"optim.lr": 1.1e-3}), tmp_path / "run")
    proof = read(tmp_path / "run", "freeze_ledger.json")
    assert [p["began"] for p in proof["phases"]] == list(range(8)) and len(
        {p["strategy"] for p in proof["phases"]}
    ) == 2
    assert programs._program.cache_info().misses - before == 2


@pytest.mark.parametrize("at_phase", ["carry", "reset"])
def test_programs_are_as_many_as_sets(monkeypatch, at_phase):
    asked = []
    nothing = programs.Program(lambda: None, cost.Cost(None, None, None))
    monkeypatch.setattr(programs, "_program", lambda *key: asked.append(key) or nothing)
    run = outline("lisa=2,1", layers=4, total=60, optim={"at_phase": at_phase})
    for phase in range(60):
        programs.program(run, phase)
    assert len(set(asked)) == len({p.strategy for p in run.phases}) == 6


def arrays():
    gc.collect()
    return {id(x): x for x in jax.live_arrays()}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_memory_falls_when_layers_are_frozen_again(home, dtype):
    run = built(home, "full; 4 steps: head", frozen_dtype=dtype, devices=1)
    shapes, moving = run.net.shapes(), [set(p.plan.trainable) for p in run.phases]
    backbone = 4 * tree.count({n: shapes[n] for n in moving[0] - moving[1]})
    others = arrays()
    here = state.start(run, weights.start_params(run, quiet=True))

    def held():
        return sum(x.nbytes for i, x in arrays().items() if i not in others)

    full = held()
    here = enter(run, here, 1, 4)
    head = held()
    saved = 2 * backbone  # both moments
    if dtype == "int8":
        saved += backbone - sum(x.nbytes for x in jax.tree.leaves(here.frozen_on_device))
        assert saved > 2.6 * backbone
    assert full - head == pytest.approx(saved, abs=64)
    arguments = [programs.program(run, phase).cost.argument_bytes for phase in (0, 1)]
    assert arguments[0] - arguments[1] == pytest.approx(saved, rel=0.01)


def test_no_second_copy_of_what_is_kept_thin(home, tmp_path, monkeypatch):
    """In the loop no matrix that is frozen is on the devices in float32, neither in the first phase nor in
    the second."""
    others, found = arrays(), {}

    def look():
        found[len(found)] = [
            (x.shape, x.dtype)
            for i, x in arrays().items()
            if i not in others and x.shape in ((64, 256), (256, 64))
        ]

    original = flow.pipeline.train_batches

    def batches(*args):
        for k, batch in enumerate(original(*args), 1):
            if k in (3, 7):
                look()
            yield batch

    monkeypatch.setattr(flow.pipeline, "train_batches", batches)
    flow.run(
        flow.finetuning(home, home / "pre", freeze="head; 4 steps: pooler", frozen_dtype="int8"),
        tmp_path / "run",
    )
    assert [sorted(f, key=str) for f in found.values()] == [
        sorted([((64, 256), jnp.int8), ((256, 64), jnp.int8)] * 2, key=str) for _ in range(2)
    ]


def test_what_stays_frozen_is_not_made_thin_again(home, monkeypatch):
    run = built(home, "head; 4 steps: top-1", frozen_dtype="int8")
    here = state.start(run, weights.start_params(run, quiet=True))
    after = enter(run, here, 1, 4)
    assert after.frozen_on_device and all(
        after.frozen_on_device[n] is here.frozen_on_device[n] for n in after.frozen_on_device
    )


# --------------------------------------------------------------------------- no dropout where nothing moves


def test_parts_that_rest_have_no_dropout_in_each_phase_anew():
    parts = {"embeddings", "block_0", "block_1", "pooler"}
    strategy = "head; 2 steps: top-1; 4 steps: embeddings+layers=1; 6 steps: lora=2,blocks=0"
    run = outline(strategy, frozen_dropout=False)
    assert [set(programs.no_dropout(run, i)) for i in range(4)] == [
        parts,
        parts - {"block_1", "pooler"},
        {"block_0", "pooler"},
        parts - {"block_0"},
    ]
    assert all(programs.no_dropout(outline(strategy), i) == frozenset() for i in range(4))


def test_dropout_changes_nothing_where_it_is_still():
    for model in ("bert", "lstm"):
        net = tiny.net(model, "classify", dropout=0.5)
        net = net._replace(head=dataclasses.replace(net.head, dropout=0.0))
        params, depth = tiny.params(net), len(Layout(models.anatomy(model), net.shapes()).blocks)
        parts = frozenset({"embeddings", "pooler", *(f"block_{i}" for i in range(depth))})
        inputs = net.objective.prepare(
            jax.tree.map(jnp.asarray, tiny.batch(net, 4)), jax.vmap(jax.random.key)(jnp.arange(4))
        )
        calm = np.asarray(net.predict(params, inputs))

        def noisy(still, net=net, params=params, inputs=inputs):
            return np.asarray(net.predict(params, inputs, Dropout(jax.random.key(1), still)))

        np.testing.assert_array_equal(noisy(parts), calm)
        for part in {"bert": ("embeddings", "block_0"), "lstm": ("embeddings",)}[model]:
            assert not np.array_equal(noisy(parts - {part}), calm), (model, part)


# ---------------------------------------------------------------------------------------- while pretraining


def test_pretraining_goes_on_with_less_and_less(home, tmp_path, monkeypatch):
    """Everything, then the top block: in the second half the word table rests, and with it the decoder; a
    resume is byte-identical."""
    values = flow.pretraining(
        home, freeze="full; 50%: top-1", init_from=str(home / "pre"), keep=9, **{"model.layers": 2}
    )
    flow.run(values, tmp_path / "whole")
    with monkeypatch.context() as m:
        flow.at_batch(m, 5, flow.sigterm)
        with pytest.raises(SystemExit):
            flow.run(values, tmp_path / "cut")
    flow.run(values, tmp_path / "cut")
    half, end = (flow.state(tmp_path / "whole", k) for k in (4, 8))
    assert flow.state(tmp_path / "cut", 8) == end
    moved = {n.removeprefix("params ") for n in end if n.startswith("params ") and half[n] != end[n]}
    assert "head/decoder/bias" in moved and "backbone/block_1/ffn/up/kernel" in moved
    assert not any(n.startswith(("backbone/embeddings/", "backbone/block_0/")) for n in moved)
    proof = read(tmp_path / "whole", "freeze_ledger.json")
    assert proof["holds"] and {r["verdict"] for r in proof["rows"]} == {"moved"}
    assert {n.removeprefix("opt ") for n in end if "word" in n and n.startswith("opt ")} == set()


def test_mesh_and_thin_agree_on_what_is_kept(home):
    run = built(home, "head", frozen_dtype="int8")
    frozen, kept = state.place(run, {n: np.ones(s.shape, np.float32) for n, s in run.net.shapes().items()})
    assert all(isinstance(x, np.ndarray) for x in frozen.values())
    for x in jax.tree.leaves(kept):
        assert x.sharding.is_equivalent_to(mesh.replicated(run.mesh), x.ndim)
    assert isinstance(kept["backbone/pooler/kernel"], quantize.Int8)
