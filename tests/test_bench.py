"""ptft.bench: which cells, running and resuming them, and reading them. Most of the training is faked."""

import dataclasses
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import flow
import jax
import numpy as np
import pytest

from ptft.bench import (
    baselines,
    features,
    identity,
    probe,
    protocol,
    results,
    runner,
    running,
    schedule,
    section,
)
from ptft.bench import cell as work
from ptft.bench.baselines import Unavailable
from ptft.bench.cell_result import CellResult, Row
from ptft.core import locks, pages, record
from ptft.core.config import Field
from ptft.core.config import resolve as check
from ptft.core.errors import UserError
from ptft.freeze.resolve import BadStart
from ptft.report import figures, files
from ptft.train import build, dataset, pipeline, spec, weights

FINETUNE = {
    "seed": Field(0, lo=0),
    "batch": Field(8),
    "init_from": Field(""),
    "init_weights": Field(True),
    "freeze": Field("full", (str, tuple)),
    "log_every": Field(10),
    "train_for": Field("1 epoch"),
    "objective": {"name": Field("tag")},
    "data": {
        "train": Field(""),
        "dev": Field(""),
        "test": Field(""),
        "train_size": Field(0),
        "dev_size": Field(0),
    },
    "optim": {"lr": Field(1e-3, lo=0), "decay": Field(0.0)},
}
FULL, HEAD = {"name": "full", "freeze": "full", "lr": 1e-4}, {"name": "head", "freeze": "head", "lr": 1e-2}


def resolve(values):
    return check(values, FINETUNE)


def config(page=None, **bench):
    """Two strategies x two seeds, without the rows that a benchmark adds by itself."""
    given = {"strategies": [FULL, HEAD], "seeds": [0, 1], "repeat": False}
    data = {"train": "tfds:x@train", "dev": "tfds:x@dev", "test": "tfds:x@test"}
    return {
        "freeze": "full",
        "data": data,
        "optim": {"lr": 1e-3},
        **(page or {}),
        "bench": {**given, **bench},
    }


def grid(page=None, **bench):
    return protocol.cells(config(page, **bench), resolve)


def result(accuracy=0.8, dev=0.9):
    return CellResult(
        dev={"accuracy": dev},
        test={"accuracy": accuracy, "loss": 0.3},
        best_step=3,
        steps=4,
        seconds=2.0,
        seconds_per_step=0.5,
        trainable=10,
        total=100,
        trainable_share=0.1,
        flops_per_step=1e6,
        config_hash="c",
        versions={"jax": "1"},
        device={"kind": "cpu"},
    )


