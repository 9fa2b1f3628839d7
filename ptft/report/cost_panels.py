"""Quality against cost, one point a strategy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from ptft.bench import stats
from ptft.report import figures
from ptft.report.figures import ACCENT, INK, QUIET

Rect = tuple[float, float, float, float]  # left, bottom, right, top, in typographic points


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
    share: float | None  # of the parameters that are trainable
    step: float | None  # median seconds a step, measured in turns with the others
    time: float | None  # median seconds of a run's steps, at what a step takes in a process of its own
    flops: float | None  # a step
    peak: float | None  # bytes, of a step as it is compiled
    checkpoint: float | None  # bytes
    forgetting: stats.Summary | None  # of the pretraining's loss on held-out text: after - before
    failed: int  # seeds without a result: a mean over the others flatters
    reference: bool = False  # trains no network: majority class, TF-IDF, frozen features
    again: bool = False  # the A/A check's copy
    rank: float | None = None  # mean over seeds
    chosen: str = ""  # what auto(…) came to
    step_ratio: float | None = None  # to the baseline
    flops_ratio: float | None = None
    peak_ratio: float | None = None
    quartiles: tuple[float, float] | None = None  # of the seconds a step; rows of older versions have none
    # the share of time contradicts the share of FLOPs, and its spread leaves room for both
    noisy: bool = False

    @property
    def finished(self) -> dict[int, float]:
        return {seed: v for seed, v in self.scores.items() if math.isfinite(v)}


class CostPanel:
    """Quality against one cost: a point, an interval and a name for every strategy, and the best that can be
    had for a cost."""

    words = ""  # of the cost axis

    def __init__(self, lines: Sequence[Line], metric: str, baseline: str, higher: bool = True):
        self.metric, self.baseline, self.higher = metric, baseline, higher
        known = [line for line in lines if self.x(line) is not None]
        started = [line for line in known if line.init_from]
        means, seeds = (
            [line.score.mean for line in started],
            [v for line in started for v in line.finished.values()],
        )
        far = 1.5 * (max(means) - min(means)) if len(means) > 2 else math.inf
        # What starts from random weights may lie so far off that nothing else could be seen.
        self.left_out = [
            x
            for x in known
            if seeds and not x.init_from and max(min(seeds) - x.score.mean, x.score.mean - max(seeds)) > far
        ]
        self.lines = [line for line in known if line not in self.left_out]

    def x(self, line: Line) -> float | None:
        raise NotImplementedError

    def scale(self, ax: Axes) -> None:
        """Limits, ticks and label of the cost axis."""
        ax.set_xlim(0, max([self.x(line) or 1 for line in self.lines] + [1]) * 1.2)
        ax.set_xlabel(self.words.format(baseline=self.baseline), fontsize=9.5, color=INK)

    def label(self, ax: Axes) -> None:
        """The names, once it is known where all the rest lies."""
        _place_labels(ax, [(line.name, self.x(line), line.score) for line in self.lines])

    def draw(self, ax: Axes) -> None:
        for y in (line.score.mean for line in self.lines if line.name == self.baseline):
            ax.axhline(y, color=QUIET, lw=0.7, ls=(0, (4, 4)), zorder=0)
        values = [v for line in self.lines for v in (line.score.mean, *line.finished.values())] or [0.0]
        shown = figures.limits(values, [line.score for line in self.lines if not line.failed])
        for line in self.lines:
            x, y = self.x(line) or 0, line.score.mean
            if not line.failed:
                figures.interval(ax, x, line.score, shown, ACCENT, 1.4)
            ax.plot(
                [x],
                [y],
                "o",
                ms=6.5,
                mec=ACCENT,
                mew=1.5,
                mfc=ACCENT if line.init_from or not self.mixed else "white",
                zorder=3,
            )
        self.scale(ax)
        ax.margins(y=0.14)
        self.frontier(ax)
        ax.set_title(f"test {self.metric}", loc="left", fontsize=9.5, color=INK)
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))

    def frontier(self, ax: Axes) -> None:
        """The best mean that can be had for a cost (Pareto), and the interval of what has it."""
        known = sorted(
            (line for line in self.lines if not line.again and not line.failed),
            key=lambda line: self.x(line) or 0,
        )
        if len(known) < 2:
            return
        held: list[stats.Summary] = []
        for line in known:
            gain = line.score.mean - held[-1].mean if held else 0.0
            held.append(line.score if not held or (gain > 0 if self.higher else gain < 0) else held[-1])
        ends = [
            [s.mean, s.mean if s.lo is None else s.lo, s.mean if s.hi is None else s.hi]
            for s in [*held, held[-1]]
        ]
        xs = np.array([self.x(line) or 0 for line in known] + [ax.get_xlim()[1]])
        mean, low, high = np.array(ends).T
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
        ax.set_xlabel("share of the parameters that are trainable (log)", fontsize=9.5, color=INK)


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


def _place_labels(ax: Axes, points: list[tuple[str, Any, stats.Summary]]) -> None:
    """Names beside their points, where they hide no point, interval or other name; a thin line where that is
    not beside."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    unit = figure.dpi / 72  # pixels a typographic point; sizes below are typographic
    spots = [tuple(ax.transData.transform((x, score.mean)) / unit) for _, x, score in points]
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in spots]
    for (_, x, score), (px, _) in zip(points, spots, strict=True):
        if score.lo is not None and score.hi is not None:
            low, high = (ax.transData.transform((x, y))[1] / unit for y in (score.lo, score.hi))
            taken.append((px - 2, low, px + 2, high))
    room: Rect = tuple(np.array(ax.bbox.extents) / unit)
    for i in np.argsort([-spot[1] for spot in spots]):
        name, x, score = points[i]
        probe = ax.text(0, 0, name, fontsize=9)
        box = probe.get_window_extent()
        probe.remove()
        place = _best_place(spots[i], (box.width / unit, box.height / unit), taken, room)
        taken.append(place)
        _write_label(ax, name, (x, score.mean), spots[i], place)


