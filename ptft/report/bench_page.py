"""A benchmark's rows as a page: a section for each task, model and size, figures over sizes, what was
published, how it was made."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptft.bench import expectations, results, setting, stats
from ptft.bench.cell_result import Row
from ptft.bench.protocol import describe
from ptft.report import advice, bench_tables, comparison, cost_panels, format, panels, statements
from ptft.report.comparison import Comparison


def page(folders: Sequence[Path]) -> tuple[dict[str, Any], list[list[Any]]]:
    """What the report says, and a list of figures for each of its sections."""
    rows, bench, order, notes, missing = results.merge(folders)
    ok, failed = [r for r in rows if r["status"] == "ok"], [r for r in rows if r["status"] == "failed"]
    compared = [
        comparison.compare(
            title, group, order, group[0].get("baseline") or bench.get("baseline") or order[0], missing
        )
        for title, group in sections(rows)
    ]
    shown = [(_section(one, one.title if len(compared) > 1 else ""), _panels(one)) for one in compared]
    shown = (
        [(_overview(compared, [section for section, _ in shown]), []), *shown] if len(compared) > 1 else shown
    )
    shown += _over_sizes(compared)
    if expected := expectations.table(expectations.findings(rows)) if ok else []:
        shown.append((_expectations(expected), []))
    places = format.distinct(r.get("device") for r in ok) or format.distinct([bench.get("device")])
    versions = format.distinct(r.get("versions") for r in ok if r["kind"] == "train") or format.distinct(
        [bench.get("versions")]
    )
    if max(len(places), len(versions)) > 1:
        notes.append("The runs come from more than one environment: their times do not compare.")
    notes = _budgets(compared) + notes
    if any(x.score.boot for one in compared for x in one.lines):
        notes = [stats.BOOTSTRAP, *notes]
    names, seeds = (
        {r[key] for r in rows if r["kind"] == "train" and not r["repeat"]} for key in ("strategy", "seed")
    )
    pages = [(r.get("page") or {}).get("bench") or {} for r in rows]
    own = {entry["name"] for its in pages for entry in its.get("strategies") or ()}
    names = names & own or names  # without the random start that the benchmark enters by itself
    about = {
        "kind": "bench",
        "title": "Which parameters are worth training?",
        "subtitle": f"{format.count(len(names), 'strategy', 'strategies')}, "
        + f"{format.count(len(seeds), 'seed')}, "
        + format.count(sum(r["kind"] == "train" for r in ok), "finished run")
        + (f", {len(failed)} failed" if failed else ""),
        "sections": [section for section, _ in shown],
        "notes": [stats.METHOD, *notes] if ok else notes,
        "failed": [{"strategy": _where(r, rows), "seed": r["seed"], "error": r["error"]} for r in failed],
        "facts": format.facts(versions, places, bench.get("config_hash"), bench.get("command")),
    }
    return about, [its for _, its in shown]


def _where(row: Row, rows: Sequence[Row]) -> str:
    """A cell but for its seed, with its task where there are several."""
    task = f"{row['task']}, " if len({r["task"] for r in rows}) > 1 else ""
    return task + describe({**row, "seed": ""}).rpartition(", ")[0]


def _budgets(compared: Sequence[Comparison]) -> list[str]:
    """What every strategy could spend; where that is not the same in all of them, in which of them."""
    by_budget: dict[tuple[str, str], list[str]] = {}
    for one in compared:
        if one.lines:
            kind = next(results.budget(r) for r in one.rows if r["kind"] == "train")
            by_budget.setdefault((kind, "" if kind == "steps" else one.baseline), []).append(one.title)
    out = []
    for (kind, baseline), titles in by_budget.items():
        unit = {"flops": "as many FLOPs", "seconds": "as long, by what a step takes alone,"}.get(kind)
        what = (
            f"for {unit} as the steps of {baseline} cost (bench.budget={kind})"
            if unit
            else "for as many steps"
        )
        if len(by_budget) > 1:
            out.append(f"{format.listed(titles)}: every strategy was trained {what}.")
        elif unit:
            out.append(f"Every strategy was trained {what}.")
    return out


def sections(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """A section for every task, model and size: its title, and its rows, those of the references among
    them."""
    keys = list(dict.fromkeys((r["task"], r["model"], r["size"]) for r in rows if r["kind"] == "train"))
    sizes, models = {k[2] for k in keys}, {k[1] for k in keys}
    out = []
    for task, model, size in keys:
        number = f"{size:,} examples" if size else "all examples"
        number = number if size or len(sizes) > 1 else ""
        title = ", ".join(filter(None, [task, model if len(models) > 1 else "", number]))
        near = [r for r in rows if r["task"] == task and r["size"] == size]
        out.append(
            (title, [r for r in near if r["model"] == model or (r["kind"] != "train" and not r["model"])])
        )
    return out


def _overview(compared: Sequence[Comparison], shown: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What to train in each of several settings."""
    table = []
    for one, section in zip(compared, shown, strict=True):
        advised = section["advice"]
        row = next((r for r in section["table"] if advised and r["name"] == advised["name"]), None)
        if advised and row:
            none = " (none beats the best reference)" if advised["first"] else ""
            name = advised["name"] + none
            cells = [
                name,
                row["score"],
                row["half"] or row["verdict"],
                row["short"],
                row["flops"],
                row["peak_ratio"],
            ]
            table.append({"name": one.title, "cells": cells})
    lead = [
        "What to train in each part; why, and the command, stand below. FLOPs and memory are of a step, "
        "relative to the baseline."
    ]
    return {
        "kind": "overview",
        "task": "",
        "lead": lead if table else ["No strategy has all of its runs yet."],
        "table": table,
        "caption": "",
        "columns": ["train", "test score", "to the baseline", "verdict", "FLOPs", "memory"],
    }


