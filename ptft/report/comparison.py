"""What the rows of one task, model and size say: numbers, sentences and tables."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ptft.bench import ranking, results, stats
from ptft.bench.cell_result import Row
from ptft.bench.results import Quoted
from ptft.bench.section import AGAIN
from ptft.report.cost_panels import Line

SLACK = 0.1  # by how much a share of time may differ from that of FLOPs before anybody asks why


class Comparison(NamedTuple):
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


def compare(
    title: str, rows: list[Row], order: Sequence[str], baseline: str, missing: Sequence[Mapping[str, Any]]
) -> Comparison:
    """`missing`: labels of the cells that have not run yet, here and elsewhere."""
    metric = rows[0]["metric"]
    higher, quoted = results.higher_is_better(metric, rows), results.quoted(rows, metric)
    settings = {(r["task"], r["model"], r["size"]) for r in rows if r["kind"] == "train"}
    waiting = frozenset(m["strategy"] for m in missing if (m["task"], m["model"], m["size"]) in settings)
    one = Comparison(
        title,
        rows,
        metric,
        higher,
        baseline,
        quoted,
        lines(quoted, order, baseline, metric, higher),
        [],
        waiting,
    )
    return one._replace(compared=stats.pairwise(one.scores, higher))


def lines(
    quoted: Mapping[str, Quoted], order: Sequence[str], baseline: str, metric: str, higher: bool
) -> list[Line]:
    """One line a strategy that has a finished run, at the learning rate that dev chose, in the config's
    order. A run that failed counts: what is said of a strategy with one has no interval."""
    base = _scores(quoted[baseline].rows, metric) if baseline in quoted else {}
    every = sorted({r["seed"] for q in quoted.values() for r in q.rows if r["kind"] == "train"})
    out = []
    for name in order:
        rows = quoted[name].rows if name in quoted else []
        if any(r["status"] == "ok" for r in rows):
            line = _line(name, rows, metric, every)
            line.gain = None if name == baseline else stats.paired(line.scores, base)
            line.verdict = "baseline" if name == baseline else stats.verdict(line.gain, higher)
            out.append(line)
    compared = [line for line in out if line.gain]
    for line, gain in zip(compared, [_corrected(line, compared) for line in compared], strict=True):
        line.gain, line.verdict = gain, stats.verdict(gain, higher)
    for reference in (line for line in out if line.name == baseline):
        for line in out:
            line.step_ratio = line.step / reference.step if line.step and reference.step else None
            line.flops_ratio = line.flops / reference.flops if line.flops and reference.flops else None
            line.peak_ratio = line.peak / reference.peak if line.peak and reference.peak else None
            line.noisy = _noisy(line, reference)
    ranks = ranking.ranks({x.name: x.scores for x in out if not x.reference and not x.again}, higher)
    for line in out:
        line.rank = ranks.get(line.name)
    return out


def _line(name: str, rows: Sequence[Row], metric: str, every: Sequence[int]) -> Line:
    """A strategy by itself: not yet compared with any other.

    Args:
      every: the seeds of all strategies.
    """
    ok = [r for r in rows if r["status"] == "ok"]
    own = scores = _scores(rows, metric)
    # it sees all examples, whatever the seed
    if ok[0]["kind"] != "train" and not ok[0]["size"] and len(rows) == 1:
        scores = dict.fromkeys(every or own, *own.values())
    times = [
        {"all": r["steps"] * a_step} for r in ok if r.get("steps") and (a_step := r.get("seconds_per_step"))
    ]
    return Line(
        name=name,
        freeze=_word(ok[0].get("freeze")),
        lr=", ".join(f"{lr:g}" for lr in {r["lr"]: 0 for r in ok if r.get("lr") is not None}),
        init_from=ok[0].get("init_from") or "",
        scores=scores,
        score=stats.summary([x for x in own.values() if math.isfinite(x)]),
        gain=None,
        verdict="",
        share=_median(ok, "trainable_share"),
        step=_median(ok, "seconds_per_step"),
        time=_median(times, "all"),
        flops=_median(ok, "flops_per_step"),
        peak=_median([r.get("bytes") or {} for r in ok], "peak"),
        checkpoint=_median([r.get("bytes") or {} for r in ok], "checkpoint"),
        forgetting=_forgetting(ok),
        failed=sum(r["status"] != "ok" for r in rows),
        reference=ok[0]["kind"] != "train",
        again=ok[0]["repeat"],
        chosen=_chosen(ok),
        quartiles=_quartiles(ok),
    )


def _quartiles(rows: Sequence[Row]) -> tuple[float, float] | None:
    low, high = _median(rows, "seconds_low"), _median(rows, "seconds_high")
    return None if low is None or high is None else (low, high)


def _noisy(line: Line, reference: Line) -> bool:
    """Whether a step saves more time than FLOPs, or costs more time for fewer FLOPs, by more than `SLACK`,
    unless the quartiles of both times bear it out: what FLOPs do not count, such as memory, may be the
    cause."""
    if line.step_ratio is None or line.flops_ratio is None:
        return False
    low, high = line.quartiles or (0.0, math.inf)
    least, most = reference.quartiles or (0.0, math.inf)
    if line.step_ratio < line.flops_ratio - SLACK:
        return high >= line.flops_ratio * least
    return line.flops_ratio < 1 and line.step_ratio > 1 + SLACK and low <= most


def _corrected(line: Line, compared: Sequence[Line]) -> stats.Difference | None:
    """Its difference to the baseline, for the number of rows that are compared with it; a copy stands in for
    what it copies."""
    mine = (line.name, line.name.removesuffix(AGAIN))
    return stats.corrected([line.gain, *(x.gain for x in compared if not x.again and x.name not in mine)])[0]


def _scores(rows: Sequence[Row], metric: str) -> dict[int, float]:
    """Seed -> test; NaN for a failed run."""
    return {r["seed"]: results.score(r, "test", metric) for r in rows}


def _chosen(rows: Sequence[Row]) -> str:
    """What auto(…) came to, and in how many seeds."""
    counts = Counter(r["chosen"] for r in rows if r.get("chosen"))
    return ", ".join(f"{name} in {n} of {len(rows)}" for name, n in counts.most_common())


def _forgetting(rows: Sequence[Row]) -> stats.Summary | None:
    losses = [f["after"] - f["before"] for r in rows if (f := r.get("forgetting"))]
    return stats.summary(losses) if losses else None


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(np.median(values)) if values else None


def _word(freeze: Any) -> str:
    if isinstance(freeze, str):
        return freeze
    return "rules" if freeze else ""
