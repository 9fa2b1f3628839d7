"""ptft.report.files: from JSON lines to the three files, and what they say."""

import csv
import json
import random
import re
import shlex
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import flow
import numpy as np
import optax
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from ptft import models
from ptft.bench import protocol, results, stats
from ptft.core import pages
from ptft.core.errors import UserError
from ptft.freeze import ledger
from ptft.freeze.resolve import plan as resolved
from ptft.report import (
    bench_page,
    command,
    comparison,
    cost_panels,
    figures,
    format,
    ledger_page,
    markdown,
    run_page,
)
from ptft.report import files as report
from ptft.train import spec

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

# name: (freeze, init_from, accuracy without the seed's part, share, seconds a step)
STRATEGIES = {
    "full": ("full", "pre", 0.840, 1.0, 0.040),
    "scratch": ("full", "", 0.700, 1.0, 0.040),
    "top-2": ("top-2", "pre", 0.842, 0.31, 0.020),
    "head": ("head", "pre", 0.760, 0.001, 0.012),
}


@pytest.fixture(autouse=True)
def _one_picture(request, monkeypatch):
    """Drawing takes ten times as long as all the rest: most tests do without."""
    if "picture" not in request.keywords:
        monkeypatch.setattr(figures, "png", lambda panels: b"\x89PNG")
    if not {"picture", "drawn"} & set(request.keywords):
        monkeypatch.setattr(figures, "svg", lambda panel: "")


def rows(seeds=5, strategies=STRATEGIES, task="sst2"):
    out = []
    for seed in range(seeds):
        for i, (name, (freeze, init, accuracy, share, step)) in enumerate(strategies.items()):
            noise = 0.01 * (seed - 2) + 0.004 * ((seed * 7 + i * 3) % 5 - 2)
            out.append(
                {
                    "cell": f"{task}{name}{seed}",
                    "strategy": name,
                    "freeze": freeze,
                    "lr": 1e-4,
                    "init_from": init,
                    "seed": seed,
                    "task": task,
                    "model": "",
                    "size": 0,
                    "kind": "train",
                    "repeat": False,
                    "metric": "accuracy",
                    "dev": {},
                    "test": {"accuracy": accuracy + noise},
                    "steps": 100,
                    "seconds": 100 * step,
                    "seconds_per_step": step,
                    "trainable_share": share,
                    "flops_per_step": 1e9 * step,
                    "versions": {"jax": "0.10"},
                    "device": {"kind": "cpu", "count": 1},
                    "status": "ok",
                    "error": "",
                }
            )
    return out


def put(folder, lines, **bench):
    """A benchmark's folder, one file a row."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for row in lines:
        (folder / "cells" / f"{row['cell']}.json").write_text(json.dumps(row))
    if bench:
        (folder / "bench.json").write_text(json.dumps(bench))
    return folder


def put_run(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def texts(folder):
    paths = report.write(folder)
    assert paths["png"].read_bytes()[:4] == b"\x89PNG"
    return paths["md"].read_text(), paths["html"].read_text()


def line_of(md, name):
    return next(
        [c.strip() for c in line.split("|")[1:-1]]
        for line in md.splitlines()
        if line.startswith(f"| {name} ")
    )


def row_of(md, name):
    """A strategy's cells by column, of the first table and of the first with more numbers."""
    found = {}
    tables = [
        [[c.strip() for c in line.split("|")[1:-1]] for line in t.splitlines() if line.startswith("|")]
        for t in md.split("\n\n")
    ]
    for head, _, *body in reversed([t for t in tables if t and t[0][0] == "strategy"][:2]):
        names = [
            "difference" if c.startswith("difference to") else "time ratio" if c.startswith("time, ×") else c
            for c in head
        ]
        cells = next((row for row in body if row[0] == name or row[0].startswith(f"{name} (")), [])
        found = {**dict(zip(names, cells, strict=False)), **found}
    return found


COSTS = (
    "trainable parameters",
    "time a step",
    "time ratio",
    "time of all steps, nothing cached",
    "FLOPs",
    "peak memory",
    "checkpoint",
)


def costs(md, name):
    return [row_of(md, name)[column] for column in COSTS]


def test_the_table(tmp_path):
    md, html = texts(put(tmp_path, rows()))
    assert row_of(md, "full")["seeds"] == "5 seeds" and row_of(md, "full")["test accuracy"] == "0.840 ± 0.025"
    assert row_of(md, "full")["verdict"] == "baseline"
    assert row_of(md, "top-2")["verdict"] == "cannot be told apart"
    assert costs(md, "top-2") == ["31.0 %", "20 ms", "0.50", "2.0 s", "0.50", "–", "–"]
    assert row_of(md, "head")["verdict"] == "worse" and row_of(md, "head")["difference"].startswith("−0.08")
    assert row_of(md, "scratch")["verdict"] == "worse"
    assert html.count('<svg class="strip"') == 4 and html.count("<circle") >= 20


def test_the_sentences_are_computed(tmp_path):
    md, _ = texts(put(tmp_path / "a", rows()))
    assert "top-2 has the highest mean test accuracy: 0.842 ±" in md
    assert (
        "**Train top-2** (learning rate 0.0001)." in md
        and "full is not measurably worse, but it is not cheaper." in md
    )
    assert (
        "over 5 seeds, +0.002 [" in md
        and "A step takes 0.50 of full's FLOPs; 31.0 % of the parameters are trainable." in md
    )
    assert re.search(
        r"Starting from pretrained instead of random weights changes the test accuracy of full by \+0\.14\d "
        r"\[",
        md,
    )
    better = {**STRATEGIES, "full": ("full", "pre", 0.845, 1.0, 0.040)}
    md, _ = texts(put(tmp_path / "b", rows(strategies=better)))
    assert (
        "full has the highest" in md
        and "**Train top-2**" in md
        and "The cheapest of them is top-2: −0.003 [" in md
    )


def test_a_loss_is_better_when_lower(tmp_path):
    lines = [{**r, "metric": "loss", "test": {"loss": r["test"]["accuracy"]}} for r in rows()]
    md, _ = texts(put(tmp_path, lines))
    assert "scratch has the lowest mean test loss" in md and row_of(md, "head")["verdict"] == "better"


def test_one_seed_says_that_there_is_no_interval(tmp_path):
    md, _ = texts(put(tmp_path, rows(seeds=1)))
    assert (
        "the order may be chance" in md
        and "**Train top-2**" in md
        and row_of(md, "head")["verdict"] == "one seed: no interval"
        and "±" not in row_of(md, "head")["test accuracy"]
    )


def test_failed_and_missing_cells_are_shown(tmp_path):
    lines = rows()
    lines[-1] = {k: v for k, v in lines[-1].items() if k not in ("test", "seconds")} | {
        "status": "failed",
        "error": "RuntimeError: <out of memory> |",
    }
    cells = {r["cell"]: {"strategy": r["strategy"], "seed": r["seed"]} for r in lines} | {
        "later": {"strategy": "head", "seed": 9}
    }
    stale = {**lines[0], "cell": "stale", "test": {"accuracy": 0.0}}
    md, html = texts(
        put(
            tmp_path,
            [*lines, stale],
            cells=cells,
            baseline="full",
            command="ptft bench --config configs/bench.py",
            config_hash="abc123",
        )
    )
    assert (
        "- head, lr 0.0001, seed 4: RuntimeError: &lt;out of memory> \\|" in md
        and row_of(md, "head")["seeds"] == "4 seeds (1 failed)"
    )
    assert (
        "1 of 21 cells have not run yet" in md
        and "1 runs of an earlier config" in md
        and row_of(md, "full")["test accuracy"] == "0.840 ± 0.025"
    )
    assert "&lt;out of memory&gt;" in html and "<out of" not in html
    assert (
        "ptft bench --config configs/bench.py" in html
        and "abc123" in md
        and "jax 0.10" in md
        and "kind cpu" in md
    )


def test_the_rate_that_dev_chose_is_the_one_that_is_quoted(tmp_path):
    lines = [{**r, "dev": {"accuracy": 0.9}} for r in rows()]
    lines += [
        {**r, "cell": r["cell"] + "b", "lr": 3e-4, "dev": {"accuracy": 0.8}, "test": {"accuracy": 0.99}}
        for r in rows()
    ]
    md, _ = texts(put(tmp_path, lines))
    assert [row_of(md, "full")[c] for c in ("learning rate", "seeds", "test accuracy")] == [
        "0.0001 (lowest tried)",
        "5 seeds",
        "0.840 ± 0.025",
    ]


