"""A benchmark's or a run's JSON lines -> report.md, report.png and one self-contained report.html.

Reads `runs.jsonl` (with `bench.json`, if it is there) or `metrics.jsonl` (with `result.json`); runs nothing.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from ptft.bench import stats
from ptft.bench.runner import read
from ptft.errors import UserError

INK, QUIET, ACCENT = "#1f2328", "#848b93", "#22618f"  # in the page, CSS variables take their place: light, dark and print
_VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", ACCENT: "var(--accent)"}


def write(folder: Path) -> dict[str, Path]:
    """Writes the report of a benchmark's or a run's folder into it.

    Returns:
      {"md": path, "png": path, "html": path}.
    Raises:
      UserError: nothing to report on in the folder, or a broken line (file:line).
    """
    folder = Path(folder)
    if (folder / "runs.jsonl").is_file():
        page, panels = _bench_page(folder)
    elif (folder / "metrics.jsonl").is_file():
        page, panels = _run_page(folder)
    else:
        here = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())[:20] if folder.is_dir() else None
        there = "the folder does not exist" if here is None else "it is empty" if not here else "there is: " + ", ".join(here)
        raise UserError(f"{folder}: expected runs.jsonl (of ptft bench) or metrics.jsonl (of ptft train); {there}")
    paths = {kind: folder / f"report.{kind}" for kind in ("md", "png", "html")}
    paths["png"].write_bytes(_png(panels))
    paths["md"].write_text(_markdown(page), encoding="utf-8")
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    for section, its_panels in zip(page["sections"], panels, strict=True):
        section["figures"] = [_svg(panel) for panel in its_panels]
    paths["html"].write_text(env.get_template("report.html.j2").render(page), encoding="utf-8")
    return paths


# ---------------------------------------------------------------- a benchmark


@dataclass
class Line:
    """One strategy of one task, over its seeds."""

    name: str
    freeze: str
    lr: str
    init_from: str
    scores: dict[int, float]  # seed -> test metric
    score: stats.Summary
    gain: stats.Summary | None  # paired difference to the baseline; None for the baseline
    verdict: str
    share: float | None  # of the parameters that move
    step: float | None  # median seconds a step
    total: float | None  # seconds, all seeds
    flops: float | None  # a step
    failed: int  # seeds without a result: a mean over the others flatters
    step_ratio: float | None = None  # to the baseline
    flops_ratio: float | None = None

    @property
    def cost(self) -> float:
        """What "cheap" means: time a step, or where it is not known the share that moves."""
        return self.step if self.step is not None else self.share or math.inf


def _bench_page(folder: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    bench = _json(folder / "bench.json")
    rows = list({row["cell"]: row for row in map(_complete, read(folder / "runs.jsonl"))}.values())
    notes = []
    if listed := bench.get("cells"):
        older = sum(row["cell"] not in listed for row in rows)
        rows = [{**row, "strategy": listed[row["cell"]][0]} for row in rows if row["cell"] in listed]
        missing = len(listed) - len(rows)
        notes += [f"{missing} of {len(listed)} cells have not run yet."] * bool(missing)
        notes += [f"{older} runs of an earlier config of this benchmark are left out."] * bool(older)
    ok = [r for r in rows if r["status"] == "ok"]
    failed = [r for r in rows if r["status"] != "ok"]
    order = list(dict.fromkeys([s["name"] for s in bench.get("strategies", [])] + [r["strategy"] for r in rows]))
    baseline = bench.get("baseline") or (order[0] if order else "")
    sections, panels = [], []
    for task in dict.fromkeys(r["task"] for r in rows):
        here = [r for r in rows if r["task"] == task]
        metric = here[0]["metric"]
        higher = not metric.endswith(("loss", "perplexity"))
        lines = _lines(here, order, baseline, metric, higher)
        sections.append({
            "task": task, "metric": metric, "baseline": baseline, "lead": _bench_lead(lines, metric, higher, baseline),
            "strip": _strip_scale(lines), "table": [_bench_row(line, lines) for line in lines],
            "caption": f"Test {metric} against cost; bars are 95 % intervals over seeds"
            + (", hollow points start from random weights." if {bool(x.init_from) for x in lines} == {True, False} else "."),
        })  # fmt: skip
        panels.append([_SharePanel(lines, metric, baseline), _TimePanel(lines, metric, baseline)] if lines else [])
    places = _distinct(r["device"] for r in ok) or _distinct([bench.get("device")])
    versions = _distinct(r["versions"] for r in ok) or _distinct([bench.get("versions")])
    if max(len(places), len(versions)) > 1:
        notes.append("The runs come from more than one environment: their times do not compare.")
    seeds = sorted({r["seed"] for r in ok})
    page = {
        "kind": "bench",
        "title": "Which parameters are worth training?",
        "subtitle": f"{_count(len(order), 'strategy', 'strategies')}, {_count(len(seeds), 'seed')}, {_count(len(ok), 'finished run')}"
        + (f", {len(failed)} failed" if failed else ""),
        "sections": sections,
        "notes": [stats.METHOD, *notes] if ok else notes,
        "failed": [{"strategy": r["strategy"], "seed": r["seed"], "error": r["error"]} for r in failed],
        "facts": _facts(versions, places, bench.get("config_hash"), bench.get("command")),
    }
    return page, panels


def _complete(row: dict[str, Any]) -> dict[str, Any]:
    if missing := [k for k in ("cell", "strategy", "seed", "status") if k not in row]:
        raise UserError(f"runs.jsonl: a row without {', '.join(missing)}: it is not of ptft bench: {json.dumps(row)[:120]}")
    return {"task": "task", "metric": "accuracy", "init_from": "", "error": "", **row}


def _lines(rows: list[dict[str, Any]], order: list[str], baseline: str, metric: str, higher: bool) -> list[Line]:
    """One line a strategy that has a finished run, in the config's order."""
    lines = []
    ok = [r for r in rows if r["status"] == "ok"]
    base = {r["seed"]: float(r["test"][metric]) for r in ok if r["strategy"] == baseline}
    for name in order:
        mine = [r for r in ok if r["strategy"] == name]
        if not mine:
            continue
        scores = {r["seed"]: float(r["test"][metric]) for r in mine}
        gain = None if name == baseline else stats.paired(scores, base)
        lines.append(Line(
            name, _word(mine[0].get("freeze")), ", ".join(f"{lr:g}" for lr in {r["lr"]: 0 for r in mine if r.get("lr") is not None}),
            mine[0]["init_from"] or "", scores, stats.summary(list(scores.values())), gain,
            "baseline" if name == baseline else stats.verdict(gain, higher),
            _median(mine, "trainable_share"), _median(mine, "seconds_per_step"), _total(mine, "seconds"), _median(mine, "flops_per_step"),
            sum(r["strategy"] == name and r["status"] != "ok" for r in rows),
        ))  # fmt: skip
    for reference in (line for line in lines if line.name == baseline):
        for line in lines:
            line.step_ratio = line.step / reference.step if line.step and reference.step else None
            line.flops_ratio = line.flops / reference.flops if line.flops and reference.flops else None
    return lines


