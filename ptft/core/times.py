"""What the wall time of a run went to, over all its starts.

    WORKDIR/times.jsonl   a line at each line of the log, and where something long begins (`clock` writes it)

A line says which start it is of, the step that is done, what is done now, and the seconds of that start so
far by `PARTS`; so the last line of each start counts. Steps that a later start trained again are lost. What a
killed process did after its last line is not known. Reading needs no jax.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "times.jsonl"
# A name in the file, and what is said of it. Each moment belongs to one.
PARTS = {
    "start": "starting",
    "data": "loading data",
    "restore": "restoring",
    "compile": "compiling",
    "wait": "waiting for data",
    "step": "training",
    "evaluate": "evaluating",
    "save": "saving",
}

Line = dict[str, Any]


def read(workdir: Path) -> list[Line]:
    """The lines that can be read; a killed writer leaves half of one. None where there is no file."""
    lines: list[Line] = []
    with contextlib.suppress(OSError):
        for text in (workdir / FILE).read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if _fits(line):
                    lines.append(line)
    return lines


def _fits(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    numbers, seconds = [line.get(key) for key in ("start", "from", "step", "of")], line.get("seconds")
    return (
        all(type(n) is int and n >= 0 for n in numbers)
        and isinstance(line.get("at"), int | float)
        and line.get("doing") in PARTS
        and isinstance(seconds, dict)
        and seconds.keys() == PARTS.keys()
        and all(isinstance(s, int | float) for s in seconds.values())
        and isinstance(line.get("peak_bytes", 0), int)
    )


def summary(lines: Sequence[Line]) -> dict[str, Any] | None:
    """Of all starts together: `seconds` by part and those `lost`, which no part has; `lost_steps`, `starts`,
    `goodput` (the share of the steps that count in all seconds) and `peak_bytes` of a device, where one says
    it. None: nothing is known."""
    starts = list({line["start"]: line for line in lines}.values())
    if not starts:
        return None
    seconds = {part: sum(line["seconds"][part] for line in starts) for part in PARTS} | {"lost": 0.0}
    steps = 0
    for i, line in enumerate(starts):
        kept = min([line["step"], *(later["from"] for later in starts[i + 1 :])])
        again = line["step"] - max(line["from"], kept)
        lost = line["seconds"]["step"] * again / max(line["step"] - line["from"], 1)
        seconds["step"], seconds["lost"], steps = (
            seconds["step"] - lost,
            seconds["lost"] + lost,
            steps + again,
        )
    return {
        "starts": len(starts),
        "seconds": seconds,
        "lost_steps": steps,
        "goodput": seconds["step"] / (sum(seconds.values()) or 1.0),
        "peak_bytes": max((line["peak_bytes"] for line in starts if "peak_bytes" in line), default=None),
    }


def describe(summary: Mapping[str, Any]) -> str:
    """One line; of the parts, those that took a hundredth of the time."""
    seconds, starts = summary["seconds"], summary["starts"]
    whole = sum(seconds.values()) or 1.0
    shares = {part: seconds.get(part, 0.0) / whole for part in PARTS if part != "step"}
    parts = [f"{PARTS[part]} {s:.0%}" for part, s in sorted(shares.items(), key=lambda x: -x[1]) if s >= 0.01]
    text = f"{whole:,.1f} s in {starts} start{'s' if starts > 1 else ''}, {summary['goodput']:.0%} in steps"
    text += " that count" if summary["lost_steps"] else ""
    if summary["lost_steps"]:
        parts.append(f"{summary['lost_steps']:,} steps trained again {seconds.get('lost', 0.0) / whole:.0%}")
    text += f" ({', '.join(parts)})" if parts else ""
    peak = summary.get("peak_bytes")
    return text + (f"; peak device memory {peak / 2**20:,.0f} MiB" if peak else "")
