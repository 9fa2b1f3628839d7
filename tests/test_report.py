"""ptft.report: from JSON lines to the three files, and what they say."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import optax
import pytest

from ptft import figures, ledger, ledger_page, models, report
from ptft.errors import UserError
from ptft.freeze import plan as resolved

# name: (freeze, init_from, accuracy without the seed's part, share, seconds a step)
STRATEGIES = {
    "full": ("full", "pre", 0.840, 1.0, 0.040),
    "scratch": ("full", "", 0.700, 1.0, 0.040),
    "top-2": ("top-2", "pre", 0.842, 0.31, 0.020),
    "head": ("head", "pre", 0.760, 0.001, 0.012),
}


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
    return next([c.strip() for c in line.split("|")[1:-1]] for line in md.splitlines() if line.startswith(f"| {name} "))


def test_the_table(tmp_path):
    md, html = texts(put(tmp_path, rows()))
    assert line_of(md, "full")[2:4] == ["5 seeds", "0.840 ± 0.025"] and line_of(md, "full")[6] == "baseline"
    top = line_of(md, "top-2")
    assert top[6] == "cannot be told apart" and top[7:] == ["31.0 %", "20 ms", "0.50", "10.0 s", "0.50"]
    assert line_of(md, "head")[6] == "worse" and line_of(md, "head")[5].startswith("−0.08")
    assert line_of(md, "scratch (freeze=full, random weights)")[6] == "worse"
    assert html.count('<svg class="strip"') == 4 and html.count("<circle") >= 20


def test_the_sentences_are_computed(tmp_path):
    md, _ = texts(put(tmp_path / "a", rows()))
    assert "top-2 has the highest mean test accuracy: 0.842 ±" in md and "No cheaper strategy reaches it" in md
    assert re.search(r"Starting from pretrained instead of random weights changes the test accuracy of full by \+0\.14\d \[", md)
    better = {**STRATEGIES, "full": ("full", "pre", 0.845, 1.0, 0.040)}
    md, _ = texts(put(tmp_path / "b", rows(strategies=better)))
    assert "full has the highest" in md and "cannot be told apart from it is top-2" in md and "takes 0.50 of full's time" in md


def test_a_loss_is_better_when_lower(tmp_path):
    lines = [{**r, "metric": "loss", "test": {"loss": r["test"]["accuracy"]}} for r in rows()]
    md, _ = texts(put(tmp_path, lines))
    assert "scratch has the lowest mean test loss" in md and line_of(md, "head")[6] == "better"


def test_one_seed_says_that_there_is_no_interval(tmp_path):
    md, _ = texts(put(tmp_path, rows(seeds=1)))
    assert "the order may be chance" in md and line_of(md, "head")[6] == "one seed: no interval" and "±" not in line_of(md, "head")[3]


def test_failed_and_missing_cells_are_shown(tmp_path):
    lines = rows()
    lines[-1] = {k: v for k, v in lines[-1].items() if k not in ("test", "seconds")} | {
        "status": "failed",
        "error": "RuntimeError: <out of memory> |",
    }
    cells = {r["cell"]: {"strategy": r["strategy"], "seed": r["seed"]} for r in lines} | {"later": {"strategy": "head", "seed": 9}}
    stale = {**lines[0], "cell": "stale", "test": {"accuracy": 0.0}}
    md, html = texts(
        put(tmp_path, [*lines, stale], cells=cells, baseline="full", command="ptft bench --config configs/bench.py", config_hash="abc123")
    )
    assert "- head, lr 0.0001, seed 4: RuntimeError: &lt;out of memory> \\|" in md and line_of(md, "head")[2] == "4 seeds (1 failed)"
    assert "1 of 21 cells have not run yet" in md and "1 runs of an earlier config" in md and line_of(md, "full")[3] == "0.840 ± 0.025"
    assert "&lt;out of memory&gt;" in html and "<out of" not in html
    assert "ptft bench --config configs/bench.py" in html and "abc123" in md and "jax 0.10" in md and "kind cpu" in md


def test_the_rate_that_dev_chose_is_the_one_that_is_quoted(tmp_path):
    lines = [{**r, "dev": {"accuracy": 0.9}} for r in rows()]
    lines += [{**r, "cell": r["cell"] + "b", "lr": 3e-4, "dev": {"accuracy": 0.8}, "test": {"accuracy": 0.99}} for r in rows()]
    md, _ = texts(put(tmp_path, lines))
    assert line_of(md, "full")[1:4] == ["0.0001", "5 seeds", "0.840 ± 0.025"]


def test_references_and_checks_are_rows_but_win_nothing(tmp_path):
    bare = dict.fromkeys(("freeze", "lr", "init_from", "seconds", "seconds_per_step", "trainable_share", "flops_per_step"))
    majority = [
        {**r, **bare, "cell": f"m{r['seed']}", "strategy": "majority class", "kind": "majority"} for r in rows() if r["strategy"] == "head"
    ]
    again = [{**r, "cell": f"a{r['seed']}", "strategy": "top-2 (A/A)", "repeat": True} for r in rows() if r["strategy"] == "top-2"]
    again = [{**r, "test": {"accuracy": r["test"]["accuracy"] + 0.001}, "seconds_per_step": 0.001} for r in again]
    gone = [
        {**majority[0], "cell": "t", "strategy": "TF-IDF", "kind": "tfidf", "status": "skipped", "error": "no scikit-learn", "test": None}
    ]
    md, html = texts(put(tmp_path, [*rows(), *majority, *again, *gone], baseline="full"))
    assert line_of(md, "majority class")[1:3] == ["–", "5 seeds"] and line_of(md, "majority class")[7:] == ["–"] * 5
    assert (
        "4 strategies, 5 seeds" in md
        and "top-2 has the highest mean" in md
        and line_of(md, "top-2 (A/A) (freeze=top-2)")[6] in ("better", "cannot be told apart")
    )
    assert "TF-IDF: no scikit-learn" in md and "Failed" not in md and html.count('<svg class="strip"') == 6


def test_sizes_and_models_have_a_section_each():
    lines = [{**r, "size": n, "model": m} for r in rows(1) for n in (100, 0) for m in ("small", "large")]
    lines += [{**rows(1)[0], "size": 100, "kind": "majority", "strategy": "majority class"}]
    found = dict(report._sections(lines))
    assert set(found) == {f"sst2, {m}, {n}" for m in ("small", "large") for n in ("100 examples", "all examples")}
    assert {title: len(here) for title, here in found.items() if "small" in title} == {
        "sst2, small, 100 examples": 5,
        "sst2, small, all examples": 4,
    }


def test_folders_merge_into_one_report(tmp_path):
    half = [r for r in rows() if r["seed"] < 3]
    a, b = put(tmp_path / "a", half, baseline="full"), put(tmp_path / "b", [r for r in rows() if r["seed"] >= 2])
    md = report.write(a, b, to=tmp_path / "both")["md"]
    assert md.parent == tmp_path / "both" and line_of(md.read_text(), "full")[2:4] == ["5 seeds", "0.840 ± 0.025"]
    assert not (a / "report.md").exists()
    with pytest.raises(UserError, match=r"run: expected bench\.json .*; only benchmarks are merged"):
        report.write(a, put_run(tmp_path / "run", []))


def test_nothing_finished_and_missing_numbers_still_make_a_report(tmp_path):
    failed = [{**r, "status": "failed", "error": "x", "test": None} for r in rows(seeds=1)]
    assert "No run has finished." in texts(put(tmp_path / "a", failed))[0]
    bare = [{**r, "seconds": None, "seconds_per_step": None, "flops_per_step": None, "trainable_share": None} for r in rows()]
    assert line_of(texts(put(tmp_path / "b", bare))[0], "head")[7:] == ["–"] * 5


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
        self.outside += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith(("#", "data:"))]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_closed(tmp_path):
    _, html = texts(put(tmp_path, rows()))
    page = _Page()
    page.feed(html)
    assert page.open == [] and page.outside == []
    assert "url(http" not in html and "@import" not in html and "<script" not in html and 'name="viewport"' in html
    assert not re.search(r"#(1f2328|848b93|22618f)", html.split("</style>", 1)[1])  # figures take the page's colours


def test_names_do_not_overlap_in_the_figure():
    crowd = {f"strategy-{i}": ("full", "pre", 0.80 + 0.002 * (i % 3), 0.2 + 0.01 * i, 0.03 + 0.0005 * i) for i in range(9)}
    lines = report._lines(rows(strategies=crowd), list(crowd), "strategy-0", "accuracy", True)
    figure = figures.Figure(figsize=(5.2, 4))
    ax = figure.subplots()
    figures.SharePanel(lines, "accuracy", "strategy-0").draw(ax)
    boxes = [t.get_window_extent() for t in ax.texts if t.get_text()]
    assert len(boxes) == 9
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_run_alone_has_curves_and_numbers(tmp_path):
    lines = [{"step": s, "split": "train", "mlm_loss": 9 - s / 100, "nsp_accuracy": 0.5, "lr": 1e-4} for s in range(1, 200)]
    lines += [{"step": s, "split": "dev", "mlm_loss": 9 - s / 110, "nsp_accuracy": None} for s in (100, 199)]
    put_run(tmp_path, lines)
    md, html = texts(tmp_path)
    assert (
        "Not finished: the newest line is of step 199." in md and html.count('role="img"') == 2 and line_of(md, "mlm_loss")[1] == "7.1909"
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
            }
        )
    )
    md, _ = texts(tmp_path)
    assert "199 steps in 1 min 1 s, 300 ms a step. 5 of 10 parameters moved (50.0 %)." in md and line_of(md, "mlm_loss")[1:] == [
        "7.0000",
        "7.5000",
    ]


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
    with pytest.raises(UserError, match=r"cells/b\.json: not JSON"):
        report.write(tmp_path)
    (tmp_path / "cells" / "b.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match="without cell"):
        report.write(tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of JSON"):
        report.write(tmp_path / "torn")
    put_run(tmp_path / "run", [{"loss": 1}])
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: expected a step"):
        report.write(tmp_path / "run")


# --- the freeze ledger ------------------------------------------------------------------------------------------------------

SHAPES = {
    "backbone/embeddings/word/embedding": (9, 4), "backbone/block_0/attention/query/kernel": (4, 4),
    "backbone/block_0/attention/query/bias": (4,), "backbone/block_2/attention/query/bias": (4,),
    "backbone/block_10/attention/query/kernel": (4, 4), "backbone/block_0/attention_norm/scale": (4,), "backbone/pooler/bias": (4,),
    "adapter/block_0/attention/query/lora/a": (4, 2), "adapter/block_0/attention/query/lora/b": (2, 4), "head/classifier/bias": (2,),
}  # fmt: skip
ADDED = ("adapter/block_0/attention/query/lora/a", "adapter/block_0/attention/query/lora/b", "head/classifier/bias")


def proof(moved=ADDED, scale=1.25):
    """A ledger of these tensors, of which LoRA and the head are trainable; LoRA's second matrix starts at zero."""
    before = {n: np.full(s, 0.0 if n.endswith("/b") else 1.0, np.float32) for n, s in SHAPES.items()}
    after = {n: (x + 0.5 if n.endswith("/b") else x * np.float32(scale)) if n in moved else x for n, x in before.items()}
    plan = resolved([("(head|adapter)/.*", "train"), (".*", "freeze")], models.groups("bert"), before)
    return ledger.make(plan, before, after, optax.sgd(1.0, 0.9).init({n: before[n] for n in plan.trainable}))


