"""The figures of a report: quality against cost, curves, maps, as PNG and as inline SVG."""

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
from matplotlib.patches import Rectangle
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
    scores: dict[int, float]  # seed -> test metric; NaN: the run failed
    score: stats.Summary  # of the runs that finished
    gain: stats.Difference | None  # paired difference to the baseline; None for the baseline
    verdict: str
    share: float | None  # of the parameters that move
    step: float | None  # median seconds a step, of a process of its own
    total: float | None  # seconds, all seeds
    flops: float | None  # a step
    peak: float | None  # bytes, of a step as it is compiled
    checkpoint: float | None  # bytes
    forgetting: stats.Summary | None  # of the pretraining's loss on held-out text: after - before
    failed: int  # seeds without a result: a mean over the others flatters
    reference: bool = False  # no network: majority class, TF-IDF
    again: bool = False  # the A/A check's copy
    rank: float | None = None  # mean over seeds
    chosen: str = ""  # what auto(…) came to
    step_ratio: float | None = None  # to the baseline
    flops_ratio: float | None = None

    @property
    def cost(self) -> float:
        """What "cheap" means: time a step, or where it is not known the share that moves."""
        return self.step if self.step is not None else self.share or math.inf


class CostPanel:
    """Quality against one cost: a point, an interval and a name for every strategy, and the best that can be had for a cost."""

    words = ""  # of the cost axis

    def __init__(self, lines: Sequence[Line], metric: str, baseline: str, higher: bool = True):
        self.metric, self.baseline, self.higher = metric, baseline, higher
        known = [line for line in lines if self.x(line) is not None]
        started = [line.score.mean for line in known if line.init_from]
        far = 1.5 * (max(started) - min(started)) if len(started) > 2 else math.inf
        # What starts from random weights may lie so far off that nothing else could be seen.
        self.left_out = [line for line in known if not line.init_from and min(abs(line.score.mean - y) for y in started or [0]) > far]
        self.lines = [line for line in known if line not in self.left_out]

    def x(self, line: Line) -> float | None:
        raise NotImplementedError

    def scale(self, ax: Axes) -> None:
        """Limits, ticks and label of the cost axis."""
        ax.set_xlim(0, max([self.x(line) or 1 for line in self.lines] + [1]) * 1.2)
        ax.set_xlabel(self.words.format(baseline=self.baseline), fontsize=9.5, color=INK)

    def draw(self, ax: Axes) -> None:
        self.plot(ax)
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.draw_without_rendering()  # places are known only then
        self.label(ax)

    def label(self, ax: Axes) -> None:
        _place_labels(ax, [(line.name, self.x(line), line.score) for line in self.lines])

    def plot(self, ax: Axes) -> None:
        for y in (line.score.mean for line in self.lines if line.name == self.baseline):
            ax.axhline(y, color=QUIET, lw=0.7, ls=(0, (4, 4)), zorder=0)
        for line in self.lines:
            x, y = self.x(line) or 0, line.score.mean
            if line.score.lo is not None and line.score.hi is not None and not line.failed:
                ax.plot([x, x], [line.score.lo, line.score.hi], color=ACCENT, lw=1.4, solid_capstyle="butt", zorder=2)
            ax.plot([x], [y], "o", ms=6.5, mec=ACCENT, mew=1.5, mfc=ACCENT if line.init_from or not self.mixed else "white", zorder=3)
        self.scale(ax)
        ax.margins(y=0.14)
        self.frontier(ax)
        ax.set_title(f"test {self.metric}", loc="left", fontsize=9.5, color=INK)
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))

    def frontier(self, ax: Axes) -> None:
        """The best mean that can be had for a cost (Pareto), and the best ends of the intervals."""
        known = sorted((line for line in self.lines if not line.again and not line.failed), key=lambda line: self.x(line) or 0)
        if len(known) < 2:
            return
        best = np.maximum.accumulate if self.higher else np.minimum.accumulate
        ends = [[s.mean, s.mean if s.lo is None else s.lo, s.mean if s.hi is None else s.hi] for s in (line.score for line in known)]
        xs = np.array([self.x(line) or 0 for line in known] + [ax.get_xlim()[1]])
        mean, low, high = (np.append(best(values), best(values)[-1]) for values in np.array(ends).T)
        limits = ax.get_ylim()
        ax.step(xs, mean, where="post", color=ACCENT, lw=0.9, alpha=0.7, zorder=1)
        ax.fill_between(xs, low, high, step="post", color=ACCENT, alpha=0.1, lw=0, zorder=0)
        ax.set_ylim(limits)

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
    words = "seconds a step, relative to {baseline}"

    def x(self, line: Line) -> float | None:
        return line.step_ratio


