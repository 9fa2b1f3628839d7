"""Which strategy to train: the cheapest that is level with the best mean, and better than the references."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptft.bench import stats
from ptft.report.comparison import Comparison
from ptft.report.cost_panels import Line
from ptft.report.statements import turned


class Floor(NamedTuple):
    """The best of the rows of reference, and of what starts from random weights."""

    line: Line
    # of every other strategy over it, corrected for their number (Holm)
    gains: dict[str, stats.Difference | None]
    better: frozenset[str]  # the strategies that are measurably better


def choose(comparison: Comparison, best: Line, below: Floor | None) -> Line:
    """The cheapest strategy that is level with the best mean.

    Where some of these are measurably better than the best reference, it is the cheapest of those. What was
    not compared with the best mean (one seed, a failed run) is not chosen."""
    level = [best, *level_with(comparison, best)]
    return cheapest([x for x in level if below and x.name in below.better] or level, comparison.higher)


def cheapest(lines: Sequence[Line], higher: bool) -> Line:
    """By the FLOPs of a step; where one has none, by time, or else by the trainable share. Of equals, the
    better mean."""
    known = (key for key in ("flops", "step", "share") if all(getattr(x, key) is not None for x in lines))
    key = next(known, None)
    return min(
        lines, key=lambda x: (getattr(x, key) if key else 0, -x.score.mean if higher else x.score.mean)
    )


def common_seeds(comparison: Comparison) -> tuple[set[int], bool]:
    """The seeds that all strategies without a failed run have, and whether these are all of their seeds."""
    whole = [set(x.scores) for x in comparison.strategies if not x.failed]
    common = set.intersection(*whole)
    return common, all(its == common for its in whole) or not common


def best_mean(comparison: Comparison) -> Line | None:
    """The mean of those seeds that a strategy survived is not its mean: one with a failed run is not
    asked."""
    whole = [x for x in comparison.strategies if not x.failed]
    return (max if comparison.higher else min)(whole, key=lambda x: mean(comparison, x)) if whole else None


def mean(comparison: Comparison, line: Line) -> float:
    """Over the seeds that all have."""
    common, even = common_seeds(comparison)
    return line.score.mean if even else float(np.mean([line.scores[seed] for seed in common]))


def against(comparison: Comparison, line: Line) -> dict[str, str]:
    """Every other strategy -> the verdict on this one against it, by the corrected comparison of all
    pairs."""
    verdicts = {p.b: p.verdict for p in comparison.compared if p.a == line.name}
    return verdicts | {p.a: turned(p.verdict) for p in comparison.compared if p.b == line.name}


def level_with(comparison: Comparison, best: Line) -> list[Line]:
    """What cannot be told apart from the best, without what may be worse, or has a failed run."""
    doubtful = may_be_worse(comparison, best)
    return [x for x in _not_apart(comparison, best) if x.name not in doubtful]


def may_be_worse(comparison: Comparison, best: Line) -> dict[str, stats.Difference]:
    """What its own interval says is worse than the best, and only the correction for all pairs leaves
    open."""
    gains = {x.name: stats.paired(x.scores, best.scores) for x in _not_apart(comparison, best)}
    return {name: gain for name, gain in gains.items() if gain and stats.behind(gain, comparison.higher)}


def _not_apart(comparison: Comparison, best: Line) -> list[Line]:
    verdicts = against(comparison, best)
    return [
        x for x in comparison.strategies if verdicts.get(x.name) == "cannot be told apart" and not x.failed
    ]


def floor(comparison: Comparison) -> Floor | None:
    """None without a reference, or where nothing has an interval over it and some strategy's mean is
    better."""
    pretrained = any(x.init_from for x in comparison.strategies)
    references = [
        x
        for x in comparison.lines
        if not x.again and (x.reference or (pretrained and not x.init_from and not x.failed))
    ]
    if not references:
        return None
    line = (max if comparison.higher else min)(references, key=lambda x: x.score.mean)
    others = [x for x in comparison.strategies if x is not line]
    gains = dict(
        zip(
            [x.name for x in others],
            stats.corrected([stats.paired(x.scores, line.scores) for x in others]),
            strict=True,
        )
    )
    better = frozenset(
        name for name, gain in gains.items() if stats.verdict(gain, comparison.higher) == "better"
    )
    below = Floor(line, gains, better)
    return below if measured(below) or all(gap(comparison, x, line) <= 0 for x in others) else None


def measured(below: Floor) -> bool:
    """Whether any strategy has an interval over it."""
    return any(stats.apart(gain) is not None for gain in below.gains.values())


def gap(comparison: Comparison, line: Line, other: Line) -> float:
    """By how much a mean is better than another."""
    return (line.score.mean - other.score.mean) * (1 if comparison.higher else -1)
