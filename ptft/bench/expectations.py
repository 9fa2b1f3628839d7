"""What published tables lead one to expect of freezing, and whether a benchmark shows it.

Numbers of other models and data do not carry over; shapes may. Each expectation states its source and is
checked wherever the strategies, tasks and sizes that it speaks of were run: it holds, it does not, or there
is nothing to tell it by. "No worse" holds where the intervals leave room for no more than a point (MARGIN);
where nothing is measurably worse and the intervals are wider, it is open: two seeds tell nothing apart, which
is no sign that nothing differs.
"""

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ptft.bench import results, stats
from ptft.bench.cell_result import Row

Scores = Mapping[int, float]
Verdict = bool | None  # None: open
MARGIN = 0.01


class Part(NamedTuple):
    """One task, model and size."""

    title: str
    task: str
    size: int
    higher: bool
    rows: dict[str, list[Row]]  # freeze -> the rows that are quoted, one a seed
    scores: dict[str, Scores]  # freeze -> seed -> test
    tried: dict[str, tuple[float, list[float]]]  # freeze -> the learning rate that dev chose, all of them


class Finding(NamedTuple):
    """Of one expectation in one part of a benchmark."""

    expected: str
    source: str
    where: str
    holds: Verdict
    why: str


def findings(rows: Sequence[Row]) -> list[Finding]:
    """All that can be told by these rows (`results.merge`)."""
    out = []
    for part in parts(rows):
        for (expected, source), check in EXPECTATIONS.items():
            if (found := check(part)) is not None:
                out.append(Finding(expected, source, part.title, *found))
    order = [expected for expected, _ in EXPECTATIONS]
    return sorted(out, key=lambda f: order.index(f.expected))


def parts(rows: Sequence[Row]) -> Iterator[Part]:
    """The parts of a benchmark that start from pretrained weights; of several strategies with one freeze, the
    first."""
    pretrained = [
        r
        for r in rows
        if r["kind"] == "train"
        and not r["repeat"]
        and r.get("init_from")
        and isinstance(r.get("freeze"), str)
    ]
    for task, model, size in dict.fromkeys((r["task"], r["model"], r["size"]) for r in pretrained):
        here = [r for r in pretrained if (r["task"], r["model"], r["size"]) == (task, model, size)]
        metric = here[0]["metric"]
        found: dict[str, results.Quoted] = {}
        for quoted in results.quoted(here, metric).values():
            found.setdefault(quoted.rows[0]["freeze"], quoted)
        scores: dict[str, Scores] = {
            name: {r["seed"]: results.score(r, "test", metric) for r in q.rows} for name, q in found.items()
        }
        tried = {name: (q.lr, sorted(q.tried)) for name, q in found.items() if q.lr is not None}
        title = ", ".join(filter(None, [task, model, f"{size:,} examples" if size else "all examples"]))
        kept = {name: q.rows for name, q in found.items()}
        yield Part(title, task, size, results.higher_is_better(metric, here), kept, scores, tried)


Check = Callable[[Part], tuple[Verdict, str] | None]


def _gain(part: Part, a: str, b: str) -> stats.Difference | None:
    """How much better a is than b, paired by seed; None without two seeds, or where one failed."""
    found = stats.paired(part.scores[a], part.scores[b]) if a in part.scores and b in part.scores else None
    if found is None or found.p is None:
        return None
    return found if part.higher else stats.paired(part.scores[b], part.scores[a])


def _said(name: str, gain: stats.Difference) -> str:
    interval = f" [{gain.lo:+.3f}, {gain.hi:+.3f}]" if gain.half else ""  # equal differences have none
    return f"{name} {gain.mean:+.3f}{interval}".replace("-0.", "−0.")


def _corrected(gains: Sequence[tuple[str, str, stats.Difference]]) -> list[tuple[str, str, stats.Difference]]:
    """The more is compared, the more looks broken by chance alone (Holm)."""
    found = stats.corrected([gain for _, _, gain in gains])
    return [(a, b, gain) for (a, b, _), gain in zip(gains, found, strict=True) if gain]


