"""Curves and maps: learning rates, sizes, drift by layer, metrics by step."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ptft.bench import stats
from ptft.core import tree
from ptft.report.figures import ACCENT, INK, QUIET, interval, limits, style


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
        every = [s for its in self.curves.values() for s in its.values()]
        low, high = limits([s.mean for s in every], every)
        room = 0.06 * (high - low)
        for i, name in enumerate(self.curves):
            row, column = divmod(i, self.columns)
            width, height = 1 / self.columns, 1 / self.rows
            small = ax.inset_axes(
                (column * width + 0.02, 1 - (row + 1) * height + 0.28 * height, width - 0.035, 0.55 * height)
            )
            style(small)
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
        interval(ax, x, points[x], ax.get_ylim(), color, 1)
    ax.set_xticks(xs, [f"{x:.2g}" for x in xs])
    ax.minorticks_off()
    ax.set_xlim(xs[0] / 1.7, xs[-1] * 1.7)


class RatePanel(SmallMultiples):
    """What dev says of the learning rates that each strategy tried; the chosen one has a ring."""

    def __init__(
        self,
        tried: Mapping[str, Mapping[float, Mapping[int, float]]],
        chosen: Mapping[str, float | None],
        metric: str,
    ):
        curves: dict[str, dict[float, stats.Summary]] = {name: {} for name in tried}
        for name, its in tried.items():
            for lr, seeds in its.items():
                if finished := [x for x in seeds.values() if math.isfinite(x)]:
                    whole = stats.summary(finished)
                    curves[name][lr] = whole if len(finished) == len(seeds) else whole.bare()
        super().__init__(curves, f"dev {metric} by learning rate")
        self.chosen = chosen

    def one(self, ax: Axes, name: str) -> None:
        _bars(ax, self.curves[name], ACCENT)
        if (lr := self.chosen[name]) is not None and lr in self.curves[name]:
            ax.plot([lr], [self.curves[name][lr].mean], "o", ms=8, mfc="none", mec=INK, mew=0.9)


class SizePanel(SmallMultiples):
    """The test metric by number of training examples, over the baseline's in grey."""

    def __init__(self, curves: Mapping[str, Mapping[float, stats.Summary]], baseline: str, metric: str):
        largest = max((x for its in curves.values() for x in its if math.isfinite(x)), default=1)
        # "all" has no number: it stands where ten times the largest would.
        placed = {
            n: {x if math.isfinite(x) else 10 * largest: s for x, s in its.items()}
            for n, its in curves.items()
        }
        super().__init__(placed, f"test {metric} by number of training examples")
        self.all, self.baseline = 10 * largest, baseline

    def one(self, ax: Axes, name: str) -> None:
        if name != self.baseline and self.baseline in self.curves:
            _bars(ax, self.curves[self.baseline], QUIET)
        _bars(ax, self.curves[name], ACCENT)
        xs = sorted(self.curves[name])
        ax.set_xticks(xs, ["all" if x == self.all else f"{x:g}" for x in xs])


class DriftPanel:
    """Strategies by layers; the darker, the further a layer moved, on a logarithmic scale. Blank: not by a
    bit."""

    def __init__(self, drift: Mapping[str, Mapping[str, float]]):
        self.metric = (
            "how far each layer moved: largest change / largest element, median over its tensors (where "
            "there is any)"
        )
        layers = {layer for its in drift.values() for layer in its}
        self.drift, self.layers = drift, sorted(layers, key=tree.from_input)
        self.size = (9.8, 1.1 + 0.26 * len(drift))

    def draw(self, ax: Axes) -> None:
        values = [v for its in self.drift.values() for v in its.values() if v > 0]
        low, high = (math.log(min(values)), math.log(max(values))) if values else (0.0, 1.0)
        for y, its in enumerate(self.drift.values()):
            for x, layer in enumerate(self.layers):
                if (v := its.get(layer, 0.0)) > 0:
                    shade = 0.12 + 0.6 * ((math.log(v) - low) / (high - low) if high > low else 1)
                    ax.add_patch(
                        Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=ACCENT, alpha=shade, lw=0)
                    )
                    ax.text(
                        x + 0.5,
                        y + 0.5,
                        f"{100 * v:.2g} %",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color=INK,
                    )
        ax.set_xlim(0, len(self.layers))
        ax.set_ylim(len(self.drift), 0)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xticks(
            [x + 0.5 for x in range(len(self.layers))], [layer.replace("_", " ") for layer in self.layers]
        )
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
