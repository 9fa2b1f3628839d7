"""The `ptft train` that does what a cell of a benchmark did."""

import re
import shlex
from typing import Any

from ptft.bench.cell_result import Row
from ptft.core import config as configs


def command(row: Row, folder: str = "") -> str:
    """The `ptft train` that does what a cell did, with the page's own seed; "" of a row that does not say its
    page."""
    try:
        given = shlex.split(row.get("command") or "")
    except ValueError:  # a quote is lost
        return ""
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
