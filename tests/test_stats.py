"""ptft.bench.stats: what a handful of seeds says, and how often it is right."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ptft.bench import stats


def seeds(*values):
    return dict(enumerate(values))


# ---------------------------------------------------------------- intervals


def test_the_interval_is_students():
    values = [0.80, 0.82, 0.81, 0.85, 0.79]
    s = stats.summary(values)
    half = 2.776445 * np.std(values, ddof=1) / np.sqrt(5)  # the t table's 97.5 % point for 4 degrees of freedom
    assert s.n == 5 and s.mean == pytest.approx(0.814) and s.median == 0.81 and s.half == pytest.approx(half, rel=1e-5)


def test_the_bootstrap_interval_is_the_expanded_percentile():
    # z' = sqrt(5 / 4) 2.776 = 3.104 cuts off 0.00095 on each side. Of the 5^5 resamples, 1 (0.0003) is five times the least value and 5
    # more (0.0019 together) hold it four times and the second once: that is where the quantile lies.
    assert stats.summary([4.0, 0.0, 8.0, 1.0, 2.0]).boot == pytest.approx((1 / 5, (4 * 8 + 4) / 5))


def test_intervals_hold_the_truth_as_often_as_is_said():
    rng, held = np.random.default_rng(0), {"t": 0, "boot": 0, "percentile": 0}
    samples = [list(rng.normal(size=5)) for _ in range(600)]
    for x in samples:
        s = stats.summary(x)
        plain = scipy_stats.bootstrap((x,), np.mean, method="percentile", rng=0, n_resamples=999).confidence_interval
        held["t"] += s.lo <= 0 <= s.hi
        held["boot"] += s.boot[0] <= 0 <= s.boot[1]
        held["percentile"] += plain.low <= 0 <= plain.high
    rates = {name: n / len(samples) for name, n in held.items()}
    assert 0.93 < rates["t"] < 0.97 and 0.895 < rates["boot"] < 0.945 and 0.80 < rates["percentile"] < 0.875
    assert "92 %" in stats.BOOTSTRAP and "84 %" in stats.BOOTSTRAP


def test_the_same_values_have_the_same_interval_in_any_order():
    values = [0.80, 0.82, 0.81, 0.85, 0.79, 0.9, 0.77]
    assert stats.summary(values).boot == stats.summary(values).boot == stats.summary(values[::-1]).boot


def test_values_without_spread():
    s = stats.summary([0.5, 0.5, 0.5])
    assert s.half == 0 and s.boot == (0.5, 0.5)
    assert stats.summary([0.1 + 0.2, 0.3, 0.3]).half == 0  # but for rounding


def test_few_values_say_less():
    one, two = stats.summary([0.5]), stats.summary([0.5, 0.7])
    assert (one.mean, one.median, one.lo, one.hi, one.half, one.boot) == (0.5, 0.5, None, None, None, None)
    assert two.mean == pytest.approx(0.6) and two.lo < 0.5 < 0.7 < two.hi and two.boot is None
    with pytest.raises(ValueError, match="no value"):
        stats.summary([])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_failed_run_leaves_no_mean(bad):
    s = stats.summary([0.5, bad, 0.7])
    assert s.n == 3 and math.isnan(s.mean) and math.isnan(s.median) and s.lo is s.hi is s.boot is None


# ---------------------------------------------------------------- two strategies


def test_one_seed_has_no_interval_and_says_so():
    one = stats.paired({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.1})
    assert one is not None and one.n == 1 and one.lo is None and one.half is None and one.p is None
    assert stats.verdict(one) == "one seed: no interval"
    assert stats.paired({0: 1.0}, {1: 1.0}) is None and stats.verdict(None) == "no common seed"


def test_pairing_finds_what_the_seeds_hide():
    base = {0: 0.70, 1: 0.80, 2: 0.90, 3: 0.75}
    better = {seed: v + 0.010 + 0.001 * seed for seed, v in base.items()}
    assert stats.verdict(stats.paired(better, base)) == "better"
    assert stats.verdict(stats.paired(better, base), higher_is_better=False) == "worse"
    assert stats.verdict(stats.paired(base, better)) == "worse"
    noise = {seed: v + 0.01 * (-1) ** seed for seed, v in base.items()}
    assert stats.verdict(stats.paired(noise, base)) == "cannot be told apart"


def test_the_p_value_is_the_paired_t_tests():
    a, b = {3: 5.0, 1: 2.0, 2: 4.0, 9: 0.0}, {1: 1.0, 2: 2.0, 3: 2.0}
    found = stats.paired(a, b)
    # differences 1, 2, 3: t = 2 sqrt(3) with 2 degrees of freedom, where p = 1 - t / sqrt(t^2 + 2)
    assert found.n == 3 and found.mean == 2 and found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_the_p_value_and_the_interval_agree():
    rng = np.random.default_rng(0)
    found = [stats.paired(seeds(*rng.normal(1, 1, 4)), seeds(0.0, 0.0, 0.0, 0.0)) for _ in range(100)]
    outside = [not d.lo <= 0 <= d.hi for d in found]
    assert [stats.apart(d) for d in found] == outside and 10 < sum(outside) < 90


def test_equal_differences_are_not_a_division_by_zero():
    nothing = stats.paired({0: 0.3, 1: 0.1}, {0: 0.3, 1: 0.1})
    assert nothing.p == 1 and stats.verdict(nothing) == "cannot be told apart"
    always = stats.paired({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0})
    assert always.p == 0 and stats.verdict(always) == "better"
    rounding = stats.paired({0: 0.1 + 0.2, 1: 0.7 + 0.1, 2: 0.3}, {0: 0.3, 1: 0.8, 2: 0.3})
    assert rounding.mean != 0 and rounding.p == 1


def test_a_failed_run_has_no_verdict():
    found = stats.paired(seeds(0.5, math.nan, 0.7), seeds(0.1, 0.2, 0.3))
    assert found.p is None and stats.apart(found) is None and stats.verdict(found) == "a run failed: no interval"
