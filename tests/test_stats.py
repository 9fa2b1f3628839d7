"""ptft.bench.stats: what a handful of seeds says, and how often it is right."""

import numpy as np
import pytest

from ptft.bench import stats


def test_the_interval_is_students():
    values = [0.80, 0.82, 0.81, 0.85, 0.79]
    s = stats.summary(values)
    half = 2.776445 * np.std(values, ddof=1) / np.sqrt(5)  # the t table's 97.5 % point for 4 degrees of freedom
    assert s.n == 5 and s.mean == pytest.approx(0.814) and s.median == 0.81 and s.half == pytest.approx(half, rel=1e-5)


def test_the_interval_covers_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    covered = [s.lo <= 0 <= s.hi for s in (stats.summary(list(rng.normal(size=4))) for _ in range(1000))]
    assert 0.93 < np.mean(covered) < 0.97


def test_one_seed_has_no_interval_and_says_so():
    one = stats.paired({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.1})
    assert one is not None and one.n == 1 and one.lo is None and one.half is None
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


def test_equal_values_are_not_a_division_by_zero():
    assert stats.summary([0.5, 0.5, 0.5]).half == 0
    assert stats.verdict(stats.paired({0: 0.3, 1: 0.1}, {0: 0.3, 1: 0.1})) == "cannot be told apart"
    assert stats.verdict(stats.paired({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0})) == "better"
