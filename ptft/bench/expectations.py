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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ptft.bench import stats
from ptft.bench.cell_result import Row
from ptft.bench.setting import Setting, Verdict, all_corrected, are_no_worse, in_words, settings
from ptft.core import tree


class Finding(NamedTuple):
    """Of one expectation in one setting of a benchmark."""

    expected: str
    source: str
    where: str
    holds: Verdict
    why: str


def findings(rows: Sequence[Row]) -> list[Finding]:
    """All that can be told by these rows (`results.merge`)."""
    out = []
    for setting in settings(rows):
        for (expected, source), check in EXPECTATIONS.items():
            if (said := check(setting)) is not None:
                out.append(Finding(expected, source, setting.title, *said))
    order = [expected for expected, _ in EXPECTATIONS]
    return sorted(out, key=lambda f: order.index(f.expected))


Check = Callable[[Setting], tuple[Verdict, str] | None]


def _tops(setting: Setting) -> list[str]:
    """head, top-1, top-2, … as far as they were run."""
    tops = [name for name in setting.scores if re.fullmatch(r"top-\d+", name)]
    return [*(n for n in ["head"] if n in setting.scores), *sorted(tops, key=lambda name: int(name[4:]))]


def more_layers_are_no_worse(setting: Setting) -> tuple[Verdict, str] | None:
    chain = [*_tops(setting), *(n for n in ["full"] if n in setting.scores)]
    steps = [
        (a, b, gain) for i, a in enumerate(chain) for b in chain[i + 1 :] if (gain := setting.gain(b, a))
    ]
    compared = [name for name in chain if any(name in pair[:2] for pair in steps)]
    if len(compared) < 3:
        return None
    corrected = all_corrected(steps)
    worse = [
        in_words(f"{b} against {a}", gain) for a, b, gain in corrected if stats.apart(gain) and gain.mean < 0
    ]
    a, b, widest = min(corrected, key=lambda step: step[2].lo if step[2].lo is not None else -math.inf)
    unbroken = (
        f"none of {' ≤ '.join(compared)} is measurably broken; the least sure: "
        f"{in_words(f'{b} against {a}', widest)}"
    )
    said = worse or [unbroken]
    if left := [name for name in chain if name not in compared]:
        said.append(f"not compared, for a failed run or too few seeds: {', '.join(left)}")
    all_of_them = len(steps) == math.comb(len(compared), 2)
    holds = are_no_worse([gain for _, _, gain in corrected])
    return holds if all_of_them or not holds else None, "; ".join(said)


def the_first_layer_counts_most(setting: Setting) -> tuple[Verdict, str] | None:
    chain = _tops(setting)
    if chain[:2] != ["head", "top-1"] or len(chain) < 3:
        return None
    first, *others = itertools.pairwise(chain)
    if not all(setting.gain(b, a) for a, b in (first, *others)):
        return None
    steps = {pair: _a_layer(setting, *pair) for pair in (first, *others)}
    gains = stats.corrected([stats.paired(steps[first], steps[pair]) for pair in others])
    signs = [(gain.mean > 0) if gain and stats.apart(gain) else None for gain in gains]
    said = (f"{a} to {b} {statistics.fmean(steps[a, b].values()):+.3f} a layer" for a, b in steps)
    return _all(signs), ", ".join(said).replace("-0.", "−0.")


def _a_layer(setting: Setting, lower: str, upper: str) -> dict[int, float]:
    """Seed -> what a layer more brings between head or top-K and a larger top-K; the more, the better."""
    layers = int(upper[4:]) - (0 if lower == "head" else int(lower[4:]))
    sign = (1 if setting.higher else -1) / layers
    a, b = setting.scores[lower], setting.scores[upper]
    return {seed: sign * (b[seed] - a[seed]) for seed in a.keys() & b.keys()}


def biases_suffice_on_small_tasks(setting: Setting) -> tuple[Verdict, str] | None:
    gain = setting.gain("bitfit", "full")
    if gain is None or not re.search(r"(?<![a-z])(rte|cola|mrpc)(?![a-z])", setting.task.lower()):
        return None
    return are_no_worse([gain]), in_words("bitfit against full", gain)


def biases_fall_short_on_large_tasks(setting: Setting) -> tuple[Verdict, str] | None:
    gain = setting.gain("bitfit", "full")
    if gain is None or not re.search(r"(?<![a-z])(mnli|qqp)(?![a-z])", setting.task.lower()):
        return None
    no_worse = are_no_worse([gain])
    return None if no_worse is None else not no_worse, in_words("bitfit against full", gain)