def _no_worse(gains: Sequence[stats.Difference]) -> Verdict:
    # Where the seeds do not vary, there is no spread to go by.
    if all(gain.lo is not None and gain.hi is not None and gain.hi > gain.lo >= -MARGIN for gain in gains):
        return True
    return False if any(stats.apart(gain) and gain.mean < 0 for gain in gains) else None


def _tops(part: Part) -> list[str]:
    """head, top-1, top-2, … as far as they were run."""
    tops = [name for name in part.scores if re.fullmatch(r"top-\d+", name)]
    return [*(n for n in ["head"] if n in part.scores), *sorted(tops, key=lambda name: int(name[4:]))]


def more_layers_are_no_worse(part: Part) -> tuple[Verdict, str] | None:
    chain = [*_tops(part), *(n for n in ["full"] if n in part.scores)]
    steps = [(a, b, gain) for i, a in enumerate(chain) for b in chain[i + 1 :] if (gain := _gain(part, b, a))]
    compared = [name for name in chain if any(name in pair[:2] for pair in steps)]
    if len(compared) < 3:
        return None
    corrected = _corrected(steps)
    worse = [
        _said(f"{b} against {a}", gain) for a, b, gain in corrected if stats.apart(gain) and gain.mean < 0
    ]
    a, b, widest = min(corrected, key=lambda step: step[2].lo if step[2].lo is not None else -math.inf)
    unbroken = (
        f"none of {' ≤ '.join(compared)} is measurably broken; the least sure: "
        f"{_said(f'{b} against {a}', widest)}"
    )
    left = [
        f"not compared, for a failed run or too few seeds: {', '.join(x for x in chain if x not in compared)}"
    ]
    all_of_them = len(steps) == math.comb(len(compared), 2)
    holds = _no_worse([gain for _, _, gain in corrected])
    return holds if all_of_them or not holds else None, "; ".join(
        [*(worse or [unbroken]), *left * (chain != compared)]
    )


def the_first_layer_counts_most(part: Part) -> tuple[Verdict, str] | None:
    chain = _tops(part)
    if chain[:2] != ["head", "top-1"] or len(chain) < 3:
        return None
    first, *others = itertools.pairwise(chain)
    if not all(_gain(part, b, a) for a, b in (first, *others)):
        return None
    steps = {pair: _a_layer(part, *pair) for pair in (first, *others)}
    gains = stats.corrected([stats.paired(steps[first], steps[pair]) for pair in others])
    signs = [(gain.mean > 0) if gain and stats.apart(gain) else None for gain in gains]
    said = (f"{a} to {b} {statistics.fmean(steps[a, b].values()):+.3f} a layer" for a, b in steps)
    return _all(signs), ", ".join(said).replace("-0.", "−0.")


def _a_layer(part: Part, lower: str, upper: str) -> dict[int, float]:
    """Seed -> what a layer more brings between head or top-K and a larger top-K; the more, the better."""
    layers = int(upper[4:]) - (0 if lower == "head" else int(lower[4:]))
    sign = (1 if part.higher else -1) / layers
    a, b = part.scores[lower], part.scores[upper]
    return {seed: sign * (b[seed] - a[seed]) for seed in a.keys() & b.keys()}


def biases_suffice_on_small_tasks(part: Part) -> tuple[Verdict, str] | None:
    gain = _gain(part, "bitfit", "full")
    if gain is None or not re.search(r"(?<![a-z])(rte|cola|mrpc)(?![a-z])", part.task.lower()):
        return None
    return _no_worse([gain]), _said("bitfit against full", gain)


def biases_fall_short_on_large_tasks(part: Part) -> tuple[Verdict, str] | None:
    gain = _gain(part, "bitfit", "full")
    if gain is None or not re.search(r"(?<![a-z])(mnli|qqp)(?![a-z])", part.task.lower()):
        return None
    no_worse = _no_worse([gain])
    return None if no_worse is None else not no_worse, _said("bitfit against full", gain)


