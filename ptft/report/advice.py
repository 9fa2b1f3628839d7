"""What to do with one task, model and size: the strategy to train, its score and cost, its command, and
why."""

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ptft.bench import stats
from ptft.bench.cell_result import Row
from ptft.core import config as configs
from ptft.report import format
from ptft.report.bench_part import Part
from ptft.report.bench_tables import seeds
from ptft.report.cost_panels import Line
from ptft.report.statements import edge, turned


class Floor(NamedTuple):
    """The best of the rows of reference, and of what starts from random weights."""

    line: Line
    # of every other strategy over it, corrected for their number (Holm)
    gains: dict[str, stats.Difference | None]
    better: frozenset[str]  # the strategies that are measurably better


def of(part: Part, folder: str = "") -> dict[str, Any] | None:
    """The first lines of a page; None where no strategy has all of its runs.

    Args:
      folder: before the strategy's name in the --workdir of its command, where a page has several of them.
    """
    if (best := best_mean(part)) is None:
        return None
    below = floor(part)
    line = choose(part, best, below)
    freeze = f"freeze={line.freeze}" if line.freeze not in (line.name, "") else ""
    start = "random weights" if not line.init_from and any(x.init_from for x in part.strategies) else ""
    none_better = below is not None and not below.better
    return {
        "name": line.name, "first": none_better_than(part, below) if below and none_better else [],
        "do": f"{'If you train one, take' if none_better else 'Train'} {line.name}",
        "how": ", ".join(filter(None, [freeze, line.lr and f"learning rate {line.lr}", start, line.chosen])),
        "facts": facts(part, line), "command": command(part.quoted[line.name].rows[0], folder),
        "why": why(part, best, line, below),
    }  # fmt: skip


def choose(part: Part, best: Line, below: Floor | None) -> Line:
    """The cheapest strategy that is level with the best mean.

    Where some of these are measurably better than the best reference, it is the cheapest of those. What was
    not compared with the best mean (one seed, a failed run) is not chosen."""
    level = [best, *level_with(part, best)]
    return cheapest([x for x in level if below and x.name in below.better] or level, part.higher)


def cheapest(lines: Sequence[Line], higher: bool) -> Line:
    """By the FLOPs of a step; where one has none, by time, or else by the trainable share. Of equals, the
    better mean."""
    known = (key for key in ("flops", "step", "share") if all(getattr(x, key) is not None for x in lines))
    key = next(known, None)
    return min(
        lines, key=lambda x: (getattr(x, key) if key else 0, -x.score.mean if higher else x.score.mean)
    )


def common_seeds(part: Part) -> tuple[set[int], bool]:
    """The seeds that all strategies without a failed run have, and whether these are all of their seeds."""
    whole = [set(x.scores) for x in part.strategies if not x.failed]
    common = set.intersection(*whole)
    return common, all(its == common for its in whole) or not common


def best_mean(part: Part) -> Line | None:
    """The mean of those seeds that a strategy survived is not its mean: one with a failed run is not
    asked."""
    whole = [x for x in part.strategies if not x.failed]
    return (max if part.higher else min)(whole, key=lambda x: _mean(part, x)) if whole else None


def _mean(part: Part, line: Line) -> float:
    common, even = common_seeds(part)
    return line.score.mean if even else float(np.mean([line.scores[seed] for seed in common]))


def against(part: Part, line: Line) -> dict[str, str]:
    """Every other strategy -> the verdict on this one against it, by the corrected comparison of all
    pairs."""
    found = {p.b: p.verdict for p in part.compared if p.a == line.name}
    return found | {p.a: turned(p.verdict) for p in part.compared if p.b == line.name}


def level_with(part: Part, best: Line) -> list[Line]:
    """What cannot be told apart from the best, without what may be worse, or has a failed run."""
    doubtful = may_be_worse(part, best)
    return [x for x in _not_apart(part, best) if x.name not in doubtful]


