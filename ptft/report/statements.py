"""What one task's rows say in words: what to be careful with."""

import math
import statistics

from ptft.bench import stats
from ptft.bench.section import AGAIN
from ptft.bench.setting import MARGIN
from ptft.report import format
from ptft.report.comparison import Comparison


def turned(verdict: str) -> str:
    """The verdict on the other of a pair."""
    return {"better": "worse", "worse": "better"}.get(verdict, verdict)


def unequal(comparison: Comparison) -> list[str]:
    """A warning where means are over other seeds than differences."""
    seeds = {x.name: set(x.scores) for x in comparison.lines if not x.reference}
    every = set().union(*seeds.values())
    fewer = [
        f"{name} has {format.count(len(its), 'seed')} of {len(every)}"
        for name, its in seeds.items()
        if its != every
    ]
    said = (
        "a mean is over a strategy's own seeds, a difference over those that both have, a rank over those "
        "that all have"
    )
    return [f"Not every strategy has the same seeds: {format.listed(fewer)}; {said}."] if fewer else []


def evaluated(comparison: Comparison) -> list[str]:
    """How many rows the scores are of, and what these rows leave open, which seeds do not show."""
    row = next(
        (r for r in comparison.rows if r["kind"] == "train" and (r.get("data") or {}).get("notes")), None
    )
    if row is None:
        return []
    config, notes = row.get("config") or {}, row["data"]["notes"]
    rows = {split: its["rows"] for split, its in notes.items()}
    limit = (config.get("data") or {}).get("dev_size") or math.inf
    chosen = any(len(q.tried) > 1 for q in comparison.quoted.values())
    dev = f", rates are chosen on {min(rows['dev'], limit):,} dev rows" if chosen and "dev" in rows else ""
    say = f"Scores are of {rows['test']:,} test rows{dev}."
    if comparison.metric == "accuracy":
        error = math.sqrt(0.25 / rows["test"])
        say += (
            f" Other rows would move an accuracy by up to {error:.3f} (one standard error), which intervals "
            "over seeds do not show."
        )
    cut = {split: its.get("truncated", 0) / its["rows"] for split, its in notes.items()}
    if max(cut.values()) > 0.01:
        say += (
            " Too long, and cut: "
            f"{format.listed([f'{format.percent(x)} of {split}' for split, x in cut.items() if x])}."
        )
    steps = [r["steps"] for r in comparison.rows if r["kind"] == "train" and r.get("steps")]
    if not steps or "batch" not in config:
        return [say]
    few, many = min(steps), max(steps)
    return [
        say,
        f"A run is {few:,}{f' to {many:,}' if few < many else ''} steps of {config['batch']} examples.",
    ]


def edge(comparison: Comparison, name: str) -> str:
    """Whether the rate that dev chose is the highest or the lowest of those tried."""
    quoted = comparison.quoted[name]
    if len(quoted.tried) < 2 or name in comparison.waiting:
        return ""
    return {max(quoted.tried): "highest", min(quoted.tried): "lowest"}.get(quoted.lr or 0.0, "")


def edges(comparison: Comparison) -> list[str]:
    """A warning where dev chose the first or last of the rates that a strategy tried."""
    ends = {
        end: [x.name for x in comparison.strategies if edge(comparison, x.name) == end]
        for end in ("highest", "lowest")
    }
    phrases = [
        f"the {end} that was tried for {format.listed(names, len(names))}"
        for end, names in ends.items()
        if names
    ]
    say = (
        [f"The rate that dev chose is {', and '.join(phrases)}: beyond it may be a better one."]
        if phrases
        else []
    )
    if open_ := [x.name for x in comparison.strategies if x.name in comparison.waiting]:
        say.append(f"Not all runs of {format.listed(open_)} are there yet: which rate counts may change.")
    return say