def _section(one: Comparison, folder: str = "") -> dict[str, Any]:
    advised = advice.of(one, folder)
    lead = (
        advised["why"]
        if advised
        else ["Every strategy has a failed run: none of them has a mean over all of its seeds."]
    )
    if not one.strategies:
        lead = ["No run has finished."]
    share = cost_panels.SharePanel(one.lines, one.metric, one.baseline)
    caption = (
        f"Test {one.metric} against cost. Bars are 95 % intervals over seeds (an arrowhead: it goes on); "
        f"the line is the highest mean up to a cost, with its interval; dashed: {one.baseline}. Time and "
        "memory are of a step that computes everything, in a process of its own."
    )
    if share.mixed:
        caption += " Hollow points start from random weights."
    if share.left_out:
        caption += (
            " Far below, and not drawn: "
            f"{format.listed([f'{x.name} ({x.score.mean:.3f})' for x in share.left_out])}."
        )
    return {
        "kind": "bench", "task": one.title, "metric": one.metric, "baseline": one.baseline,
        "advice": advised, "lead": lead,
        "strip": bench_tables.strip_scale(one.lines),
        "table": [bench_tables.row(line, one) for line in one.lines], "caption": caption,
        "absent": statements.absent(one), "forgets": any(x.forgetting for x in one.lines),
        "pairs": bench_tables.pairs(one),
        "checks": [line for check in statements.CHECKS for line in check(one)],
        "again": bench_tables.commands(one),
    }  # fmt: skip


def _panels(one: Comparison) -> list[Any]:
    if not one.lines:
        return []
    drawn: list[Any] = [kind(one.lines, one.metric, one.baseline, one.higher) for kind in cost_panels.COSTS]
    drawn = [panel for panel in drawn if len(panel.lines) > 1 or panel is drawn[0]]
    tried = {
        name: q.tried
        for name, q in one.quoted.items()
        if len(q.tried) > 1 and q.rows[0].get("init_from") and not q.rows[0]["repeat"]
    }
    if tried:
        drawn.append(panels.RatePanel(tried, {name: one.quoted[name].lr for name in tried}, one.metric))
    drift = {x.name: moved for x in one.strategies if (moved := layer_drift(one.quoted[x.name].rows))}
    return [*drawn, panels.DriftPanel(drift)] if drift else drawn


def layer_drift(rows: Sequence[Row]) -> dict[str, float]:
    """Layer of the backbone -> how far it moved: the median over its tensors that moved, and over seeds, of
    the largest change relative to the largest element."""
    by_layer: dict[str, list[float]] = {}
    for row in rows:
        layers: dict[str, list[float]] = {}
        for name, change in (row.get("drift") or {}).items():
            if change is not None and name.startswith("backbone/"):
                layers.setdefault(name.split("/")[1], []).append(change)
        for layer, changes in layers.items():
            by_layer.setdefault(layer, []).append(statistics.median(changes))
    return {layer: statistics.median(changes) for layer, changes in by_layer.items()}


def _over_sizes(compared: Sequence[Comparison]) -> list[tuple[dict[str, Any], list[Any]]]:
    """A section for every task and model that has several sizes."""
    out = []
    keys = list(
        dict.fromkeys((r["task"], r["model"]) for p in compared for r in p.rows if r["kind"] == "train")
    )
    for task, model in keys:
        mine = [
            p
            for p in compared
            if any((r["task"], r["model"]) == (task, model) for r in p.rows if r["kind"] == "train")
        ]
        sizes = {next(r["size"] for r in p.rows if r["kind"] == "train"): p for p in mine}
        if len(sizes) < 2 or not all(p.lines for p in mine):
            continue
        names = list(dict.fromkeys(x.name for p in mine for x in p.strategies))
        scores = {
            size or math.inf: {x.name: x.score.bare() if x.failed else x.score for x in p.strategies}
            for size, p in sizes.items()
        }
        curves = {n: {size: its[n] for size, its in scores.items() if n in its} for n in names}
        first = mine[0]
        section = {
            "kind": "words",
            "task": ", ".join(filter(None, [task, model, "by number of examples"])),
            "table": [],
            "lead": [(f"Test {first.metric} of each strategy; {first.baseline} in grey.")],
            "caption": "",
        }
        out.append((section, [panels.SizePanel(curves, first.baseline, first.metric)]))
    return out


def _expectations(expected: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those on which these data decide anything."""
    table = []
    for row in expected:
        where = [f"{p['where']}: {expectations.WORDS[p['holds']]} ({p['why']})" for p in row["parts"]]
        table.append({"name": row["expected"], "cells": [row["verdict"], "; ".join(where), row["source"]]})
    lead = [
        "The models and data of these tables are larger, so only the direction of an effect is compared. "
        f"“No worse” holds where the interval leaves room for a loss of at most {setting.MARGIN:g}."
    ]
    if others := len(expectations.EXPECTATIONS) - len(table):
        lead.append(f"{format.count(others, 'other')} cannot be judged with these data.")
    return {"kind": "words", "task": (
        "What published tables lead one to "
        "expect"
    ), "lead": lead, "table": table, "caption": "",
            "columns": ["here", "by what", "source"]}  # fmt: skip
