"""The figures of a report: quality against cost, and curves, as PNG and as inline SVG."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from ptft.bench import stats

INK, QUIET, ACCENT, BAD = "#1f2328", "#848b93", "#22618f", "#a33a2a"  # in the page, CSS variables take their place: light, dark and print
SIZE = (4.8, 3.7)  # of a panel in the page, inches, where it has none of its own
_VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", ACCENT: "var(--accent)", BAD: "var(--bad)"}


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
    reference: bool = False  # no network: majority class, TF-IDF
    step_ratio: float | None = None  # to the baseline
    flops_ratio: float | None = None

    @property
    def cost(self) -> float:
        """What "cheap" means: time a step, or where it is not known the share that moves."""
        return self.step if self.step is not None else self.share or math.inf


class CostPanel:
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
        return {bool(line.init_from) for line in self.lines if not line.reference} == {True, False}


class SharePanel(CostPanel):
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


class TimePanel(CostPanel):
    def x(self, line: Line) -> float | None:
        return line.step_ratio

    def scale(self, ax: Axes) -> None:
        ax.set_xlim(0, max([self.x(line) or 1 for line in self.lines] + [1]) * 1.2)
        ax.set_xlabel(f"seconds a step, relative to {self.baseline}", fontsize=9.5, color=INK)


class CurvePanel:
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


def png(panels: list[list[Any]]) -> bytes:
    """All panels on one picture, a task a row."""
    rows = [row[i : i + 2] for row in panels for i in range(0, len(row), 2)]
    heights = [max(getattr(panel, "size", SIZE)[1] * 4.2 / SIZE[1] for panel in row) for row in rows] or [4.2]
    figure = Figure(figsize=(10.5, sum(heights)), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr,call-arg]
    grid = figure.subplots(max(1, len(rows)), 2, squeeze=False, height_ratios=heights)
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


def svg(panel: Any) -> Markup:
    """One panel as inline SVG: text stays text, colours are the page's."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ptft"}):
        figure = Figure(figsize=getattr(panel, "size", SIZE), layout="constrained")
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
    for gid, title in getattr(panel, "titles", {}).items():
        text = text.replace(f'<g id="{gid}">', f"<g><title>{escape(title)}</title>")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(panel.metric)}"', 1))  # our own drawing