def _bench_lead(lines: list[Line], metric: str, higher: bool, baseline: str) -> list[str]:
    """What the numbers say, in sentences."""
    if not lines:
        return ["No run has finished."]
    best = (max if higher else min)(lines, key=lambda x: x.score.mean)
    word = "highest" if higher else "lowest"
    if all(x.score.n == 1 for x in lines):
        say = [f"{best.name} has the {word} test {metric}, {best.score.mean:.3f}."]
        say.append("With one seed a strategy there is no interval: the order may be chance.")
    else:
        say = [f"{best.name} has the {word} mean test {metric}: {_plus_minus(best.score)} over {_seeds(best)}."]
        tied = [x for x in lines if x is not best and stats.apart(stats.paired(x.scores, best.scores)) is False]
        cheapest = min(tied, key=lambda x: x.cost, default=best)
        if cheapest.cost < best.cost:
            ratio = f" and takes {_times(cheapest.step_ratio)} of {baseline}'s time a step" if cheapest.step_ratio else ""
            say.append(
                f"The cheapest strategy that cannot be told apart from it is {cheapest.name}: {_plus_minus(cheapest.score)}. "
                f"It moves {_percent(cheapest.share)} of the parameters{ratio}."
            )
        elif len(lines) > 1:
            why = "those that cannot be told apart from it cost more" if tied else "every other one is measurably worse or has no interval"
            say.append(f"No cheaper strategy reaches it: {why}.")
    for x in lines:
        for y in lines:
            if x.freeze == y.freeze and x.init_from and not y.init_from and (gain := stats.paired(x.scores, y.scores)):
                found = {True: "", False: ", which cannot be told apart from nothing", None: ", from one seed"}[stats.apart(gain)]
                what = f"the test {metric} of {x.name} by {_signed(gain)}{found}"
                say.append(f"Starting from pretrained instead of random weights changes {what}.")
    return say


