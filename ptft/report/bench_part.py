"""What the rows of one task, model and size say: numbers, sentences and tables."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from ptft.bench import results, stats
from ptft.bench.expectations import MARGIN
from ptft.bench.protocol import AGAIN
from ptft.bench.results import Quoted, Row
from ptft.report import format
from ptft.report.cost_panels import Line

SLACK = 0.1  # by how much a share of time may differ from that of FLOPs before anybody asks why


class Part(NamedTuple):
    """One task, model and size."""

    title: str
    rows: list[Row]
    metric: str
    higher: bool
    baseline: str
    quoted: dict[str, Quoted]
    lines: list[Line]
    compared: list[stats.Pair]  # all pairs of strategies
    waiting: frozenset[str]  # strategies with cells that have not run yet

    @property
    def tested(self) -> list[stats.Pair]:
        """Without those that have too few common seeds or a failed run."""
        return [p for p in self.compared if stats.apart(p.difference) is not None]

    @property
    def strategies(self) -> list[Line]:
        """Without the references and the A/A check, which are no strategies that could be the best."""
        return [x for x in self.lines if not x.reference and not x.again]

    @property
    def scores(self) -> dict[str, dict[int, float]]:
        return {x.name: x.scores for x in self.strategies}


def part(title: str, rows: list[Row], order: Sequence[str], baseline: str, missing: Sequence[Mapping[str, Any]]) -> Part:
    """`missing`: labels of the cells that have not run yet, here and elsewhere."""
    metric = rows[0]["metric"]
    higher, quoted = results.higher_is_better(metric), results.quoted(rows, metric)
    here = {(r["task"], r["model"], r["size"]) for r in rows if r["kind"] == "train"}
    waiting = frozenset(m["strategy"] for m in missing if (m["task"], m["model"], m["size"]) in here)
    found = Part(title, rows, metric, higher, baseline, quoted, lines(quoted, order, baseline, metric, higher), [], waiting)
    return found._replace(compared=stats.pairwise(found.scores, higher))


def lines(quoted: Mapping[str, Quoted], order: Sequence[str], baseline: str, metric: str, higher: bool) -> list[Line]:
    """One line a strategy that has a finished run, at the learning rate that dev chose, in the config's order. A run that failed
    counts: what is said of a strategy with one has no interval."""
    base = _scores(quoted[baseline].rows, metric) if baseline in quoted else {}
    every = sorted({r["seed"] for q in quoted.values() for r in q.rows if r["kind"] == "train"})
    out = []
    for name in order:
        mine = quoted[name].rows if name in quoted else []
        ok = [r for r in mine if r["status"] == "ok"]
        if not ok:
            continue
        own = scores = _scores(mine, metric)
        if ok[0]["kind"] != "train" and not ok[0]["size"] and len(mine) == 1:  # it sees all examples, whatever the seed
            scores = dict.fromkeys(every or own, *own.values())
        gain = None if name == baseline else stats.paired(scores, base)
        out.append(Line(
            name=name, freeze=_word(ok[0].get("freeze")),
            lr=", ".join(f"{lr:g}" for lr in {r["lr"]: 0 for r in ok if r.get("lr") is not None}),
            init_from=ok[0].get("init_from") or "", scores=scores, score=stats.summary([x for x in own.values() if math.isfinite(x)]),
            gain=gain, verdict="baseline" if name == baseline else stats.verdict(gain, higher),
            share=_median(ok, "trainable_share"), step=_median(ok, "seconds_per_step"),
            time=_median([{"all": r["steps"] * r["seconds_per_step"]} for r in ok if r.get("steps") and r.get("seconds_per_step")], "all"),
            flops=_median(ok, "flops_per_step"), peak=_median([r.get("bytes") or {} for r in ok], "peak"),
            checkpoint=_median([r.get("bytes") or {} for r in ok], "checkpoint"), forgetting=_forgetting(ok),
            failed=sum(r["status"] != "ok" for r in mine), reference=ok[0]["kind"] != "train", again=ok[0]["repeat"],
            chosen=_chosen(ok), quartiles=_quartiles(ok),
        ))  # fmt: skip
    compared = [line for line in out if line.gain]
    for line, gain in zip(compared, [_corrected(line, compared) for line in compared], strict=True):
        line.gain, line.verdict = gain, stats.verdict(gain, higher)
    for reference in (line for line in out if line.name == baseline):
        for line in out:
            line.step_ratio = line.step / reference.step if line.step and reference.step else None
            line.flops_ratio = line.flops / reference.flops if line.flops and reference.flops else None
            line.peak_ratio = line.peak / reference.peak if line.peak and reference.peak else None
            line.noisy = _noisy(line, reference)
    ranks = stats.ranks({x.name: x.scores for x in out if not x.reference and not x.again}, higher)
    for line in out:
        line.rank = ranks.get(line.name)
    return out


def _quartiles(rows: Sequence[Row]) -> tuple[float, float] | None:
    low, high = _median(rows, "seconds_low"), _median(rows, "seconds_high")
    return None if low is None or high is None else (low, high)


def _noisy(line: Line, reference: Line) -> bool:
    """Whether a step saves more time than FLOPs, or costs more time for fewer FLOPs, by more than `SLACK`, unless the quartiles of both
    times bear it out: what FLOPs do not count, such as memory, may be the cause."""
    if line.step_ratio is None or line.flops_ratio is None:
        return False
    low, high = line.quartiles or (0.0, math.inf)
    least, most = reference.quartiles or (0.0, math.inf)
    if line.step_ratio < line.flops_ratio - SLACK:
        return high >= line.flops_ratio * least
    return line.flops_ratio < 1 and line.step_ratio > 1 + SLACK and low <= most


def _corrected(line: Line, compared: Sequence[Line]) -> stats.Difference | None:
    """Its difference to the baseline, for the number of rows that are compared with it; a copy stands in for what it copies."""
    mine = (line.name, line.name.removesuffix(AGAIN))
    return stats.corrected([line.gain, *(x.gain for x in compared if not x.again and x.name not in mine)])[0]


def _scores(rows: Sequence[Row], metric: str) -> dict[int, float]:
    """Seed -> test; NaN for a failed run."""
    return {r["seed"]: results.score(r, "test", metric) for r in rows}


def _chosen(rows: Sequence[Row]) -> str:
    """What auto(…) came to, and in how many seeds."""
    found = Counter(r["chosen"] for r in rows if r.get("chosen"))
    return ", ".join(f"{name} in {n} of {len(rows)}" for name, n in found.most_common())


def _forgetting(rows: Sequence[Row]) -> stats.Summary | None:
    found = [f["after"] - f["before"] for r in rows if (f := r.get("forgetting"))]
    return stats.summary(found) if found else None


# ---------------------------------------------------------------- sentences


def turned(verdict: str) -> str:
    """The verdict on the other of a pair."""
    return {"better": "worse", "worse": "better"}.get(verdict, verdict)


def unequal(part: Part) -> list[str]:
    """A warning where means are over other seeds than differences."""
    seeds = {x.name: set(x.scores) for x in part.lines if not x.reference}
    every = set().union(*seeds.values())
    fewer = [f"{name} has {format.count(len(its), 'seed')} of {len(every)}" for name, its in seeds.items() if its != every]
    said = "a mean is over a strategy's own seeds, a difference over those that both have, a rank over those that all have"
    return [f"Not every strategy has the same seeds: {format.listed(fewer)}; {said}."] if fewer else []


def evaluated(part: Part) -> list[str]:
    """How many rows the scores are of, and what these rows leave open, which seeds do not show."""
    row = next((r for r in part.rows if r["kind"] == "train" and (r.get("data") or {}).get("notes")), None)
    if row is None:
        return []
    config, notes = row.get("config") or {}, row["data"]["notes"]
    rows = {split: its["rows"] for split, its in notes.items()}
    limit = (config.get("data") or {}).get("dev_size") or math.inf
    chosen = any(len(q.tried) > 1 for q in part.quoted.values())
    dev = f", rates are chosen on {min(rows['dev'], limit):,} dev rows" if chosen and "dev" in rows else ""
    say = f"Scores are of {rows['test']:,} test rows{dev}."
    if part.metric == "accuracy":
        error = math.sqrt(0.25 / rows["test"])
        say += f" Other rows would move an accuracy by up to {error:.3f} (one standard error), which intervals over seeds do not show."
    cut = {split: its.get("truncated", 0) / its["rows"] for split, its in notes.items()}
    if max(cut.values()) > 0.01:
        say += f" Too long, and cut: {format.listed([f'{format.percent(x)} of {split}' for split, x in cut.items() if x])}."
    steps = [r["steps"] for r in part.rows if r["kind"] == "train" and r.get("steps")]
    if not steps or "batch" not in config:
        return [say]
    few, many = min(steps), max(steps)
    return [say, f"A run is {few:,}{f' to {many:,}' if few < many else ''} steps of {config['batch']} examples."]


def edge(part: Part, name: str) -> str:
    """Whether the rate that dev chose is the highest or the lowest of those tried."""
    quoted = part.quoted[name]
    if len(quoted.tried) < 2 or name in part.waiting:
        return ""
    return {max(quoted.tried): "highest", min(quoted.tried): "lowest"}.get(quoted.lr or 0.0, "")


def edges(part: Part) -> list[str]:
    """A warning where dev chose the first or last of the rates that a strategy tried."""
    ends = {end: [x.name for x in part.strategies if edge(part, x.name) == end] for end in ("highest", "lowest")}
    found = [f"the {end} that was tried for {format.listed(names, len(names))}" for end, names in ends.items() if names]
    say = [f"The rate that dev chose is {', and '.join(found)}: beyond it may be a better one."] if found else []
    if open_ := [x.name for x in part.strategies if x.name in part.waiting]:
        say.append(f"Not all runs of {format.listed(open_)} are there yet: which rate counts may change.")
    return say


def again(part: Part) -> list[str]:
    """The A/A check in words."""
    found = [x for x in part.lines if x.again]
    if not found:
        return ["There is no A/A check: no strategy was entered twice (bench.repeat)."]
    out = []
    for line in found:
        name = line.name.removesuffix(AGAIN)
        twin = next((x for x in part.lines if x.name == name), None)
        difference, what = stats.same(line.scores, twin.scores) if twin else (None, "no common seed")
        if what == "exactly the same":
            out.append(f"The A/A check holds: {name} under two names gives the same scores to the bit. So nothing but strategy and seed "
                       "decides a score; of chance it says nothing.")  # fmt: skip
        elif what == "cannot be told apart" and difference and difference.half:
            narrow = abs(difference.mean) + difference.half <= MARGIN
            verdict = "holds" if narrow else "finds nothing, at intervals too wide to find much"
            out.append(f"The A/A check {verdict}: {name} less itself under another name is {format.signed(difference)}.")
        elif what == "told apart" and difference:
            out.append(f"The A/A check FAILS: {name} differs from itself by {format.signed(difference)}. Differences of this size between "
                       "strategies mean nothing here (once in 20 benchmarks, this is chance).")  # fmt: skip
        else:
            out.append(f"The A/A check of {name} says nothing: {what}.")
    return out


def power(part: Part) -> list[str]:
    """How many seeds a difference of a point takes, at the median spread of what is compared."""
    base = next((x for x in part.strategies if x.name == part.baseline), None)
    spread: list[tuple[float, list[float]]] = []
    for x in part.strategies:
        values = [x.scores[s] - base.scores[s] for s in x.scores.keys() & base.scores.keys()] if base and x is not base else []
        values = [v for v in values if math.isfinite(v)]
        if len(values) > 1 and max(values) - min(values) > stats.ROUNDING:
            spread.append((statistics.stdev(values), values))
    if not spread:
        return []
    least, middle, most = (sorted(spread)[i][1] for i in (0, len(spread) // 2, -1))
    few, some, many = (stats.power(values)[1].removeprefix("about ") for values in (least, middle, most))
    say = f"To find a true difference of 0.01 to {part.baseline} on these rows four times in five takes about {some}"
    say += f" ({few} where the differences spread least, {many} where most)" if few != many else ""
    if (pairs := len(part.tested)) > 1:
        say += f"; {stats.power(middle, alpha=stats.ALPHA / pairs)[1]} with the correction for {pairs} pairs"
    return [f"{say}."]


def absent(part: Part) -> list[str]:
    """References that could not run, and why."""
    found = {r["strategy"]: r["error"] for r in part.rows if r["status"] == "skipped"}
    return [f"Not in the table: {'; '.join(f'{name} ({error})' for name, error in found.items())}."] if found else []


def times(part: Part) -> list[str]:
    """A warning of shares of time that the shares of FLOPs contradict."""
    found = [f"{x.name} {format.times(x.step_ratio)} of {part.baseline}'s time at {format.times(x.flops_ratio)} of its FLOPs"
             for x in part.lines if x.noisy]  # fmt: skip
    return (
        [f"Taken for noise of a busy machine: {format.listed(found)}. Go by FLOPs there, or measure on an idle machine."] if found else []
    )


def frozen(part: Part) -> list[str]:
    """Whether what is frozen had dropout: a strategy that freezes more would else be regularized more, or less, than it seems."""
    off = {bool(r["config"].get("frozen_dropout", True)) for r in part.rows if r["kind"] == "train" and r.get("config")}
    said = "Parts of the encoder in which nothing is trainable ran without dropout (frozen_dropout=False), the others with it."
    return [said] if off == {False} else []


CHECKS = (evaluated, edges, unequal, again, power, times, frozen)


# ---------------------------------------------------------------- tables

# Of a table that has to fit a terminal.
SHORT = {"cannot be told apart": "not told apart", "one seed: no interval": "one seed", "a run failed: no interval": "a run failed"}


def row(line: Line, part: Part) -> dict[str, Any]:
    freeze = "" if line.freeze in (line.name, "") else f"freeze={line.freeze}"
    start = "" if line.init_from or line.reference else "random weights"
    of = f" of those {line.score.n} that finished" if line.failed else ""
    boot = line.score.boot if not line.failed and line.score.half else None
    gain = line.gain if line.gain and math.isfinite(line.gain.mean) else None
    score = f"{line.score.mean:.3f}" if line.failed else format.plus_minus(line.score)
    return {
        "name": line.name, "again": line.again, "detail": ", ".join(filter(None, [freeze, start, line.chosen])),
        "lr": (line.lr or "–") + (f" ({end} tried)" if (end := edge(part, line.name)) else ""),
        "seeds": seeds(line), "score": score + of, "median": f"{line.score.median:.3f}",
        "boot": f"[{boot[0]:.3f},\N{NO-BREAK SPACE}{boot[1]:.3f}]" if boot else "",
        "rank": "–" if line.rank is None else f"{line.rank:.1f}",
        "gain": "–" if gain is None else format.sign(gain.mean), "range": format.interval(gain), "verdict": line.verdict,
        "gain_boot": format.between(*gain.boot) if gain and gain.boot and gain.half else "",
        "share": format.percent(line.share), "step": _time(line), "step_ratio": _time_share(line),
        "time": format.seconds(line.time), "flops": format.times(line.flops_ratio), "peak": format.size(line.peak),
        "peak_ratio": format.times(line.peak_ratio), "short": SHORT.get(line.verdict, line.verdict),
        "half": "" if gain is None else format.plus_minus_signed(gain),
        "checkpoint": format.size(line.checkpoint), "strip": _strip(line, *_strip_limits(part.lines)),
        "forgetting": "–" if line.forgetting is None else "0" if line.forgetting.mean == 0 else format.sign(line.forgetting.mean),
        "forgets": format.interval(line.forgetting) if line.forgetting and line.forgetting.mean else "",
    }  # fmt: skip


def _time(line: Line) -> str:
    """The median of a step, and the quartiles."""
    between = f" ({' to '.join(map(format.seconds, line.quartiles))})" if line.quartiles else ""
    return format.seconds(line.step) + between


def _time_share(line: Line) -> str:
    return format.times(line.step_ratio) + " (noise?)" * line.noisy


def seeds(line: Line) -> str:
    return format.count(line.score.n, "seed") + (f" ({line.failed} failed)" if line.failed else "")


def pairs(part: Part) -> dict[str, Any] | None:
    """The corrected comparison of all pairs as a square: the row's strategy less the column's."""
    found, tested = part.compared, len(part.tested)
    if len(part.scores) < 3 or not tested:
        return None
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for p in found:
        for a, b, factor in ((p.a, p.b, 1), (p.b, p.a, -1)):
            other = turned(p.verdict) if factor < 0 else p.verdict
            known = p.difference is not None and math.isfinite(p.difference.mean)
            text = format.sign(factor * p.difference.mean) if known and p.difference else "–"
            adjusted = "" if p.difference is None or p.difference.adjusted is None else f", p = {p.difference.adjusted:.2g}"
            cells[a, b] = {"text": text, "verdict": other, "title": f"{a} less {b}: {other}{adjusted}"}
    names = list(part.scores)
    apart = sum(p.verdict in ("better", "worse") for p in found)
    rest = f"; {len(found) - tested} have too few common seeds, or a failed run" if tested < len(found) else ""
    return {
        "names": names,
        "rows": [{"name": a, "cells": [cells.get((a, b)) for b in names]} for a in names],
        "lead": f"{apart} of {format.count(tested, 'pair')} can be told apart{rest}. {stats.PAIRWISE}",
    }


def commands(part: Part) -> list[dict[str, Any]]:
    """How to run each quoted row again: what the commands have in common, and the hash of each."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, quoted in part.quoted.items():
        for row in quoted.rows:
            if parsed := re.fullmatch(r"(.*) --only (\w+) --workdir \S+", row.get("command") or ""):
                found.setdefault(parsed[1], {}).setdefault(name, []).append(f"seed {row['seed']} {parsed[2]}")
    return [{"command": f"{command} --only HASH --workdir runs/HASH", "rows": list(rows.items())} for command, rows in found.items()]


