"""A benchmark's cells as a table, one line a cell, for other tools."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptft.bench.cell_result import Row

# In this order; then what dev and test report, by name.
COLUMNS = (
    "cell", "task", "model", "size", "strategy", "kind", "repeat", "lr", "seed", "status", "error", "freeze",
    "chosen", "init_from",
    "train_for", "metric", "best_step", "steps", "trainable", "trainable_share", "seconds",
    "seconds_per_step", "seconds_low",
    "seconds_high", "flops_per_step", "members", "isolated", "wall_seconds", "peak_rss", "peak_device",
)  # fmt: skip
NESTED = ("budget", "bytes", "forgetting", "device", "versions")


def write(rows: Sequence[Row]) -> str:
    """RFC 4180; what is not known is empty."""
    to = io.StringIO(newline="")
    flat = [dict(_flat(row)) for row in rows]
    more = sorted({key for row in flat for key in row} - {*COLUMNS, "config_hash", "command"})
    out = csv.DictWriter(to, [*COLUMNS, *more, "config_hash", "command"], restval="", lineterminator="\n")
    out.writeheader()
    out.writerows(flat)
    return to.getvalue()


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in (*COLUMNS, "config_hash", "command"):
        if row.get(key) is not None:
            yield key, row[key]
    for key in ("dev", "test", *NESTED):
        for name, value in (row.get(key) or {}).items():
            if value is not None:
                yield f"{key}_{name}", value