def _bench_row(line: Line, lines: list[Line]) -> dict[str, Any]:
    freeze = "" if line.freeze == line.name else f"freeze={line.freeze}"
    return {
        "name": line.name, "detail": ", ".join(filter(None, [freeze, "" if line.init_from else "random weights"])), "lr": line.lr or "–",
        "seeds": _seeds(line), "score": _plus_minus(line.score), "median": f"{line.score.median:.3f}",
        "gain": "–" if line.gain is None else f"{_sign(line.gain.mean)}", "range": _range(line.gain), "verdict": line.verdict,
        "share": _percent(line.share), "step": _seconds(line.step), "step_ratio": _times(line.step_ratio), "total": _seconds(line.total),
        "flops": _times(line.flops_ratio), "strip": _strip(line, *_strip_limits(lines)),
    }  # fmt: skip


# ---------------------------------------------------------------- a run


def _run_page(folder: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    rows = read(folder / "metrics.jsonl")
    for i, row in enumerate(rows):
        if not isinstance(row.get("step"), int) or not isinstance(row.get("split"), str):
            raise UserError(f"{folder / 'metrics.jsonl'}:{i + 1}: expected a step and a split, got {json.dumps(row)[:80]}")
    result, run = _json(folder / "result.json"), _json(folder / "run.json")
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}  # metric -> split -> points
    for row in rows:
        for key, value in row.items():
            if key.endswith(("loss", "accuracy", "f1", "matthews")) and isinstance(value, int | float):
                curves.setdefault(key, {}).setdefault(row["split"], []).append((row["step"], value))
    curves = {key: splits for key, splits in curves.items() if any(len(points) > 1 for points in splits.values())}
    last = {row["split"]: row for row in rows if row["split"] != "train"}
    splits = {name: result.get(name) or last.get(name) or {} for name in ("dev", "test")}
    splits = {name: values for name, values in splits.items() if values}
    numbers = dict.fromkeys(k for v in splits.values() for k in v if k not in ("step", "split") and _plain(v[k]))
    lead = []
    if result:
        steps, pace = _count(result.get("steps", 0), "step"), _seconds(result.get("seconds_per_step"))
        lead.append(f"{steps} in {_seconds(result.get('seconds'))}, {pace} a step.")
        if result.get("total"):
            share = _percent(result["trainable"] / result["total"])
            lead[0] += f" {result['trainable']:,} of {result['total']:,} parameters moved ({share})."
        lead += [f"The numbers are of step {result['best_step']:,}, the best on dev."] if result.get("best_step") else []
    else:
        lead.append(f"Not finished: the newest line is of step {rows[-1]['step']:,}." if rows else "Nothing has been logged yet.")
    section = {
        "task": "", "lead": lead, "columns": list(splits),
        "caption": "Training curves; where there are many points, the line is their running mean.",
        "table": [{"name": k, "cells": [f"{v[k]:.4f}" if _plain(v.get(k)) else "–" for v in splits.values()]} for k in numbers],
    }  # fmt: skip
    page = {
        "kind": "run", "title": folder.resolve().name, "subtitle": "one training run", "sections": [section], "notes": [], "failed": [],
        "facts": _facts(
            _distinct([result.get("versions") or run.get("versions")]), _distinct([result.get("device") or run.get("device")]),
            result.get("config_hash") or run.get("config_hash"), run.get("command"),
        ),
    }  # fmt: skip
    return page, [[_CurvePanel(key, its) for key, its in curves.items()]]


# ---------------------------------------------------------------- figures


