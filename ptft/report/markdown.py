"""A report's page as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def write(page: dict[str, Any]) -> str:
    out = [f"# {page['title']}", "", page["subtitle"], ""]
    for s in page["sections"]:
        out += [f"## {s['task']}", ""] if s["task"] else []
        out += [*s["lead"], ""]
        if s.get("kind") == "bench":
            out += _bench_table(s)
        elif s["table"]:
            out += _md_table(["", *s["columns"]], [[r["name"], *r["cells"]] for r in s["table"]])
    captions = dict.fromkeys(s["caption"] for s in page["sections"] if s.get("caption"))
    out += ["![figure](report.png)", "", *(f"{caption}\n" for caption in captions)]
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
    head += [f"difference to {base}", "verdict", "parameters that move", "time a step", f"time, × {base}"]
    head += ["time of all steps, nothing cached", f"FLOPs, × {base}", "peak memory", "checkpoint", *["forgetting"] * s["forgets"]]
    keys = ["lr", "seeds", "score", "median", "boot", "rank", "gain", "verdict", "share", "step", "step_ratio", "time", "flops", "peak"]
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
