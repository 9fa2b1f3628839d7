"""ptft.bench.stats: what a handful of seeds says, and how often it is right."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ptft.bench import ranking, stats
from ptft.core.errors import UserError


def seeds(*values):
    return dict(enumerate(values))


# ---------------------------------------------------------------- intervals


def test_the_interval_is_students():
    values = [0.80, 0.82, 0.81, 0.85, 0.79]
    s = stats.summary(values)
    # the t table's 97.5 % point for 4 degrees of freedom
    half = 2.776445 * np.std(values, ddof=1) / np.sqrt(5)
    assert (
        s.n == 5
        and s.mean == pytest.approx(0.814)
        and s.median == 0.81
        and s.half == pytest.approx(half, rel=1e-5)
    )


def test_the_bootstrap_interval_is_the_expanded_percentile():
    # z' = sqrt(5 / 4) 2.776 = 3.104 cuts off 0.00095 on each side. Of the 5^5 resamples, 1 (0.0003) is five
    # times the least value and 5 more (0.0019 together) hold it four times and the second once: that is where
    # the quantile lies.
    assert stats.summary([4.0, 0.0, 8.0, 1.0, 2.0]).boot == pytest.approx((1 / 5, (4 * 8 + 4) / 5))


def test_intervals_hold_the_truth_as_often_as_is_said():
    rng, held = np.random.default_rng(0), {"t": 0, "boot": 0, "percentile": 0}
    samples = [list(rng.normal(size=5)) for _ in range(600)]
    for x in samples:
        s = stats.summary(x)
        plain = scipy_stats.bootstrap(
            (x,), np.mean, method="percentile", rng=0, n_resamples=999
        ).confidence_interval
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
    # two coins fall alike as often as not
    assert always.p == 0.5 and stats.verdict(always) == "cannot be told apart"
    six = stats.paired(dict.fromkeys(range(6), 1.5), dict.fromkeys(range(6), 1.0))
    assert six.p == 2 / 2**6 and stats.verdict(six) == "better"
    rounding = stats.paired({0: 0.1 + 0.2, 1: 0.7 + 0.1, 2: 0.3}, {0: 0.3, 1: 0.8, 2: 0.3})
    assert rounding.mean != 0 and rounding.p == 1


def test_a_failed_run_has_no_verdict():
    found = stats.paired(seeds(0.5, math.nan, 0.7), seeds(0.1, 0.2, 0.3))
    assert (
        found.p is None and stats.apart(found) is None and stats.verdict(found) == "a run failed: no interval"
    )


def test_the_same_strategy_twice():
    scores = seeds(0.70, 0.80, 0.90)
    exact, words = stats.same(scores, dict(scores))
    assert exact.mean == exact.lo == exact.hi == 0 and exact.p == 1 and words == "exactly the same"
    noise, words = stats.same(scores, seeds(0.71, 0.79, 0.90))
    assert noise.n == 3 and words == "cannot be told apart"
    assert stats.same(scores, seeds(0.70, 0.80, 0.90 + 1e-12))[1] == "cannot be told apart"  # not to the bit
    shifted, words = stats.same(scores, seeds(0.61, 0.70, 0.79))
    assert shifted.mean == pytest.approx(0.1) and words == "told apart"
    assert stats.same(scores, {7: 0.7}) == (None, "no common seed")
    assert stats.same({0: 0.7}, {0: 0.8})[1] == "one seed: no interval"


# ---------------------------------------------------------------- many strategies


def test_holm_by_hand():
    # sorted: 4 x 0.005 = 0.02, 3 x 0.01 = 0.03, 2 x 0.03 = 0.06, 1 x 0.04 = 0.04, which may not fall below
    # 0.06
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([0.01, None, 0.04, math.nan]) == [0.02, None, 0.04, None]  # two tests
    assert stats.holm([]) == [] and stats.holm([None]) == [None]


def test_every_pair_is_compared_and_corrected():
    full, noise = (0.80, 0.81, 0.82, 0.83, 0.84), (0.001, -0.002, 0.0015, 0.0, -0.001)
    scores = {
        "full": seeds(*full),
        "head": seeds(*(v - 0.10 + e for v, e in zip(full, noise, strict=True))),
        "top-2": seeds(*(v - 2 * e for v, e in zip(full, noise, strict=True))),
        "other": {9: 0.5},
    }
    pairs = {(p.a, p.b): p for p in stats.pairwise(scores)}
    assert list(pairs)[:3] == [("full", "head"), ("full", "top-2"), ("full", "other")] and len(pairs) == 6
    verdicts = {names: p.verdict for names, p in pairs.items()}
    assert verdicts["full", "head"] == "better" and verdicts["head", "top-2"] == "worse"
    assert (
        verdicts["full", "top-2"] == "cannot be told apart" and verdicts["full", "other"] == "no common seed"
    )
    gain = pairs["full", "head"].difference
    assert (
        gain.mean == pytest.approx(0.10, abs=1e-3)
        and gain.adjusted == pytest.approx(3 * gain.p)
        and gain.lo < 0.1 < gain.hi
    )
    assert {p.verdict for p in stats.pairwise(scores, higher_is_better=False) if p.b == "head"} == {"worse"}


def test_the_correction_decides():
    rng = np.random.default_rng(1)
    base = rng.normal(size=5)
    near = {"a": seeds(*base), "b": seeds(*(base + 0.02 + np.array([0.01, -0.015, 0.012, -0.012, 0.006])))}
    assert 0.01 < stats.pairwise(near)[0].difference.p < 0.05 and stats.pairwise(near)[0].verdict == "worse"
    crowd = near | {f"noise-{i}": seeds(*rng.normal(size=5)) for i in range(5)}
    assert stats.pairwise(crowd)[0].verdict == "cannot be told apart"


def test_strategies_that_are_the_same_are_rarely_told_apart():
    rng, found, uncorrected = np.random.default_rng(0), 0, 0
    for _ in range(150):
        pairs = stats.pairwise({name: seeds(*rng.normal(size=5)) for name in "abcd"})
        found += any(p.verdict in ("better", "worse") for p in pairs)
        uncorrected += any(p.difference.p < 0.05 for p in pairs)
    assert found / 150 <= 0.09 and uncorrected / 150 > 0.12


def test_ranks_are_over_the_seeds_that_all_have():
    base = (0.70, 0.74, 0.78, 0.72, 0.76)
    scores = {
        "worst": seeds(*(v - 0.2 - 0.001 * i for i, v in enumerate(base))),
        "best": seeds(*base),
        # of the first five seeds, the sixth is nobody else's
        "tied": seeds(0.70, 0.75, 0.77, 0.73, 0.74, 0.99),
    }
    found = ranking.ranks(scores)
    assert found == {"best": 1.5, "tied": 1.5, "worst": 3.0}
    assert ranking.ranks(scores, higher_is_better=False)["worst"] == 1
    assert ranking.ranks({"a": {0: 1.0}, "b": {1: 1.0}}) == ranking.ranks({}) == {}


def test_a_failed_run_ranks_last():
    found = ranking.ranks(
        {"fails": seeds(0.9, 0.9, math.nan), "steady": seeds(0.6, 0.7, 0.8), "lower": seeds(0.5, 0.6, 0.6)}
    )
    assert found == pytest.approx({"fails": 5 / 3, "steady": 5 / 3, "lower": 8 / 3})


# ---------------------------------------------------------------- how many seeds, which learning rate


def test_the_seeds_that_power_names_find_the_effect_as_often_as_is_asked():
    spread = [-math.sqrt(0.5) * 0.01, math.sqrt(0.5) * 0.01]  # a standard deviation of 0.01
    n, words = stats.power(spread, effect=0.01)
    assert words == f"about {n} seeds"
    rng = np.random.default_rng(0)
    found = {
        k: np.mean(scipy_stats.ttest_1samp(rng.normal(0.01, 0.01, (20_000, k)), 0, axis=1).pvalue < 0.05)
        for k in (n - 1, n)
    }
    assert found[n - 1] < 0.79 and 0.79 < found[n] < 0.82


def test_power_against_published_tables():
    unit = [-math.sqrt(0.5), math.sqrt(0.5)]
    assert (
        stats.power(unit, 1.0)[0] == 10
        and stats.power(unit, 0.5)[0] == 34
        and stats.power(unit, 0.2)[0] == 199
    )
    assert stats.power(unit, 0.5, power=0.95)[0] == 54 and stats.power(unit, 0.5, alpha=0.01)[0] == 51


def test_power_at_its_ends():
    assert stats.power([-1.0, 1.0], 0.01) == (None, "more than 1,000 seeds")
    assert [stats.power([0.0, x])[0] for x in (0.0, 1e-8, 1e-6, 1e-4, 1e-3, 5e-3)] == [None, 2, 2, 2, 2, 4]
    assert stats.power([0.01, math.nan])[0] is None and "unknown" in stats.power([])[1]
    assert stats.power([-math.sqrt(0.5), math.nan, math.sqrt(0.5)], 0.5)[0] == 34
    for bad in ({"effect": 0.0}, {"alpha": 1.0}, {"power": 0.0}):
        with pytest.raises(UserError, match="expected effect above 0"):
            stats.power([0.0, 1.0], **bad)


def test_the_learning_rate_with_the_best_mean():
    dev = {1e-3: seeds(0.95, 0.60), 1e-4: seeds(0.80, 0.79), 1e-5: seeds(0.70, 0.70)}
    assert ranking.choose(dev) == 1e-4 and ranking.choose(dev, higher_is_better=False) == 1e-5
    # of equals, the smaller
    assert ranking.choose({1e-3: seeds(0.1, 0.2, 0.3), 1e-4: seeds(0.3, 0.2, 0.1)}) == 1e-4
    assert ranking.choose({1e-4: seeds(0.3, 0.2, 0.1), 1e-3: seeds(0.1, 0.2, 0.3)}) == 1e-4


@pytest.mark.parametrize("failed", [seeds(0.99, math.nan), seeds(0.99, -math.inf)])
@pytest.mark.parametrize("higher", [True, False])
def test_a_learning_rate_that_fails_is_not_chosen(failed, higher):
    sign = 1 if higher else -1
    failed = {seed: sign * v for seed, v in failed.items()}
    assert ranking.choose({1e-3: failed, 1e-4: seeds(sign * 0.5, sign * 0.5)}, higher) == 1e-4
    assert ranking.choose({1e-3: failed, 1e-4: seeds(math.nan, math.nan)}, higher) == 1e-3


def test_rates_that_have_not_run_with_every_seed_are_compared_over_those_that_all_have():
    assert ranking.choose({1e-4: seeds(0.5, 0.99), 1e-3: seeds(0.9)}) == 1e-3
    assert ranking.choose({1e-4: {0: 0.5}, 1e-3: {1: 0.9}}) == 1e-3
    assert ranking.choose({1e-4: seeds(math.nan, 0.5), 1e-3: seeds(math.nan)}) == 1e-4


def test_nothing_to_choose_from():
    with pytest.raises(UserError, match=r"no run finished at any of the learning rates 0\.001, 1e-05"):
        ranking.choose({1e-3: seeds(math.nan), 1e-5: {}})
    with pytest.raises(UserError, match=r"\(none\)"):
        ranking.choose({})


def test_two_seeds_a_row_apart_are_no_finding():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(50):  # benchmarks of six strategies that are the same, on a small test set
        scores = {
            str(k): {seed: (240 + round(rng.normal(0, 1.5))) / 300 for seed in range(3)} for k in range(6)
        }
        found += any(pair.verdict in ("better", "worse") for pair in stats.pairwise(scores))
    assert found <= 6  # 5 % of them, as promised; certain of equal differences, it was most