def seeds_decide_when_data_are_few(part: Part) -> tuple[Verdict, str] | None:
    gains = {name: gain for name in part.scores if name != "full" and (gain := _gain(part, name, "full"))}
    if not 50 <= part.size <= 100 or not gains:
        return None
    finished = [[x for x in seeds.values() if math.isfinite(x)] for seeds in part.scores.values()]
    spread = statistics.median(statistics.stdev(values) for values in finished if len(values) > 1)
    name = max(gains, key=lambda n: abs(gains[n].mean))
    within = all(
        gain.lo is not None and gain.hi is not None and -spread < gain.lo and gain.hi < spread
        for gain in gains.values()
    )
    corrected = [gain for _, _, gain in _corrected([(n, "full", g) for n, g in gains.items()])]
    beyond = any(stats.apart(g) and g.half is not None and abs(g.mean) - g.half > spread for g in corrected)
    verdict = False if beyond else None
    return (
        True if within else verdict,
        f"seeds spread by {spread:.3f} (median over strategies); the largest difference to full: "
        f"{_said(name, gains[name])}",
    )


def freezing_some_layers_costs_nothing(part: Part) -> tuple[Verdict, str] | None:
    """2 to 8 of 12 layers frozen, to a hundredth; how many there are is read off the leaves that moved in
    full."""
    blocks = {
        m[1]
        for r in part.rows.get("full", ())
        for n in r.get("drift") or {}
        if (m := re.search(r"/block_(\d+)/", n))
    }
    shares = {name: 1 - int(name[4:]) / len(blocks) for name in _tops(part) if name != "head" and blocks}
    gains = {
        n: gain for n, share in shares.items() if 0.16 < share < 0.67 and (gain := _gain(part, n, "full"))
    }
    if (part.size and part.size < 200) or not gains:
        return None
    corrected = _corrected([(n, "full", g) for n, g in gains.items()])
    return _no_worse([g for _, _, g in corrected]), ", ".join(_said(n, g) for n, g in gains.items())


def little_wants_high_rates(part: Part) -> tuple[Verdict, str] | None:
    few = {
        name: part.tried[name]
        for name in part.tried
        if name in ("head", "bitfit") or re.fullmatch(r"lora=\d+", name)
    }
    if (
        "full" not in part.tried
        or not few
        or any(len(rates) < 2 for _, rates in [part.tried["full"], *few.values()])
    ):
        return None
    lows = [rates[0] for _, rates in few.values()]
    if min(lows) >= 10 * part.tried["full"][1][-1]:  # nothing else could have been chosen
        return None
    tens = _all([_ten_times(*rates, *part.tried["full"]) for rates in few.values()])
    said = [f"{name} {lr:g}" + " (at the edge of what it tried)" * (lr in (rates[0], rates[-1]))
            for name, (lr, rates) in {"full": part.tried["full"], **few}.items()]  # fmt: skip
    return tens, ", ".join(said)


def _ten_times(lr: float, rates: Sequence[float], base: float, base_rates: Sequence[float]) -> Verdict:
    """Whether a rate is at least ten times another; open where it would not be if one of them lay beyond the
    edge of what it tried."""
    if lr >= 10 * base:
        return None if lr == rates[0] or base == base_rates[-1] else True
    return None if lr == rates[-1] or base == base_rates[0] else False


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def time_never_beats_flops(part: Part) -> tuple[Verdict, str] | None:
    def median(name: str, key: str) -> float | None:
        rows: Sequence[Mapping[str, Any]] = part.rows.get(name, ())
        values = [r[key] for r in rows if r.get(key)]
        return statistics.median(values) if values else None

    base = {key: median("full", key) for key in ("seconds_per_step", "flops_per_step")}
    shares: dict[str, tuple[float, float]] = {}
    for name in part.rows:
        time, flops = median(name, "seconds_per_step"), median(name, "flops_per_step")
        if name != "full" and time and flops and base["seconds_per_step"] and base["flops_per_step"]:
            shares[name] = time / base["seconds_per_step"], flops / base["flops_per_step"]
    if not shares:
        return None
    beats = [
        f"{name} {time:.2f} of full's time at {flops:.2f} of its FLOPs"
        for name, (time, flops) in shares.items()
        if time < flops - 0.05
    ]
    said = ", ".join(beats[:3]) + " …" * (len(beats) > 3) or "none by more than 5 points"
    return not beats, f"{said} (of medians)"