def again(comparison: Comparison) -> list[str]:
    """The A/A check in words."""
    repeats = [x for x in comparison.lines if x.again]
    if not repeats:
        return ["There is no A/A check: no strategy was entered twice (bench.repeat)."]
    out = []
    for line in repeats:
        name = line.name.removesuffix(AGAIN)
        twin = next((x for x in comparison.lines if x.name == name), None)
        difference, what = stats.same(line.scores, twin.scores) if twin else (None, "no common seed")
        if what == "exactly the same":
            out.append(
                f"The A/A check holds: {name} under two names gives the same scores to the bit. So nothing "
                "but strategy and seed decides a score; of chance it says nothing."
            )
        elif what == "cannot be told apart" and difference and difference.half:
            narrow = abs(difference.mean) + difference.half <= MARGIN
            verdict = "holds" if narrow else "finds nothing, at intervals too wide to find much"
            out.append(
                f"The A/A check {verdict}: {name} less itself under another name is "
                f"{format.signed(difference)}."
            )
        elif what == "told apart" and difference:
            out.append(
                f"The A/A check FAILS: {name} differs from itself by {format.signed(difference)}. "
                "Differences of this size between strategies mean nothing here (once in 20 benchmarks, this "
                "is chance)."
            )
        else:
            out.append(f"The A/A check of {name} says nothing: {what}.")
    return out


def power(comparison: Comparison) -> list[str]:
    """How many seeds a difference of a point takes, at the median spread of what is compared."""
    base = next((x for x in comparison.strategies if x.name == comparison.baseline), None)
    spread: list[tuple[float, list[float]]] = []
    for x in comparison.strategies:
        values = (
            [x.scores[s] - base.scores[s] for s in x.scores.keys() & base.scores.keys()]
            if base and x is not base
            else []
        )
        values = [v for v in values if math.isfinite(v)]
        if len(values) > 1 and max(values) - min(values) > stats.ROUNDING:
            spread.append((statistics.stdev(values), values))
    if not spread:
        return []
    least, middle, most = (sorted(spread)[i][1] for i in (0, len(spread) // 2, -1))
    few, some, many = (stats.power(values)[1].removeprefix("about ") for values in (least, middle, most))
    say = (
        f"To find a true difference of 0.01 to {comparison.baseline} on these rows four times in five takes "
        f"about {some}"
    )
    say += f" ({few} where the differences spread least, {many} where most)" if few != many else ""
    if (pairs := len(comparison.tested)) > 1:
        say += f"; {stats.power(middle, alpha=stats.ALPHA / pairs)[1]} with the correction for {pairs} pairs"
    return [f"{say}."]


def absent(comparison: Comparison) -> list[str]:
    """References that could not run, and why."""
    errors = {r["strategy"]: r["error"] for r in comparison.rows if r["status"] == "skipped"}
    return (
        [f"Not in the table: {'; '.join(f'{name} ({error})' for name, error in errors.items())}."]
        if errors
        else []
    )


def times(comparison: Comparison) -> list[str]:
    """A warning of shares of time that the shares of FLOPs contradict."""
    noisy = [(
        f"{x.name} {format.times(x.step_ratio)} of {comparison.baseline}'s time at "
        f"{format.times(x.flops_ratio)} of its FLOPs"
    )
             for x in comparison.lines if x.noisy]  # fmt: skip
    return (
        [
            f"Taken for noise of a busy machine: {format.listed(noisy)}. Go by FLOPs there, or measure on an "
            "idle machine."
        ]
        if noisy
        else []
    )


def frozen(comparison: Comparison) -> list[str]:
    """Whether what is frozen had dropout: a strategy that freezes more would else be regularized more, or
    less, than it seems."""
    off = {
        bool(r["config"].get("frozen_dropout", True))
        for r in comparison.rows
        if r["kind"] == "train" and r.get("config")
    }
    said = (
        "Parts of the encoder in which nothing is trainable ran without dropout (frozen_dropout=False), the "
        "others with it."
    )
    return [said] if off == {False} else []


CHECKS = (evaluated, edges, unequal, again, power, times, frozen)
