"""A benchmark's cells or a run's JSON lines -> report.md, report.png and one self-contained report.html.

Reads `bench.json` and `cells/*.json` of one or several folders, or `metrics.jsonl` (with `result.json` and `freeze_ledger.json`); runs
nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ptft import figures, ledger_page
from ptft.bench import results, stats
from ptft.bench.protocol import describe
from ptft.errors import UserError
from ptft.figures import Line


def write(*folders: Path, to: Path | None = None) -> dict[str, Path]:
    """Writes the report of a run's folder, or of one or several benchmarks', into the first of them, or into `to`.

    Returns:
      {"md": path, "png": path, "html": path}.
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
    page, panels = _bench_page(folders) if results.is_bench(folders[0]) else _run_page(folders[0])
    into = Path(to or folders[0])
    into.mkdir(parents=True, exist_ok=True)
    paths = {kind: into / f"report.{kind}" for kind in ("md", "png", "html")}
    paths["png"].write_bytes(figures.png(panels))
    paths["md"].write_text(_markdown(page), encoding="utf-8")
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    for section, its_panels in zip(page["sections"], panels, strict=True):
        section["figures"] = [figures.svg(panel) for panel in its_panels]
    paths["html"].write_text(env.get_template("report.html.j2").render(page), encoding="utf-8")
    return paths


# ---------------------------------------------------------------- a benchmark


def _bench_page(folders: Sequence[Path]) -> tuple[dict[str, Any], list[list[Any]]]:
    rows, bench, order, notes = results.merge(folders)
    ok, failed = [r for r in rows if r["status"] == "ok"], [r for r in rows if r["status"] == "failed"]
    baseline = bench.get("baseline") or (order[0] if order else "")
    sections, panels = [], []
    for title, here in _sections(rows):
        metric = here[0]["metric"]
        higher = results.higher_is_better(metric)
        lines = _lines(here, order, baseline, metric, higher)
        again = {r["strategy"] for r in here if r["repeat"]}  # a check, and no strategy that could be the best or the cheapest
        drawn = [x for x in lines if x.share is not None]
        sections.append({
            "task": title, "metric": metric, "baseline": baseline,
            "lead": _bench_lead([x for x in lines if x.name not in again], metric, higher, baseline),
            "strip": _strip_scale(lines), "table": [_bench_row(line, lines) for line in lines],
            "caption": f"Test {metric} against cost; bars are 95 % intervals over seeds"
            + (", hollow points start from random weights." if {bool(x.init_from) for x in drawn} == {True, False} else "."),
        })  # fmt: skip
        panels.append([figures.SharePanel(lines, metric, baseline), figures.TimePanel(lines, metric, baseline)] if lines else [])
    places = _distinct(r["device"] for r in ok) or _distinct([bench.get("device")])
    versions = _distinct(r["versions"] for r in ok if r["kind"] == "train") or _distinct([bench.get("versions")])
    if max(len(places), len(versions)) > 1:
        notes.append("The runs come from more than one environment: their times do not compare.")
    notes += dict.fromkeys(f"{r['strategy']}: {r['error']}" for r in rows if r["status"] == "skipped")
    names, seeds = ({r[key] for r in rows if r["kind"] == "train" and not r["repeat"]} for key in ("strategy", "seed"))
    page = {
        "kind": "bench",
        "title": "Which parameters are worth training?",
        "subtitle": f"{_count(len(names), 'strategy', 'strategies')}, {_count(len(seeds), 'seed')}, {_count(len(ok), 'finished run')}"
        + (f", {len(failed)} failed" if failed else ""),
        "sections": sections,
        "notes": [stats.METHOD, *notes] if ok else notes,
        "failed": [{"strategy": describe({**r, "seed": ""}).rpartition(", ")[0], "seed": r["seed"], "error": r["error"]} for r in failed],
        "facts": _facts(versions, places, bench.get("config_hash"), bench.get("command")),
    }
    return page, panels


