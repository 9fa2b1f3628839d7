"""What a handful of seeds says: intervals, paired tests, ranks, the choice of a learning rate, how many seeds
it takes.

All of it speaks of other seeds on the same data, not of other data. A run that failed is to be handed over as
NaN: leaving it out flatters the strategy. Differences are paired by seed, which takes out what the seeds
share.

Two 95 % intervals of a mean, and how often they hold the true mean of n values (10,000 simulated samples
each):

                                         n = 3    4    5    7   10
  normal              Student's t          .95  .95  .95  .95  .95
                      expanded percentile  .75  .87  .92  .94  .95
                      percentile           .75  .80  .84  .87  .91
                      BCa                  .73  .80  .84  .87  .91
  exponential         Student's t          .89  .89  .87  .90  .90
                      expanded percentile  .70  .82  .87  .90  .91
  one in ten fails    Student's t          .87  .82  .76  .71  .71
                      expanded percentile  .56  .67  .71  .70  .71

Verdicts go by Student's t, which misses least at few seeds. Percentiles of resampled means are too narrow:
their spread lacks a factor sqrt(n / (n - 1)), and they stand for z where t is due. The expanded percentile
makes up for both, with the quantiles at ±z' of the normal distribution, z' = sqrt(n / (n - 1)) t(0.975, n -
1) (Hesterberg 2015, What Teachers Should Know about the Bootstrap, The American Statistician 69, arXiv
1411.5279). It still lies within the values, which hold the centre of a symmetric distribution 1 - 2 / 2^n of
the time. The studentized bootstrap is not bound by that, but has no finite end once many values are equal, as
they are with small test sets: 7 % of samples of 5 whose standard deviation is 3 test rows. "One in ten
fails": a seed that ends 10 standard deviations below the others. No interval survives that, so the seeds
themselves want to be seen.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ptft.core.errors import UserError

# scipy.stats takes a second to import, and only a report calls what needs it.

ALPHA = 0.05  # chance of telling apart what is the same
ROUNDING = 1e-9  # relative; a smaller spread is that of equal values
MOST_SEEDS = 1000

METHOD = (
    "± and [ ] are 95 % intervals over seeds (Student's t), each of one mean or one difference; differences "
    "are paired by seed. Verdicts are corrected for the number of rows that are compared with the same one "
    "(Holm). What the choice of a rate adds is not in them."
)
# What to say where these are shown.
BOOTSTRAP = (
    "Bootstrap intervals are expanded percentiles over resampled seeds. Simulated on normal values, they "
    "hold the true mean 92 % of the time with 5 seeds and 75 % with 3, not 95 % (plain percentiles: 84 % "
    "and 75 %; Student's t: 95 %): verdicts go by Student's t."
)
PAIRWISE = (
    "All pairs are compared by paired t-tests whose p-values are corrected for the number of pairs (Holm); "
    "intervals are of one pair each. What cannot be told apart is not shown to be equal."
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

    def bare(self) -> "Summary":
        """Without intervals: what is left of a strategy whose other runs failed says nothing of those."""
        return replace(self, lo=None, hi=None, boot=None)

    @property
    def half(self) -> float | None:
        """Half the width of the t-interval: the number after ±."""
        return None if self.lo is None or self.hi is None else (self.hi - self.lo) / 2


@dataclass(frozen=True)
class Difference(Summary):
    """Of paired differences."""

    p: float | None  # of the paired t-test; None where there is no interval
    adjusted: float | None = None  # for the number of comparisons, where there are several: then it decides


@dataclass(frozen=True)
class Pair:
    """Two strategies: `a` minus `b`."""

    a: str
    b: str
    difference: Difference | None
    verdict: str  # on `a`


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
    from scipy import stats

    lo, hi = stats.t.interval(1 - ALPHA, n - 1, loc=mean, scale=stats.sem(values))
    return Summary(n, mean, median, float(lo), float(hi), _expanded_percentile(values) if n > 2 else None)


def _expanded_percentile(values: Sequence[float]) -> tuple[float, float]:
    from scipy import stats

    n = len(values)
    z = math.sqrt(n / (n - 1)) * stats.t.ppf(1 - ALPHA / 2, n - 1)
    # Sorted and with a generator of its own: the same values have the same interval, in any order.
    result = stats.bootstrap(
        (np.sort(values),), np.mean, confidence_level=1 - 2 * stats.norm.sf(z), method="percentile", rng=0
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _equal(values: Sequence[float]) -> bool:
    return float(np.ptp(values)) <= ROUNDING * max(1.0, float(np.max(np.abs(values))))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Of `a[seed] - b[seed]` over the seeds that both have; None when there is none.

    The p-value is the paired t-test's. The exact tests of signs and ranks assume less, but their p-values end
    at 2 / 2^n, 0.0625 with 5 seeds: they could never tell anything apart. Where all differences are the same,
    the sign test's it is.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    differences = [a[seed] - b[seed] for seed in common]
    estimate, p = summary(differences), None
    if estimate.lo is not None:
        from scipy import stats

        # Equal differences are no sign that nothing varies: accuracies count rows, and two seeds a row apart
        # are often chance. A t-test would divide by no spread and be certain; the signs alone are then the
        # evidence.
        nothing, n = abs(estimate.mean) <= ROUNDING, len(differences)
        chance = 1.0 if nothing else 2.0 ** (1 - n)
        p = chance if _equal(differences) else float(stats.ttest_1samp(differences, 0).pvalue)
    return Difference(**vars(estimate), p=p)


def apart(difference: Difference | None) -> bool | None:
    """Whether a difference is not 0, by its p-value (adjusted, if it is one of several); None when it has
    none."""
    if difference is None or difference.p is None:
        return None
    return (difference.p if difference.adjusted is None else difference.adjusted) < ALPHA


def verdict(difference: Difference | None, higher_is_better: bool = True) -> str:
    """A paired difference in words."""
    if difference is None:
        return "no common seed"
    if (differs := apart(difference)) is None:
        return "a run failed: no interval" if math.isnan(difference.mean) else "one seed: no interval"
    if not differs:
        return "cannot be told apart"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def behind(difference: Difference, higher_is_better: bool = True) -> bool:
    """Whether its own interval lies wholly on the worse side, whatever a correction leaves of that."""
    if difference.lo is None or difference.hi is None:
        return False
    return difference.hi < -ROUNDING if higher_is_better else difference.lo > ROUNDING


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: where those below a level count as found, the chance of even one false finding is at
    most that level.

    The i-th smallest of m becomes max over j <= i of min(1, (m - j + 1) p_j) (Holm 1979, Scandinavian Journal
    of Statistics 6). None and NaN are no tests: they stay, as None, and do not count in m.
    """
    known = sorted((p, i) for i, p in enumerate(pvalues) if p is not None and not math.isnan(p))
    adjusted: list[float | None] = [None] * len(pvalues)
    largest = 0.0
    for j, (p, i) in enumerate(known):
        adjusted[i] = largest = max(largest, min(1.0, (len(known) - j) * p))
    return adjusted


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The same differences, each p-value adjusted for all of them (Holm)."""
    adjusted = holm([None if d is None else d.p for d in differences])
    return [d and replace(d, adjusted=p) for d, p in zip(differences, adjusted, strict=True)]


def pairwise(scores: Mapping[str, Mapping[int, float]], higher_is_better: bool = True) -> list[Pair]:
    """Every pair of strategies of one task, in the order given; Holm's correction is over all of them.

    Args:
      scores: strategy -> seed -> value.
    """
    pairs = list(itertools.combinations(scores, 2))
    differences = corrected([paired(scores[a], scores[b]) for a, b in pairs])
    return [Pair(a, b, d, verdict(d, higher_is_better)) for (a, b), d in zip(pairs, differences, strict=True)]


def same(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[Difference | None, str]:
    """The A/A check, the same strategy under two names: the difference, and what it says of the benchmark.

    "exactly the same": runs repeat to the bit, so nothing but the strategy and the seed decides a score; it
    says nothing of the test. "told apart": something else does, and differences of this size between
    strategies mean nothing (once in 20 checks, that is chance).
    """
    difference = paired(a, b)
    if difference and all(a[seed] == b[seed] for seed in a.keys() & b.keys()):
        return difference, "exactly the same"
    # A constant offset is no noise: of runs that are the same, three seeds have one in less than 1 % of
    # cases.
    offset = (
        difference is not None
        and difference.n > 2
        and difference.lo == difference.hi
        and abs(difference.mean) > ROUNDING
    )
    return difference, "told apart" if offset or apart(difference) else verdict(difference)


def power(
    differences: Sequence[float], effect: float = 0.01, alpha: float = ALPHA, power: float = 0.8
) -> tuple[int | None, str]:
    """How many seeds a paired t-test needs to find a true difference of `effect`, if seeds go on to spread as
    these do.

    The smallest n with P(T > t(1 - alpha / 2, n - 1)) >= power, T noncentral t with n - 1 degrees of freedom
    around effect sqrt(n) / s, s the standard deviation of the differences (Cohen 1988, Statistical Power
    Analysis, 2). It is as rough as s: from 5 seeds, the true one lies between 0.6 s and 2.9 s, and n goes
    with its square.

    Args:
      differences: paired, of at least two seeds; what is not finite is left out.
      alpha: the level of the test; with Holm's correction, that of the smallest p-value is 0.05 by the number
        of pairs.
    Returns:
      (n, in words); n is None above `MOST_SEEDS` and where there is no spread to go by.
    """
    if not (effect > 0 and 0 < alpha < 1 and 0 < power < 1):
        raise UserError(
            f"power: expected effect above 0, alpha and power between 0 and 1; got {effect}, {alpha}, {power}"
        )
    values = [x for x in differences if math.isfinite(x)]
    if len(values) < 2:
        return None, "unknown: it takes the differences of two seeds"
    if _equal(values):
        return None, "unknown: their differences do not vary, so there is no spread to go by"
    from scipy import stats

    n = np.arange(2, MOST_SEEDS + 1)
    limit = stats.t.ppf(1 - alpha / 2, n - 1)
    # beyond, scipy's series does not converge; the power is 1
    shift = np.minimum(effect * np.sqrt(n) / np.std(values, ddof=1), 100)
    enough = n[stats.nct.sf(limit, n - 1, shift) >= power]
    return (
        (int(enough[0]), f"about {enough[0]:,} seeds")
        if len(enough)
        else (None, f"more than {MOST_SEEDS:,} seeds")
    )