def test_references_and_checks_are_rows_but_win_nothing(tmp_path):
    bare = dict.fromkeys(
        ("freeze", "lr", "init_from", "seconds", "seconds_per_step", "trainable_share", "flops_per_step")
    )
    majority = [
        {**r, **bare, "cell": f"m{r['seed']}", "strategy": "majority class", "kind": "majority"}
        for r in rows()
        if r["strategy"] == "head"
    ]
    again = [
        {**r, "cell": f"a{r['seed']}", "strategy": "top-2 (A/A)", "repeat": True}
        for r in rows()
        if r["strategy"] == "top-2"
    ]
    again = [
        {**r, "test": {"accuracy": r["test"]["accuracy"] + 0.001}, "seconds_per_step": 0.001} for r in again
    ]
    gone = [
        {
            **majority[0],
            "cell": "t",
            "strategy": "TF-IDF",
            "kind": "tfidf",
            "status": "skipped",
            "error": "no scikit-learn",
            "test": None,
        }
    ]
    md, html = texts(put(tmp_path, [*rows(), *majority, *again, *gone], baseline="full"))
    floor = row_of(md, "majority class")
    assert (
        floor["learning rate"] == "–"
        and floor["seeds"] == "5 seeds"
        and costs(md, "majority class") == ["–"] * 7
    )
    assert (
        "4 strategies, 5 seeds" in md
        and "top-2 has the highest mean" in md
        and "top-2 (A/A)" not in markdown.first_screen(md)
        and row_of(md, "top-2 (A/A)")["verdict"] in ("better", "cannot be told apart")
    )
    assert "Not in the table: TF-IDF (no scikit-learn)." in markdown.first_screen(md) and "Failed" not in md
    assert html.count('<svg class="strip"') == 5 and "| TF-IDF" not in md
    assert "Not measurably better than majority class (0.760): head and scratch." in md
    unlearned = [{**r, "test": {"accuracy": r["test"]["accuracy"] + 0.08}} for r in majority]
    md, _ = texts(put(tmp_path / "unlearned", [*rows(), *unlearned]))
    floor = (
        r"No strategy is measurably better than majority class \(0.840\): top-2, the best of them, differs "
        r"by \+0.002 \[−0"
    )
    assert re.search(floor, md)
    # with all examples a reference is one cell, whatever the seeds
    once = {**unlearned[0], "test": {"accuracy": 0.86}}
    md, _ = texts(put(tmp_path / "once", [*rows(), once], baseline="full"))
    assert "Every strategy scored below majority class (0.860)" in md
    assert (
        row_of(md, "majority class")["seeds"] == "1 seed"
        and row_of(md, "majority class")["test accuracy"] == "0.860"
    )
    assert "[" in row_of(md, "majority class")["difference"]


def test_unequal_seeds_are_pointed_out(tmp_path):
    md, _ = texts(
        put(tmp_path / "a", [r for r in rows() if r["strategy"] != "head" or r["seed"] < 3], baseline="full")
    )
    assert (
        "Not every strategy has the same seeds: head has 3 seeds of 5; a mean is over a strategy's own seeds"
        in md
    )
    assert "the same seeds" not in texts(put(tmp_path / "b", rows(), baseline="full"))[0]


def scores(**of):
    """Rows of strategies by seed: `full={0: 0.8, …}`."""
    found = {(r["strategy"], r["seed"]): r for r in rows(8)}
    return [
        {**found[name, seed], "test": {"accuracy": x}} for name, its in of.items() for seed, x in its.items()
    ]


def test_the_lead_goes_by_the_seeds_that_all_have(tmp_path):
    """Its own seeds alone would make head the best, which the table says is worse than full."""
    few = {0: 0.80, 1: 0.811, 2: 0.802}
    head = {0: 0.70, 1: 0.712, 2: 0.701, 3: 0.99, 4: 0.99, 5: 0.99, 6: 0.99}
    md, _ = texts(put(tmp_path, scores(full=few, head=head), baseline="full"))
    assert "full has the highest mean test accuracy: 0.804 over the 3 seeds that all have." in md
    assert "It cannot be told apart" not in md and row_of(md, "head")["verdict"] == "worse"


def test_without_common_seeds_nothing_is_compared(tmp_path):
    majority = [
        {
            **rows(1)[0],
            "cell": "m",
            "strategy": "majority class",
            "kind": "majority",
            "freeze": None,
            "test": {"accuracy": 0.5},
        }
    ]
    apart = {"full": {0: 0.51, 1: 0.505, 2: 0.52}, "head": {3: 0.9, 4: 0.91, 5: 0.905}}
    md, _ = texts(put(tmp_path / "none", [*scores(**apart), *majority], baseline="full"))
    assert "Not counted: full (a run failed, or fewer than two seeds are common)." in md
    # head is, on seeds that the baseline does not have
    assert "Not measurably better than majority class (0.500): full." in md
    assert "full has 3 seeds of 6; head has 3 seeds of 6" in md.replace(" and ", "; ")
    one = {"full": {0: 0.51, 1: 0.505, 2: 0.52}, "head": {0: 0.7}}
    md, _ = texts(put(tmp_path / "one", scores(**one), baseline="full"))
    assert (
        "fewer than two seeds are common" in md
        and "cannot be told apart" not in md.split("What cannot be told apart is not")[0]
    )


def test_the_lead_says_what_the_comparison_of_pairs_says(tmp_path):
    """Over the two seeds that all three have, nothing could be told apart; by the means alone, X and Y are
    one as good as the other."""
    full, head = (0.80, 0.82, 0.81, 0.83, 0.80, 0.82), (0.70, 0.735, 0.70, 0.74, 0.71, 0.72)
    of = {"full": dict(enumerate(full)), "head": dict(enumerate(head)), "top-2": {0: 0.78, 1: 0.81}}
    md, _ = texts(put(tmp_path / "some", scores(**of), baseline="full"))
    assert "It cannot be told apart from top-2." in md and row_of(md, "head")["verdict"] == "worse"
    x, y, z = (235, 249, 246, 231, 254), (235, 259, 247, 235, 239), (229, 243, 240, 226, 248)
    of = {
        name: {seed: n / 300 for seed, n in enumerate(its)}
        for name, its in (("full", x), ("head", y), ("top-2", z))
    }
    md, _ = texts(put(tmp_path / "equal", scores(**of), baseline="full"))
    assert (
        "full has the highest mean" in md
        and "It cannot be told apart from head." in md
        and row_of(md, "top-2")["verdict"] == "worse"
    )


def test_what_is_ahead_over_the_seeds_of_a_pair_is_said(tmp_path):
    """Over the two seeds that all have, full is the best; over all twelve, head is."""
    full = {seed: 0.7 + 0.001 * (seed % 3) for seed in range(8)}
    head = {seed: x + (0.1 + 0.001 * (seed % 2) if seed > 1 else -0.001) for seed, x in full.items()}
    md, _ = texts(
        put(tmp_path / "a", scores(full=full, head=head, **{"top-2": {0: 0.65, 1: 0.69}}), baseline="full")
    )
    assert (
        "full has the highest mean" in md
        and "Over the seeds that both have, it is measurably worse than head." in md
    )
    lines = scores(
        full={0: 0.80, 1: 0.82, 2: 0.81},
        head={0: 0.6, 1: 0.622, 2: 0.608},
        **{"top-2": {0: 0.81, 1: 0.80, 2: 0.81, 3: 0.8}},
    )
    lines[-1] |= {"status": "failed", "test": None, "error": "x"}
    md, _ = texts(put(tmp_path / "b", lines, baseline="full"))
    assert "Not counted: top-2 (a run failed" in md and "Every other strategy is" not in md


def test_where_every_strategy_has_a_failed_run_none_is_named_the_best(tmp_path):
    lines = [{**r, "status": "failed", "test": None, "error": "x"} if r["seed"] == i else r
             for i, name in enumerate(STRATEGIES) for r in rows() if r["strategy"] == name]  # fmt: skip
    lines += [
        {**r, "cell": f"m{r['seed']}", "strategy": "majority class", "kind": "majority", "freeze": None}
        for r in rows(seeds=1)[:1]
    ]
    md, _ = texts(put(tmp_path, lines, baseline="full"))
    assert (
        "Every strategy has a failed run" in md
        and "the highest mean test" not in md
        and "**Train" not in md
        and "nan" not in md.lower()
    )


def test_a_failed_cell_is_listed_with_its_task(tmp_path):
    lines = [
        *rows(),
        *[
            {**r, "status": "failed", "test": None, "error": "oops"}
            for r in rows(task="mrpc")
            if r["seed"] == 3
        ],
    ]
    assert "mrpc, full, lr 0.0001" in texts(put(tmp_path, lines))[0]


def test_the_start_is_given_credit_only_where_nothing_else_differs(tmp_path):
    def with_(**config):
        return [
            {
                **r,
                "config": {
                    "seed": r["seed"],
                    "init_weights": bool(r["init_from"]),
                    **(config if r["init_from"] else {}),
                },
            }
            for r in rows()
        ]

    assert (
        "Starting from pretrained instead of random weights changes the test accuracy of full"
        in texts(put(tmp_path / "a", with_()))[0]
    )
    assert "Starting from pretrained" not in texts(put(tmp_path / "b", with_(train_for="9 epochs")))[0]
    rules = [{**r, "freeze": [[r["strategy"], "train"]]} for r in with_()]
    assert "Starting from pretrained" not in texts(put(tmp_path / "c", rules))[0]