class Train:
    """A fake of one cell's work that remembers what it was asked for, and may be told to fail at its n-th
    call."""

    def __init__(self, error=None, at=()):
        self.calls, self.error, self.at = [], error, at

    def __call__(self, cell, folder):
        self.calls.append((cell.strategy, cell.lr, cell.seed))
        (folder / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
        if self.error is not None and len(self.calls) in self.at:
            raise self.error
        return result(0.8 + 0.01 * cell.seed)


def bench(workdir, do, values=None, cells=None):
    values = values or config()
    cells = protocol.cells(values, resolve) if cells is None else cells
    workdir.mkdir(exist_ok=True)
    (workdir / "bench.json").write_text(
        json.dumps(runner.describe(values, protocol.cells(values, resolve), "ptft bench"))
    )
    here = running.Bench(workdir, "accuracy", "ptft bench --config page.py")
    return runner.run(cells, workdir, runner.Workers(lambda cell: running.run_in_process(cell, here, do)))


# ---------------------------------------------------------------- protocol


def test_cells_are_the_grid_with_strategies_inside_seeds():
    cells = grid()
    assert [(c.strategy, c.seed) for c in cells] == [("full", 0), ("head", 0), ("full", 1), ("head", 1)]
    assert cells[1].config.optim.lr == 1e-2 and cells[1].config.freeze == "head" and cells[1].config.seed == 0
    assert "bench" not in cells[0].config
    assert len({c.cell for c in cells}) == 4


def test_every_axis_multiplies_the_cells():
    tasks = [{"name": "a", "data.train": "tfds:a"}, {"name": "b", "data": {"train": "tfds:b"}}]
    models = [{"name": "small", "batch": 4}, {"name": "large", "batch": 16}]
    cells = grid(lr_factors=[0.3, 1, 3], sizes=[10, 100], tasks=tasks, models=models)
    assert len(cells) == len({c.cell for c in cells}) == 2 * 3 * 2 * 2 * 2 * 2
    assert {c.config.optim.lr for c in cells if c.strategy == "full"} == {3e-5, 1e-4, 3e-4}
    assert {(c.task, c.config.data.train, c.config.data.dev) for c in cells} == {
        ("a", "tfds:a", "tfds:x@dev"),
        ("b", "tfds:b", "tfds:x@dev"),
    }
    assert {(c.model, c.config.batch) for c in cells} == {("small", 4), ("large", 16)}
    assert {(c.size, c.config.data.train_size) for c in cells} == {(10, 10), (100, 100)}


def test_a_list_of_rates_is_taken_as_it_is():
    cells = grid(
        strategies=[{**FULL, "lr": 1e-4}, {"name": "head", "freeze": "head", "lrs": [1e-2, 2e-2]}],
        lr_factors=[1, 2],
    )
    assert [c.lr for c in cells[:4]] == [1e-4, 2e-4, 1e-2, 2e-2]


def test_unequal_trials_are_refused():
    with pytest.raises(UserError, match=r"unequal numbers of learning-rate trials \(full 1, head 2\)"):
        grid(strategies=[FULL, {"name": "head", "freeze": "head", "lrs": [1e-2, 2e-2]}])


def test_a_choice_of_rates_needs_dev_and_every_task_a_test():
    page = {"data": {"train": "tfds:x", "test": "tfds:y"}}
    assert len(grid(page)) == 4
    with pytest.raises(UserError, match=r"x: which of 3 learning rates counts is decided on dev"):
        grid(page, lr_factors=[0.3, 1, 3])
    with pytest.raises(UserError, match=r"b: a benchmark quotes numbers of a test split"):
        grid(tasks=[{"name": "a"}, {"name": "b", "data.test": ""}])
    with pytest.raises(UserError, match=r"data\.dev and data\.test are both 'tfds:y'"):
        grid({"data": {"train": "tfds:x", "dev": "tfds:y", "test": "tfds:y"}})
    with pytest.raises(UserError, match=r"there is nothing to train on; expected data\.train"):
        grid({"data": {"train": "", "dev": "", "test": ""}})


def test_one_table_of_ones_own_is_told_how_it_gives_the_splits(tmp_path):
    """A dev split never stands in for the test split."""
    table = f"files:{tmp_path}/mine.tsv"

    def said(train, dev=""):
        with pytest.raises(UserError) as e:
            grid({"data": {"train": train, "dev": dev, "test": ""}}, lr_factors=[1, 3])
        return str(e.value)

    alone = said(table)
    assert (
        f"data.train='{table}[:80%]' data.dev='{table}[80%:90%]' data.test='{table}[90%:]'" in alone
        and "lr_factors=[1]" in alone
    )
    assert f"data.train='{table}[:90%]' data.test='{table}[90%:]'" in said(table, "files:dev.tsv")
    for whole in (f"files:{tmp_path}", "tfds:x", f"{table}[:90%]"):
        assert "expected data.test='KIND:WHERE'\n" in said(whole) and "parts of one table" not in said(whole)


@pytest.mark.parametrize("name", ["bench", "strategies", "published", "quickstart"])
def test_strategies_of_ones_own_need_no_other_key(name):
    """The first is the baseline and the one that is repeated, on every page."""
    values = pages.load(f"{Path(__file__).parents[1]}/configs/{name}.py" + ":init=x" * (name != "quickstart"))
    pages.override(
        values,
        [
            "bench.strategies=[{'name': 'all', 'freeze': 'full', 'lr': 3e-4}, "
            "{'name': 'thin', 'freeze': 'head', 'lr': 3e-3}]"
        ],
    )
    resolved = section.of(values)
    assert (
        resolved.baseline == "all"
        and resolved.repeat in ("all", False)
        and [s["name"] for s in section.entered(resolved, values)][:2]
        == [
            "all",
            "thin",
        ]
    )


def test_a_strategy_that_is_entered_twice_runs_twice():
    cells = grid(repeat="head", lr_factors=[1, 2])
    once, again = ([c for c in cells if c.strategy == name] for name in ("head", "head (A/A)"))
    assert len(once) == len(again) == 4 and all(c.repeat for c in again)
    assert [c.config.to_dict() for c in once] == [c.config.to_dict() for c in again]
    assert not {c.cell for c in once} & {c.cell for c in again}
    # the baseline, where nothing is said
    assert {c.strategy for c in grid(repeat="")} == {"full", "head", "full (A/A)"}
    renamed = grid(strategies=[FULL, {**HEAD, "name": "probe"}], repeat="probe", lr_factors=[1, 2])
    assert {c.cell for c in renamed} == {c.cell for c in cells}


def test_random_weights_are_entered_where_there_are_others():
    def names(page=None, **bench):
        return [c.strategy for c in grid(page, seeds=[0], **bench)]

    assert names({"init_from": "run"}) == ["full", "head", "full, random init"]
    last = grid({"init_from": "run"}, strategies=[{**FULL, "optim.decay": 0.5}, HEAD], lr_factors=[1, 3])[-1]
    assert (last.config.init_weights, last.config.freeze, last.config.optim.decay, last.lr) == (
        False,
        "full",
        0.5,
        3e-4,
    )
    assert names() == names({"init_from": "run"}, random_init=False) == ["full", "head"]
    assert names(
        {"init_from": "run"}, strategies=[FULL, {**FULL, "name": "scratch", "init_weights": False}]
    ) == ["full", "scratch"]
    assert names(models=[{"name": "m", "init_from": "run"}])[-1] == "full, random init"


def test_what_is_wrong_with_a_strategy_is_not_said_of_its_copies():
    with pytest.raises(UserError) as e:
        grid({"init_from": "run"}, strategies=[{**FULL, "optim.dekay": 0.5}, HEAD], repeat="full")
    assert str(e.value).count("unknown key optim.dekay") == 1 and "a problem" in str(e.value)


def test_references_run_once_for_what_they_see():
    def of(**bench):
        models = [{"name": "m", "batch": 4}, {"name": "n", "batch": 2}]
        cells = grid({"objective": {"name": "classify"}}, models=models, lr_factors=[1, 2], **bench)
        return [c for c in cells if c.kind != "train"]

    assert [(c.strategy, c.size, c.seed, c.model, c.lr) for c in of(sizes=[5])] == [
        ("majority class", 5, 0, "", None),
        ("TF-IDF + logistic regression", 5, 0, "", None),
        ("majority class", 5, 1, "", None),
        ("TF-IDF + logistic regression", 5, 1, "", None),
    ]
    # all examples: the seed chooses nothing
    assert [(c.kind, c.seed) for c in of(sizes=[0])] == [("majority", 0), ("tfidf", 0)]


def test_frozen_features_are_a_reference_of_each_pretrained_encoder():
    def of(init, **bench):
        page = {"objective": {"name": "classify"}, "init_from": init}
        return [(c.model, c.seed, c.cell) for c in grid(page, **bench) if c.kind == "features"]

    assert (
        of("") == []
        and [(m, s) for m, s, _ in of("x", sizes=[5])] == [("", 0), ("", 1)]
        and len(of("x", sizes=[0])) == 1
    )
    models = [{"name": "m", "init_from": "x"}, {"name": "n", "init_from": "y"}, {"name": "random"}]
    two = of("", models=models, sizes=[5], seeds=[3])
    assert [m for m, _, _ in two] == ["m", "n"] and len({cell for *_, cell in two}) == 2
    first = [{**FULL, "init_weights": False}, HEAD]  # random weights are no encoder to read features of
    assert of("x", sizes=[5], strategies=first) == of("x", sizes=[5])


def test_a_budget_buys_steps_at_each_strategys_price():
    def spend(config):
        return 10 * config.data.train_size, {"full": 3.0, "head": 1.0}[config.freeze]

    values = config(sizes=[4, 8], budget="flops", seeds=[0])
    cells = protocol.cells(values, resolve, spend=spend)
    assert [(c.strategy, c.size, c.config.train_for, c.share) for c in cells] == [
        ("full", 4, "1 epoch", 1.0),
        ("head", 4, "120 steps", 3.0),
        ("full", 8, "1 epoch", 1.0),
        ("head", 8, "240 steps", 3.0),
    ]
    steps = {c.cell for c in grid(sizes=[4, 8], seeds=[0])}
    # the baseline's are the same in every budget
    assert [c.cell in steps for c in cells] == [True, False, True, False]


PHASED = {"name": "phased", "freeze": "head; 30 steps: full", "lr": 1e-3}


def phased(early, late, least=31, most=math.inf, full=2.0):
    """Prices of a strategy whose step costs another from step 30 on, and which has room for its phases in
    some lengths only."""

    def spend(config):
        steps = 100 if config.train_for == "1 epoch" else int(config.train_for.split()[0])
        if config.freeze == "full":
            return steps, full
        if not least <= steps <= most:
            raise BadStart("the last phase would begin after the end")
        return steps, (30 * early + (steps - 30) * late) / steps

    return spend


@pytest.mark.parametrize(
    ("spend", "buys"),
    [
        (phased(1.0, 3.0), 86),  # 30 + 3 * 56 = 198, a step more 201
        (phased(3.0, 1.0), 140),
        # at the page's mean price it would be 16, in which there is no room
        (phased(3.0, 9.0, full=1.2), 33),
        (phased(3.0, 1.0, most=120), 120),  # nor beyond
    ],
    ids=["dearer", "cheaper", "just enough", "no room for more"],
)
def test_a_budget_counts_what_steps_cost_at_the_length_that_it_buys(spend, buys):
    cells = protocol.cells(config(strategies=[FULL, PHASED], seeds=[0], budget="flops"), resolve, spend=spend)
    assert cells[1].config.train_for == f"{buys} steps" and cells[1].share == buys / 100
    steps, price = spend(cells[1].config)
    assert steps * price <= 100 * spend(cells[0].config)[1]


def test_a_budget_is_spent_though_a_length_may_cost_less_than_the_one_before():
    def spend(config):
        """Odd lengths cost three steps more, as where phases begin at whole steps: a search by halves ends at
        40."""
        n = 21 if config.train_for == "1 epoch" else int(config.train_for.split()[0])
        return n, 2.0 if config.freeze == "full" else (n + 3 * (n % 2)) / n

    cells = protocol.cells(config(strategies=[FULL, PHASED], seeds=[0], budget="flops"), resolve, spend=spend)
    assert cells[1].config.train_for == "42 steps"


def test_random_weights_are_a_row_wherever_the_pretrained_ones_are_named():
    for where in ("tasks", "models"):
        names = {c.strategy for c in grid(**{where: [{"name": "a", "init_from": "x"}]})}
        assert names == {"full", "head", section.RANDOM}, where
    assert section.RANDOM in {c.strategy for c in grid(strategies=[{**FULL, "init_from": "x"}, HEAD])}


def test_a_strategy_that_cannot_be_read_is_the_only_problem():
    with pytest.raises(UserError) as e:
        grid(strategies=[FULL, {"name": "a", "freze": "head"}], random_init=False)
    assert "freze" in str(e.value) and "test split" not in str(e.value)
    with pytest.raises(UserError) as e:
        grid(strategies=[{"name": "a", "freze": "head"}], random_init=False, repeat=False)
    assert "has a problem:" in str(e.value) and "cannot be quoted" not in str(e.value)


def test_a_budget_that_buys_too_little_is_an_error_and_ends():
    values = config(strategies=[FULL, PHASED], seeds=[0], budget="flops")
    with pytest.raises(
        UserError,
        match=(
            r"'phased': what the baseline spends in its 100 steps buys \d+ of .*, too few for all of its "
            r"phases"
        ),
    ):
        protocol.cells(values, resolve, spend=phased(3.0, 9.0, full=0.5))

    def fails(config):
        if config.train_for == "1 epoch":
            return 100, 1.0 if config.freeze == "full" else 0.5
        raise UserError("could not be measured")

    with pytest.raises(UserError, match="could not be measured"):
        protocol.cells(values, resolve, spend=fails)


def test_a_budget_asks_for_the_price_of_every_seed():
    """What auto(…) and LISA move is drawn by the seed."""
    prices = {0: 1.0, 1: 0.5}
    spend = lambda config: (10, 1.0 if config.freeze == "full" else prices[config.seed])  # noqa: E731
    cells = protocol.cells(config(budget="flops"), resolve, spend=spend)
    assert [(c.strategy, c.seed, c.share) for c in cells] == [
        ("full", 0, 1.0),
        ("head", 0, 1.0),
        ("full", 1, 1.0),
        ("head", 1, 2.0),
    ]


def test_a_cell_is_named_by_what_decides_its_result():
    def ids(**changes):
        return [c.cell for c in grid(changes)]

    assert ids() == ids() == ids(log_every=99)
    assert not set(ids()) & set(ids(train_for="2 epochs"))
    assert len(set(ids()) & {c.cell for c in grid(seeds=[1, 2])}) == 2  # the cells of seed 1 are shared


def test_a_cell_follows_the_content_of_files_and_not_their_path():
    def ids(path, content):
        values = config({"data": {"train": f"files:{path}", "dev": "d", "test": "t"}})
        return [c.cell for c in protocol.cells(values, resolve, lambda config: {"data.train": content})]

    assert ids("a", "1") == ids("b", "1") != ids("b", "2")


def test_what_a_report_has_the_bytes_of_decides_the_cell_too(home):
    one = grid_of(home)
    assert grid_of(home, checkpoint="delta").cell != one.cell == grid_of(home, keep=7).cell


@pytest.mark.parametrize(
    "key", ["train_for", "batch", "data.dev_size", "data", "eval_every", "best", "early_stop"]
)
def test_what_must_be_the_same_for_all_strategies_is_not_one_s_own(key):
    """More steps, or another dev split to choose by, would make a strategy look better."""
    with pytest.raises(
        UserError,
        match=rf"bench\.strategies 'head': '{key}.*' is the benchmark's own, not one of its strategies'",
    ):
        grid(strategies=[FULL, {**HEAD, key: {"dev_size": 5} if key == "data" else 5}])


def test_strategies_may_override_any_key_and_leave_the_config_alone():
    values = config(
        strategies=[
            {
                "name": "rules",
                "freeze": [["head/.*", "train"], [".*", "freeze"]],
                "optim.decay": 0.1,
                "init_from": "x",
            }
        ]
    )
    before = json.dumps(values)
    cell = protocol.cells(values, resolve)[0]
    assert (
        cell.config.optim.decay == 0.1
        and cell.config.init_from == "x"
        and cell.config.freeze[0] == ("head/.*", "train")
    )
    assert json.dumps(values) == before


def test_all_problems_at_once():
    strategies = [
        {"name": "a", "optim.lrr": 1},
        {"name": "a"},
        {"freeze": "head"},
        "full",
        {"name": "b", "seed": 3},
        {"name": "c", "optim.lr.x": 3},
        {"name": "d", "lr": 1, "lrs": [1]},
        {"name": "e", "lr": -1},
        {"name": "f", "data": {"train_size": 4}},
        {"name": "g", "data.dev": "tfds:y"},
        {"name": "majority class"},
        {"name": "h", "repeat": True},
    ]
    rated = [{"name": "m", "lr": 0.5}, {"name": "n", "lrs": [1]}]
    with pytest.raises(UserError) as e:
        grid(
            strategies=strategies,
            seeds=[0, 0, -1],
            sizes=[3, 3],
            baseline="aa",
            tasks=[{"name": "t"}, {"name": "t"}, 3],
            models=rated,
        )
    for part in (
        "unknown key optim.lrr",
        "did you mean",
        "'a' is there twice",
        "needs a name",
        "got 'full'",
        "'seed' is the benchmark's own, not",
        "'data.train_size' is the benchmark's own, not",
        "'data.dev' is the benchmark's own, not",
        "bench.seeds: 0 is there twice",
        "bench.sizes: 3 is there twice",
        "got -1",
        "no strategy 'aa'",
        "'optim.lr' is a value",
        "'d': has more than one of lr, lrs",
        "'e': expected lr=NUMBER or lrs",
        "'majority class' is a name of the benchmark's own",
        "bench.tasks: 't' is there twice",
        "bench.tasks[2]: expected",
        "bench.strategies 'h': 'repeat' is the benchmark's own",
        "bench.models 'm': 'lr' is the benchmark's own",
        "bench.models 'n': 'lrs' is the benchmark's own",
    ):
        assert part in str(e.value), part


@pytest.mark.parametrize(
    ("bench", "says"),
    [
        ({"strategies": []}, "bench.strategies: is empty"),
        ({"seeds": []}, "bench.seeds: is empty"),
        ({"strategy": []}, "unknown key bench.strategy; did you mean 'strategies'"),
        ({"seeds": 5}, "bench.seeds: expected a list"),
        ({"budget": "flop"}, "did you mean 'flops'"),
        ({"repeat": "hed"}, "bench.repeat: no strategy 'hed'; did you mean 'head'"),
        (
            {"strategies": [{"name": "a", "lr": 1e-4}, {"name": "b", "lr": 1e-4}]},
            "'a, lr 0.0001, seed 0' and 'b, lr 0.0001, seed 0' are the same training",
        ),
    ],
)
def test_bad_bench_sections(bench, says):
    with pytest.raises(UserError, match=says):
        grid(**bench)


def test_a_broken_finetune_config_is_said_once():
    with pytest.raises(UserError) as e:
        grid({"sed": 1})
    assert str(e.value).count("unknown key sed") == 1


# ---------------------------------------------------------------- runner


def test_one_file_a_cell_and_its_run_goes(tmp_path, capsys):
    rows = bench(tmp_path, Train())
    assert len(rows) == 4 and sorted(results.read(tmp_path), key=lambda r: r["cell"]) == sorted(
        rows, key=lambda r: r["cell"]
    )
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == sorted(f"{r['cell']}.json" for r in rows)
    one = rows[1]
    assert (one["lr"], one["task"], one["status"], one["size"], one["config"]["freeze"]) == (
        1e-2,
        "tfds:x@train",
        "ok",
        0,
        "head",
    )
    assert one["command"] == f"ptft bench --config page.py --only {one['cell']} --workdir runs/{one['cell']}"
    assert one["wall_seconds"] >= 0 and one["isolated"] is False and one["peak_rss"] is None
    assert set(result().to_row()) <= one.keys()
    said = capsys.readouterr().out
    assert "cell 2/4 head, lr 0.01, seed 0: test accuracy 0.800" in said and "left" in said
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert (
        stored["baseline"] == "full"
        and stored["cells"][one["cell"]]["strategy"] == "head"
        and stored["order"] == ["full", "head"]
    )


def test_finished_cells_are_not_run_again(tmp_path):
    bench(tmp_path, Train())
    again = Train()
    rows = bench(tmp_path, again, config(seeds=[0, 1, 2]))
    assert [seed for _, _, seed in again.calls] == [2, 2] and len(rows) == 6


def test_a_renamed_strategy_keeps_its_runs(tmp_path):
    bench(tmp_path, Train())
    again = Train()
    rows = bench(tmp_path, again, config(strategies=[{**FULL, "name": "all"}, HEAD]))
    assert again.calls == [] and rows[0]["strategy"] == "all"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(75)])