def with_ledger(folder, **made):
    put_run(folder, [{"step": 1, "split": "train", "loss": 1.0}])
    (folder / "freeze_ledger.json").write_text(json.dumps(proof(**made)))
    return texts(folder)


def test_the_ledger_is_shown_as_sentence_table_and_grid(tmp_path):
    md, html = with_ledger(tmp_path)
    assert "## What moved" in md and "The freeze held: 3 tensors moved; 7 were frozen and are the same to the bit." in md
    assert line_of(md, "block 0")[1:] == ["2", "3", "2.5e-01", "query lora a"] and line_of(md, "pooler")[1:] == ["0", "1", "–", "–"]
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


def test_a_ledger_that_does_not_hold_is_told_apart(tmp_path):
    bad = "backbone/block_0/attention/query/bias"
    md, html = with_ledger(tmp_path, moved=(*ADDED[1:], bad))
    assert "The freeze did not hold." in md and f"Frozen, but moved: {bad}." in md and f"Trainable, but did not move: {ADDED[0]}." in md
    assert f"<title>{bad}: frozen, but moved" in html and "fill: var(--bad)" in html and "stroke: var(--bad)" in html
    assert "fill: var(--bad)" not in with_ledger(tmp_path / "good")[1]


def test_a_cell_is_as_dark_as_its_change():
    """Log scale: equal ratios are equal steps; what stands still is hatched, never filled."""
    panel = ledger_page.LedgerPanel(proof()["rows"])
    panel.low, panel.high = -4, 0
    ax = figures.Figure().subplots()
    shade = [panel._box(ax, 0, 0, 10, "moved", 10.0**p).get_alpha() for p in (-4, -3, -2, -1, 0)]
    steps = np.diff(shade)
    assert shade[-1] == 1 and shade[0] > 0 and steps == pytest.approx(steps[0])
    frozen = panel._box(ax, 0, 0, 10, "frozen, the same", None)
    assert frozen.get_hatch() and frozen.get_facecolor()[3] == 0


def test_one_cell_for_the_two_arrays_of_fish_shows_the_worse():
    rows = [{"name": f"adapter/block_0/ffn/up/kernel/fish/{n}", "verdict": v, "relative": r} for n, v, r in
            (("index", "frozen, the same", 0.0), ("values", "moved", 0.5))]  # fmt: skip
    (part,) = ledger_page.parts(rows)
    (cell,) = part.layers["block 0"].values()
    assert len(cell) == 2 and ledger_page.verdict(cell) == "moved" and ledger_page.relative(cell) == 0.5
    rows[0]["verdict"] = "frozen, but moved"
    assert ledger_page.verdict(next(iter(ledger_page.parts(rows)[0].layers["block 0"].values()))) == "frozen, but moved"