# ---------------------------------------------------------------- seeds as dots


def _strip_limits(lines: Sequence[Line]) -> tuple[float, float]:
    values = [v for line in lines for v in line.finished.values()]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def strip_scale(lines: Sequence[Line]) -> str:
    return "{:.3f} – {:.3f}".format(*_strip_limits(lines)) if lines else ""


def _strip(line: Line, low: float, high: float, width: int = 130) -> Markup:
    """The seeds as dots on the task's common scale, the interval as a line, the mean as a tick."""

    def x(value: float) -> float:
        return round(5 + (width - 10) * (min(max(value, low), high) - low) / (high - low), 1)

    parts = [f'<line class="rail" x1="0" x2="{width}" y1="9" y2="9"/>']
    if line.score.lo is not None and line.score.hi is not None and not line.failed:
        parts.append(f'<line class="range" x1="{x(line.score.lo)}" x2="{x(line.score.hi)}" y1="9" y2="9"/>')
    parts += [f'<circle cx="{x(v)}" cy="9" r="3"><title>seed {seed}: {v:.4f}</title></circle>' for seed, v in line.finished.items()]
    parts.append(f'<line class="mean" x1="{x(line.score.mean)}" x2="{x(line.score.mean)}" y1="2" y2="16"/>')
    return Markup(f'<svg class="strip" viewBox="0 0 {width} 18" role="img" aria-label="seeds">{"".join(parts)}</svg>')  # numbers only


# ---------------------------------------------------------------- of many rows


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(np.median(values)) if values else None


def _word(freeze: Any) -> str:
    return freeze if isinstance(freeze, str) else "rules" if freeze else ""