class _CostPanel:
    """Quality against one cost: a point, an interval and a name for every strategy."""

    def __init__(self, lines: list[Line], metric: str, baseline: str):
        self.metric, self.baseline = metric, baseline
        self.lines = [line for line in lines if self.x(line) is not None]

    def x(self, line: Line) -> float | None:
        raise NotImplementedError

    def scale(self, ax: Axes) -> None:
        """Limits, ticks and label of the cost axis."""
        raise NotImplementedError

    def draw(self, ax: Axes) -> None:
        reference = [line.score.mean for line in self.lines if line.name == self.baseline]
        for y in reference:
            ax.axhline(y, color=QUIET, lw=0.7, ls=(0, (4, 4)), zorder=0)
        for line in self.lines:
            x, y = self.x(line) or 0, line.score.mean
            if line.score.lo is not None and line.score.hi is not None:
                ax.plot([x, x], [line.score.lo, line.score.hi], color=ACCENT, lw=1.4, solid_capstyle="butt", zorder=2)
            ax.plot([x], [y], "o", ms=6.5, mec=ACCENT, mew=1.5, mfc=ACCENT if line.init_from or not self.mixed else "white", zorder=3)
        self.scale(ax)
        ax.margins(y=0.14)
        ax.set_title(f"test {self.metric}", loc="left", fontsize=9.5, color=INK)
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        _place_labels(ax, [(line.name, self.x(line), line.score) for line in self.lines])

    @property
    def mixed(self) -> bool:
        return {bool(line.init_from) for line in self.lines} == {True, False}


class _SharePanel(_CostPanel):
    def x(self, line: Line) -> float | None:
        return line.share or None

    def scale(self, ax: Axes) -> None:
        ax.set_xscale("log")
        xs = [self.x(line) or 1 for line in self.lines] or [1]
        ax.set_xlim(min(xs) / 2.5, 2.5)
        ax.xaxis.set_major_locator(LogLocator(10))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x * 100:g} %" if x <= 1 else ""))
        ax.tick_params(axis="x", which="minor", length=0)
        ax.set_xlabel("share of the parameters that move (log)", fontsize=9.5, color=INK)


class _TimePanel(_CostPanel):
    def x(self, line: Line) -> float | None:
        return line.step_ratio

    def scale(self, ax: Axes) -> None:
        ax.set_xlim(0, max([self.x(line) or 1 for line in self.lines] + [1]) * 1.2)
        ax.set_xlabel(f"seconds a step, relative to {self.baseline}", fontsize=9.5, color=INK)