@pytest.mark.parametrize(
    ("budget", "says"),
    [("flops", "as many FLOPs as the steps of full cost"), ("seconds", "as long, by"), ("steps", "")],
)
def test_the_budget_is_stated(tmp_path, budget, says):
    md, _ = texts(
        put(
            tmp_path,
            [{**r, "budget": {"kind": budget, "share": 1.0}} for r in rows()],
            baseline="full",
            budget=budget,
        )
    )
    assert ("bench.budget" in md) is bool(says) and says in md


def test_merged_folders_state_each_ones_budget_and_baseline(tmp_path):
    def folder(name, task, budget, baseline):
        lines = [{**r, "budget": {"kind": budget, "share": 1.0}} for r in rows(task=task)]
        cells = {
            r["cell"]: {
                k: r[k] for k in ("strategy", "task", "model", "size", "lr", "seed", "kind", "repeat")
            }
            for r in lines
        }
        return put(tmp_path / name, lines, cells=cells, baseline=baseline, budget=budget)

    a, b = folder("a", "sst2", "flops", "full"), folder("b", "mrpc", "steps", "top-2")
    for order in ((a, b), (b, a)):
        md = report.write(*order, to=tmp_path / "both")["md"].read_text()
        assert (
            "sst2: every strategy was trained for as many FLOPs as the steps of full cost "
            "(bench.budget=flops)." in md
        )
        assert "mrpc: every strategy was trained for as many steps." in md
        first, second = sorted(md.split("\n## ")[1:3])
        assert (
            row_of(first, "top-2")["verdict"] == "baseline"
            and row_of(second, "full")["verdict"] == "baseline"
        )


def test_a_folder_whose_budget_changed_is_of_the_new_one(tmp_path):
    """The baseline's cells are the same in every budget, and were there before."""
    lines = [
        {**r, "budget": {"kind": "steps" if r["strategy"] == "full" else "flops", "share": 1.0}}
        for r in rows()
    ]
    cells = {
        r["cell"]: {k: r[k] for k in ("strategy", "task", "model", "size", "lr", "seed", "kind", "repeat")}
        for r in lines
    }
    md, _ = texts(put(tmp_path, lines, cells=cells, baseline="full", budget="flops"))
    assert "Every strategy was trained for as many FLOPs as the steps of full cost" in md


def test_a_failed_strategy_is_left_out_of_the_lead_which_says_so(tmp_path):
    """Over the two seeds that top-2 has, head would be the best."""
    full, head = {0: 0.80, 1: 0.80, 2: 0.9, 3: 0.9, 4: 0.9}, {0: 0.85, 1: 0.8501, 2: 0.80, 3: 0.80, 4: 0.801}
    lines = scores(**{"full": full, "head": head, "top-2": {0: 0.1, 1: 0.84}})
    lines[-2] |= {"status": "failed", "test": None, "error": "it diverged"}
    md, _ = texts(put(tmp_path, lines, baseline="full"))
    assert (
        "full has the highest mean test accuracy: 0.860 ±" in md
        and "It cannot be told apart from head." in md
    )
    some = [r for r in lines if r["strategy"] != "head" or r["seed"] < 4]
    md, _ = texts(put(tmp_path / "some", some, baseline="full"))
    assert (
        "full has the highest mean test accuracy: 0.850 over the 4 seeds that all without a failed run have."
        in md
    )


def test_a_failed_run_in_the_only_pair_is_no_crash(tmp_path):
    """It leaves a spread to go by, and no pair that was tested."""
    lines = scores(full={0: 0.80, 1: 0.82, 2: 0.9}, head={0: 0.70, 1: 0.75, 2: 0.1})
    lines[-1] |= {"status": "failed", "test": None, "error": "it diverged"}
    md, _ = texts(put(tmp_path, lines, baseline="full"))
    assert "four times in five takes" in md and "with the correction" not in md


def test_what_costs_the_same_does_not_cost_more_and_what_does_not_vary_has_no_power(tmp_path):
    same = {**STRATEGIES, "top-2": ("top-2", "pre", 0.842, 0.31, 0.040)}
    lines = [{**r, "seconds_per_step": 0.04} for r in rows(strategies=same)]
    md, _ = texts(put(tmp_path / "a", lines, baseline="full"))
    assert "full is not measurably worse, but it is not cheaper." in md
    lines = scores(full={0: 0.8, 1: 0.81, 2: 0.8}, head={0: 0.7, 1: 0.71, 2: 0.7})
    md, _ = texts(put(tmp_path / "b", lines, baseline="full"))
    assert "unknown" not in md and "four times in five" not in md


def timed(name, step, flops, spread=()):
    low_high = dict(zip(("seconds_low", "seconds_high"), spread, strict=False))
    return [
        {**r, "seconds_per_step": step, "flops_per_step": flops, **low_high}
        for r in rows()
        if r["strategy"] == name
    ]


@pytest.mark.parametrize(
    ("head", "noise"),
    [
        ((0.34, 0.67e9), True),  # of a row of an older version
        ((0.34, 0.67e9, (0.30, 0.75)), True),
        ((0.34, 0.67e9, (0.33, 0.35)), False),  # its quartiles bear it out: what FLOPs do not count
        ((1.40, 0.67e9, (0.90, 1.90)), True),  # fewer FLOPs, more time
        ((1.40, 0.67e9, (1.35, 1.45)), False),
        ((0.62, 0.67e9), False),
        ((0.90, 0.67e9), False),  # a step is never bound by its products alone
    ],
)
def test_a_share_of_time_that_its_flops_contradict_is_marked_as_noise(tmp_path, head, noise):
    md, _ = texts(
        put(tmp_path, timed("full", 1.0, 1e9, (0.95, 1.05)) + timed("head", *head), baseline="full")
    )
    assert row_of(md, "head")["time ratio"] == f"{head[0]:.2f}" + " (noise?)" * noise
    assert (
        f"Taken for noise of a busy machine: head {head[0]:.2f} of full's time at 0.67 of its FLOPs." in md
    ) == noise
    if len(head) > 2:
        low, high = head[2]
        end = f"({low * 1000:.0f} ms to {high * 1000:.0f} ms)" if high < 1 else f"to {high:.1f} s)"
        assert row_of(md, "head")["time a step"].endswith(end)


def test_frozen_parts_without_dropout_are_said(tmp_path):
    lines = [{**r, "config": {"frozen_dropout": False}} for r in rows()]
    assert (
        "nothing is trainable ran without dropout (frozen_dropout=False)"
        in texts(put(tmp_path / "a", lines))[0]
    )
    assert (
        "ran without dropout"
        not in texts(put(tmp_path / "b", [{**lines[0], "config": {"batch": 8}}, *lines[1:]]))[0]
    )


def test_the_rows_that_scores_are_of_are_counted(tmp_path):
    data = {"notes": {"train": {"rows": 50}, "dev": {"rows": 6735}, "test": {"rows": 100, "truncated": 24}}}
    lines = [
        {**r, "data": data, "config": {"data": {"dev_size": 60}, "batch": 16}, "steps": 13} for r in rows()
    ]
    md, _ = texts(put(tmp_path / "one", lines))
    assert "Too long, and cut: 24.0 % of test." in md and "A run is 13 steps of 16 examples." in md
    md, _ = texts(
        put(tmp_path / "budget", [{**r, "steps": 30 if r["strategy"] == "head" else 13} for r in lines])
    )
    assert "A run is 13 to 30 steps of 16 examples." in md
    assert (
        "Scores are of 100 test rows. Other rows would move an accuracy by up to 0.050 (one standard error)"
        in md
    )
    again = [{**r, "lr": 1e-3, "cell": r["cell"] + "b"} for r in lines]
    md, _ = texts(put(tmp_path / "two", [{**r, "dev": r["test"]} for r in [*lines, *again]]))
    assert "100 test rows, rates are chosen on 60 dev rows." in md
    md, _ = texts(
        put(
            tmp_path / "loss",
            [{**r, "metric": "loss", "test": {"loss": 0.3 + 0.01 * r["seed"]}} for r in lines],
        )
    )
    assert "Scores are of 100 test rows." in md and "standard error" not in md


def test_a_rate_at_the_edge_of_those_tried_is_pointed_out(tmp_path):
    def best(name, rate):
        mine = [r for r in rows() if r["strategy"] == name]
        rates = (1e-5, 1e-4, 1e-3)
        return [
            {**r, "lr": lr, "cell": f"{r['cell']}{lr}", "dev": {"accuracy": 0.9 - (lr != rate) * 0.1}}
            for r in mine
            for lr in rates
        ]

    md, _ = texts(
        put(tmp_path / "a", [*best("full", 1e-4), *best("top-2", 1e-3), *best("head", 1e-5)], baseline="full")
    )
    assert (
        "dev chose is the highest that was tried for top-2, and the lowest that was tried for head: beyond "
        "it may be a better one." in md
    )
    md, _ = texts(put(tmp_path / "b", [*best("full", 1e-4), *best("top-2", 1e-4)], baseline="full"))
    assert "beyond it" not in md and "beyond it" not in texts(put(tmp_path / "c", rows(), baseline="full"))[0]
    assert row_of(md, "top-2")["learning rate"] == "0.0001" and "at the highest rate that it tried" not in md


