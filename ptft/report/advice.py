"""What to do with one task, model and size: the strategy to train, its score and cost, its command, and
why."""

import math
from typing import Any

from ptft.bench import stats
from ptft.core import config as configs
from ptft.report import choice, command, format
from ptft.report.bench_tables import seeds
from ptft.report.choice import Floor
from ptft.report.comparison import Comparison
from ptft.report.cost_panels import Line
from ptft.report.statements import edge


def of(comparison: Comparison, folder: str = "") -> dict[str, Any] | None:
    """The first lines of a page; None where no strategy has all of its runs.

    Args:
      folder: before the strategy's name in the --workdir of its command, where a page has several of them.
    """
    if (best := choice.best_mean(comparison)) is None:
        return None
    below = choice.floor(comparison)
    line = choice.choose(comparison, best, below)
    freeze = f"freeze={line.freeze}" if line.freeze not in (line.name, "") else ""
    start = "random weights" if not line.init_from and any(x.init_from for x in comparison.strategies) else ""
    none_better = below is not None and not below.better
    return {
        "name": line.name, "first": none_better_than(comparison, below) if below and none_better else [],
        "do": f"{'If you train one, take' if none_better else 'Train'} {line.name}",
        "how": ", ".join(filter(None, [freeze, line.lr and f"learning rate {line.lr}", start, line.chosen])),
        "facts": facts(comparison, line),
        "command": command.command(comparison.quoted[line.name].rows[0], folder),
        "why": why(comparison, best, line, below),
    }  # fmt: skip


def none_better_than(comparison: Comparison, below: Floor) -> list[str]:
    others = [x for x in comparison.strategies if x is not below.line]
    other = "other strategy" if len(others) < len(comparison.strategies) else "strategy"
    reference = f"{below.line.name} ({below.line.score.mean:.3f})"
    above, under = ("above", "below") if comparison.higher else ("below", "above")
    say = f"No {other} scored {above} {reference}"
    if choice.measured(below):
        known = {name: gain for name, gain in below.gains.items() if gain and math.isfinite(gain.mean)}
        name = (max if comparison.higher else min)(known, key=lambda n: known[n].mean)
        say = f"No {other} is measurably better than {reference}"
        if all(choice.gap(comparison, x, below.line) < 0 for x in others):
            say = f"Every {other} scored {under} {reference}"
        say += f": {name}, the best of them, differs by {format.signed(known[name])}"
    return [f"{say}. These runs give no clear reason to prefer any of them to {below.line.name}."]


def facts(comparison: Comparison, line: Line) -> str:
    """What it scores and costs."""
    base = comparison.baseline
    verdict = line.verdict
    if (
        verdict == "cannot be told apart"
        and line.gain
        and line.gain.p is not None
        and line.gain.p < stats.ALPHA
    ):
        verdict += " once all comparisons are allowed for"  # the interval is that of this one alone
    gain = (
        f", {format.signed(line.gain)} to {base} ({verdict})"
        if line.gain and math.isfinite(line.gain.mean)
        else ""
    )
    gain = ", the baseline" if line.name == base else gain
    costs = [
        f"{format.times(x)} of {whose}"
        for x, whose in ((line.flops_ratio, f"{base}'s FLOPs"), (line.peak_ratio, "its memory"))
        if x
    ]
    share = f"{format.percent(line.share)} of the parameters are trainable" if line.share is not None else ""
    costs = [f"a step takes {' and '.join(costs)}"] if costs and line.name != base else []
    cost = "; ".join(filter(None, [*costs, share]))
    return (
        f"Test {comparison.metric} {format.plus_minus(line.score)} over {seeds(line)}{gain}. "
        f"{cost[:1].upper()}{cost[1:]}" + ("." if cost else "")
    )