def test_a_stop_passes_through_and_the_same_call_goes_on(tmp_path, stop):
    with pytest.raises(type(stop)):
        bench(tmp_path, Train(stop, at=[3]))
    assert len(results.read(tmp_path)) == 2
    cut = grid()[2].cell
    # the cell that was cut short goes on from here
    assert (tmp_path / "cells" / cut / "checkpoints").exists()
    again = Train()
    assert len(bench(tmp_path, again)) == 4
    assert len(again.calls) == 2 and not (tmp_path / "cells" / cut).exists()


def test_a_stop_between_trainings_keeps_what_is_done(tmp_path, capsys):
    calls = []

    def do(cell, folder):
        calls.append(cell.cell)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return Train()(cell, folder)

    with pytest.raises(SystemExit) as e:
        bench(tmp_path, do)
    assert e.value.code == 75 and len(results.read(tmp_path)) == len(calls) == 2
    assert "cell 3/4" in (said := capsys.readouterr().out) and "the same command goes on from here" in said
    again = Train()
    assert len(bench(tmp_path, again)) == 4 and len(again.calls) == 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_cell_that_was_cut_short_under_another_path_begins_anew(tmp_path):
    cell = grid()[0]
    folder = tmp_path / "cells" / cell.cell
    folder.mkdir(parents=True)
    seen = []

    def do(cell, folder):
        seen.append((folder / "mark").exists())
        return result()

    for other in (cell.config, cell.config.replace(init_from="elsewhere")):
        folder.mkdir(exist_ok=True)
        (folder / "mark").touch()
        (folder / "config.json").write_text(json.dumps(other.to_dict()))
        running.run_in_process(cell, running.Bench(tmp_path, "accuracy", ""), do)
    assert seen == [True, False]


