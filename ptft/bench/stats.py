"""What a handful of seeds says: intervals, paired tests.

All of it speaks of other seeds on the same data, not of other data. A run that failed is to be handed over as NaN: leaving
it out flatters the strategy. Differences are paired by seed, which takes out what the seeds share.

Two 95 % intervals of a mean, and how often they hold the true mean of n values (10,000 simulated samples each):

                                         n = 3    4    5    7   10
  normal              Student's t          .95  .95  .95  .95  .95
                      expanded percentile  .75  .87  .92  .94  .95
                      percentile           .75  .80  .84  .87  .91
                      BCa                  .73  .80  .84  .87  .91
  exponential         Student's t          .89  .89  .87  .90  .90
                      expanded percentile  .70  .82  .87  .90  .91
  one in ten fails    Student's t          .87  .82  .76  .71  .71
                      expanded percentile  .56  .67  .71  .70  .71

Verdicts go by Student's t, which misses least at few seeds. Percentiles of resampled means are too narrow: their spread lacks a factor
sqrt(n / (n - 1)), and they stand for z where t is due. The expanded percentile makes up for both, with the quantiles at ±z' of the
normal distribution, z' = sqrt(n / (n - 1)) t(0.975, n - 1) (Hesterberg 2015, What Teachers Should Know about the Bootstrap, The
American Statistician 69, arXiv 1411.5279). It still lies within the values, which hold the centre of a symmetric distribution
1 - 2 / 2^n of the time. The studentized bootstrap is not bound by that, but has no finite end once many values are equal, as they
are with small test sets: 7 % of samples of 5 whose standard deviation is 3 test rows. "One in ten fails": a seed that ends
10 standard deviations below the others. No interval survives that, so the seeds themselves want to be seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05  # chance of telling apart what is the same
ROUNDING = 1e-9  # relative; a smaller spread is that of equal values

METHOD = "95 % intervals are Student's t over seeds; differences are paired by seed and not corrected for the number of comparisons."
# What to say where these are shown.
BOOTSTRAP = (
    "Bootstrap intervals are expanded percentiles over resampled seeds. Simulated on normal values, they hold the true mean 92 % of "
    "the time with 5 seeds and 75 % with 3, not 95 % (plain percentiles: 84 % and 75 %; Student's t: 95 %): verdicts go by Student's t."
)


@dataclass(frozen=True)
class Summary:
    """Of `n` values; intervals are None where the values leave nothing to say about spread."""

    n: int
    mean: float
    median: float
    lo: float | None  # Student's t
    hi: float | None
    boot: tuple[float, float] | None  # bootstrap; None below three values, too

    @property
    def half(self) -> float | None:
        """Half the width of the t-interval: the number after ±."""
        return None if self.lo is None or self.hi is None else (self.hi - self.lo) / 2


@dataclass(frozen=True)
class Difference(Summary):
    """Of paired differences."""

    p: float | None  # of the paired t-test; None where there is no interval


def summary(values: Sequence[float]) -> Summary:
    """Mean, median and 95 % intervals of at least one value; all of them unknown if one is not finite."""
    if not values:
        raise ValueError("no value to summarize")
    n = len(values)
    if not np.isfinite(values).all():
        return Summary(n, math.nan, math.nan, None, None, None)
    mean, median = float(np.mean(values)), float(np.median(values))
    if n == 1:
        return Summary(n, mean, median, None, None, None)
    if _equal(values):
        return Summary(n, mean, median, mean, mean, (mean, mean) if n > 2 else None)
    lo, hi = stats.t.interval(1 - ALPHA, n - 1, loc=mean, scale=stats.sem(values))
    return Summary(n, mean, median, float(lo), float(hi), _expanded_percentile(values) if n > 2 else None)


def _expanded_percentile(values: Sequence[float]) -> tuple[float, float]:
    n = len(values)
    z = math.sqrt(n / (n - 1)) * stats.t.ppf(1 - ALPHA / 2, n - 1)
    # Sorted and with a generator of its own: the same values have the same interval, in any order.
    found = stats.bootstrap((np.sort(values),), np.mean, confidence_level=1 - 2 * stats.norm.sf(z), method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _equal(values: Sequence[float]) -> bool:
    return float(np.ptp(values)) <= ROUNDING * max(1.0, float(np.max(np.abs(values))))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Of `a[seed] - b[seed]` over the seeds that both have; None when there is none.

    The p-value is the paired t-test's. The exact tests of signs and ranks assume less, but their p-values end at 2 / 2^n, 0.0625
    with 5 seeds: they could never tell anything apart.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    differences = [a[seed] - b[seed] for seed in common]
    found, p = summary(differences), None
    if found.lo is not None:
        # No spread is no noise: any difference counts then, but for what rounding makes of 0. Equal differences may be chance where
        # they count rows of a small test set: with a standard deviation of 3 rows, in 8 % of cases (2 seeds), 0.7 % (3), 0.03 % (5)
        p = float(abs(found.mean) <= ROUNDING) if _equal(differences) else float(stats.ttest_1samp(differences, 0).pvalue)
    return Difference(**vars(found), p=p)


def apart(difference: Difference | None) -> bool | None:
    """Whether a difference is not 0, by its p-value; None when it has none."""
    if difference is None or difference.p is None:
        return None
    return difference.p < ALPHA


def verdict(difference: Difference | None, higher_is_better: bool = True) -> str:
    """A paired difference in words."""
    if difference is None:
        return "no common seed"
    if (found := apart(difference)) is None:
        return "a run failed: no interval" if math.isnan(difference.mean) else "one seed: no interval"
    if not found:
        return "cannot be told apart"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"