def test_a_copy_has_the_verdict_of_what_it_copies(tmp_path):
    """Which the number of rows corrects, without counting the copy."""
    of = {
        "full": (0.30, 0.31, 0.30),
        "head": (0.33, 0.325, 0.32),
        "top-2": (0.30, 0.32, 0.31),
        "scratch": (0.30, 0.30, 0.31),
    }
    lines = scores(**{name: dict(enumerate(its)) for name, its in of.items()})
    lines += [
        {**r, "cell": f"a{r['seed']}", "strategy": "head (A/A)", "repeat": True}
        for r in lines
        if r["strategy"] == "head"
    ]
    md, _ = texts(put(tmp_path, lines, baseline="full"))
    assert row_of(md, "head")["verdict"] == row_of(md, "head (A/A)")["verdict"] == "cannot be told apart"
    md, _ = texts(
        put(
            tmp_path / "alone",
            [r for r in lines if r["strategy"] in ("full", "head", "head (A/A)")],
            baseline="full",
        )
    )
    assert row_of(md, "head")["verdict"] == row_of(md, "head (A/A)")["verdict"] == "better"


def test_while_runs_are_missing_no_rate_is_said_to_be_at_the_edge(tmp_path):
    lines = [
        {**r, "lr": lr, "cell": f"{r['cell']}{lr}", "dev": {"accuracy": lr}}
        for r in rows()
        if r["strategy"] == "full"
        for lr in (1e-4, 1e-3)
    ]
    cells = {
        r["cell"]: {k: r[k] for k in ("strategy", "task", "model", "size", "lr", "seed", "kind", "repeat")}
        for r in lines
    }
    md, _ = texts(put(tmp_path / "all", lines, cells=cells, baseline="full"))
    assert "beyond it may be" in md and row_of(md, "full")["learning rate"] == "0.001 (highest tried)"
    assert (
        "full has the highest mean test accuracy: 0.840 ± 0.025 over 5 seeds, at the highest rate that it "
        "tried." in md
    )
    more = {**cells, "new": {**cells[lines[0]["cell"]], "lr": 1e-2}}
    md, _ = texts(put(tmp_path / "some", lines, cells=more, baseline="full"))
    assert "Not all runs of full are there yet: which rate counts may change." in md and "beyond it" not in md
    assert row_of(md, "full")["learning rate"] == "0.001"


def test_a_pair_that_was_not_tested_is_not_one_that_cannot_be_told_apart(tmp_path):
    lines = [r for r in rows() if r["strategy"] != "head" or r["seed"] == 0]
    md, _ = texts(put(tmp_path, lines, baseline="full"))
    assert re.search(r"\d of 3 pairs can be told apart; 3 have too few common seeds, or a failed run\.", md)
    assert "with the correction for 3 pairs" in md


def test_the_figure_is_explained_in_markdown_too(tmp_path):
    md, _ = texts(put(tmp_path, rows(), baseline="full"))
    assert md.count("Test accuracy against cost. Bars are 95 % intervals") == 1 and "dashed: full." in md


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.31, "31.0 %"),
        (0.0014, "0.14 %"),
        (3.4e-5, "0.003 %"),
        (5e-7, "0.00005 %"),
    ],
)
def test_a_share_above_nothing_is_not_said_to_be_nothing(share, said):
    assert format.percent(share) == said


def test_a_search_has_no_report_and_says_where_its_trials_are(tmp_path):
    (tmp_path / "tune.json").write_text("{}")
    with pytest.raises(UserError, match=r"a search has no report; .*tune\.json has all of them"):
        report.write(tmp_path)


def test_the_time_of_a_shared_run_is_that_of_its_steps_alone(tmp_path):
    md, _ = texts(put(tmp_path, [{**r, "seconds": 0.1} for r in rows()]))
    assert row_of(md, "top-2")["time of all steps, nothing cached"] == "2.0 s"


def test_wide_intervals_leave_room_for_the_values():
    """Two seeds have intervals thirteen times as wide as they differ."""
    two = stats.summary([0.80, 0.82])
    low, high = figures.limits([0.80, 0.82, 0.76], [two])
    assert two.lo < low < 0.76 and 0.82 < high < two.hi and (0.82 - 0.76) / (high - low) > 0.6
    ax = Figure().subplots()
    figures.interval(ax, 1.0, two, (low, high), "#000000", 1)
    # cut, and said so by two arrowheads
    assert [list(line.get_ydata()) for line in ax.lines] == [[low, high], [low], [high]]
    narrow = stats.summary([0.80, 0.81, 0.80, 0.81, 0.80])
    ax = Figure().subplots()
    figures.interval(ax, 1.0, narrow, figures.limits([0.78, 0.83], [narrow]), "#000000", 1)
    assert [list(line.get_ydata()) for line in ax.lines] == [[narrow.lo, narrow.hi]]


def test_sizes_and_models_have_a_section_each():
    lines = [{**r, "size": n, "model": m} for r in rows(1) for n in (100, 0) for m in ("small", "large")]
    lines += [{**rows(1)[0], "size": 100, "kind": "majority", "strategy": "majority class"}]
    found = dict(bench_page.sections(lines))
    assert set(found) == {
        f"sst2, {m}, {n}" for m in ("small", "large") for n in ("100 examples", "all examples")
    }
    assert {title: len(here) for title, here in found.items() if "small" in title} == {
        "sst2, small, 100 examples": 5,
        "sst2, small, all examples": 4,
    }


def test_folders_merge_into_one_report(tmp_path):
    half = [r for r in rows() if r["seed"] < 3]
    a, b = (
        put(tmp_path / "a", half, baseline="full"),
        put(tmp_path / "b", [r for r in rows() if r["seed"] >= 2]),
    )
    md = report.write(a, b, to=tmp_path / "both")["md"]
    assert (
        md.parent == tmp_path / "both" and row_of(md.read_text(), "full")["test accuracy"] == "0.840 ± 0.025"
    )
    assert not (a / "report.md").exists()
    with pytest.raises(UserError, match=r"run: expected bench\.json .*; only benchmarks are merged"):
        report.write(a, put_run(tmp_path / "run", []))


@pytest.mark.picture
def test_nothing_finished_and_missing_numbers_still_make_a_report(tmp_path):
    failed = [{**r, "status": "failed", "error": "x", "test": None} for r in rows(seeds=1)]
    assert "No run has finished." in texts(put(tmp_path / "a", failed))[0]
    bare = [
        {**r, "seconds": None, "seconds_per_step": None, "flops_per_step": None, "trainable_share": None}
        for r in rows()
    ]
    assert costs(texts(put(tmp_path / "b", bare))[0], "head") == ["–"] * 7


def test_two_tasks_have_a_table_each(tmp_path):
    md, html = texts(put(tmp_path, rows() + rows(task="mrpc")))
    assert "## sst2" in md and "## mrpc" in md and html.count('<table class="bench">') == 2


def test_mixed_environments_are_pointed_out(tmp_path):
    lines = rows()
    lines[3] = {**lines[3], "device": {"kind": "H200"}}
    assert "more than one environment" in texts(put(tmp_path, lines))[0]