def test_a_broken_file_is_named(tmp_path):
    rows = bench(tmp_path, Train())
    file = tmp_path / "cells" / f"{rows[0]['cell']}.json"
    file.write_text("{")
    with pytest.raises(UserError, match=rf"{file.name} is damaged \(not JSON: .* remove the file"):
        bench(tmp_path, Train())
    file.write_text("{}")
    with pytest.raises(UserError, match=r"is damaged \(cell is missing\)"):
        bench(tmp_path, Train())


def test_the_row_of_another_cell_is_no_result_of_this_one(tmp_path):
    rows = bench(tmp_path, Train())
    a, b = (tmp_path / "cells" / f"{row['cell']}.json" for row in rows[:2])
    a.write_bytes(b.read_bytes())
    for do in (
        lambda: bench(tmp_path, Train()),
        lambda: results.finished(tmp_path, a.stem),
        lambda: files.write(tmp_path),
    ):
        with pytest.raises(UserError, match=rf"{a.name} holds the row of another cell, {b.stem} \(head, "):
            do()
    a.unlink()
    again = Train()
    assert bench(tmp_path, again)[0]["cell"] == a.stem and len(again.calls) == 1


def test_a_changed_number_is_seen(tmp_path):
    rows = bench(tmp_path, Train())
    file = tmp_path / "cells" / f"{rows[0]['cell']}.json"
    file.write_text(file.read_text().replace('"accuracy": 0.8,', '"accuracy": 0.9,'))
    for do in (lambda: bench(tmp_path, Train()), lambda: results.merge([tmp_path])):
        with pytest.raises(UserError, match=rf"{file.name} is damaged \(its digest is not that of what it"):
            do()
    older = {k: v for k, v in json.loads(file.read_text()).items() if k != "digest"}
    file.write_text(json.dumps(older))  # as before there were digests
    assert results.merge([tmp_path]).rows[0]["test"]["accuracy"] == 0.9


@pytest.mark.promise("R7")
@pytest.mark.parametrize("sealed", [True, False])
def test_a_flipped_bit_in_a_json_file_of_a_benchmark_is_seen(tmp_path, capsys, monkeypatch, sealed):
    """Without a digest, as older files are, a number or a name may be another; but nothing crashes."""
    monkeypatch.setattr(figures, "png", lambda panels: b"")
    monkeypatch.setattr(figures, "svg", lambda panel: "")
    bench(tmp_path, Train(), config(seeds=[0]))
    results.write_json(tmp_path / "bench.json", json.loads((tmp_path / "bench.json").read_text()))
    names = ["bench.json", *(f"cells/{p.name}" for p in sorted((tmp_path / "cells").glob("*.json")))]
    if not sealed:
        for name in names:
            values = json.loads((tmp_path / name).read_text())
            del values["digest"]
            (tmp_path / name).write_text(json.dumps(values, indent=1))

    def report():
        code = flow.ptft("report", tmp_path, "--to", tmp_path / "out")
        return code, capsys.readouterr(), flow.listing(tmp_path / "out") if code == 0 else {}

    code, clean, page = report()
    assert code == 0
    for name in names:
        for same_types in flow.flipped(tmp_path / name, 60):
            code, said, made = report()
            if code == 0:
                assert (said, made) == (clean, page) or (same_types and not sealed)
            else:
                assert code == 2 and (f"{tmp_path}/{name} is" in said.err or (not sealed and same_types))


def test_a_failed_cell_is_recorded_shown_and_tried_again(tmp_path, capsys):
    rows = bench(tmp_path, Train(RuntimeError("out of\nmemory"), at=[2]))
    assert [r["status"] for r in rows] == ["ok", "failed", "ok", "ok"]
    assert (
        rows[1]["error"] == "RuntimeError: out of memory"
        and rows[1]["seed"] == 0
        and "Traceback" in rows[1]["traceback"]
    )
    assert "FAILED: RuntimeError: out of memory" in capsys.readouterr().out
    assert (tmp_path / "cells" / rows[1]["cell"] / "checkpoints").exists()  # to go on from
    again = Train()
    assert [r["status"] for r in bench(tmp_path, again)] == ["ok"] * 4
    assert len(again.calls) == 1 and not (tmp_path / "cells" / rows[1]["cell"]).exists()


def test_a_row_holds_its_result(tmp_path):
    assert {f.name for f in dataclasses.fields(CellResult)} <= Row.__annotations__.keys()
    (row, *_) = bench(tmp_path, Train())
    assert row.keys() <= Row.__annotations__.keys() and CellResult.of(row) == result(0.8)
    nothing = {k: row[k] for k in ("chosen_by", "seconds_low", "seconds_high", "forgetting")}
    # said of every run, or only where it is
    assert set(nothing.values()) == {None} and not {"chosen", "members", "notes"} & row.keys()


def test_what_cannot_be_had_is_no_failure(tmp_path, capsys):
    rows = bench(tmp_path, Train(Unavailable("no scikit-learn"), at=[2]))
    assert [r["status"] for r in rows] == [
        "ok",
        "skipped",
        "ok",
        "ok",
    ] and "skipped: no scikit-learn" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_diverged_run_is_a_failed_cell(tmp_path, value):
    rows = bench(tmp_path, lambda cell, folder: result(value if cell.strategy == "head" else 0.8))
    assert [r["status"] for r in rows] == ["ok", "failed", "ok", "failed"] and "diverged" in rows[1]["error"]


def test_shards_part_the_cells_and_share_a_folder(tmp_path):
    cells, calls = grid(seeds=list(range(7))), []
    parts = [runner.pick(cells, (i, 3)) for i in (1, 2, 3)]
    assert sorted(c.cell for part in parts for c in part) == sorted(c.cell for c in cells)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and all(
        {c.strategy for c in part} == {"full", "head"} for part in parts
    )
    for part in parts:
        train = Train()
        assert (
            len(bench(tmp_path, train, config(seeds=list(range(7))), part)) == len(part) == len(train.calls)
        )
        calls += train.calls
    assert len(set(calls)) == 14 == len(results.merge([tmp_path]).rows)


def test_shards_of_machines_that_measure_other_seconds_are_one_benchmark(tmp_path):
    """The steps that a budget of seconds buys, and with them the hashes, are each machine's own."""
    folders, values = [], config(seeds=list(range(5)), budget="seconds")
    for i, price in ((1, 0.50), (2, 0.49)):
        cells = protocol.cells(
            values, resolve, spend=lambda c, price=price: (10, 1.0 if c.freeze == "full" else price)
        )
        folders.append(tmp_path / str(i))
        folders[-1].mkdir()
        (folders[-1] / "bench.json").write_text(json.dumps(runner.describe(values, cells, "ptft bench")))
        for cell in runner.pick(cells, (i, 2)):
            running.run_in_process(cell, running.Bench(folders[-1], "accuracy", "", "seconds"), Train())
    found = results.merge(folders)
    assert sorted((r["strategy"], r["seed"]) for r in found.rows) == [
        (name, seed) for name in ("full", "head") for seed in range(5)
    ]
    assert {r["train_for"] for r in found.rows if r["strategy"] == "head"} == {"20 steps"} and not found.notes
    one = results.merge(folders[:1])
    assert one.notes == ["5 of 10 cells have not run yet."]


def test_folders_merge_the_same_in_any_order(tmp_path):
    """Each folder's config lists some cells, and may hold the row of another one's."""
    for name, seeds in (("a", [0, 1]), ("b", [2])):
        bench(tmp_path / name, Train(), config(seeds=seeds))
    lent = next((tmp_path / "b" / "cells").glob("*.json"))
    lent.rename(tmp_path / "a" / "cells" / lent.name)
    a, b = (results.merge([tmp_path / x for x in order]) for order in ("ab", "ba"))
    assert (
        len(a.rows) == 6
        and {r["cell"] for r in a.rows} == {r["cell"] for r in b.rows}
        and a.notes == b.notes == []
    )


def test_each_folder_has_its_own_metric_and_what_does_not_go_together_is_refused(tmp_path):
    def run(name, **changes):
        values = config(**changes)
        cells = protocol.cells(values, resolve, spend=lambda c: (10, 1.0))
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text(json.dumps(runner.describe(values, cells, "ptft bench")))
        for cell in cells:
            here = running.Bench(tmp_path / name, "loss", "", values["bench"].get("budget", "steps"))
            running.run_in_process(cell, here, lambda cell, folder: result())
        return tmp_path / name

    a, b = run("a", task="x", metric="loss", baseline="head", seeds=[7]), run("b", task="y")
    for order in ((a, b), (b, a)):
        assert {(r["task"], r["metric"], r["baseline"]) for r in results.merge(order).rows} == {
            ("x", "loss", "head"),
            ("y", "accuracy", "full"),
        }
    with pytest.raises(
        UserError, match=r"y is judged by accuracy in .*b and loss in .*c\. Report them apart"
    ):
        results.merge([b, run("c", task="y", metric="loss", seeds=[5])])
    with pytest.raises(
        UserError, match=r"y is trained within a budget of steps in .*b and flops in .*d\. Report them apart"
    ):
        results.merge([b, run("d", task="y", budget="flops", seeds=[5])])