def why(comparison: Comparison, best: Line, line: Line, below: Floor | None) -> list[str]:
    """Why this one, and what speaks against being sure."""
    most, metric = ("highest" if comparison.higher else "lowest"), comparison.metric
    if all(x.score.n == 1 for x in comparison.strategies):
        say = [
            f"{best.name} has the {most} test {metric}, {best.score.mean:.3f}. With one seed a strategy "
            "there is no interval: the order may be chance. Run three seeds or more."
        ]
    else:
        apart = [p for p in comparison.tested if p.verdict in ("better", "worse")]
        any_does = (
            comparison.tested
            and not apart
            and line is choice.cheapest(comparison.strategies, comparison.higher)
        )
        say = ["No two strategies can be told apart, so take the cheapest."] if any_does else []
        say += [
            f"{best.name} has the {most} mean test {metric}: {_over(comparison, best)}.",
            *_level(comparison, best, line, below),
        ]
    if below and below.better and (no_better := [name for name in below.gains if name not in below.better]):
        say.append(
            f"Not measurably better than {below.line.name} ({below.line.score.mean:.3f}): "
            f"{format.listed(no_better, 20)}."
        )
    return say + started(comparison)


def _over(comparison: Comparison, best: Line) -> str:
    common, even = choice.common_seeds(comparison)
    over = f"{format.plus_minus(best.score)} over {seeds(best)}"
    if not even:
        others = " without a failed run" if any(x.failed for x in comparison.strategies) else ""
        mean, many = choice.mean(comparison, best), format.count(len(common), "seed")
        over = f"{mean:.3f} over the {many} that all{others} have"
    return over + (f", at the {end} rate that it tried" if (end := edge(comparison, best.name)) else "")


def _level(comparison: Comparison, best: Line, line: Line, below: Floor | None) -> list[str]:
    """What is level with the best mean, what may be worse or was not compared with it, and the cheapest."""
    verdicts, level, doubtful = (
        choice.against(comparison, best),
        choice.level_with(comparison, best),
        choice.may_be_worse(comparison, best),
    )
    names = [x.name for x in level]
    ahead = [name for name, verdict in verdicts.items() if verdict == "worse"]
    rest = [name for name, verdict in verdicts.items() if verdict not in ("better", "worse")]
    untested = [name for name in rest if name not in names and name not in doubtful]
    say = []
    cheapest_of_all = choice.cheapest([best, *level], comparison.higher) is line
    if level and line is best and cheapest_of_all:
        are, they = ("is", "it is not") if len(names) == 1 else ("are", "none of them is")
        say.append(f"{format.listed(names, len(names))} {are} not measurably worse, but {they} cheaper.")
    elif level:
        say.append(f"It cannot be told apart from {format.listed(names, len(names))}.")
    if doubtful:
        by = format.listed([format.signed(gain) for gain in doubtful.values()], len(doubtful))
        who = format.listed(list(doubtful), len(doubtful))
        say.append(f"{who} may be worse: {by} to {best.name}. More seeds would decide.")
    if ahead:
        say.append(f"Over the seeds that both have, it is measurably worse than {format.listed(ahead)}.")
    if untested:
        say.append(
            f"Not counted: {format.listed(untested)} (a run failed, or fewer than two seeds are common)."
        )
    if not level:
        worse = ["Every other strategy is measurably worse."] if verdicts else []
        return say or worse
    among = "them" if cheapest_of_all or not below else f"those that are better than {below.line.name}"
    if line is best:
        return say if cheapest_of_all else [*say, f"None of {among} is cheaper."]
    gain = stats.paired(line.scores, best.scores)
    less = f": {format.signed(gain)} to {best.name}" if gain else ""
    return [*say, f"The cheapest of {among} is {line.name}{less}."]


def started(comparison: Comparison) -> list[str]:
    """What the pretrained weights bring, for strategies that were trained from random ones, too."""
    say = []
    for x in comparison.strategies:
        for y in comparison.strategies:
            if x.init_from and not y.init_from and _but_start(comparison, x) == _but_start(comparison, y):
                gain = stats.paired(x.scores, y.scores)
                if gain and math.isfinite(gain.mean):
                    sure = {
                        True: "",
                        False: ", which cannot be told apart from nothing",
                        None: ", without an interval",
                    }[stats.apart(gain)]
                    say.append(
                        "Starting from pretrained instead of random weights changes the test "
                        f"{comparison.metric} of {x.name} by {format.signed(gain)}{sure}."
                    )
    return say


def _but_start(comparison: Comparison, line: Line) -> dict[str, Any]:
    """What a strategy does, but for what it starts from, at which rate and with which seed."""
    row = comparison.quoted[line.name].rows[0]
    known = {**configs.leaves(row.get("config") or {}), "freeze": row.get("freeze")}
    return {k: v for k, v in known.items() if k not in ("init_from", "init_weights", "optim.lr", "seed")}
