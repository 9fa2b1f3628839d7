"""What is to run, and how long it will take."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ptft.bench.cell_result import Row
from ptft.bench.protocol import Cell

EXPECTED: Mapping[str, float] = {}  # nothing is known


def predict(
    todo: Sequence[Cell], rows: Sequence[Row], expected: Mapping[str, float] = EXPECTED
) -> float | None:
    """Seconds that cells will take: as the median of what is finished of their like, else as expected, else
    as of anything that is finished; None where nothing is known."""

    def nearest(labels: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        near = tuple(labels[k] for k in ("kind", "task", "model", "size", "strategy"))
        return [near, near[:-1], near[:1]]

    times: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["status"] == "ok" and row.get("wall_seconds") is not None:
            for key in nearest(row):
                times.setdefault(key, []).append(row["wall_seconds"])
    medians = {key: statistics.median(seconds) for key, seconds in times.items()}
    everything = times.get(("train",), []) or list(expected.values())
    if not everything and any(c.kind == "train" for c in todo):
        return None

    def one(cell: Cell) -> float:
        own, *others = nearest(cell.labels)
        if own in medians or cell.cell in expected:
            return medians.get(own, expected.get(cell.cell, 0.0))
        return next(
            (medians[key] for key in others if key in medians),
            statistics.median(everything) if cell.kind == "train" else 0.0,
        )

    return sum(map(one, todo))


def schedule(
    waiting: Sequence[Sequence[Cell]],
    cells: Sequence[Cell],
    rows: Sequence[Row],
    expected: Mapping[str, float] | None = None,
) -> str:
    """What would run and for how long, without running it.

    Args:
      waiting: what is to run, those together that run together (`groups`); cells: all, the finished ones
        among them.
      expected: as of `run`; None: not measured yet.
    """
    unknown = "for how long shows once a cell has run"
    if expected is None:
        expected, unknown = EXPECTED, "how long is measured when the run starts"
    todo = [cell for group in waiting for cell in group]
    lines = []
    for task, model, size in dict.fromkeys((c.task, c.model, c.size) for c in cells if c.kind == "train"):
        mine = [c for c in cells if (c.task, c.model, c.size, c.kind) == (task, model, size, "train")]
        lines.append(", ".join(filter(None, [task, model, f"{size} examples" if size else "all examples"])))
        for name in dict.fromkeys(c.strategy for c in mine):
            own = [c for c in mine if c.strategy == name]
            rates = ", ".join(f"{lr:g}" for lr in dict.fromkeys(c.lr for c in own if c.lr is not None))
            beside = sum(len(group) > 1 for group in waiting if any(c in own for c in group))
            time = (
                about(predict([c for c in own if c in todo], rows, expected))
                if any(c in todo for c in own)
                else "finished"
            )
            parts = [
                _count(own),
                f"lr {rates}",
                own[0].config.to_dict().get("train_for"),
                "one program" if beside else "",
                time,
            ]
            lines.append(f"  {name}: {', '.join(filter(None, parts))}")
    references = [c for c in cells if c.kind != "train"]
    if references:
        lines.append(f"references: {_count(references)}")
    seconds = predict(todo, rows, expected)
    unknown = f"; {unknown}" if todo else ""
    left = f", {about(seconds)}" if about(seconds) else unknown
    return "\n".join(
        [*lines, f"{_count(cells)}, {len(cells) - len(todo)} finished, {len(todo)} to run{left}"]
    )


def _count(cells: Sequence[Cell]) -> str:
    return f"{len(cells)} cell" + ("" if len(cells) == 1 else "s")


def about(seconds: float | None) -> str:
    if not seconds:
        return ""
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