def test_one_cell_alone_and_one_that_is_none():
    cells = grid()
    assert runner.pick(cells, only=cells[2].cell) == [cells[2]]
    with pytest.raises(
        UserError, match=r"no such cell; config, data or starting weights are not what they were"
    ):
        runner.pick(cells, only="0123456789ab")


OTHER = """
import sys, time
from pathlib import Path
from ptft.bench import results
from ptft.core import locks
workdir, cell, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with locks.of(workdir) as held:
    assert held.take(cell)
    print("taken", flush=True)
    sys.stdin.readline()
    if how == "finishes":
        row = {"cell": cell, "strategy": "s", "seed": 0, "status": "ok", "metric": "accuracy"}
        results.write(workdir, {**row, "test": {"accuracy": 0.5}})
"""


@pytest.mark.parametrize("how", ["finishes", "dies"])
def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path, how, capsys):
    cells, do = grid(), Train()
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, tmp_path, cells[0].cell, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "taken\n"

        def last(cell, folder):
            if len(do.calls) == 2:  # all but the other's are done, and there is only to wait
                threading.Timer(1.0, lambda: print("go on", file=other.stdin, flush=True)).start()
            return do(cell, folder)

        rows = bench(tmp_path, last, cells=cells)
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert len(do.calls) == {"finishes": 3, "dies": 4}[how]
    assert "another process runs cells of" in capsys.readouterr().out


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    with (
        pytest.raises(UserError, match=r"keeps no locks \(No locks available\); expected"),
        locks.of(tmp_path) as held,
    ):
        held.take("0123456789ab")


CHILD = """
import json, os, pathlib, signal, sys, time
cell, folder = sys.argv[sys.argv.index("--only") + 1], pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
how = sys.argv[1]
if how == "killed": os.kill(os.getpid(), signal.SIGKILL)
if how == "crash": sys.exit("no space")
if how == "slow":
    signal.signal(signal.SIGTERM, lambda *_: (folder / "saved").touch() or sys.exit(75))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(30)
row = {"cell": cell, "strategy": "s", "seed": 0, "status": "ok", "metric": "accuracy", "peak_rss": 7}
row["test"] = {"accuracy": 0.5}
(folder / "cells" / f"{cell}.json").write_text(json.dumps(row))
"""


def test_an_isolated_cell_is_what_its_process_wrote(tmp_path):
    def isolated(how):
        return running.run_in_subprocess(
            grid()[0], running.Bench(tmp_path, "accuracy", "ptft bench"), [sys.executable, "-c", CHILD, how]
        )

    killed = isolated("killed")
    assert (killed["status"], killed["error"]) == ("failed", "its process was ended by signal 9")
    crashed = isolated("crash")
    assert crashed["error"] == "its process ended with code 1: no space" and crashed["test"] is None
    assert results.read(tmp_path)[0]["error"] == crashed["error"]
    assert isolated("well")["peak_rss"] == 7
    assert isolated("killed")["status"] == "ok"  # what is finished is not lost, whoever finished it
    with pytest.raises(SystemExit) as e:  # a stop reaches the cell, which saves
        isolated("slow")
    assert e.value.code == 75 and (tmp_path / "saved").exists()


def test_references_do_not_tell_how_long_training_takes():
    train, *_ = grid()
    done: list[dict[str, Any]] = [{**train.labels, "kind": "tfidf", "status": "ok", "wall_seconds": 0.1}]
    assert schedule.predict([train], done) is None


def test_the_time_left_is_that_of_the_like():
    cells = grid(sizes=[10, 1000], seeds=[0, 1])
    rows: list[dict[str, Any]] = [
        {**c.labels, "status": "ok", "wall_seconds": 1.0 if c.size == 10 else 60.0}
        for c in cells
        if c.seed == 0
    ]
    todo = [c for c in cells if c.seed == 1]
    assert schedule.predict(todo, rows) == 1 + 1 + 60 + 60 and schedule.predict(todo, []) is None
    unknown = grid(strategies=[FULL, {**HEAD, "freeze": "top-1", "name": "top-1"}], sizes=[1000], seeds=[5])
    assert schedule.predict(unknown, rows) == 120  # a new strategy takes what others take at its size
    expected = {c.cell: 7.0 for c in unknown}
    assert (
        schedule.predict(unknown, rows, expected) == 60 + 7
        and schedule.predict(todo, rows, {c.cell: 7.0 for c in todo}) == 1 + 1 + 60 + 60
    )


def test_the_schedule_says_what_runs_together_and_how_long():
    cells = grid(sizes=[10, 1000], seeds=[0, 1])
    said = schedule.schedule([[c] for c in cells], cells, [])
    assert (
        "8 cells, 0 finished, 8 to run" in said
        and "head: 2 cells, lr 0.01, 1 epoch\n" in said
        and "1000 examples" in said
    )
    assert schedule.schedule([[c] for c in cells], cells, [], {}).endswith(
        "8 to run; for how long shows once a cell has run"
    )
    together = runner.groups(cells[2:], lambda c: f"{c.strategy} {c.size}")
    said = schedule.schedule(
        together,
        cells,
        [{**cells[0].labels, "status": "ok", "cell": cells[0].cell}],
        {c.cell: 30.0 for c in cells},
    )
    assert "head: 2 cells, lr 0.01, 1 epoch, one program, about 1 min" in said, said
    assert said.endswith("8 cells, 2 finished, 6 to run, about 3 min")


# ---------------------------------------------------------------- results


def test_the_rate_is_chosen_on_dev_and_test_is_quoted(tmp_path):
    def do(cell, folder):
        by_rate = {1e-4: (0.70, 0.99), 3e-4: (0.80, 0.60), 9e-4: (math.nan, math.nan)}  # dev, test
        dev, test = by_rate[cell.lr] if cell.strategy == "full" else (0.5, 0.5)
        return result(test, dev)

    rows = bench(tmp_path, do, config(lr_factors=[1, 3, 9]))
    assert sum(r["status"] == "failed" for r in rows) == 2
    full = results.quoted(rows, "accuracy")["full"]
    assert full.lr == 3e-4 and [results.score(r, "test", "accuracy") for r in full.rows] == [0.6, 0.6]
    assert full.tried[1e-4] == {0: 0.7, 1: 0.7} and math.isnan(full.tried[9e-4][0])


def test_a_metric_falls_where_its_objective_says_so():
    rows = [
        {"strategy": "s", "status": "ok", "seed": 0, "lr": lr, "dev": {"error": x}, "test": {"error": x}}
        for lr, x in ((0.1, 2.0), (0.2, 1.0))
    ]
    assert results.quoted(rows, "error")["s"].lr == 0.1  # an older row does not say: no loss, so it rises
    said = [{**row, "lower_is_better": ["error"]} for row in rows]
    assert results.quoted(said, "error")["s"].lr == 0.2 and not results.higher_is_better("error", said)
    assert results.higher_is_better("loss", said) and not results.higher_is_better("loss", rows)


def test_without_dev_there_is_nothing_to_choose():
    row = {"strategy": "full", "status": "ok", "seed": 0, "test": {"accuracy": 0.5}}
    assert results.quoted([{**row, "lr": 0.1}], "accuracy")["full"].lr == 0.1
    with pytest.raises(UserError, match=r"full: the learning rates 0\.1, 0\.2, and no dev accuracy"):
        results.quoted([{**row, "lr": 0.1}, {**row, "lr": 0.2}], "accuracy")


def test_two_folders_are_one_benchmark(tmp_path):
    bench(tmp_path / "a", Train(RuntimeError("x"), at=[1]), config(seeds=[0, 1]))
    bench(
        tmp_path / "b",
        Train(),
        config(seeds=[0, 2], strategies=[FULL, HEAD, {**FULL, "freeze": "top-1", "name": "top-1"}]),
    )
    merged = results.merge([tmp_path / "a", tmp_path / "b"])
    assert {r["status"] for r in merged.rows} == {"ok"} and len(merged.rows) == 2 * 2 + 3 + 2 - 2 + 1
    assert merged.order == ["full", "head", "top-1"] and merged.notes == []
    for batch in (8, 16):
        twin = {**merged.rows[0], "cell": f"{batch}", "config": {"batch": batch}}
        results.write(tmp_path / f"other{batch}", twin)
    with pytest.raises(
        UserError, match=r"is another cell in .*other8 and in .*other16: batch: 8 -> 16\. Report them apart"
    ):
        results.merge([tmp_path / "other8", tmp_path / "other16"])