class _Page(HTMLParser):
    VOID = ("meta", "br", "link", "img")

    def __init__(self):
        super().__init__()
        self.open, self.outside = [], []

    def handle_starttag(self, tag, attrs):
        self.outside += [
            v
            for k, v in attrs
            if k in ("src", "href", "xlink:href") and v and not v.startswith(("#", "data:"))
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.drawn
def test_the_page_is_self_contained_and_closed(tmp_path):
    _, html = texts(put(tmp_path, rows()))
    page = _Page()
    page.feed(html)
    assert page.open == [] and page.outside == []
    assert (
        "url(http" not in html
        and "@import" not in html
        and "<script" not in html
        and 'name="viewport"' in html
    )
    # figures take the page's colours
    assert not re.search(r"#(1f2328|848b93|22618f)", html.split("</style>", 1)[1])


def test_names_do_not_overlap_in_the_figure():
    crowd = {
        f"strategy-{i}": ("full", "pre", 0.80 + 0.002 * (i % 3), 0.2 + 0.01 * i, 0.03 + 0.0005 * i)
        for i in range(9)
    }
    quoted = results.quoted(rows(strategies=crowd), "accuracy")
    lines = comparison.lines(quoted, list(crowd), "strategy-0", "accuracy", True)
    figure = figures.Figure(figsize=(5.2, 4))
    ax = figure.subplots()
    figures._draw(figure, {cost_panels.SharePanel(lines, "accuracy", "strategy-0"): ax})
    boxes = [t.get_window_extent() for t in ax.texts if t.get_text()]
    assert len(boxes) == 9
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


@pytest.mark.picture
def test_a_run_alone_has_curves_and_numbers(tmp_path):
    lines = [
        {"step": s, "split": "train", "mlm_loss": 9 - s / 100, "nsp_accuracy": 0.5, "lr": 1e-4}
        for s in range(1, 200)
    ]
    lines += [{"step": s, "split": "dev", "mlm_loss": 9 - s / 110, "nsp_accuracy": None} for s in (100, 199)]
    put_run(tmp_path, lines)
    md, html = texts(tmp_path)
    assert (
        "Not finished: the newest line is of step 199." in md
        and html.count('role="img"') == 2
        and line_of(md, "mlm_loss")[1] == "7.1909"
    )
    (tmp_path / "result.json").write_text(
        json.dumps(
            {
                "dev": {"mlm_loss": 7.0},
                "test": {"mlm_loss": 7.5},
                "steps": 199,
                "seconds": 61,
                "seconds_per_step": 0.3,
                "best_step": 100,
                "trainable": 5,
                "total": 10,
                "trainable_share": 0.5,
                "versions": {"jax": "0.10"},
                "times": {"starts": 2, "seconds": {"step": 6, "save": 3}, "lost_steps": 0, "goodput": 0.67},
            }
        )
    )
    md, _ = texts(tmp_path)
    assert "Wall time: 9.0 s in 2 starts, 67% in steps (saving 33%)." in md
    assert (
        "199 steps in 1 min 1 s with evaluations and checkpoints, 300 ms a step. 5 of 10 parameters moved "
        "(50.0 %)."
        in md
        and line_of(md, "mlm_loss")[1:]
        == [
            "7.0000",
            "7.5000",
        ]
    )


@pytest.mark.drawn
def test_the_same_lines_make_the_same_page(tmp_path):
    assert texts(put(tmp_path / "a", rows())) == texts(put(tmp_path / "b", rows()))


def test_bad_folders_and_lines(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        report.write(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected bench\.json .* there is: config\.json"):
        report.write(tmp_path)
    put(tmp_path, [{"cell": "a", "strategy": "s", "seed": 0, "status": "failed"}])
    (tmp_path / "cells" / "b.json").write_text("not json")
    with pytest.raises(UserError, match=r"cells/b\.json is damaged \(not JSON"):
        report.write(tmp_path)
    (tmp_path / "cells" / "b.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match=r"b\.json is damaged \(cell is missing\)"):
        report.write(tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of JSON"):
        report.write(tmp_path / "torn")
    put_run(tmp_path / "run", [{"loss": 1}])
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: expected a step"):
        report.write(tmp_path / "run")


# ---------------------------------------------------------------- what to do, and where it is shown


def test_an_interval_without_zero_and_a_verdict_that_allows_for_all_comparisons(tmp_path):
    lines = rows()
    full = {r["seed"]: r["test"]["accuracy"] for r in lines if r["strategy"] == "full"}
    for row in lines:
        if row["strategy"] == "head":  # p = 0.04 alone, twice that beside another comparison
            row["test"]["accuracy"] = full[row["seed"]] + (0.02, 0.03, 0.01, 0.035, 0.0)[row["seed"]]
    md, _ = texts(put(tmp_path, lines))
    assert (
        "+0.019 [+0.001,\xa0+0.037] to full (cannot be told apart once all comparisons are allowed for)" in md
    )
    assert (
        "to full (cannot be told apart)"
        in texts(put(tmp_path / "b", [r for r in rows() if r["strategy"] != "head"]))[0]
    )


def advised(md):
    return re.search(r"^\*\*(?:Train|If you train one, take) (.*?)\*\*", md, re.MULTILINE)[1]


def scored(**of):
    """One section's rows by strategy and seed; a step costs what STRATEGIES say."""
    return scores(**{name: dict(enumerate(its)) for name, its in of.items()})


FULL = (0.80, 0.82, 0.81, 0.83, 0.80)


def test_the_cheapest_of_what_is_not_measurably_worse_is_advised(tmp_path):
    lower = tuple(x - 0.1 - 0.001 * i for i, x in enumerate(FULL))
    near = tuple(x - 0.002 + 0.006 * (-1) ** i for i, x in enumerate(FULL))
    md, _ = texts(put(tmp_path / "a", scored(full=FULL, head=lower, **{"top-2": near}), baseline="full"))
    # head is cheaper, and measurably worse
    assert advised(md) == "top-2" and "The cheapest of them is top-2" in md
    md, _ = texts(put(tmp_path / "b", scored(full=FULL, head=near), baseline="full"))
    assert advised(md) == "head" and "No two strategies can be told apart, so take the cheapest." in md
    lines = [{**r, "flops_per_step": None} for r in scored(full=FULL, head=near)]
    assert advised(texts(put(tmp_path / "c", lines, baseline="full"))[0]) == "head"  # then time decides


def reference(name="TF-IDF", score=1.0, seeds=2):
    return [
        {
            **r,
            "cell": f"ref{r['seed']}",
            "strategy": name,
            "kind": "tfidf",
            "freeze": None,
            "init_from": None,
            "test": {"accuracy": score},
        }
        for r in rows(seeds)
        if r["strategy"] == "head"
    ]


def test_it_says_that_every_mean_is_below_the_reference(tmp_path):
    md, _ = texts(
        put(tmp_path / "one", [*scored(full=(0.8,), head=(0.7,)), *reference(seeds=1)], baseline="full")
    )
    said = (
        "No strategy scored above TF-IDF (1.000). These runs give no clear reason to prefer any of them to "
        "TF-IDF."
    )
    assert md.index(said) < md.index("**If you train one, take full**")
    md, _ = texts(
        put(
            tmp_path / "some",
            [*scored(full=(0.8,), head=(0.7,)), *reference(score=0.75, seeds=1)],
            baseline="full",
        )
    )
    # with one seed that may be chance, which is said
    assert "scored above" not in md and "**Train full**" in md
    lines = [*scored(full=(0.80, 0.82), head=(0.71, 0.72)), *reference()]
    md, _ = texts(put(tmp_path / "two", lines, baseline="full"))
    said = r"Every strategy scored below TF-IDF \(1\.000\): full, the best of them, differs by −0\.190 \["
    assert re.search(said, md) and "**If you train one, take full**" in md
    losses = [{**r, "metric": "loss", "test": {"loss": 1 - r["test"]["accuracy"]}} for r in lines]
    assert (
        "Every strategy scored above TF-IDF (0.000)"
        in texts(put(tmp_path / "loss", losses, baseline="full"))[0]
    )
    md, _ = texts(put(tmp_path / "random", scored(full=(0.80, 0.82), scratch=(0.85, 0.86)), baseline="full"))
    assert "Every other strategy scored below scratch (0.855): full" in md and "has shown its worth" not in md


def test_what_its_own_interval_says_is_worse_is_not_advised(tmp_path):
    """With two seeds the correction for all pairs leaves almost everything open."""
    of = {"full": (0.800, 0.820), "head": (0.487, 0.487), "scratch": (0.7, 0.9)}
    md, _ = texts(put(tmp_path / "a", scored(**of), baseline="full"))
    assert "0 of 3 pairs can be told apart" in md and "take the cheapest" not in md
    assert advised(md) == "full" and "scratch is not measurably worse, but it is not cheaper." in md
    assert re.search(
        r"head may be worse: −0.323 \[−0.4\S+\s−0.1\S+\] to full\. More seeds would decide\.", md
    )
    of = {"full": of["full"], "head": of["head"], "top-2": (0.7, 0.7325)}
    md, _ = texts(put(tmp_path / "b", scored(**of), baseline="full"))
    assert advised(md) == "full" and "is cheaper" not in md and "The cheapest of" not in md
    assert re.search(r"head and top-2 may be worse: −0.3\S+ \[.*\] and −0.0\S+ \[.*\] to full\. More", md)
    lines = [{**r, "metric": "loss", "test": {"loss": 1 - r["test"]["accuracy"]}} for r in scored(**of)]
    assert advised(texts(put(tmp_path / "loss", lines, baseline="full"))[0]) == "full"


def test_seeds_without_spread_have_no_interval_to_contradict_the_verdict(tmp_path):
    lines = scored(full=(0.75,) * 3, head=(0.5,) * 3)
    md, html = texts(put(tmp_path, lines, baseline="full"))
    found = row_of(md, "head")
    assert found["test accuracy"] == "0.500" and found["to full"] == found["difference"] == "−0.250"
    assert found["verdict"] == "cannot be told apart" and found["bootstrap"] == ""
    assert (
        "± 0.000" not in md + html
        and "[−0.250" not in md + html
        and "No ± where all seeds give the same" in md
    )
    assert "head may be worse: −0.250 to full. More seeds" in md and advised(md) == "full"


def test_what_is_level_and_not_cheaper_is_said_of_one_and_of_many(tmp_path):
    near = tuple(x - 0.002 + 0.006 * (-1) ** i for i, x in enumerate(FULL))
    md, _ = texts(put(tmp_path / "one", scored(**{"top-2": near, "full": FULL}), baseline="full"))
    assert "It cannot be told apart from top-2.\nThe cheapest of them is top-2" in md
    md, _ = texts(put(tmp_path / "many", scored(full=near, scratch=near, head=FULL), baseline="full"))
    assert "full and scratch are not measurably worse, but none of them is cheaper." in md


def test_first_of_all_it_says_that_nothing_beats_the_references(tmp_path):
    majority = [
        {
            **r,
            "cell": f"m{r['seed']}",
            "strategy": "majority class",
            "kind": "majority",
            "freeze": None,
            "init_from": None,
            "test": {"accuracy": 0.83},
        }
        for r in rows()
        if r["strategy"] == "head"
    ]
    near = tuple(x - 0.002 + 0.006 * (-1) ** i for i, x in enumerate(FULL))
    md, html = texts(put(tmp_path / "a", [*scored(full=FULL, head=near), *majority], baseline="full"))
    first = md.index("Every strategy scored below majority class (0.830)")
    assert (
        first < md.index("**If you train one, take head**") < md.index("| strategy")
        and "If you train one, take head" in html
    )
    md, _ = texts(put(tmp_path / "b", scored(full=FULL, head=near, scratch=FULL), baseline="full"))
    # random weights are a reference, too
    assert "No other strategy is measurably better than scratch (0.812)" in md


def with_pages(folder, extra="", **bench):
    """Rows that ran by a page's command, and the page in bench.json."""
    command = f"ptft bench --config 'my page.py:x' --config.optim.eps=1e-7 --config.bench.seeds=[0]{extra}"
    strategies = [
        {"name": "top-2", "freeze": "top-2", "optim.decay": 0.9},
        {"name": "full", "freeze": "full"},
    ]
    page = {"optim": {"lr": 1e-3, "eps": 1e-7}, "batch": 8, "bench": {"strategies": strategies}}

    def own(r):
        config = {
            "freeze": r["freeze"],
            "seed": r["seed"],
            "batch": 8,
            "keep": 2,
            "init_weights": bool(r["init_from"]),
            "optim": {"lr": 1e-4, "eps": 1e-7, "decay": 0.9},
            "data": {"train_size": 100},
        }
        return {
            **r,
            "size": 100,
            "config": config,
            "command": f"{command} --only {r['cell']} --workdir runs/{r['cell']}",
        }

    lines = [own(r) for r in rows()]
    cells = {
        r["cell"]: {k: r[k] for k in ("strategy", "task", "model", "size", "lr", "seed", "kind", "repeat")}
        for r in lines
    }
    return put(folder, lines, baseline="full", cells=cells, config=page, **bench)


def test_the_heading_counts_the_strategies_that_the_page_names(tmp_path):
    assert "\n2 strategies, 5 seeds, 20 finished runs\n" in texts(with_pages(tmp_path))[0]


def test_the_command_trains_what_is_advised(tmp_path):
    """The page, what was changed of it, the strategy with all of its keys, and the rows; nothing of bench,
    and no default."""
    md, html = texts(with_pages(tmp_path))
    command = next(line for line in md.splitlines() if line.startswith("    ptft train"))
    assert shlex.split(command)[2:] == [
        "--config", "my page.py:x", "--config.optim.eps=1e-7", "--config.freeze=top-2",
        "--config.optim.lr=0.0001",
        "--config.optim.decay=0.9", "--config.data.train_size=100", "--workdir", "runs/top-2",
    ]  # fmt: skip
    assert "<pre><code>ptft train --config &#39;my page.py:x&#39;" in html
    assert "ptft train" not in texts(put(tmp_path / "old", rows()))[0]  # rows of old do not say their command


def test_the_command_of_every_cell_gives_its_config(tmp_path):
    """Tasks, models, sizes, rates and keys of strategies: what ptft train makes of it is what the cell was,
    but for the seed."""
    values = {
        "batch": 8, "objective": {"name": "classify"},
        "data": {"dev": "files:dev.tsv", "test": "files:test.tsv"},
        "bench": {
            "tasks": [{"name": "a", "data.train": "files:a b.tsv"},
            {"name": "b", "data.train": "files:b.tsv", "train_for": "2 epochs"}],
            "models": [{"name": "small", "model.size": "tiny"}, {"name": "large", "model.size": "mini"}],
            "strategies": [
                {"name": "all", "freeze": "full@decay=0.9"},
                {"name": "no decay", "freeze": "top-1+bitfit", "optim.weight_decay": 0},
                {"name": "rules", "freeze": [["head/.*", "train"], [".*", "freeze"]]},
                {"name": "random", "freeze": "full", "init_weights": False},
            ],
            "sizes": [50, 0], "lr_factors": [1, 3], "seeds": [0], "repeat": False,
        },
    }  # fmt: skip
    page = flow.page(tmp_path / "page.py", values)
    for cell in protocol.cells(values, spec.resolve):
        if cell.kind == "train":
            config = json.loads(json.dumps(cell.config.to_dict()))
            row = {**cell.labels, "freeze": config["freeze"], "config": config, "page": values}
            said = shlex.split(
                command.command({**row, "command": f"ptft bench --config {page} --only x --workdir runs/x"})
            )
            assert said[:4] == ["ptft", "train", "--config", str(page)] and said[-2] == "--workdir"
            loaded = pages.load(said[3])
            pages.override(loaded, [word.removeprefix("--config.") for word in said[4:-2]])
            assert (
                json.loads(
                    json.dumps(spec.resolve({k: v for k, v in loaded.items() if k != "bench"}).to_dict())
                )
                == config
            )


def test_a_terminal_shows_the_first_screen(tmp_path):
    names = {
        "full": STRATEGIES["full"],
        "features + logistic regression": STRATEGIES["top-2"],
        "TF-IDF": STRATEGIES["head"],
    }
    lines = [{**r, "bytes": {"peak": 30 * 2**20, "checkpoint": 1}} for r in rows(strategies=names)]
    screen = markdown.first_screen(texts(put(tmp_path / "one", lines, baseline="full"))[0])
    assert max(map(len, screen.splitlines())) <= 105 and len(screen.splitlines()) < 40
    assert (
        "**Train features" in screen
        and "| features + logistic regression | 0.842 ± " in screen
        and "A/A" not in screen
    )
    both = [*lines, *[{**r, "cell": f"b{r['cell']}", "task": "mrpc"} for r in lines]]
    screen = markdown.first_screen(texts(put(tmp_path / "two", both, baseline="full"))[0])
    assert (
        "| mrpc | features + logistic regression | 0.842 ± " in screen
        and "## mrpc" not in screen
        and len(screen.splitlines()) < 15
    )
    run = texts(put_run(tmp_path / "run", [{"step": 1, "split": "dev", "loss": 1.0}]))[0]
    assert markdown.first_screen(run).count("loss") == run.count("loss")


TITLES = ["<img src=x onerror=alert(1)>", "a|b\nc `x` *y* _z_ [l](http://e) &amp; $x^$ ", "# h ~~s~~ \\"]


@pytest.mark.picture
def test_names_are_shown_as_they_are(tmp_path):
    names = dict(zip(STRATEGIES, TITLES, strict=False))
    lines = [{**r, "strategy": names.get(r["strategy"], r["strategy"]), "task": TITLES[0]} for r in rows()]
    lines[3] |= {"status": "failed", "error": "<b>|\n# no"}
    md, html = texts(put(tmp_path, lines))
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(md)
    ours = {"h1", "h2", "p", "strong", "img", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(re.findall(r"<(\w+)", page)) == ours
    assert page.count("<img") == 1 and "<img" not in html  # ours
    shown = unescape(page)
    for name in names.values():
        seen = name.replace("\n", "␊").strip()
        assert f"<td>{seen}</td>" in shown and f"<td>{name} (freeze=".replace("\n", "␊") in shown
    assert f"<h2>{TITLES[0]}</h2>" in shown and "<li>" + TITLES[0] + ", # h" not in shown
    assert all(name.replace("\n", "␊").strip() in markdown.first_screen(md) for name in names.values())


def test_any_text_is_shown_as_it_is():
    longer = ["&lt;", "[a](b)", "**", "__", "~~", "```", "1. ", "- ", " #", "<!--"]
    signs = [*"ab1 .)#>+=-_*`~|\\[]()<>&;:!\n\t", *longer]
    render, rng = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render, random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices(signs, k=rng.randint(1, 8)))
        if not (seen := text.replace("\n", "␊").replace("\t", "␉").strip()):
            continue
        assert unescape(render(markdown.line(text))) == f"<p>{seen}</p>\n"
        assert unescape(render(f"## {markdown.inline(text)}")) == f"<h2>{seen}</h2>\n"
        table = render(f"| a | b |\n|---|---|\n| {markdown.inline(text)} | c |")
        assert unescape(table).endswith(f"<td>{seen}</td>\n<td>c</td>\n</tr>\n</tbody>\n</table>\n")


def test_no_table_is_wider_than_the_page(tmp_path):
    """Whatever the names and the number of strategies: a table lies in a box that scrolls by itself."""
    many = {
        f"{'a long name of a strategy ' * 3}{i}": ("full", "pre", 0.8 + 0.001 * i, 0.5, 0.03)
        for i in range(9)
    }
    for folder in (put(tmp_path / "bench", rows(strategies=many)), None):
        html = texts(folder)[1] if folder else with_ledger(tmp_path / "run")[1]
        boxes = re.findall(r'<div class="wide">\s*<table', html)
        assert len(boxes) == html.count("<table") > 0 and ".wide { overflow-x: auto" in html


@pytest.mark.drawn
@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_a_browser_shows_the_page_without_a_horizontal_bar(tmp_path):
    """At the width of a small screen and of a phone, which an iframe has, as a window cannot be so narrow."""
    many = {f"strategy with a name {i}": ("full", "pre", 0.8 + 0.001 * i, 0.5, 0.03) for i in range(9)}
    report.write(with_pages(tmp_path))
    report.write(put(tmp_path / "many", rows(strategies=many)))
    frames = "".join(
        f'<iframe src="{f}report.html" width="{w}" height="900"></iframe>'
        for w in (1280, 400)
        for f in ("", "many/")
    )
    script = (
        "onload = () => document.title = [...document.querySelectorAll('iframe')].map(f => "
        "f.contentDocument.documentElement).map(e => e.scrollWidth - e.clientWidth)"
    )
    (tmp_path / "frames.html").write_text(f"<!doctype html><title></title>{frames}<script>{script}</script>")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--dump-dom",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    dom = subprocess.run(
        [CHROMIUM, *flags, (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=120
    ).stdout
    assert "<title>0,0,0,0</title>" in dom


# --- the freeze ledger --------------------------------------------------------------------------------------

SHAPES = {
    "backbone/embeddings/word/embedding": (9, 4), "backbone/block_0/attention/query/kernel": (4, 4),
    "backbone/block_0/attention/query/bias": (4,), "backbone/block_2/attention/query/bias": (4,),
    "backbone/block_10/attention/query/kernel": (4, 4), "backbone/block_0/attention_norm/scale": (4,),
    "backbone/pooler/bias": (4,),
    "adapter/block_0/attention/query/lora/a": (4, 2), "adapter/block_0/attention/query/lora/b": (2, 4),
    "head/classifier/bias": (2,),
}  # fmt: skip
ADDED = (
    "adapter/block_0/attention/query/lora/a",
    "adapter/block_0/attention/query/lora/b",
    "head/classifier/bias",
)


def proof(moved=ADDED, scale=1.25):
    """A ledger of these tensors, of which LoRA and the head are trainable; LoRA's second matrix starts at
    zero."""
    before = {n: np.full(s, 0.0 if n.endswith("/b") else 1.0, np.float32) for n, s in SHAPES.items()}
    after = {
        n: (x + 0.5 if n.endswith("/b") else x * np.float32(scale)) if n in moved else x
        for n, x in before.items()
    }
    plan = resolved([("(head|adapter)/.*", "train"), (".*", "freeze")], models.anatomy("bert"), before)
    return ledger.make(plan, before, after, optax.sgd(1.0, 0.9).init({n: before[n] for n in plan.trainable}))


def with_ledger(folder, **made):
    put_run(folder, [{"step": 1, "split": "train", "loss": 1.0}])
    (folder / "freeze_ledger.json").write_text(json.dumps(proof(**made)))
    return texts(folder)


@pytest.mark.drawn
def test_the_ledger_is_shown_as_sentence_table_and_grid(tmp_path):
    md, html = with_ledger(tmp_path)
    assert (
        "## What moved" in md
        and "The freeze held: 3 tensors moved; 7 were frozen and are the same to the bit." in md
    )
    assert line_of(md, "block 0")[1:] == ["2", "3", "2.5e-01", "query lora a"] and line_of(md, "pooler")[
        1:
    ] == ["0", "1", "–", "–"]
    names = [line.split("|")[1].strip() for line in md.splitlines() if line.startswith("| ")]
    assert names[-6:] == ["embeddings", "block 0", "block 2", "block 10", "pooler", "head"]
    for name in SHAPES:  # every tensor: one title in the grid, one line below it
        assert html.count(f"<title>{name}: ") == 1 and html.count(f"<tr><td>{name}</td>") == 1
    assert "<title>head/classifier/bias: moved, 2.50e-01 of its largest element</title>" in html
    assert "<tr><td>adapter/block_0/attention/query/lora/b</td><td>moved</td><td>from zero</td>" in html
    page = _Page()
    page.feed(html)
    assert page.open == [] and page.outside == []
    assert not re.search(r"#(1f2328|848b93|22618f|a33a2a)", html.split("</style>", 1)[1])


@pytest.mark.drawn
def test_a_ledger_that_does_not_hold_is_told_apart(tmp_path):
    bad = "backbone/block_0/attention/query/bias"
    md, html = with_ledger(tmp_path, moved=(*ADDED[1:], bad))
    assert (
        "The freeze did not hold." in md
        and f"Frozen, but moved: {bad}." in md
        and f"Trainable, but did not move: {ADDED[0]}." in md
    )
    assert (
        f"<title>{bad}: frozen, but moved" in html
        and "fill: var(--bad)" in html
        and "stroke: var(--bad)" in html
    )
    assert "fill: var(--bad)" not in with_ledger(tmp_path / "good")[1]


def test_a_cell_is_as_dark_as_its_change():
    """Log scale: equal ratios are equal steps; what stands still is hatched, never filled."""
    panel = ledger_page.LedgerPanel(proof()["rows"])
    panel.low, panel.high = -4, 0
    ax = figures.Figure().subplots()
    shade = [
        panel._box(ax, ledger_page.Box(0, 0, 10), "moved", 10.0**p).get_alpha() for p in (-4, -3, -2, -1, 0)
    ]
    steps = np.diff(shade)
    assert shade[-1] == 1 and shade[0] > 0 and steps == pytest.approx(steps[0])
    frozen = panel._box(ax, ledger_page.Box(0, 0, 10), "frozen, the same", None)
    assert frozen.get_hatch() and frozen.get_facecolor()[3] == 0


def test_one_cell_for_the_two_arrays_of_fish_shows_the_worse():
    rows = [{"name": f"adapter/block_0/ffn/up/kernel/fish/{n}", "verdict": v, "relative": r} for n, v, r in
            (("index", "frozen, the same", 0.0), ("values", "moved", 0.5))]  # fmt: skip
    (group,) = ledger_page.groups(rows)
    (cell,) = group.layers["block 0"].values()
    assert len(cell) == 2 and ledger_page.verdict(cell) == "moved" and ledger_page.relative(cell) == 0.5
    rows[0]["verdict"] = "frozen, but moved"
    assert (
        ledger_page.verdict(next(iter(ledger_page.groups(rows)[0].layers["block 0"].values())))
        == "frozen, but moved"
    )


# ---------------------------------------------------------------- what a benchmark lets one conclude


def edited(change, **keywords):
    """The rows, each as `change(row)` has it."""
    return [{**r, **(change(r) or {})} for r in rows(**keywords)]


def test_a_failed_seed_takes_the_interval_away(tmp_path):
    """Leaving the run out flatters: what is shown is said to be of the others."""
    lines = edited(
        lambda r: (
            {"status": "failed", "error": "x", "test": None}
            if (r["strategy"], r["seed"]) == ("top-2", 4)
            else None
        )
    )
    md, html = texts(put(tmp_path, lines, baseline="full"))
    top = row_of(md, "top-2")
    assert top["seeds"] == "4 seeds (1 failed)" and top["test accuracy"].endswith("of those 4 that finished")
    assert "±" not in top["test accuracy"] and top["bootstrap"] == "" and top["difference"] == "–"
    assert top["verdict"] == "a run failed: no interval" and top["rank"] == "1.8"  # last where it failed
    assert "a run failed: no interval" in html and "nan" not in html.lower().replace("nanumber", "")


def test_ranks_and_what_cannot_be_told_apart(tmp_path):
    md, _ = texts(put(tmp_path, rows(), baseline="full"))
    ranks = {name: float(row_of(md, name)["rank"]) for name in ("full", "top-2", "head")}
    assert ranks["head"] == 3 and ranks["full"] + ranks["top-2"] == 3
    assert "full is not measurably worse" in md


def test_all_pairs_are_there_corrected(tmp_path):
    md, html = texts(put(tmp_path, rows(), baseline="full"))
    square = [line for line in md.splitlines() if re.match(r"\| \d ", line)]
    assert len(square) == 4 and "5 of 6 pairs can be told apart" in md and "(Holm)" in md
    head = next(line for line in square if " head " in line).split("|")
    # full, itself, scratch, top-2
    assert "**−" in head[2] and head[3].strip() == "" and "**+" in head[4] and "**−" in head[5]
    assert (
        html.count('<td class="worse"') == 5
        and html.count('<td class="better"') == 5
        and "less top-2: worse, p = " in html
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (0.0, "The A/A check holds: full under two names gives the same scores to the bit."),
        (
            [0.001, -0.001, 0.002, 0, -0.001],
            "The A/A check holds: full less itself under another name is +0.000",
        ),
        ([0.001] * 5, "The A/A check FAILS: full differs from itself by +0.001"),
        (
            [0.1, -0.1, 0.2, 0, -0.1],
            "The A/A check finds nothing, at intervals too wide to find much: full less itself under "
            "another name",
        ),
        (0.02, "The A/A check FAILS: full differs from itself by +0.020"),
        (None, "There is no A/A check"),
    ],
)
def test_the_check_of_the_benchmark_itself(tmp_path, change, says):
    again = [
        {
            **r,
            "cell": f"a{r['seed']}",
            "strategy": "full (A/A)",
            "repeat": True,
            "test": {
                "accuracy": r["test"]["accuracy"]
                + (change[r["seed"]] if isinstance(change, list) else change or 0)
            },
        }
        for r in rows()
        if r["strategy"] == "full"
    ]
    md, html = texts(put(tmp_path, [*rows(), *(again if change is not None else [])], baseline="full"))
    assert says in md and says in html


def test_how_many_seeds_a_point_takes(tmp_path):
    md, _ = texts(put(tmp_path / "a", rows(), baseline="full"))
    found = re.search(
        r"four times in five takes about (\d+) seeds \((\d+) seeds where .* least, (\d+) .*; about (\d+) "
        r"seeds with",
        md,
    )
    middle, least, most, corrected = map(int, found.groups())
    assert 2 <= least <= middle <= most and least < most and middle < corrected
    assert "four times in five" not in texts(put(tmp_path / "b", rows(seeds=1), baseline="full"))[0]


def test_the_bootstrap_interval_is_beside(tmp_path):
    md, html = texts(put(tmp_path, rows(), baseline="full"))
    low, high = map(float, row_of(md, "full")["bootstrap"].strip("[]").split(",\N{NO-BREAK SPACE}"))
    assert 0.80 < low < 0.84 < high < 0.88 and "Bootstrap intervals are" in md
    assert f"<td>[{low:.3f},\N{NO-BREAK SPACE}{high:.3f}]</td>" in html
    assert "Bootstrap" not in texts(put(tmp_path / "b", rows(seeds=2)))[0]


def test_every_row_has_its_command(tmp_path):
    lines = edited(
        lambda r: {
            "command": f"ptft bench --config x.py --only {r['seed']:03}abc --workdir runs/{r['seed']:03}abc"
        }
    )
    md, html = texts(put(tmp_path, lines))
    assert (
        "`ptft bench --config x.py --only HASH --workdir runs/HASH`" in md
        and "- top-2: seed 0 000abc, seed 1 001abc" in md
    )
    assert "ptft bench --config x.py --only HASH" in html and "seed 4 004abc" in html


@pytest.mark.picture
def test_costs_forgetting_drift_rates_and_sizes_are_drawn_where_known(tmp_path):
    def known(r):
        after = 2.0 if r["strategy"] == "head" else 2.3 + 0.01 * r["seed"]
        drift = {
            "backbone/block_1/ffn/up/kernel": 0.02,
            "backbone/block_1/x": 0.04,
            "head/classifier/kernel": 9.0,
            "backbone/embeddings/w": None,
        }
        return {
            "bytes": {"peak": 30 * 2**20, "checkpoint": 5 * 2**20},
            "forgetting": {"before": 2.0, "after": after},
            "drift": {} if r["strategy"] == "head" else drift, "dev": {"accuracy": 0.8},
        }  # fmt: skip

    both = [
        {
            **r,
            "cell": f"{r['cell']}{size}{lr}",
            "size": size,
            "lr": lr,
            "dev": {"accuracy": 0.8 + (lr == 3e-4) / 10},
        }
        for r in edited(known)
        for size in (100, 400)
        for lr in (1e-4, 3e-4)
    ]
    md, html = texts(put(tmp_path, both, baseline="full"))
    drawn = [
        "peak memory of a step, MiB", "checkpoint, MiB", "FLOPs a step, relative to full", (
            "loss of the pretraining on held-out "
            "text"
        ),
        "dev accuracy by learning rate", "how far each layer moved", (
            "test accuracy by number of training "
            "examples"
        ),
    ]  # fmt: skip
    for said in drawn:
        assert said in html, said
    assert [row_of(md, "head")[c] for c in ("peak memory", "checkpoint", "forgetting")] == [
        "30 MiB",
        "5.0 MiB",
        "0",
    ] and row_of(md, "full")["forgetting"].startswith("+0.320 [+0.300,")
    assert "by number of examples" in md and ">3 %<" in html  # the median of 2 % and 4 %
    bare, page = texts(put(tmp_path / "b", rows()))
    assert (
        "forgetting" not in bare
        and "dev accuracy" not in page
        and "moved:" not in page
        and "peak memory of" not in page
    )


def test_what_auto_chose_is_said(tmp_path):
    lines = edited(
        lambda r: {"chosen": "top-1" if r["seed"] else "layers=0"} if r["strategy"] == "top-2" else None
    )
    assert "| top-2 (top-1 in 4 of 5, layers=0 in 1 of 5) |" in texts(put(tmp_path, lines))[0]


def test_layer_drift_is_the_backbones(tmp_path):
    drift = [
        {"drift": {"backbone/block_0/a": 0.1, "backbone/block_0/b": 0.3, "head/x": 5.0}},
        {"drift": {"backbone/block_0/a": 0.4}},
        {},
    ]
    assert bench_page.layer_drift(drift) == {"block_0": pytest.approx(0.3)}


def test_what_was_published_is_checked(tmp_path):
    md, html = texts(put(tmp_path, rows(), baseline="full"))
    assert (
        "A step saves no more time than FLOPs | holds |" in md
        and "9 others cannot be judged with these data." in md
    )
    # more layers: no worse, but the intervals are wide
    assert "arXiv 1911.03090" not in html and "| open |" not in md
    gradual = {**STRATEGIES, "head": ("gradual", "pre", 0.76, 0.5, 0.03)}
    md, html = texts(put(tmp_path / "some", rows(strategies=gradual), baseline="full"))
    assert (
        "## What published tables lead one to expect" in md
        and "8 others cannot be judged with these data." in md
    )
    assert (
        "Gradual unfreezing without discriminative rates is about full | does not hold |" in md
        and "arXiv 1801.06146" in html
    )
    alone = [r for r in rows() if r["strategy"] == "full"]
    assert "published" not in texts(put(tmp_path / "none", alone, baseline="full"))[0]


def test_cells_as_a_table(tmp_path):
    lines = edited(
        lambda r: {
            "forgetting": {"before": 2.0, "after": 2.5},
            "command": "ptft bench --config 'a, b.py'",
            "error": 'a "quoted"\nline',
        }
    )
    paths = report.write(put(tmp_path, lines, baseline="full"), table=True)
    with paths["csv"].open(newline="") as f:
        found = list(csv.DictReader(f))
    assert (
        len(found) == 20
        and list(found[0])[:5] == ["cell", "task", "model", "size", "strategy"]
        and list(found[0])[-1] == "command"
    )
    assert (
        float(found[0]["test_accuracy"]) == lines[0]["test"]["accuracy"]
        and found[0]["forgetting_after"] == "2.5"
    )
    assert (
        found[0]["command"] == "ptft bench --config 'a, b.py'"
        and found[0]["error"] == 'a "quoted"\nline'
        and found[0]["peak_rss"] == ""
    )
    with pytest.raises(UserError, match="--csv is of benchmarks"):
        report.write(put_run(tmp_path / "run", [{"step": 1, "split": "train", "loss": 1.0}]), table=True)


def test_a_run_says_what_moved_when_and_at_what_cost(tmp_path):
    put_run(tmp_path, [{"step": 1, "split": "train", "loss": 1.0}])
    config = {"freeze": "head; 50%: top-1", "init_from": "minilm", "frozen_dtype": "int8"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model": {"name": "bert"}}))
    result = {"steps": 8, "seconds": 2.0, "seconds_per_step": 0.1, "flops_per_step": 7.46e9, "best_step": 8}
    (tmp_path / "result.json").write_text(json.dumps({**result, "trainable": 10, "total": 100}))
    phases = [{"strategy": "head", "began": 0}, {"strategy": "top-1", "began": 4}]
    assert run_page._what(config, phases) == (
        "freeze: head; 50%: top-1; from minilm; phases: head from step 0, top-1 from step 4; frozen "
        "matrices in int8."
    )
    md, _ = texts(tmp_path)
    assert (
        "freeze: head; 50%: top-1; from minilm; frozen matrices in int8." in md
        and "A step costs 7.46 GFLOP." in md
    )