def _sections(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """A section for every task, model and size: its title, and its rows, those of the references among them."""
    keys = list(dict.fromkeys((r["task"], r["model"], r["size"]) for r in rows if r["kind"] == "train"))
    sizes, models = {k[2] for k in keys}, {k[1] for k in keys}
    out = []
    for task, model, size in keys:
        number = f"{size:,} examples" if size else "all examples"
        title = ", ".join([task, *[model] * (len(models) > 1), *[number] * (len(sizes) > 1)])
        near = [r for r in rows if r["task"] == task and r["size"] == size]
        out.append((title, [r for r in near if r["model"] == model or r["kind"] != "train"]))
    return out


def _lines(rows: list[dict[str, Any]], order: list[str], baseline: str, metric: str, higher: bool) -> list[Line]:
    """One line a strategy that has a finished run, at the learning rate that dev chose, in the config's order."""
    lines = []
    quoted = {name: q.rows for name, q in results.quoted(rows, metric).items()}
    base = _scores(quoted.get(baseline, []), metric)
    for name in order:
        mine = [r for r in quoted.get(name, []) if r["status"] == "ok"]
        if not mine:
            continue
        scores = _scores(mine, metric)
        gain = None if name == baseline else stats.paired(scores, base)
        lines.append(Line(
            name, _word(mine[0].get("freeze")), ", ".join(f"{lr:g}" for lr in {r["lr"]: 0 for r in mine if r.get("lr") is not None}),
            mine[0].get("init_from") or "", scores, stats.summary(list(scores.values())), gain,
            "baseline" if name == baseline else stats.verdict(gain, higher),
            _median(mine, "trainable_share"), _median(mine, "seconds_per_step"), _total(mine, "seconds"), _median(mine, "flops_per_step"),
            sum(r["status"] != "ok" for r in quoted[name]), mine[0]["kind"] != "train",
        ))  # fmt: skip
    for reference in (line for line in lines if line.name == baseline):
        for line in lines:
            line.step_ratio = line.step / reference.step if line.step and reference.step else None
            line.flops_ratio = line.flops / reference.flops if line.flops and reference.flops else None
    return lines


def _scores(rows: list[dict[str, Any]], metric: str) -> dict[int, float]:
    return {r["seed"]: results.score(r, "test", metric) for r in rows if r["status"] == "ok"}


def _bench_lead(lines: list[Line], metric: str, higher: bool, baseline: str) -> list[str]:
    """What the numbers say, in sentences."""
    if not lines:
        return ["No run has finished."]
    best = (max if higher else min)(lines, key=lambda x: x.score.mean)
    word = "highest" if higher else "lowest"
    if all(x.score.n == 1 for x in lines):
        say = [f"{best.name} has the {word} test {metric}, {best.score.mean:.3f}."]
        say.append("With one seed a strategy there is no interval: the order may be chance.")
    else:
        say = [f"{best.name} has the {word} mean test {metric}: {_plus_minus(best.score)} over {_seeds(best)}."]
        tied = [x for x in lines if x is not best and stats.apart(stats.paired(x.scores, best.scores)) is False]
        cheapest = min(tied, key=lambda x: x.cost, default=best)
        if cheapest.cost < best.cost:
            ratio = f" and takes {_times(cheapest.step_ratio)} of {baseline}'s time a step" if cheapest.step_ratio else ""
            say.append(
                f"The cheapest strategy that cannot be told apart from it is {cheapest.name}: {_plus_minus(cheapest.score)}. "
                f"It moves {_percent(cheapest.share)} of the parameters{ratio}."
            )
        elif len(lines) > 1:
            why = "those that cannot be told apart from it cost more" if tied else "every other one is measurably worse or has no interval"
            say.append(f"No cheaper strategy reaches it: {why}.")
    for x in lines:
        for y in lines:
            if x.freeze == y.freeze and x.init_from and not y.init_from and (gain := stats.paired(x.scores, y.scores)):
                found = {True: "", False: ", which cannot be told apart from nothing", None: ", from one seed"}[stats.apart(gain)]
                what = f"the test {metric} of {x.name} by {_signed(gain)}{found}"
                say.append(f"Starting from pretrained instead of random weights changes {what}.")
    return say


def _bench_row(line: Line, lines: list[Line]) -> dict[str, Any]:
    freeze = "" if line.freeze in (line.name, "") else f"freeze={line.freeze}"
    start = "" if line.init_from or line.reference else "random weights"
    return {
        "name": line.name, "detail": ", ".join(filter(None, [freeze, start])), "lr": line.lr or "–",
        "seeds": _seeds(line), "score": _plus_minus(line.score), "median": f"{line.score.median:.3f}",
        "gain": "–" if line.gain is None else f"{_sign(line.gain.mean)}", "range": _range(line.gain), "verdict": line.verdict,
        "share": _percent(line.share), "step": _seconds(line.step), "step_ratio": _times(line.step_ratio), "total": _seconds(line.total),
        "flops": _times(line.flops_ratio), "strip": _strip(line, *_strip_limits(lines)),
    }  # fmt: skip


# ---------------------------------------------------------------- a run


def _run_page(folder: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    rows = _read_lines(folder / "metrics.jsonl")
    for i, row in enumerate(rows):
        if not isinstance(row.get("step"), int) or not isinstance(row.get("split"), str):
            raise UserError(f"{folder / 'metrics.jsonl'}:{i + 1}: expected a step and a split, got {json.dumps(row)[:80]}")
    result, run = _json(folder / "result.json"), _json(folder / "run.json")
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}  # metric -> split -> points
    for row in rows:
        for key, value in row.items():
            if key.endswith(("loss", "accuracy", "f1", "matthews")) and isinstance(value, int | float):
                curves.setdefault(key, {}).setdefault(row["split"], []).append((row["step"], value))
    curves = {key: splits for key, splits in curves.items() if any(len(points) > 1 for points in splits.values())}
    last = {row["split"]: row for row in rows if row["split"] != "train"}
    splits = {name: result.get(name) or last.get(name) or {} for name in ("dev", "test")}
    splits = {name: values for name, values in splits.items() if values}
    numbers = dict.fromkeys(k for v in splits.values() for k in v if k not in ("step", "split") and _plain(v[k]))
    lead = []
    if result:
        steps, pace = _count(result.get("steps", 0), "step"), _seconds(result.get("seconds_per_step"))
        lead.append(f"{steps} in {_seconds(result.get('seconds'))}, {pace} a step.")
        if result.get("total"):
            share = _percent(result["trainable"] / result["total"])
            lead[0] += f" {result['trainable']:,} of {result['total']:,} parameters moved ({share})."
        lead += [f"The numbers are of step {result['best_step']:,}, the best on dev."] if result.get("chosen_by") else []
    else:
        lead.append(f"Not finished: the newest line is of step {rows[-1]['step']:,}." if rows else "Nothing has been logged yet.")
    section = {
        "task": "", "lead": lead, "columns": list(splits),
        "caption": "Training curves; where there are many points, the line is their running mean.",
        "table": [{"name": k, "cells": [f"{v[k]:.4f}" if _plain(v.get(k)) else "–" for v in splits.values()]} for k in numbers],
    }  # fmt: skip
    page: dict[str, Any] = {
        "kind": "run", "title": folder.resolve().name, "subtitle": "one training run", "sections": [section], "notes": [], "failed": [],
        "facts": _facts(
            _distinct([result.get("versions") or run.get("versions")]), _distinct([result.get("device") or run.get("device")]),
            result.get("config_hash") or run.get("config_hash"), run.get("command"),
        ),
    }  # fmt: skip
    panels: list[list[Any]] = [[figures.CurvePanel(key, its) for key, its in curves.items()]]
    if ledger := _json(folder / "freeze_ledger.json"):
        page["sections"].append(ledger_page.section(ledger))
        panels.append([ledger_page.LedgerPanel(ledger["rows"])])
    return page, panels


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


# ---------------------------------------------------------------- seeds as dots


def _strip_limits(lines: list[Line]) -> tuple[float, float]:
    values = [v for line in lines for v in line.scores.values()]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _strip_scale(lines: list[Line]) -> str:
    return "{:.3f} – {:.3f}".format(*_strip_limits(lines)) if lines else ""


def _strip(line: Line, low: float, high: float, width: int = 130) -> Markup:
    """The seeds as dots on the task's common scale, the interval as a line, the mean as a tick."""

    def x(value: float) -> float:
        return round(5 + (width - 10) * (min(max(value, low), high) - low) / (high - low), 1)

    parts = [f'<line class="rail" x1="0" x2="{width}" y1="9" y2="9"/>']
    if line.score.lo is not None and line.score.hi is not None:
        parts.append(f'<line class="range" x1="{x(line.score.lo)}" x2="{x(line.score.hi)}" y1="9" y2="9"/>')
    parts += [f'<circle cx="{x(v)}" cy="9" r="3"><title>seed {seed}: {v:.4f}</title></circle>' for seed, v in line.scores.items()]
    parts.append(f'<line class="mean" x1="{x(line.score.mean)}" x2="{x(line.score.mean)}" y1="2" y2="16"/>')
    return Markup(f'<svg class="strip" viewBox="0 0 {width} 18" role="img" aria-label="seeds">{"".join(parts)}</svg>')  # numbers only


# ---------------------------------------------------------------- Markdown


def _markdown(page: dict[str, Any]) -> str:
    out = [f"# {page['title']}", "", page["subtitle"], ""]
    for s in page["sections"]:
        out += [f"## {s['task']}", ""] if s["task"] else []
        out += [*s["lead"], ""]
        if page["kind"] == "bench":
            base = s["baseline"]
            head = ["strategy", "learning rate", "seeds", f"test {s['metric']}, mean ± 95 %", "median", f"difference to {base}", "verdict",
                    "parameters that move", "time a step", f"time, × {base}", "total time", f"FLOPs, × {base}"]  # fmt: skip
            body = [
                [r["name"] + (f" ({r['detail']})" if r["detail"] else ""), r["lr"], r["seeds"], r["score"], r["median"],
                 f"{r['gain']} {r['range']}".strip(), r["verdict"], r["share"], r["step"], r["step_ratio"], r["total"], r["flops"]]
                for r in s["table"]
            ]  # fmt: skip
        else:
            head, body = ["", *s["columns"]], [[r["name"], *r["cells"]] for r in s["table"]]
        if body:
            out += [_md_row(head), _md_row(["---"] * len(head)), *map(_md_row, body), ""]
    out += ["![figure](report.png)", ""]
    if page["failed"]:
        out += ["## Failed cells", "", *[f"- {f['strategy']}, seed {f['seed']}: {_md(f['error'])}" for f in page["failed"]], ""]
    out += [f"{note}\n" for note in page["notes"]]
    if page["facts"]:
        facts = [(name, f"`{value}`" if name == "command" else _md(value)) for name, value in page["facts"]]
        out += ["## How it was made", "", *[f"- {name}: {value}" for name, value in facts], ""]
    return "\n".join(out)


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


# ---------------------------------------------------------------- words and numbers


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as e:
        raise UserError(f"{path}: not JSON ({e})") from None


def _distinct(items: Any) -> list[dict[str, Any]]:
    return list({json.dumps(x, sort_keys=True): x for x in items if x}.values())


def _facts(
    versions: list[dict[str, Any]], places: list[dict[str, Any]], config_hash: str | None, command: str | None
) -> list[tuple[str, str]]:
    facts = [("command", command), ("config", config_hash)]
    facts += [("device", ", ".join(f"{k} {v}" for k, v in place.items())) for place in places]
    facts += [("versions", ", ".join(f"{k} {v}" for k, v in v.items())) for v in versions]
    return [(name, value) for name, value in facts if value]


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _median(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(np.median(values)) if values else None


def _total(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(sum(values)) if values else None


def _word(freeze: Any) -> str:
    return freeze if isinstance(freeze, str) else "rules" if freeze else ""


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _seeds(line: Line) -> str:
    return _count(line.score.n, "seed") + (f" ({line.failed} failed)" if line.failed else "")


def _sign(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _range(s: stats.Summary | None) -> str:
    return "" if s is None or s.lo is None or s.hi is None else f"[{_sign(s.lo)},\N{NO-BREAK SPACE}{_sign(s.hi)}]"


def _signed(s: stats.Summary) -> str:
    return f"{_sign(s.mean)} {_range(s)}".strip()


def _plus_minus(s: stats.Summary) -> str:
    return f"{s.mean:.3f}" + (f" ± {s.half:.3f}" if s.half is not None else "")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.{0 if share >= 0.995 else 1 if share >= 0.01 else 2}f} %"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _seconds(value: float | int | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.{0 if value >= 0.01 else 1}f} ms"
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60)} s" if value < 3600 else f"{value / 3600:.1f} h"