def may_be_worse(part: Part, best: Line) -> dict[str, stats.Difference]:
    """What its own interval says is worse than the best, and only the correction for all pairs leaves
    open."""
    gains = {x.name: stats.paired(x.scores, best.scores) for x in _not_apart(part, best)}
    return {name: gain for name, gain in gains.items() if gain and stats.behind(gain, part.higher)}


def _not_apart(part: Part, best: Line) -> list[Line]:
    verdicts = against(part, best)
    return [x for x in part.strategies if verdicts.get(x.name) == "cannot be told apart" and not x.failed]


def floor(part: Part) -> Floor | None:
    """None without a reference, or where nothing has an interval over it and some strategy's mean is
    better."""
    pretrained = any(x.init_from for x in part.strategies)
    references = [
        x
        for x in part.lines
        if not x.again and (x.reference or (pretrained and not x.init_from and not x.failed))
    ]
    if not references:
        return None
    line = (max if part.higher else min)(references, key=lambda x: x.score.mean)
    others = [x for x in part.strategies if x is not line]
    gains = dict(
        zip(
            [x.name for x in others],
            stats.corrected([stats.paired(x.scores, line.scores) for x in others]),
            strict=True,
        )
    )
    better = frozenset(name for name, gain in gains.items() if stats.verdict(gain, part.higher) == "better")
    found = Floor(line, gains, better)
    return found if _measured(found) or all(_gap(part, x, line) <= 0 for x in others) else None


def _measured(below: Floor) -> bool:
    return any(stats.apart(gain) is not None for gain in below.gains.values())


def _gap(part: Part, line: Line, other: Line) -> float:
    """By how much a mean is better than another."""
    return (line.score.mean - other.score.mean) * (1 if part.higher else -1)


# ---------------------------------------------------------------- sentences


def none_better_than(part: Part, below: Floor) -> list[str]:
    others = [x for x in part.strategies if x is not below.line]
    other = "other strategy" if len(others) < len(part.strategies) else "strategy"
    reference = f"{below.line.name} ({below.line.score.mean:.3f})"
    above, under = ("above", "below") if part.higher else ("below", "above")
    say = f"No {other} scored {above} {reference}"
    if _measured(below):
        known = {name: gain for name, gain in below.gains.items() if gain and math.isfinite(gain.mean)}
        name = (max if part.higher else min)(known, key=lambda n: known[n].mean)
        say = f"No {other} is measurably better than {reference}"
        if all(_gap(part, x, below.line) < 0 for x in others):
            say = f"Every {other} scored {under} {reference}"
        say += f": {name}, the best of them, differs by {format.signed(known[name])}"
    return [f"{say}. These runs give no clear reason to prefer any of them to {below.line.name}."]


def facts(part: Part, line: Line) -> str:
    """What it scores and costs."""
    base = part.baseline
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
        f"Test {part.metric} {format.plus_minus(line.score)} over {seeds(line)}{gain}. "
        f"{cost[:1].upper()}{cost[1:]}" + ("." if cost else "")
    )


def why(part: Part, best: Line, line: Line, below: Floor | None) -> list[str]:
    """Why this one, and what speaks against being sure."""
    most, metric = ("highest" if part.higher else "lowest"), part.metric
    if all(x.score.n == 1 for x in part.strategies):
        say = [
            f"{best.name} has the {most} test {metric}, {best.score.mean:.3f}. With one seed a strategy "
            "there is no interval: the order may be chance. Run three seeds or more."
        ]
    else:
        apart = [p for p in part.tested if p.verdict in ("better", "worse")]
        any_does = part.tested and not apart and line is cheapest(part.strategies, part.higher)
        say = ["No two strategies can be told apart, so take the cheapest."] if any_does else []
        say += [
            f"{best.name} has the {most} mean test {metric}: {_over(part, best)}.",
            *_level(part, best, line, below),
        ]
    if below and below.better and (no_better := [name for name in below.gains if name not in below.better]):
        say.append(
            f"Not measurably better than {below.line.name} ({below.line.score.mean:.3f}): "
            f"{format.listed(no_better, 20)}."
        )
    return say + started(part)