class FlopsPanel(CostPanel):
    words = "FLOPs a step, relative to {baseline}"

    def x(self, line: Line) -> float | None:
        return line.flops_ratio


class MemoryPanel(CostPanel):
    words = "peak memory of a step, MiB"

    def x(self, line: Line) -> float | None:
        return line.peak and line.peak / 2**20


class CheckpointPanel(CostPanel):
    words = "checkpoint, MiB"

    def x(self, line: Line) -> float | None:
        return line.checkpoint and line.checkpoint / 2**20


class ForgettingPanel(CostPanel):
    """What is forgotten is a price, too."""

    words = "loss of the pretraining on held-out text, after − before"

    def x(self, line: Line) -> float | None:
        return None if line.forgetting is None else line.forgetting.mean

    def scale(self, ax: Axes) -> None:
        ax.margins(x=0.2)
        ax.set_xlabel(self.words, fontsize=9.5, color=INK)


COSTS = (SharePanel, FlopsPanel, TimePanel, MemoryPanel, CheckpointPanel, ForgettingPanel)


class SmallMultiples:
    """A small plot for each strategy, on common axes."""

    columns, height = 4, 1.35

    def __init__(self, curves: Mapping[str, Mapping[float, stats.Summary]], metric: str):
        self.curves, self.metric = {name: its for name, its in curves.items() if its}, metric
        self.rows = -(-len(self.curves) // self.columns)
        self.size = (9.8, 0.7 + self.height * self.rows)

    def one(self, ax: Axes, name: str) -> None:
        raise NotImplementedError

    def draw(self, ax: Axes) -> None:
        ax.axis("off")
        ax.set_title(self.metric, loc="left", fontsize=9.5, color=INK)
        means = [s.mean for its in self.curves.values() for s in its.values()]
        low, high = min(means), max(means)
        room = 0.08 * (high - low or 1)
        for i, name in enumerate(self.curves):
            row, column = divmod(i, self.columns)
            width, height = 1 / self.columns, 1 / self.rows
            small = ax.inset_axes((column * width + 0.02, 1 - (row + 1) * height + 0.28 * height, width - 0.035, 0.55 * height))
            _style(small)
            small.set_ylim(low - room, high + room)
            small.yaxis.set_major_locator(MaxNLocator(3))
            small.tick_params(labelsize=7.5, length=2)
            if column:
                small.tick_params(labelleft=False)
            small.set_title(name, loc="left", fontsize=8.5, color=INK, pad=3)
            self.one(small, name)


def _bars(ax: Axes, points: Mapping[float, stats.Summary], color: str) -> None:
    """Means with intervals over a logarithmic x."""
    xs = sorted(points)
    ax.set_xscale("log")
    ax.plot(xs, [points[x].mean for x in xs], "o-", color=color, lw=1.2, ms=2.8)
    for x in xs:
        if (half := points[x].half) is not None:
            ax.plot([x, x], [points[x].mean - half, points[x].mean + half], color=color, lw=1)
    ax.set_xticks(xs, [f"{x:.2g}" for x in xs])
    ax.minorticks_off()
    ax.set_xlim(xs[0] / 1.7, xs[-1] * 1.7)


class RatePanel(SmallMultiples):
    """What dev says of the learning rates that each strategy tried; the chosen one has a ring."""

    def __init__(self, tried: Mapping[str, Mapping[float, Mapping[int, float]]], chosen: Mapping[str, float | None], metric: str):
        finished = {name: {lr: [x for x in seeds.values() if math.isfinite(x)] for lr, seeds in its.items()} for name, its in tried.items()}
        curves = {name: {lr: stats.summary(xs) for lr, xs in its.items() if xs} for name, its in finished.items()}
        super().__init__(curves, f"dev {metric} by learning rate")
        self.chosen = chosen

    def one(self, ax: Axes, name: str) -> None:
        _bars(ax, self.curves[name], ACCENT)
        if (lr := self.chosen[name]) in self.curves[name]:
            ax.plot([lr], [self.curves[name][lr].mean], "o", ms=8, mfc="none", mec=INK, mew=0.9)


class SizePanel(SmallMultiples):
    """The test metric by number of training examples, over the baseline's in grey."""

    def __init__(self, curves: Mapping[str, Mapping[float, stats.Summary]], baseline: str, metric: str):
        largest = max((x for its in curves.values() for x in its if math.isfinite(x)), default=1)
        # "all" has no number: it stands where ten times the largest would.
        placed = {n: {x if math.isfinite(x) else 10 * largest: s for x, s in its.items()} for n, its in curves.items()}
        super().__init__(placed, f"test {metric} by number of training examples")
        self.all, self.baseline = 10 * largest, baseline

    def one(self, ax: Axes, name: str) -> None:
        if name != self.baseline and self.baseline in self.curves:
            _bars(ax, self.curves[self.baseline], QUIET)
        _bars(ax, self.curves[name], ACCENT)
        xs = sorted(self.curves[name])
        ax.set_xticks(xs, ["all" if x == self.all else f"{x:g}" for x in xs])


class DriftPanel:
    """Strategies by layers; the darker, the further a layer moved, on a logarithmic scale. Blank: not by a bit."""

    def __init__(self, drift: Mapping[str, Mapping[str, float]]):
        def order(layer: str) -> tuple[int, int]:
            return (1, int(layer[6:])) if re.fullmatch(r"block_\d+", layer) else (0 if layer.startswith("embed") else 2, 0)

        self.metric = "how far each layer moved: largest change / largest element, median over its tensors"
        self.drift, self.layers = drift, sorted({layer for its in drift.values() for layer in its}, key=order)
        self.size = (9.8, 1.1 + 0.26 * len(drift))

    def draw(self, ax: Axes) -> None:
        values = [v for its in self.drift.values() for v in its.values() if v > 0]
        low, high = (math.log(min(values)), math.log(max(values))) if values else (0.0, 1.0)
        for y, its in enumerate(self.drift.values()):
            for x, layer in enumerate(self.layers):
                if (v := its.get(layer, 0.0)) > 0:
                    shade = 0.12 + 0.6 * ((math.log(v) - low) / (high - low) if high > low else 1)
                    ax.add_patch(Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=ACCENT, alpha=shade, lw=0))
                    ax.text(x + 0.5, y + 0.5, f"{100 * v:.2g} %", ha="center", va="center", fontsize=7.5, color=INK)
        ax.set_xlim(0, len(self.layers))
        ax.set_ylim(len(self.drift), 0)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xticks([x + 0.5 for x in range(len(self.layers))], [layer.replace("_", " ") for layer in self.layers])
        ax.set_yticks([y + 0.5 for y in range(len(self.drift))], list(self.drift))
        ax.set_title(self.metric, loc="left", fontsize=9.5, color=INK)


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


