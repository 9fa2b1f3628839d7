"""`ptft status`: how far a folder's run or benchmark is, and what it does now. It only reads, and loads no
jax."""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ptft.core import integrity, locks, times
from ptft.core.errors import UserError, did_you_mean


def status_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    status = of(args.folder)
    print(json.dumps(status, ensure_ascii=False) if args.json else "\n".join(lines(status)))


def of(folder: Path) -> dict[str, Any]:
    """What is known of a folder, as JSON has it; times are seconds since 1970.

    Raises:
      UserError: it is the folder of no run and no benchmark.
    """
    for file, what in {"run.json": _of_run, "bench.json": _of_bench}.items():
        if (folder / file).is_file():
            return {"folder": str(folder), "by": locks.holder(folder)} | what(folder)
    beside = sorted(p.name for p in (folder if folder.is_dir() else folder.absolute().parent).glob("*"))
    why = "has no run.json and no bench.json" if folder.is_dir() else "does not exist"
    near = did_you_mean("run.json" if folder.is_dir() else folder.name, beside)
    raise UserError(f"{folder} is not the folder of a run or of a benchmark: it {why}; {near}")


def _of_run(folder: Path) -> dict[str, Any]:
    running, own = locks.holder(folder), times.read(folder)
    last = own[-1] if own else None
    # its process has not written a line yet, where the last one is older than its lock
    begins = running and (last is None or (folder / "lock").stat().st_mtime > last["at"])
    doing = None
    if running:
        doing = times.PARTS["start"] if begins or last is None else times.PARTS[last["doing"]]
    return {
        "kind": "run",
        "state": _state(running, (folder / "result.json").is_file()),
        "step": last and last["step"],
        "steps": last and last["of"],
        "saved": _saved(folder),
        "doing": doing,
        "at": last and last["at"],
        "lines": _newest_lines(folder / "metrics.jsonl"),
        "times": times.summary(own),
    }


def _state(running: str | None, finished: bool) -> str:
    if running:
        return "running"
    return "finished" if finished else "stopped"


def _saved(folder: Path) -> dict[str, Any] | None:
    """The newest step to resume from, and when it was saved; its files are not read."""
    for step in integrity.steps(folder, integrity.RESUME):
        with contextlib.suppress(OSError):  # without a manifest it does not count
            return {
                "step": step,
                "at": integrity.manifest_file(folder, integrity.RESUME, step).stat().st_mtime,
            }
    return None


def _newest_lines(file: Path) -> dict[str, Any]:
    """The last line of each split."""
    newest: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        for text in file.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                line = json.loads(text)
                newest[str(line["split"])] = {**line, "step": int(line["step"])}
    return newest


def _of_bench(folder: Path) -> dict[str, Any]:
    try:
        cells = list(json.loads((folder / "bench.json").read_bytes())["cells"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{folder / 'bench.json'} is damaged ({e}); restore it") from None
    ended = dict.fromkeys(("ok", "failed", "skipped"), 0)
    for cell in cells:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            ended[json.loads((folder / "cells" / f"{cell}.json").read_bytes())["status"]] += 1
    state = _state(locks.holder(folder), sum(ended.values()) == len(cells))
    return {"kind": "bench", "state": state, "cells": len(cells), **ended}


def lines(status: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    by = f" by {status['by']}" if status["by"] else ""
    yield f"{status['folder']}: {status['state']}{by}"
    if status["kind"] == "bench":
        ended = [f"{status[key]} {key}" for key in ("ok", "failed", "skipped") if status[key]]
        yield f"  {status['cells']} cells: {', '.join(ended) or 'none has ended'}"
        return
    if status["steps"]:
        yield f"  step {status['step']:,} of {status['steps']:,} ({status['step'] / status['steps']:.0%})"
    if saved := status["saved"]:
        yield f"  saved: step {saved['step']:,}, {_ago(saved['at'])}"
    else:
        yield "  saved: nothing to resume from"
    if status["doing"]:
        said = f", last line {_ago(status['at'])}" if status["at"] else ""
        yield f"  now: {status['doing']}{said}"
    for split, line in status["lines"].items():
        values = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        yield f"  {split} at step {line['step']:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items())
    if status["times"]:
        yield f"  wall time: {times.describe(status['times'])}"


def _ago(at: float) -> str:
    seconds = max(time.time() - at, 0.0)
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
