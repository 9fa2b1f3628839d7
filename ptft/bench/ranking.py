"""Which is best over seeds: mean ranks of strategies, and the learning rate that dev chooses."""

import math
import statistics
from collections.abc import Mapping

import numpy as np

from ptft.core.errors import UserError


def ranks(scores: Mapping[str, Mapping[int, float]], higher_is_better: bool = True) -> dict[str, float]:
    """Mean rank over the seeds that all strategies have (Demšar 2006, JMLR 7): 1 is the best, ties share.

    A score that is not finite ranks last. Empty when no seed is common to all.

    Args:
      scores: strategy -> seed -> value.
    """
    seeds = sorted(set.intersection(*(set(own) for own in scores.values()))) if scores else []
    if not seeds:
        return {}
    from scipy import stats

    table = np.array(
        [[(-1 if higher_is_better else 1) * own[seed] for seed in seeds] for own in scores.values()]
    )
    table[~np.isfinite(table)] = math.inf
    return dict(zip(scores, map(float, stats.rankdata(table, axis=0).mean(1)), strict=True))


def choose(dev: Mapping[float, Mapping[int, float]], higher_is_better: bool = True) -> float:
    """The learning rate with the best mean dev score over seeds; of equals, the smallest.

    The choice is made on dev and the result quoted on test: the best of several noisy scores is partly luck,
    and more of it the more rates are tried, so the score that chose flatters (Cawley & Talbot 2010, On
    Over-fitting in Model Selection, JMLR 11).

    Args:
      dev: learning rate -> seed -> score. A score that is not finite is a failed run, and worse than any
        score: fewer of them go first. Rates that have not run with the same seeds yet are compared over those
        that all have, if any rate finished one of them.
    """
    common = set.intersection(*map(set, dev.values())) if dev else set()
    if not any(math.isfinite(scores[seed]) for scores in dev.values() for seed in common):
        common = set().union(*dev.values())

    def cost(rate: float) -> tuple[bool, int, float, float]:
        scores = [x for seed, x in dev[rate].items() if seed in common]
        good = [x for x in scores if math.isfinite(x)]
        mean = statistics.fmean(good) if good else math.nan
        return not good, len(scores) - len(good), -mean if higher_is_better else mean, rate

    if all(cost(rate)[0] for rate in dev):
        raise UserError(
            "no run finished at any of the learning rates "
            f"{', '.join(f'{rate:g}' for rate in dev) or '(none)'}"
        )
    return min(dev, key=cost)