def broad(panel: Any) -> bool:
    """Whether a panel takes a whole row."""
    return getattr(panel, "size", SIZE)[0] > 1.5 * SIZE[0]


def png(panels: Sequence[Sequence[Any]]) -> bytes:
    """All panels on one picture, two a row; a wide one has a row to itself."""
    rows: list[list[Any]] = []
    for row in panels:
        narrow = [panel for panel in row if not broad(panel)]
        rows += [narrow[i : i + 2] for i in range(0, len(narrow), 2)] + [[panel] for panel in row if panel not in narrow]
    heights = [max(getattr(panel, "size", SIZE)[1] * 4.2 / SIZE[1] for panel in row) for row in rows] or [4.2]
    figure = Figure(figsize=(10.5, sum(heights)), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr,call-arg]
    grid = figure.add_gridspec(max(1, len(rows)), 2, height_ratios=heights)
    if not rows:
        empty = figure.add_subplot(grid[0, 0])
        empty.axis("off")
        empty.text(0, 0.5, "no finished run", color=QUIET)
    labelled = []
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            ax = figure.add_subplot(grid[y, :] if broad(panel) else grid[y, x])
            _style(ax)
            if isinstance(panel, CostPanel):
                panel.plot(ax)
                labelled.append((panel, ax))
            else:
                panel.draw(ax)
    figure.draw_without_rendering()  # once for all of them
    for cost, ax in labelled:
        cost.label(ax)
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