def test_a_contradiction_between_folders_is_said(tmp_path):
    bench(tmp_path / "a", Train())
    bench(
        tmp_path / "b",
        lambda cell, folder: result(
            0.8 + 0.01 * cell.seed + 0.05 * (cell.strategy == "head" and cell.seed == 1)
        ),
    )
    merged = results.merge([tmp_path / "a", tmp_path / "b"])
    assert (
        len(merged.notes) == 1
        and "One cell has two results, of which the first is shown: head, lr 0.01, seed 1: test accuracy"
        in merged.notes[0]
    )
    assert (
        results.score(
            next(r for r in merged.rows if r["strategy"] == "head" and r["seed"] == 1), "test", "accuracy"
        )
        == 0.81
    )


def test_missing_and_older_cells_are_counted(tmp_path):
    bench(tmp_path, Train(), config(seeds=[7]))
    bench(tmp_path, Train(), cells=grid()[:1])
    assert results.merge([tmp_path]).notes == [
        "3 of 4 cells have not run yet.",
        "2 runs of an earlier config of this benchmark are left out.",
    ]


# ---------------------------------------------------------------- with real models


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data and a pretrained run."""
    folder = tmp_path_factory.mktemp("bench")
    flow.pretrained(folder)
    return folder


def page(home, **bench):
    values = flow.finetuning(
        home,
        home / "pre",
        train_for="4 steps",
        save_every="0",
        eval_every="0",
        best="last",
        **{"data.dev_size": 8},
    )
    strategies = [
        {"name": "full", "freeze": "full", "lr": 1e-3},
        {"name": "head", "freeze": "head", "lr": 1e-2},
    ]
    grid = {
        "strategies": strategies,
        "seeds": [0, 1],
        "sizes": [8, 16],
        "lr_factors": [1, 3],
        "repeat": "head",
        "task": "words",
    }
    return {**values, "bench": {**grid, **bench}}


def test_a_benchmark_from_its_page_to_its_report(home, tmp_path, monkeypatch):
    """2 strategies and an A/A check x 2 rates, and 2 references, x 2 seeds x 2 sizes; stopped in its first
    cell."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    config = flow.page(tmp_path / "page.py", page(home, random_init=False))
    start = ("bench", "--config", config, "--workdir", "it", "--config.optim.eps=1e-7")
    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        once = iter([flow.sigterm])  # cells that train together have a batch each
        flow.at_batch(m, 3, lambda: next(once, lambda: None)())
        flow.ptft(*start)
    assert e.value.code == 75 and {r["kind"] for r in results.read(Path("it"))} == {
        "majority",
        "tfidf",
        "features",
    }
    assert flow.ptft(*start) == 0
    rows = results.merge([Path("it")]).rows
    assert [r["status"] for r in rows] == ["ok"] * (3 * 2 * 2 * 2 + 3 * 2 * 2), [
        r["error"] for r in rows if r["error"]
    ]
    assert all(
        r["seconds_low"] <= r["seconds_per_step"] <= r["seconds_high"] for r in rows if r["kind"] == "train"
    )
    assert not [p for p in Path("it/cells").iterdir() if p.is_dir()]

    one = rows[0]
    assert (
        one["bytes"]["optimizer"] > 0
        and one["config"]["optim"]["eps"] == 1e-7
        and one["data"]["train_rows"] == 8
    )
    assert any(name.startswith("backbone/") for name in one["drift"])
    assert {name.split("/")[0] for r in rows if r["strategy"] == "head" for name in r["drift"]} == {"head"}
    twins = [
        [(r["dev"], r["test"]) for r in rows if r["strategy"] == name] for name in ("head", "head (A/A)")
    ]
    assert twins[0] == twins[1] and len(twins[0]) == 8

    # The command of a row gives its numbers, in another process and though it trained together with others
    # here.
    again = [*shlex.split(one["command"])[1:], "--isolated"]
    assert flow.ptft(*again) == 0
    alone = results.read(Path("runs") / one["cell"])
    assert (
        one["members"] == 1
        and "members" not in alone[0]
        and alone[0]["isolated"]
        and alone[0]["peak_rss"] > 2**27
    )
    assert (alone[0]["dev"], alone[0]["test"]) == (
        pytest.approx(one["dev"], rel=1e-3),
        pytest.approx(one["test"], rel=1e-3),
    )
    reference = next(r for r in rows if r["kind"] == "tfidf")
    assert flow.ptft(*shlex.split(reference["command"])[1:]) == 0
    assert results.read(Path("runs") / reference["cell"])[0]["test"] == reference["test"]

    merged = results.merge([Path("it"), Path("runs") / one["cell"]])
    assert merged.notes == [] and len(merged.rows) == 36
    text = files.write(Path("it"))["md"].read_text()
    assert (
        "## words, 8 examples" in text
        and "## words, 16 examples" in text
        and text.count("| majority class |") == 2
    )
    assert text.count("| frozen features + logistic regression |") == 4  # in both tables of each part


def test_a_schedule_runs_nothing(home, tmp_path, capsys):
    config = flow.page(tmp_path / "page.py", page(home))
    assert (
        flow.ptft("bench", "--config", config, "--workdir", tmp_path / "it", "--check", "--shard", "2/4") == 0
    )
    said = capsys.readouterr().out
    assert "11 cells, 0 finished, 11 to run; how long is measured when the run starts\n" in said
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--config.bench.metric=acuracy"], "no 'acuracy'; did you mean 'accuracy'"),
        (["--config.bench.sizes=[99]"], "asked for 99 examples"),
        (["--shard", "3/2"], "--shard 3/2: expected i/n"),
        (["--only", "0123"], "--only 0123: this benchmark has no such cell"),
    ],
)
def test_mistakes_show_before_the_first_cell(home, tmp_path, capsys, changes, says):
    config = flow.page(tmp_path / "page.py", page(home))
    assert flow.ptft("bench", "--config", config, "--workdir", tmp_path / "it", *changes) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "it").exists()


def test_test_rows_that_were_trained_on_are_pointed_out(home, tmp_path, capsys):
    work.check([grid_of(home)], "accuracy")
    assert "stand in" not in capsys.readouterr().out
    head, *lines = (home / "test.tsv").read_text().splitlines()
    some = tmp_path / "some.tsv"
    some.write_text("\n".join([(home / "train.tsv").read_text().rstrip(), *lines[:3]]) + "\n")
    cell = grid_of(home, **{"data.train": f"files:{some}"})
    work.check([cell], "accuracy")
    assert "of the 11 test rows 3 stand in train, too" in capsys.readouterr().out
    seen = tmp_path / "seen.tsv"
    seen.write_text("\n".join([head, *lines, "something else\t1"]) + "\n")
    with pytest.raises(
        UserError,
        match=r"of the 11 test rows 11 stand in dev, too: numbers that were chosen or trained on them",
    ):
        work.check([grid_of(home, **{"data.dev": f"files:{seen}", "data.dev_size": 0})], "accuracy")
    work.check([grid_of(home, **{"data.dev": f"files:{seen}[11:12]", "data.dev_size": 0})], "accuracy")
    assert "stand in" not in capsys.readouterr().out
    documents = {
        f"data.{split}": f"files:{home}/docs{'_dev' * (split == 'test')}.txt"
        for split in ("train", "dev", "test")
    }
    config = spec.resolve(flow.pretraining(home, **documents))
    assert work.leaks(config, "words") == [] and "stand in" not in capsys.readouterr().out


def grid_of(home, **changes):
    cells = protocol.cells(flow.changed(page(home, repeat=False, random_init=False), changes), spec.resolve)
    return next(c for c in cells if c.kind == "train")


def test_a_cell_whose_cost_cannot_be_measured_says_so_before_it_trains(home, tmp_path, monkeypatch):
    def broken(config, workdir):
        raise UserError("the cost could not be measured")

    monkeypatch.setattr(probe, "measure", broken)
    monkeypatch.setattr(work.train, "run", lambda *a, **k: pytest.fail("it trained"))
    with pytest.raises(UserError, match="could not be measured"):
        work.run_cell(grid_of(home), tmp_path / "cells" / "x", "accuracy")


