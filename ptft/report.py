"""A benchmark's cells or a run's JSON lines -> report.md, report.png and one self-contained report.html.

Reads `bench.json` and `cells/*.json` of one or several folders, or `metrics.jsonl` (with `result.json` and
`freeze_ledger.json`); runs nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ptft import bench_csv, bench_page, figures, ledger_page, words
from ptft.bench import results
from ptft.errors import UserError


def write(*folders: Path, to: Path | None = None, table: bool = False) -> dict[str, Path]:
    """Writes the report of a run's folder, or of one or several benchmarks', into the first of them, or into `to`.

    Args:
      table: also every cell of a benchmark as a line of report.csv.
    Returns:
      {"md": path, "png": path, "html": path}, and with `table` "csv".
    Raises:
      UserError: nothing to report on in a folder, or a broken file (file, or file:line).
    """
    folders = tuple(map(Path, folders))
    for folder in folders:
        if not results.is_bench(folder) and not ((folder / "metrics.jsonl").is_file() and len(folders) == 1):
            here = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())[:20] if folder.is_dir() else None
            there = "the folder does not exist" if here is None else "it is empty" if not here else "there is: " + ", ".join(here)
            one = " or metrics.jsonl (of ptft train)" if len(folders) == 1 else "; only benchmarks are merged"
            raise UserError(f"{folder}: expected bench.json and cells/ (of ptft bench){one}; {there}")
    if table and not results.is_bench(folders[0]):
        raise UserError(f"{folders[0]}: --csv is of benchmarks; a run's numbers are lines of JSON, in metrics.jsonl")
    page, panels = bench_page.page(folders) if results.is_bench(folders[0]) else _run_page(folders[0])
    into = Path(to or folders[0])
    into.mkdir(parents=True, exist_ok=True)
    paths = {kind: into / f"report.{kind}" for kind in ("md", "png", "html")}
    paths["png"].write_bytes(figures.png(panels))
    paths["md"].write_text(_markdown(page), encoding="utf-8")
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    for section, its_panels in zip(page["sections"], panels, strict=True):
        section["figures"] = [{"svg": figures.svg(panel), "broad": figures.broad(panel)} for panel in its_panels]
    paths["html"].write_text(env.get_template("report.html.j2").render(page), encoding="utf-8")
    if table:
        paths["csv"] = into / "report.csv"
        with paths["csv"].open("w", encoding="utf-8", newline="") as f:
            bench_csv.write(results.merge(folders).rows, f)
    return paths


# ---------------------------------------------------------------- a run


def _run_page(folder: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    rows = _read_lines(folder / "metrics.jsonl")
    for i, row in enumerate(rows):
        if not isinstance(row.get("step"), int) or not isinstance(row.get("split"), str):
            raise UserError(f"{folder / 'metrics.jsonl'}:{i + 1}: expected a step and a split, got {json.dumps(row)[:80]}")
    result, run, config = (_json(folder / f"{name}.json") for name in ("result", "run", "config"))
    ledger = _json(folder / "freeze_ledger.json")
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}  # metric -> split -> points
    for row in rows:
        for key, value in row.items():
            if key.endswith(("loss", "accuracy", "f1", "matthews")) and isinstance(value, int | float):
                curves.setdefault(key, {}).setdefault(row["split"], []).append((row["step"], value))
    curves = {key: splits for key, splits in curves.items() if any(len(points) > 1 for points in splits.values())}
    last = {row["split"]: row for row in rows if row["split"] != "train"}
    splits = {name: result.get(name) or last.get(name) or {} for name in ("dev", "test")}
    splits = {name: values for name, values in splits.items() if values}
    numbers = dict.fromkeys(k for v in splits.values() for k in v if k not in ("step", "split") and words.plain(v[k]))
    lead = []
    if result:
        steps, pace = words.count(result.get("steps", 0), "step"), words.seconds(result.get("seconds_per_step"))
        lead.append(f"{steps} in {words.seconds(result.get('seconds'))} with evaluations and checkpoints, {pace} a step.")
        if result.get("total"):
            share = words.percent(result["trainable"] / result["total"])
            lead[0] += f" {result['trainable']:,} of {result['total']:,} parameters moved ({share})."
        if result.get("flops_per_step"):
            lead[0] += f" A step costs {result['flops_per_step'] / 1e9:.3g} GFLOP."
        lead += [f"The numbers are of step {result['best_step']:,}, the best on dev."] if result.get("chosen_by") else []
    else:
        lead.append(f"Not finished: the newest line is of step {rows[-1]['step']:,}." if rows else "Nothing has been logged yet.")
    if "freeze" in config:
        lead.insert(0, _what(config, ledger.get("phases", ())))
    section = {
        "task": "", "lead": lead, "columns": list(splits),
        "caption": "Training curves; where there are many points, the line is their running mean.",
        "table": [{"name": k, "cells": [f"{v[k]:.4f}" if words.plain(v.get(k)) else "–" for v in splits.values()]} for k in numbers],
    }  # fmt: skip
    page: dict[str, Any] = {
        "kind": "run", "title": folder.resolve().name, "subtitle": "one training run", "sections": [section], "notes": [], "failed": [],
        "facts": bench_page.facts(
            bench_page.distinct([result.get("versions") or run.get("versions")]),
            bench_page.distinct([result.get("device") or run.get("device")]),
            result.get("config_hash") or run.get("config_hash"), run.get("command"),
        ),
    }  # fmt: skip
    panels: list[list[Any]] = [[figures.CurvePanel(key, its) for key, its in curves.items()]]
    if ledger:
        page["sections"].append(ledger_page.section(ledger))
        panels.append([ledger_page.LedgerPanel(ledger["rows"])])
    return page, panels


def _what(config: dict[str, Any], phases: Sequence[dict[str, Any]]) -> str:
    """What moved, from what start, and what was frozen in fewer bits."""
    name = config["freeze"] if isinstance(config["freeze"], str) else "a list of rules"
    said = [f"freeze: {name}", f"from {config['init_from']}" if config.get("init_from") else "from random weights"]
    if len(phases) > 1 or any(p["strategy"] != config["freeze"] for p in phases):
        when = [f"{p['strategy']} from step {p['began']}" if p["began"] is not None else f"{p['strategy']} never" for p in phases]
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
            raise UserError(f"{path}:{i + 1}: not a line of JSON ({e}); remove the line or restore the file") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{i + 1}: expected a JSON object, got {line[:80].decode(errors='replace')}")
        rows.append(row)
    return rows


# ---------------------------------------------------------------- Markdown


def _markdown(page: dict[str, Any]) -> str:
    out = [f"# {page['title']}", "", page["subtitle"], ""]
    for s in page["sections"]:
        out += [f"## {s['task']}", ""] if s["task"] else []
        out += [*s["lead"], ""]
        if s.get("kind") == "bench":
            out += _bench_table(s)
        elif s["table"]:
            out += _md_table(["", *s["columns"]], [[r["name"], *r["cells"]] for r in s["table"]])
    out += ["![figure](report.png)", ""]
    if page["failed"]:
        out += ["## Failed cells", "", *[f"- {f['strategy']}, seed {f['seed']}: {_md(f['error'])}" for f in page["failed"]], ""]
    out += [f"{note}\n" for note in page["notes"]]
    if page["facts"]:
        facts = [(name, f"`{value}`" if name == "command" else _md(value)) for name, value in page["facts"]]
        out += ["## How it was made", "", *[f"- {name}: {value}" for name, value in facts], ""]
    return "\n".join(out)


def _bench_table(s: dict[str, Any]) -> list[str]:
    """The table of strategies, what checks it, all pairs, and how to run the rows again."""
    base = s["baseline"]
    head = ["strategy", "learning rate", "seeds", f"test {s['metric']}, mean ± 95 %", "median", "bootstrap", "rank"]
    head += [f"difference to {base}", "verdict", "parameters that move", "time a step", f"time, × {base}", "total time"]
    head += [f"FLOPs, × {base}", "peak memory", "checkpoint", *["forgetting"] * s["forgets"]]
    keys = ["lr", "seeds", "score", "median", "boot", "rank", "gain", "verdict", "share", "step", "step_ratio", "total", "flops", "peak"]
    keys += ["checkpoint", *["forgetting"] * s["forgets"]]
    ranges = {"gain": "range", "forgetting": "forgets"}
    body = [
        [r["name"] + (f" ({r['detail']})" if r["detail"] else ""), *(f"{r[k]} {r.get(ranges.get(k), '')}".strip() for k in keys)]
        for r in s["table"]
    ]
    out = [*_md_table(head, body), *(f"{line}\n" for line in s["checks"])]
    if pairs := s["pairs"]:
        numbers = [str(i) for i in range(1, len(pairs["names"]) + 1)]
        squares = [
            [f"{n} {row['name']}", *(_bold_if_apart(c) if c else "" for c in row["cells"])]
            for n, row in zip(numbers, pairs["rows"], strict=True)
        ]
        out += [f"Each strategy less each other; bold: told apart. {pairs['lead']}", "", *_md_table(["", *numbers], squares)]
    for again in s["again"]:
        out += [f"Any row again, by its hash: `{again['command']}`", ""]
        out += [*(f"- {_md(name)}: {', '.join(hashes)}" for name, hashes in again["rows"]), ""]
    return out


def _bold_if_apart(cell: Mapping[str, str]) -> str:
    return f"**{cell['text']}**" if cell["verdict"] in ("better", "worse") else cell["text"]


def _md_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [_md_row(head), _md_row(["---"] * len(head)), *map(_md_row, body), ""] if body else []


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as e:
        raise UserError(f"{path}: not JSON ({e})") from None
