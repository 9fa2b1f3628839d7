"""A run's files as a page: its numbers, its curves, what moved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptft.core import config as configs
from ptft.core import record, stored, times
from ptft.core.errors import UserError, joined
from ptft.report import format, ledger_page
from ptft.report.panels import CurvePanel
from ptft.train import run_files


def page(folder: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    rows = _read_lines(folder / "metrics.jsonl")
    for i, row in enumerate(rows):
        if not isinstance(row.get("step"), int) or not isinstance(row.get("split"), str):
            raise UserError(
                f"{folder / 'metrics.jsonl'}:{i + 1}: expected a step and a split, got {json.dumps(row)[:80]}"
            )
    names = ("result", "run", "config", "freeze_ledger")
    result, run, config, ledger = files = [_json(folder / f"{name}.json") for name in names]
    if result and (lost := [f"{name}.json" for name, its in zip(names, files, strict=True) if not its]):
        record.note(f"WARNING: {folder} lacks {joined(lost)}, which a finished run has; restore what is lost")
    if "config" in run:  # which has a digest, and config.json has none
        config = configs.renamed(run["config"])
    last = {row["split"]: row for row in rows if row["split"] != "train"}
    splits = {name: result.get(name) or last.get(name) or {} for name in ("dev", "test")}
    splits = {name: values for name, values in splits.items() if values}
    numbers = dict.fromkeys(
        k for v in splits.values() for k in v if k not in ("step", "split") and format.plain(v[k])
    )
    lead = [_what(config, ledger.get("phases", ()))] if "freeze" in config else []
    lead += _said(result) if result else [_unfinished(rows)]
    if spent := result.get("times") or times.summary(times.read(folder)):
        lead.append(f"Wall time: {times.describe(spent)}.")
    section = {
        "kind": "run",
        "task": "",
        "lead": lead,
        "columns": list(splits),
        "caption": "Training curves; where there are many points, the line is their running mean.",
        "table": [
            {"name": k, "cells": [f"{v[k]:.4f}" if format.plain(v.get(k)) else "–" for v in splits.values()]}
            for k in numbers
        ],
    }
    page: dict[str, Any] = {
        "kind": "run", "title": folder.resolve().name, "subtitle": "one training run", "sections": [section],
        "notes": [], "failed": [],
        "facts": format.facts(
            format.distinct([result.get("versions") or run.get("versions")]),
            format.distinct([result.get("device") or run.get("device")]),
            result.get("config_hash") or run.get("config_hash"), run.get("command"),
        ),
    }  # fmt: skip
    panels: list[list[Any]] = [[CurvePanel(key, its) for key, its in _curves(rows).items()]]
    if ledger:
        page["sections"].append(ledger_page.section(ledger))
        panels.append([ledger_page.LedgerPanel(ledger["rows"])])
    return page, panels


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Metric -> split -> points, of metrics that some split has several of."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for key, value in row.items():
            if key.endswith(("loss", "accuracy", "f1", "matthews")) and isinstance(value, int | float):
                curves.setdefault(key, {}).setdefault(row["split"], []).append((row["step"], value))
    return {key: its for key, its in curves.items() if any(len(points) > 1 for points in its.values())}


def _said(result: Mapping[str, Any]) -> list[str]:
    """How long a finished run took, what moved, and of which step its numbers are."""
    steps, whole = format.count(result.get("steps", 0), "step"), format.seconds(result.get("seconds"))
    pace = format.seconds(result.get("seconds_per_step"))
    say = f"{steps} in {whole} with evaluations and checkpoints, {pace} a step."
    if result.get("total"):
        share = format.percent(result["trainable"] / result["total"])
        say += f" {result['trainable']:,} of {result['total']:,} parameters moved ({share})."
    if result.get("flops_per_step"):
        say += f" A step costs {result['flops_per_step'] / 1e9:.3g} GFLOP."
    if result.get("chosen_by"):
        return [say, f"The numbers are of step {result['best_step']:,}, the best on dev."]
    return [say]


def _unfinished(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "Nothing has been logged yet."
    return f"Not finished: the newest line is of step {rows[-1]['step']:,}."


def _what(config: dict[str, Any], phases: Sequence[dict[str, Any]]) -> str:
    """What moved, from what start, and what was frozen in fewer bits."""
    name = config["freeze"] if isinstance(config["freeze"], str) else "a list of rules"
    said = [
        f"freeze: {name}",
        f"from {config['init_from']}" if config.get("init_from") else "from random weights",
    ]
    if len(phases) > 1 or any(p["strategy"] != config["freeze"] for p in phases):
        when = [
            f"{p['strategy']} from step {p['began']}" if p["began"] is not None else f"{p['strategy']} never"
            for p in phases
        ]
        said.append(f"phases: {', '.join(when)}")
    if config.get("frozen_dtype", "float32") != "float32":
        said.append(f"frozen matrices in {config['frozen_dtype']}")
    return "; ".join(said) + "."


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. A last line without its newline (a killed writer) does not count."""
    rows = []
    for i, line in enumerate(path.read_bytes().split(b"\n")[:-1]):
        try:
            row = json.loads(line)
        except ValueError as e:
            raise UserError(
                f"{path}:{i + 1}: not a line of JSON ({e}); remove the line or restore the file"
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{i + 1}: expected a JSON object, got {line[:80].decode(errors='replace')}"
            )
        rows.append(row)
    return rows


def _json(path: Path) -> dict[str, Any]:
    return stored.read(path, run_files.KINDS[path.name], "restore it") if path.is_file() else {}