def test_a_seed_gives_every_strategy_the_same_start(home):
    """The head's first weights, the examples and their order; added parameters and random weights do not
    shift them."""
    names = ["full", "head", "lora=2", "prefix=2", "prompt=2", "fish=0.05,8"]
    strategies = [{"name": name, "freeze": name, "lr": 1e-3} for name in names]
    cells = protocol.cells(
        page(home, strategies=strategies, seeds=[3], lr_factors=[1], repeat=False), spec.resolve
    )
    trained = [c for c in cells if c.kind == "train"]
    assert len(trained) == 2 * (len(names) + 1)
    heads, orders = {}, {}
    for cell in trained:
        run = build.build(cell.config)
        if cell.size == 8:
            heads[cell.strategy] = {
                n: np.asarray(x)
                for n, x in weights.initial(cell.config, run.net).items()
                if n.startswith("head/")
            }
        numbers = pipeline.order(len(run.used), run.config.seed)
        orders[cell.strategy, cell.size] = [int(run.used[numbers[i]]) for i in range(24)]
    for name in [*names, section.RANDOM]:
        assert all((heads[name][n] == x).all() for n, x in heads["full"].items()), name
        assert all(orders[name, size] == orders["full", size] for size in (8, 16)), name
    assert np.ptp(heads["full"]["head/classifier/kernel"]) > 0
    assert set(orders["full", 8]) < set(orders["full", 16])


def test_content_names_the_weights_and_the_data(home, tmp_path):
    config = spec.resolve(flow.finetuning(home, home / "pre"))
    found = identity.content(config)
    assert set(found) == {"init_from", "data.train", "data.dev", "data.test"}
    moved = tmp_path / "moved.tsv"
    moved.write_bytes((home / "train.tsv").read_bytes())
    assert identity.content(config.replace(**{"data.train": f"files:{moved}"})) == found
    other = tmp_path / "other.tsv"
    other.write_bytes(moved.read_bytes() + b"one more\t1\n")
    assert (
        identity.content(config.replace(**{"data.train": f"files:{other}"}))["data.train"]
        != found["data.train"]
    )
    with pytest.raises(UserError, match="has no checkpoint yet"):
        identity.content(config.replace(init_from=str(tmp_path)))


