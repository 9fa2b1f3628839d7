"""What a handful of seeds says: mean, median, 95 % interval, and paired differences.

The interval is Student's t over seeds: right for a mean of few, roughly normal values. It speaks of other seeds on the same
data, not of other data. Differences are paired by seed, which takes out what the seeds share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

METHOD = "95 % intervals are Student's t over seeds; differences are paired by seed and not corrected for the number of comparisons."


@dataclass(frozen=True)
class Summary:
    """Of `n` values; `lo` and `hi` are None when one value leaves nothing to say about spread."""

    n: int
    mean: float
    median: float
    lo: float | None
    hi: float | None

    @property
    def half(self) -> float | None:
        """Half the width of the interval: the number after ±."""
        return None if self.lo is None or self.hi is None else (self.hi - self.lo) / 2


def summary(values: Sequence[float]) -> Summary:
    """Mean, median and 95 % t-interval of at least one value."""
    if not values:
        raise ValueError("no value to summarize")
    mean, lo, hi = float(np.mean(values)), None, None
    if len(values) > 1:
        spread = float(stats.sem(values))
        lo, hi = (mean, mean) if spread == 0 else map(float, stats.t.interval(0.95, len(values) - 1, loc=mean, scale=spread))
    return Summary(len(values), mean, float(np.median(values)), lo, hi)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Summary | None:
    """Of `a[seed] - b[seed]` over the seeds that both have; None when there is none."""
    common = sorted(a.keys() & b.keys())
    return summary([a[seed] - b[seed] for seed in common]) if common else None


def apart(difference: Summary | None) -> bool | None:
    """Whether the interval of a difference leaves out 0; None when there is no interval."""
    if difference is None or difference.lo is None or difference.hi is None:
        return None
    if difference.lo == difference.hi:  # the same difference for every seed: only rounding tells it from 0
        return not math.isclose(difference.mean, 0, abs_tol=1e-9)
    return not difference.lo <= 0 <= difference.hi


def verdict(difference: Summary | None, higher_is_better: bool = True) -> str:
    """A paired difference in words."""
    if difference is None:
        return "no common seed"
    if (found := apart(difference)) is None:
        return "one seed: no interval"
    if not found:
        return "cannot be told apart"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"