def _best_place(
    point: tuple[float, float], size: tuple[float, float], taken: Sequence[Rect], room: Rect
) -> Rect:
    """Where a label hides least, of places around its point."""
    (px, py), (w, h), (x0, y0, x1, y1) = point, size, room
    best: tuple[float, Rect] | None = None
    for radius in (0, 8, 18, 30, 44, 60):
        for angle in np.arange(0, 2 * np.pi, np.pi / 8):
            # The label's centre: clear of the point by its own half size, then further out by `radius`.
            cx = px + np.cos(angle) * (w / 2 + 9 + radius)
            cy = py + np.sin(angle) * (h / 2 + 7 + radius)
            a = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            hidden = sum(
                max(0, min(a[2], b[2]) - max(a[0], b[0]) + 2) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
                for b in taken
            )
            outside = max(0, x0 - a[0]) + max(0, a[2] - x1) + max(0, y0 - a[1]) + max(0, a[3] - y1)
            price = 50 * hidden + 200 * outside + radius + 4 * (1 - np.cos(angle))
            if best is None or price < best[0]:
                best = (price, a)
    assert best is not None
    return best[1]


def _write_label(
    ax: Axes, name: str, at: tuple[float, float], point: tuple[float, float], place: Rect
) -> None:
    """A name where its place is, and a line to its point where that is not beside.

    Args:
      at: the point in the units of the axes.
      point: the same, as the place, in typographic points.
    """
    (px, py), (left, bottom, right, top) = point, place
    cx, cy = (left + right) / 2, (bottom + top) / 2
    near_x, near_y = float(np.clip(px, left, right)), float(np.clip(py, bottom, top))
    # keeps the baseline's dashes out of a name
    halo = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": INK, "bbox": halo}
    ax.annotate(name, at, (cx - px, cy - py), textcoords="offset points", zorder=1, **style)
    if math.hypot(near_x - px, near_y - py) > 14:
        line = {"arrowstyle": "-", "lw": 0.6, "color": QUIET, "shrinkA": 0, "shrinkB": 5}
        ax.annotate("", at, (near_x - px, near_y - py), textcoords="offset points", arrowprops=line, zorder=1)
