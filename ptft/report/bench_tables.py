"""One task's rows as tables, strips and commands."""

import math
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ptft.bench import stats
from ptft.report import format, statements
from ptft.report.comparison import Comparison
from ptft.report.cost_panels import Line

# Of a table that has to fit a terminal.
SHORT = {
    "cannot be told apart": "not told apart",
    "one seed: no interval": "one seed",
    "a run failed: no interval": "a run failed",
}


def row(line: Line, comparison: Comparison) -> dict[str, Any]:
    freeze = "" if line.freeze in (line.name, "") else f"freeze={line.freeze}"
    start = "" if line.init_from or line.reference else "random weights"
    of = f" of those {line.score.n} that finished" if line.failed else ""
    boot = line.score.boot if not line.failed and line.score.half else None
    gain = line.gain if line.gain and math.isfinite(line.gain.mean) else None
    score = f"{line.score.mean:.3f}" if line.failed else format.plus_minus(line.score)
    end = statements.edge(comparison, line.name)
    return {
        "name": line.name, "again": line.again,
        "detail": ", ".join(filter(None, [freeze, start, line.chosen])),
        "lr": (line.lr or "–") + (f" ({end} tried)" if end else ""),
        "seeds": seeds(line), "score": score + of, "median": f"{line.score.median:.3f}",
        "boot": f"[{boot[0]:.3f},\N{NO-BREAK SPACE}{boot[1]:.3f}]" if boot else "",
        "rank": "–" if line.rank is None else f"{line.rank:.1f}",
        "gain": "–" if gain is None else format.sign(gain.mean), "range": format.interval(gain),
        "verdict": line.verdict,
        "gain_boot": format.between(*gain.boot) if gain and gain.boot and gain.half else "",
        "share": format.percent(line.share), "step": _time(line), "step_ratio": _time_share(line),
        "time": format.seconds(line.time), "flops": format.times(line.flops_ratio),
        "peak": format.size(line.peak),
        "peak_ratio": format.times(line.peak_ratio), "short": SHORT.get(line.verdict, line.verdict),
        "half": "" if gain is None else format.plus_minus_signed(gain),
        "checkpoint": format.size(line.checkpoint), "strip": _strip(line, *_strip_limits(comparison.lines)),
        "forgetting": _forgetting(line),
        "forgets": format.interval(line.forgetting) if line.forgetting and line.forgetting.mean else "",
    }  # fmt: skip


def _forgetting(line: Line) -> str:
    if line.forgetting is None:
        return "–"
    return format.sign(line.forgetting.mean) if line.forgetting.mean else "0"


def _time(line: Line) -> str:
    """The median of a step, and the quartiles."""
    between = f" ({' to '.join(map(format.seconds, line.quartiles))})" if line.quartiles else ""
    return format.seconds(line.step) + between


def _time_share(line: Line) -> str:
    return format.times(line.step_ratio) + (" (noise?)" if line.noisy else "")


def seeds(line: Line) -> str:
    return format.count(line.score.n, "seed") + (f" ({line.failed} failed)" if line.failed else "")


def pairs(comparison: Comparison) -> dict[str, Any] | None:
    """The corrected comparison of all pairs as a square: the row's strategy less the column's."""
    compared, tested = comparison.compared, len(comparison.tested)
    if len(comparison.scores) < 3 or not tested:
        return None
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for p in compared:
        for a, b, factor in ((p.a, p.b, 1), (p.b, p.a, -1)):
            other = statements.turned(p.verdict) if factor < 0 else p.verdict
            known = p.difference is not None and math.isfinite(p.difference.mean)
            text = format.sign(factor * p.difference.mean) if known and p.difference else "–"
            adjusted = (
                ""
                if p.difference is None or p.difference.adjusted is None
                else f", p = {p.difference.adjusted:.2g}"
            )
            cells[a, b] = {"text": text, "verdict": other, "title": f"{a} less {b}: {other}{adjusted}"}
    names = list(comparison.scores)
    apart = sum(p.verdict in ("better", "worse") for p in compared)
    rest = (
        f"; {len(compared) - tested} have too few common seeds, or a failed run"
        if tested < len(compared)
        else ""
    )
    return {
        "names": names,
        "rows": [{"name": a, "cells": [cells.get((a, b)) for b in names]} for a in names],
        "lead": f"{apart} of {format.count(tested, 'pair')} can be told apart{rest}. {stats.PAIRWISE}",
    }


def commands(comparison: Comparison) -> list[dict[str, Any]]:
    """How to run each quoted row again: what the commands have in common, and the hash of each."""
    by_command: dict[str, dict[str, list[str]]] = {}
    for name, quoted in comparison.quoted.items():
        for row in quoted.rows:
            if parsed := re.fullmatch(r"(.*) --only (\w+) --workdir \S+", row.get("command") or ""):
                by_command.setdefault(parsed[1], {}).setdefault(name, []).append(
                    f"seed {row['seed']} {parsed[2]}"
                )
    return [
        {"command": f"{command} --only HASH --workdir runs/HASH", "rows": list(rows.items())}
        for command, rows in by_command.items()
    ]


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
    parts += [
        f'<circle cx="{x(v)}" cy="9" r="3"><title>seed {seed}: {v:.4f}</title></circle>'
        for seed, v in line.finished.items()
    ]
    parts.append(f'<line class="mean" x1="{x(line.score.mean)}" x2="{x(line.score.mean)}" y1="2" y2="16"/>')
    # numbers only
    return Markup(
        f'<svg class="strip" viewBox="0 0 {width} 18" role="img" aria-label="seeds">{"".join(parts)}</svg>'
    )