def _over(part: Part, best: Line) -> str:
    common, even = common_seeds(part)
    over = f"{format.plus_minus(best.score)} over {seeds(best)}"
    if not even:
        others = " without a failed run" if any(x.failed for x in part.strategies) else ""
        over = f"{_mean(part, best):.3f} over the {format.count(len(common), 'seed')} that all{others} have"
    return over + (f", at the {end} rate that it tried" if (end := edge(part, best.name)) else "")


def _level(part: Part, best: Line, line: Line, below: Floor | None) -> list[str]:
    """What is level with the best mean, what may be worse or was not compared with it, and the cheapest."""
    verdicts, level, doubtful = against(part, best), level_with(part, best), may_be_worse(part, best)
    names = [x.name for x in level]
    ahead = [name for name, verdict in verdicts.items() if verdict == "worse"]
    rest = [name for name, verdict in verdicts.items() if verdict not in ("better", "worse")]
    untested = [name for name in rest if name not in names and name not in doubtful]
    say = []
    cheapest_of_all = cheapest([best, *level], part.higher) is line
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


def started(part: Part) -> list[str]:
    """What the pretrained weights bring, for strategies that were trained from random ones, too."""
    say = []
    for x in part.strategies:
        for y in part.strategies:
            if x.init_from and not y.init_from and _but_start(part, x) == _but_start(part, y):
                gain = stats.paired(x.scores, y.scores)
                if gain and math.isfinite(gain.mean):
                    sure = {
                        True: "",
                        False: ", which cannot be told apart from nothing",
                        None: ", without an interval",
                    }[stats.apart(gain)]
                    say.append(
                        f"Starting from pretrained instead of random weights changes the test {part.metric} "
                        f"of {x.name} by {format.signed(gain)}{sure}."
                    )
    return say


def _but_start(part: Part, line: Line) -> dict[str, Any]:
    """What a strategy does, but for what it starts from, at which rate and with which seed."""
    row = part.quoted[line.name].rows[0]
    known = {**configs.leaves(row.get("config") or {}), "freeze": row.get("freeze")}
    return {k: v for k, v in known.items() if k not in ("init_from", "init_weights", "optim.lr", "seed")}


# ---------------------------------------------------------------- the command


def command(row: Row, folder: str = "") -> str:
    """The `ptft train` that does what a cell did, with the page's own seed; "" of a row that does not say its
    page."""
    given = shlex.split(row.get("command") or "")
    if given[:3] != ["ptft", "bench", "--config"] or "--only" not in given:
        return ""
    page = [word for word in given[2 : given.index("--only")] if not word.startswith("--config.bench.")]
    changes = [f"--config.{key}={value}" for key, value in _changes(row).items()]
    name = re.sub(r"[^\w.=-]+", "-", f"{folder} {row['strategy']}".strip()).strip("-")
    return shlex.join(["ptft", "train", *page, *changes, "--workdir", f"runs/{name}"])


def _changes(row: Row) -> dict[str, Any]:
    """What a cell's config has beyond its page: what strategy, rate, task, model, size and budget changed."""
    page = row.get("page") or {}
    bench, own = page.get("bench") or {}, configs.leaves(row.get("config") or {})
    stated = configs.leaves({k: v for k, v in page.items() if k != "bench"})
    entries = [
        e
        for kind in ("strategies", "tasks", "models")
        for e in bench.get(kind) or ()
        if e["name"] == row.get(_NAMES[kind])
    ]
    named = {key for entry in entries for key in configs.leaves(entry)}
    named |= {"data.train_size"} if row["size"] else set()
    named |= {"init_weights"} if own.get("init_weights") is False else set()
    first = {"freeze": row["freeze"], "optim.lr": row["lr"]}
    rest = {
        k: v
        for k, v in own.items()
        if k not in (*first, "seed") and (stated[k] != v if k in stated else k in named)
    }
    return {k: v for k, v in first.items() if v is not None} | rest


_NAMES = {
    "strategies": "strategy",
    "tasks": "task",
    "models": "model",
}  # section of `bench` -> label of a row