class _CurvePanel:
    """One metric by step: train as measured with its running mean, dev and test as points."""

    def __init__(self, metric: str, splits: Mapping[str, Sequence[tuple[int, float]]]):
        self.metric, self.splits = metric, splits

    def draw(self, ax: Axes) -> None:
        for split, points in self.splits.items():
            steps, values = np.array(points, np.float64).T
            color = QUIET if split == "train" else ACCENT
            window = max(1, len(points) // 40)
            if split != "train":
                ax.plot(steps, values, "o-", color=color, lw=1.4, ms=3.2, label=split)
            elif window == 1:
                ax.plot(steps, values, color=color, lw=1.2, label=split)
            else:
                ax.plot(steps, values, color=color, lw=0.5, alpha=0.4)
                mean = np.convolve(values, np.ones(window) / window, "valid")
                ax.plot(steps[window // 2 :][: len(mean)], mean, color=color, lw=1.4, label=split)
        ax.set_title(self.metric.replace("_", " "), loc="left", fontsize=9.5, color=INK)
        ax.set_xlabel("step", fontsize=9.5, color=INK)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        legend = ax.legend(frameon=False, fontsize=9, handlelength=1.4)
        for text in legend.get_texts():
            text.set_color(INK)


def _place_labels(ax: Axes, points: list[tuple[str, Any, stats.Summary]]) -> None:
    """Names beside their points, where they hide no point, interval or other name; a thin line where that is not beside."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    unit = figure.dpi / 72  # pixels a typographic point; sizes below are typographic
    spots = [ax.transData.transform((x, score.mean)) / unit for _, x, score in points]
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in spots]
    for (_, x, score), (px, _) in zip(points, spots, strict=True):
        if score.lo is not None and score.hi is not None:
            low, high = (ax.transData.transform((x, y))[1] / unit for y in (score.lo, score.hi))
            taken.append((px - 2, low, px + 2, high))
    x0, y0, x1, y1 = np.array(ax.bbox.extents) / unit
    halo = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}  # keeps the baseline's dashes out of a name
    for i in np.argsort([-spot[1] for spot in spots]):
        (name, x, score), (px, py) = points[i], spots[i]
        probe = ax.text(0, 0, name, fontsize=9)
        box = probe.get_window_extent()
        probe.remove()
        w, h = box.width / unit, box.height / unit
        best: tuple[float, tuple[float, float, float, float]] | None = None
        for radius in (0, 8, 18, 30, 44, 60):
            for angle in np.arange(0, 2 * np.pi, np.pi / 8):
                # The label's centre: clear of the point by its own half size, then further out by `radius`.
                cx = px + np.cos(angle) * (w / 2 + 9 + radius)
                cy = py + np.sin(angle) * (h / 2 + 7 + radius)
                a = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
                hidden = sum(max(0, min(a[2], b[2]) - max(a[0], b[0]) + 2) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1) for b in taken)
                outside = max(0, x0 - a[0]) + max(0, a[2] - x1) + max(0, y0 - a[1]) + max(0, a[3] - y1)
                price = 50 * hidden + 200 * outside + radius + 4 * (1 - np.cos(angle))
                if best is None or price < best[0]:
                    best = (price, a)
        assert best is not None
        left, bottom, right, top = best[1]
        taken.append(best[1])
        cx, cy = (left + right) / 2, (bottom + top) / 2
        near_x, near_y = float(np.clip(px, left, right)), float(np.clip(py, bottom, top))
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": INK, "bbox": halo, "zorder": 1}
        ax.annotate(name, (x, score.mean), (cx - px, cy - py), textcoords="offset points", **style)
        if math.hypot(near_x - px, near_y - py) > 14:
            line = {"arrowstyle": "-", "lw": 0.6, "color": QUIET, "shrinkA": 0, "shrinkB": 5}
            ax.annotate("", (x, score.mean), (near_x - px, near_y - py), textcoords="offset points", arrowprops=line, zorder=1)


def _style(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)
    ax.tick_params(colors=QUIET, labelcolor=INK, labelsize=9, length=3)


def _png(panels: list[list[Any]]) -> bytes:
    """All panels on one picture, a task a row."""
    rows = [row[i : i + 2] for row in panels for i in range(0, len(row), 2)]
    figure = Figure(figsize=(10.5, 4.2 * max(1, len(rows))), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr,call-arg]
    grid = figure.subplots(max(1, len(rows)), 2, squeeze=False)
    for y, row in enumerate(grid):
        for x, ax in enumerate(row):
            if y < len(rows) and x < len(rows[y]):
                _style(ax)
            else:
                ax.axis("off")
    if not rows:
        grid[0, 0].text(0, 0.5, "no finished run", color=QUIET)
    for ax, panel in ((grid[y, x], panel) for y, row in enumerate(rows) for x, panel in enumerate(row)):
        panel.draw(ax)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _svg(panel: Any) -> Markup:
    """One panel as inline SVG: text stays text, colours are the page's."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ptft"}):
        figure = Figure(figsize=(4.8, 3.7), layout="constrained")
        figure.patch.set_alpha(0)
        ax = figure.subplots()
        ax.patch.set_alpha(0)
        _style(ax)
        panel.draw(ax)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--face)", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = text.replace("fill: #ffffff", "fill: var(--paper)")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(panel.metric)}"', 1))  # our own drawing


def _strip_limits(lines: list[Line]) -> tuple[float, float]:
    values = [v for line in lines for v in line.scores.values()]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _strip_scale(lines: list[Line]) -> str:
    return "{:.3f} – {:.3f}".format(*_strip_limits(lines)) if lines else ""


def _strip(line: Line, low: float, high: float, width: int = 130) -> Markup:
    """The seeds as dots on the task's common scale, the interval as a line, the mean as a tick."""

    def x(value: float) -> float:
        return round(5 + (width - 10) * (min(max(value, low), high) - low) / (high - low), 1)

    parts = [f'<line class="rail" x1="0" x2="{width}" y1="9" y2="9"/>']
    if line.score.lo is not None and line.score.hi is not None:
        parts.append(f'<line class="range" x1="{x(line.score.lo)}" x2="{x(line.score.hi)}" y1="9" y2="9"/>')
    parts += [f'<circle cx="{x(v)}" cy="9" r="3"><title>seed {seed}: {v:.4f}</title></circle>' for seed, v in line.scores.items()]
    parts.append(f'<line class="mean" x1="{x(line.score.mean)}" x2="{x(line.score.mean)}" y1="2" y2="16"/>')
    return Markup(f'<svg class="strip" viewBox="0 0 {width} 18" role="img" aria-label="seeds">{"".join(parts)}</svg>')  # numbers only


# ---------------------------------------------------------------- Markdown


def _markdown(page: dict[str, Any]) -> str:
    out = [f"# {page['title']}", "", page["subtitle"], ""]
    for s in page["sections"]:
        out += [f"## {s['task']}", ""] if s["task"] else []
        out += [*s["lead"], ""]
        if page["kind"] == "bench":
            base = s["baseline"]
            head = ["strategy", "learning rate", "seeds", f"test {s['metric']}, mean ± 95 %", "median", f"difference to {base}", "verdict",
                    "parameters that move", "time a step", f"time, × {base}", "total time", f"FLOPs, × {base}"]  # fmt: skip
            body = [
                [r["name"] + (f" ({r['detail']})" if r["detail"] else ""), r["lr"], r["seeds"], r["score"], r["median"],
                 f"{r['gain']} {r['range']}".strip(), r["verdict"], r["share"], r["step"], r["step_ratio"], r["total"], r["flops"]]
                for r in s["table"]
            ]  # fmt: skip
        else:
            head, body = ["", *s["columns"]], [[r["name"], *r["cells"]] for r in s["table"]]
        if body:
            out += [_md_row(head), _md_row(["---"] * len(head)), *map(_md_row, body), ""]
    out += ["![figure](report.png)", ""]
    if page["failed"]:
        out += ["## Failed cells", "", *[f"- {f['strategy']}, seed {f['seed']}: {_md(f['error'])}" for f in page["failed"]], ""]
    out += [f"{note}\n" for note in page["notes"]]
    if page["facts"]:
        facts = [(name, f"`{value}`" if name == "command" else _md(value)) for name, value in page["facts"]]
        out += ["## How it was made", "", *[f"- {name}: {value}" for name, value in facts], ""]
    return "\n".join(out)


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


# ---------------------------------------------------------------- words and numbers


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as e:
        raise UserError(f"{path}: not JSON ({e})") from None


def _distinct(items: Any) -> list[dict[str, Any]]:
    return list({json.dumps(x, sort_keys=True): x for x in items if x}.values())


def _facts(
    versions: list[dict[str, Any]], places: list[dict[str, Any]], config_hash: str | None, command: str | None
) -> list[tuple[str, str]]:
    facts = [("command", command), ("config", config_hash)]
    facts += [("device", ", ".join(f"{k} {v}" for k, v in place.items())) for place in places]
    facts += [("versions", ", ".join(f"{k} {v}" for k, v in v.items())) for v in versions]
    return [(name, value) for name, value in facts if value]


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _median(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(np.median(values)) if values else None


def _total(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(sum(values)) if values else None


def _word(freeze: Any) -> str:
    return freeze if isinstance(freeze, str) else "rules" if freeze else ""


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _seeds(line: Line) -> str:
    return _count(line.score.n, "seed") + (f" ({line.failed} failed)" if line.failed else "")


def _sign(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _range(s: stats.Summary | None) -> str:
    return "" if s is None or s.lo is None or s.hi is None else f"[{_sign(s.lo)},\N{NO-BREAK SPACE}{_sign(s.hi)}]"


def _signed(s: stats.Summary) -> str:
    return f"{_sign(s.mean)} {_range(s)}".strip()


def _plus_minus(s: stats.Summary) -> str:
    return f"{s.mean:.3f}" + (f" ± {s.half:.3f}" if s.half is not None else "")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.{0 if share >= 0.995 else 1 if share >= 0.01 else 2}f} %"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _seconds(value: float | int | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.{0 if value >= 0.01 else 1}f} ms"
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60)} s" if value < 3600 else f"{value / 3600:.1f} h"