def test_a_run_its_references_and_its_name_agree_on_the_dev_rows(home, tmp_path):
    (tmp_path / "dev.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"alpha {i}\t{i // 20}\n" for i in range(40))
    )
    values = flow.finetuning(
        home, home / "pre", **{"data.dev": f"files:{tmp_path}/dev.tsv", "data.dev_size": 10}
    )
    config = spec.resolve(values)
    seen = baselines.records(config)["dev"]
    assert [r["label"] for r in seen] == [0] * 5 + [1] * 5
    rows = dataset.load_data(config).dev
    tokens = np.concatenate([b["tokens"][b["weight"] > 0] for b in pipeline.eval_batches(rows, 8, 10)])
    lines = [int(r["where"].rpartition(":")[2]) - 2 for r in seen]
    np.testing.assert_array_equal(tokens, rows.batch(np.asarray(lines))["tokens"])
    assert identity.content(config)["data.dev"].endswith(" drawn")
    whole = config.replace(**{"data.dev_size": 40})
    assert identity.content(whole) == identity.content(config.replace(**{"data.dev_size": 0})), (
        "where all are seen, nothing changed"
    )


def test_weights_in_a_folder_of_another_format_count_by_content(tmp_path):
    golden = Path(__file__).parent / "golden" / "hub" / "bert_bare"
    first = identity._weights(str(golden))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in golden.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert identity._weights(str(copy)) == first
    (copy / "vocab.txt").write_text((copy / "vocab.txt").read_text() + "more\n")
    identity._weights.cache_clear()
    assert identity._weights(str(copy)) != first


def test_a_probe_is_made_once(home, tmp_path, monkeypatch):
    config = spec.resolve(flow.finetuning(home, home / "pre", freeze="head"))
    data = {"data.train_size": 4, "data.dev": "", "data.dev_size": 3, "data.test": ""}
    assert probe.name(config) == probe.name(
        config.replace(seed=5, init_weights=False, **{"optim.lr": 7.0}, **data)
    )
    assert probe.name(config) != probe.name(config.replace(freeze="full"))
    made = probe.measure(config, tmp_path)
    assert made["flops"] > 0 and made["seconds_per_step"] > 0 and made["peak_rss"] > 2**27
    with monkeypatch.context() as m:  # a folder that moves to another device
        m.setattr(
            record, "device", lambda: {"platform": "gpu", "kind": "another", "count": 1, "processes": 1}
        )
        assert probe.known(config, tmp_path) is None
    monkeypatch.setattr(probe, "_child", None)
    assert probe.measure(config, tmp_path) == made
    assert probe.spend("flops", tmp_path)(config) == (8, made["flops"])
    # a slower shard goes by the first one's
    probe._first(tmp_path / "probes" / f"{probe.name(config)}.json", {**ROW, "freeze": "", "flops": 1})
    assert probe.measure(config, tmp_path) == made


def probed(home, monkeypatch, answer):
    """Configs of two strategies in two seeds, and what the child was asked for."""
    asked = []

    def child(given):
        asked.append([c["freeze"] for c in json.loads(given)])
        return answer(asked[-1])

    monkeypatch.setattr(probe, "_child", child)
    monkeypatch.setattr(probe, "_failed", {})
    one = spec.resolve(flow.finetuning(home, home / "pre"))
    return [one.replace(freeze=freeze, seed=seed) for seed in (0, 1) for freeze in ("full", "head")], asked


ROW = {"seconds_per_step": 0.1, "flops": 1.0, "problem": None, "phases": [], "timed_seconds": 1.0}


def test_strategies_are_measured_side_by_side_in_one_process(home, tmp_path, monkeypatch):
    both, asked = probed(
        home, monkeypatch, lambda names: (0, json.dumps([{**ROW, "freeze": n} for n in names]), "")
    )
    probe.in_turns(both, tmp_path)
    assert asked == [["full", "head"]]
    assert [probe.measure(c, tmp_path)["freeze"] for c in both] == ["full", "head"] * 2 and len(asked) == 1
    probe.in_turns([*both, both[0].replace(freeze="bitfit")], tmp_path)
    assert asked[1:] == [["bitfit"]]  # what is known is not measured again


def test_what_ends_the_process_of_many_is_found_alone(home, tmp_path, monkeypatch):
    both, asked = probed(
        home,
        monkeypatch,
        lambda names: (
            (-9, "", "killed") if "full" in names else (0, json.dumps([{**ROW, "freeze": "head"}]), "")
        ),
    )
    probe.in_turns(both, tmp_path)
    assert (
        asked == [["full", "head"], ["full"], ["head"]]
        and probe.measure(both[1], tmp_path)["freeze"] == "head"
    )
    with pytest.raises(UserError, match=r"the cost of freeze='full' could not be measured: killed"):
        probe.measure(both[0], tmp_path)
    assert len(asked) == 3  # it is not tried again


def test_the_price_of_phases_is_a_mean_over_the_steps_that_each_has(home, tmp_path, monkeypatch):
    config = spec.resolve(
        flow.finetuning(home, home / "pre", freeze="head; 2 steps: full", train_for="8 steps")
    )
    made = probe.measure(config, tmp_path)
    head, full = (part["flops"] for part in made["phases"])
    assert head < full and made["flops"] == pytest.approx((2 * head + 6 * full) / 8)
    monkeypatch.setattr(probe, "_child", None)  # nothing more needs to be measured
    longer = probe.measure(config.replace(train_for="16 steps", seed=3, **{"data.train_size": 8}), tmp_path)
    assert longer["flops"] == pytest.approx((2 * head + 14 * full) / 16)


def test_what_a_plateau_costs_is_not_known_before(home, tmp_path):
    config = spec.resolve(flow.finetuning(home, home / "pre", freeze="head; plateau=2: full"))
    with pytest.raises(
        UserError, match=r"when a plateau ends, .* is known only as it runs; expected budget='steps'"
    ):
        probe.spend("flops", tmp_path)(config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_probe_that_a_scheduler_stops_is_a_stop_and_no_failure(home, tmp_path, monkeypatch, number):
    monkeypatch.setattr(probe, "_child", lambda config: (-number, "", ""))
    with pytest.raises(SystemExit) as e:
        probe.measure(spec.resolve(flow.finetuning(home, home / "pre")), tmp_path)
    assert e.value.code == 75


def test_a_signal_to_the_benchmark_alone_ends_its_probe_at_once(home, tmp_path, monkeypatch, capsys):
    """The child, which would have gone on for minutes, got none."""
    real = subprocess.Popen

    def slow(argv, **pipes):
        threading.Timer(0.5, flow.sigterm).start()
        return real([sys.executable, "-c", "import time; time.sleep(600)"], **pipes)

    monkeypatch.setattr(subprocess, "Popen", slow)
    begun = time.monotonic()
    with pytest.raises(SystemExit) as e:
        probe.measure(spec.resolve(flow.finetuning(home, home / "pre")), tmp_path)
    assert (
        e.value.code == 75
        and time.monotonic() - begun < 60
        and "stopped; the same command goes on" in capsys.readouterr().out
    )
    assert not (tmp_path / "probes").exists()


def test_what_a_seed_draws_is_measured_where_no_other_seed_drew_it(home, tmp_path):
    start = Path(__file__).parent / "golden" / "hub" / "bert_bare"  # two blocks
    config = spec.resolve(flow.finetuning(home, start, freeze="lisa=1,2 steps", train_for="2 steps"))
    drawn = lambda c: {str(p.strategy) for p in build.build(c).phases}  # noqa: E731
    other = next(c for s in range(1, 20) if drawn(c := config.replace(seed=s)) - drawn(config))
    assert probe.measure(config, tmp_path)["flops"] and probe.known(other, tmp_path) is None
    assert {str(p["freeze"]) for p in probe.measure(other, tmp_path)["phases"]} == drawn(other)


# ---------------------------------------------------------------- references


def texts(path, rows):
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return f"files:{path}"


@pytest.fixture(scope="module")
def words(home, tmp_path_factory):
    """A task that words decide: good or bad, 3 to 1; in Chinese too, where no space parts the words."""
    folder = tmp_path_factory.mktemp("words")
    rows = [(f"alpha {'good' if i % 4 else 'bad'} beta {i % 7}", int(i % 4 > 0)) for i in range(40)]
    rows += [(f"我{'不' if i % 4 == 0 else '很'}喜欢它", int(i % 4 > 0)) for i in range(20)]
    files = {f"data.{split}": texts(folder / f"{split}.tsv", rows) for split in ("train", "dev", "test")}
    return spec.resolve(flow.finetuning(home, home / "pre", **files))


def test_the_majority_is_that_of_the_training_examples(words):
    found = baselines.run("majority", words, "accuracy")
    assert found.test["accuracy"] == found.dev["accuracy"] == 0.75
    assert found.test["loss"] == pytest.approx(
        -(0.75 * math.log(46 / 62) + 0.25 * math.log(16 / 62)), abs=1e-5
    )
    few = words.replace(seed=1, **{"data.train_size": 1})
    chosen = [int(dataset.load_data(few).train.label[pipeline.subset(60, 1, seed)[0]]) for seed in range(12)]
    assert set(chosen) == {0, 1}
    found = [
        baselines.run("majority", few.replace(seed=seed), "accuracy").test["accuracy"] for seed in range(12)
    ]
    assert found == [(0.25, 0.75)[label] for label in chosen]


def test_tfidf_learns_words_of_both_scripts(words):
    pytest.importorskip("sklearn")
    found = baselines.run("tfidf", words, "accuracy")
    assert (
        found.test["accuracy"] == 1.0
        and found.notes["C"] in baselines.STRENGTHS["tfidf"]
        and "scikit-learn" in found.versions
    )
    # chosen by folds of the training examples
    alone = baselines.run("tfidf", words.replace(**{"data.dev": ""}), "accuracy")
    assert (
        alone.test["accuracy"] == 1.0
        and alone.notes["C"] in baselines.STRENGTHS["tfidf"]
        and alone.dev is None
    )
    one = baselines.run("tfidf", words.replace(**{"data.train_size": 1}), "accuracy")
    assert one.notes["C"] is None and one.data["train_rows"] == 1


def test_tfidf_of_texts_without_words_is_skipped(words, tmp_path):
    pytest.importorskip("sklearn")
    signs = texts(tmp_path / "signs.tsv", [(("! ?", "...")[i % 2], i % 2) for i in range(8)])
    without = words.replace(**{f"data.{split}": signs for split in ("train", "dev", "test")})
    with pytest.raises(Unavailable, match="no training text has a word"):
        baselines.run("tfidf", without, "accuracy")
    assert baselines.run("majority", without, "accuracy").test["accuracy"] == 0.5
    # One text has words: most draws and folds have none, and know only how frequent the classes are.
    some = texts(tmp_path / "some.tsv", [("good", 1), *((("! ?", "...")[i % 2], i % 2) for i in range(8))])
    some = words.replace(**{"data.train": some, "data.dev": "", "data.test": signs})
    for seed in range(3):
        few = some.replace(seed=seed, **{"data.train_size": 5})
        assert baselines.run("tfidf", few, "accuracy").test["accuracy"] == 0.5
    assert baselines.run("tfidf", some, "accuracy").test["accuracy"] == 0.5


def test_what_is_too_few_to_choose_by_takes_the_usual_strength():
    """Three texts, one of its class alone; and features of which noise would fit the training examples as
    well as the signal."""
    x, y = np.eye(3), np.array([0, 0, 1], np.int32)
    merit = lambda p, truth: float((p.argmax(1) == truth).mean())  # noqa: E731
    pytest.importorskip("sklearn")
    views = {"mean": {"train": x, "test": x[:1]}}
    said, notes = baselines._regression("features", views, {"train": y}, 4, merit)
    assert notes == {"C": baselines.USUAL["features"], "features": "mean"} and said["test"].argmax() == 0
    assert said["test"].shape == (1, 4) and said["test"][0, 3] == baselines.LEAST
    rng = np.random.default_rng(0)
    y = np.arange(60, dtype=np.int32) % 2
    noise, signal = rng.normal(size=(60, 5)), rng.normal(size=(60, 5)) + y[:, None]
    views = {"noise": {"train": noise, "test": noise}, "signal": {"train": signal, "test": signal}}
    assert baselines._regression("features", views, {"train": y}, 2, merit)[1]["features"] == "signal"


def test_frozen_features_are_those_of_the_encoder_and_computed_once(words):
    pytest.importorskip("sklearn")
    features._encoder.cache_clear()
    few = words.replace(**{"data.train_size": 20})
    found = [baselines.run("features", few.replace(seed=seed), "accuracy") for seed in (0, 1)]
    assert all(0.5 <= f.test["accuracy"] <= 1 and f.data["train_rows"] == 20 for f in found)
    assert found[0].notes["C"] in baselines.STRENGTHS["features"] and found[0].notes["features"] in (
        "mean",
        "first token",
    )
    assert features._encoder.cache_info().misses == 1
    run = build.build(words.replace(freeze="head"))
    params, row = weights.initial(run.config, run.net), np.array([7])
    batch = {
        **run.data.train.batch(row),
        "example_id": row.astype(np.int32),
        "weight": np.ones(1, np.float32),
    }
    hidden = np.asarray(
        run.net.between(params, jax.device_put(batch), run.layout.around(run.net.backbone.dims.layers))
    )[0, : int(batch["length"][0])]
    views = features.of(words.replace(seed=5), {"train": np.array([3, 7])})
    assert views["mean"]["train"][1] == pytest.approx(hidden.mean(0), abs=1e-5)
    assert views["first token"]["train"][1] == pytest.approx(hidden[0], abs=1e-5)


def test_frozen_features_of_a_pair_are_of_each_text(home, tmp_path):
    for i, split in enumerate(("train", "test")):
        flow.table(tmp_path / f"{split}.tsv", 4, i, header="a\tb\tlabel")
    files = {f"data.{split}": f"files:{tmp_path}/{split}.tsv" for split in ("train", "test")}
    pairs = spec.resolve(
        flow.finetuning(home, home / "pre", **files, **{"data.text": "a", "data.text_b": "b", "data.dev": ""})
    )
    mean = features.of(pairs, {"train": np.arange(4)})["mean"]["train"]
    a, b, distance, product = np.split(mean, 4, axis=1)
    assert (
        mean.shape[1] == 4 * 64
        and distance == pytest.approx(abs(a - b))
        and product == pytest.approx(a * b)
        and distance.max() > 0
    )


def test_without_scikit_learn_the_row_says_so(words, monkeypatch):
    for name in ("sklearn", "sklearn.feature_extraction.text", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match=r"-e '.\[bench\]'; elsewhere: pip install 'ptft\[bench\]'"):
        baselines.run("tfidf", words, "accuracy")
    assert "scikit-learn" not in baselines.run("majority", words, "accuracy").versions