def gradual_is_about_full(part: Part) -> tuple[Verdict, str] | None:
    gain = _gain(part, "gradual", "full")
    if gain is None:
        return None
    ends = (
        [gain]
        if gain.lo is None or gain.hi is None
        else [gain, replace(gain, lo=-gain.hi, hi=-gain.lo, mean=-gain.mean)]
    )
    return _no_worse(ends), _said("gradual against full", gain)


def nothing_moved_is_nothing_forgotten(part: Part) -> tuple[Verdict, str] | None:
    found = [f for r in part.rows.get("head", ()) if (f := r.get("forgetting"))]
    changed = [f["after"] - f["before"] for f in found if f["after"] != f["before"]]
    return None if not found else (not changed, f"changed in {len(changed)} of {len(found)} runs of head")


TOP_K = "Lee, Tang & Lin 2019, arXiv 1911.03090; table of tunable layers of BERT-base on GLUE"
SIZES = "RoBERTa-base on SST-2, layers frozen x 50 to 1,000 examples, 5 seeds"
EXPECTATIONS: dict[tuple[str, str], Check] = {
    ("Training more layers from the top is no worse", TOP_K): more_layers_are_no_worse,
    ("The step from the head alone to one layer is the largest", TOP_K): the_first_layer_counts_most,
    (
        "On RTE, CoLA and MRPC, biases alone are no worse than everything",
        "Ben Zaken et al. 2021, arXiv 2106.10199",
    ): biases_suffice_on_small_tasks,
    (
        "On MNLI and QQP, biases alone are worse",
        "Ben Zaken et al. 2021, arXiv 2106.10199",
    ): biases_fall_short_on_large_tasks,
    ("With 50 to 100 examples, seeds differ by more than strategies", SIZES): seeds_decide_when_data_are_few,
    (
        "From 200 examples on, freezing a sixth to two thirds of the layers costs nothing",
        SIZES,
    ): freezing_some_layers_costs_nothing,
    (
        "Head, biases and LoRA want at least ten times the learning rate of everything",
        "Hu et al. 2021, arXiv 2106.09685",
    ): little_wants_high_rates,
    ("A step saves no more time than FLOPs", "a step is bound by its products"): time_never_beats_flops,
    (
        "Gradual unfreezing without discriminative rates is about full",
        "Howard & Ruder 2018, arXiv 1801.06146, table 7",
    ): gradual_is_about_full,
    ("What freezes the backbone forgets nothing", "by construction"): nothing_moved_is_nothing_forgotten,
}


def table(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """One row an expectation that holds or does not hold anywhere: where, where it is open, and by what."""
    out = []
    for expected, source in EXPECTATIONS:
        mine = [f for f in found if f.expected == expected]
        if any(f.holds is not None for f in mine):
            out.append(
                {
                    "expected": expected,
                    "source": source,
                    "verdict": _verdict(mine),
                    "parts": [f._asdict() for f in mine],
                }
            )
    return out


def _verdict(mine: Sequence[Finding]) -> str:
    found = {word: n for verdict, word in WORDS.items() if (n := sum(f.holds is verdict for f in mine))}
    (first, n), *rest = found.items()
    return (
        ", ".join([f"{first} in {n} of {len(mine)}", *(f"{word} in {n}" for word, n in rest)])
        if rest
        else first
    )


WORDS: Mapping[Verdict, str] = {True: "holds", False: "does not hold", None: "open"}