def seeds_decide_when_data_are_few(setting: Setting) -> tuple[Verdict, str] | None:
    gains = {name: gain for name in setting.scores if name != "full" and (gain := setting.gain(name, "full"))}
    if not 50 <= setting.size <= 100 or not gains:
        return None
    finished = [[x for x in seeds.values() if math.isfinite(x)] for seeds in setting.scores.values()]
    spread = statistics.median(statistics.stdev(values) for values in finished if len(values) > 1)
    name = max(gains, key=lambda n: abs(gains[n].mean))
    within = all(
        gain.lo is not None and gain.hi is not None and -spread < gain.lo and gain.hi < spread
        for gain in gains.values()
    )
    corrected = [gain for _, _, gain in all_corrected([(n, "full", g) for n, g in gains.items()])]
    beyond = any(stats.apart(g) and g.half is not None and abs(g.mean) - g.half > spread for g in corrected)
    verdict = False if beyond else None
    return (
        True if within else verdict,
        f"seeds spread by {spread:.3f} (median over strategies); the largest difference to full: "
        f"{in_words(name, gains[name])}",
    )


def freezing_some_layers_costs_nothing(setting: Setting) -> tuple[Verdict, str] | None:
    """2 to 8 of 12 layers frozen, to a hundredth; how many there are is read off the leaves that moved in
    full."""
    layers = {n.split("/")[1] for r in setting.rows.get("full", ()) for n in r.get("drift") or {}}
    blocks = {layer for layer in layers if tree.numbered(layer)[1] is not None}
    shares = {name: 1 - int(name[4:]) / len(blocks) for name in _tops(setting) if name != "head" and blocks}
    gains = {
        n: gain for n, share in shares.items() if 0.16 < share < 0.67 and (gain := setting.gain(n, "full"))
    }
    if (setting.size and setting.size < 200) or not gains:
        return None
    corrected = all_corrected([(n, "full", g) for n, g in gains.items()])
    return are_no_worse([g for _, _, g in corrected]), ", ".join(in_words(n, g) for n, g in gains.items())


def little_wants_high_rates(setting: Setting) -> tuple[Verdict, str] | None:
    few = {
        name: setting.tried[name]
        for name in setting.tried
        if name in ("head", "bitfit") or re.fullmatch(r"lora=\d+", name)
    }
    if (
        "full" not in setting.tried
        or not few
        or any(len(rates) < 2 for _, rates in [setting.tried["full"], *few.values()])
    ):
        return None
    lows = [rates[0] for _, rates in few.values()]
    if min(lows) >= 10 * setting.tried["full"][1][-1]:  # nothing else could have been chosen
        return None
    tens = _all([_ten_times(*rates, *setting.tried["full"]) for rates in few.values()])
    said = []
    for name, (lr, rates) in {"full": setting.tried["full"], **few}.items():
        edge = " (at the edge of what it tried)" if lr in (rates[0], rates[-1]) else ""
        said.append(f"{name} {lr:g}{edge}")
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


def time_never_beats_flops(setting: Setting) -> tuple[Verdict, str] | None:
    def median(name: str, key: str) -> float | None:
        rows: Sequence[Mapping[str, Any]] = setting.rows.get(name, ())
        values = [r[key] for r in rows if r.get(key)]
        return statistics.median(values) if values else None

    base = {key: median("full", key) for key in ("seconds_per_step", "flops_per_step")}
    shares: dict[str, tuple[float, float]] = {}
    for name in setting.rows:
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
    said = ", ".join(beats[:3]) + (" …" if len(beats) > 3 else "") or "none by more than 5 points"
    return not beats, f"{said} (of medians)"


def gradual_is_about_full(setting: Setting) -> tuple[Verdict, str] | None:
    gain = setting.gain("gradual", "full")
    if gain is None:
        return None
    ends = (
        [gain]
        if gain.lo is None or gain.hi is None
        else [gain, replace(gain, lo=-gain.hi, hi=-gain.lo, mean=-gain.mean)]
    )
    return are_no_worse(ends), in_words("gradual against full", gain)


def nothing_moved_is_nothing_forgotten(setting: Setting) -> tuple[Verdict, str] | None:
    known = [f for r in setting.rows.get("head", ()) if (f := r.get("forgetting"))]
    changed = [f for f in known if f["after"] != f["before"]]
    return None if not known else (not changed, f"changed in {len(changed)} of {len(known)} runs of head")


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


def table(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One row an expectation that holds or does not hold anywhere: where, where it is open, and by what."""
    out = []
    for expected, source in EXPECTATIONS:
        mine = [f for f in findings if f.expected == expected]
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
    counts = {word: n for verdict, word in WORDS.items() if (n := sum(f.holds is verdict for f in mine))}
    (first, n), *rest = counts.items()
    return (
        ", ".join([f"{first} in {n} of {len(mine)}", *(f"{word} in {n}" for word, n in rest)])
        if rest
        else first
    )


WORDS: Mapping[Verdict, str] = {True: "holds", False: "does not hold", None: "open"}
