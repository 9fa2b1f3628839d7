"""A report's page as Markdown, and its first screen, which a terminal shows."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

MORE = "<!-- more -->"  # what stands above it is the first screen
WIDTH = 100


def write(page: dict[str, Any]) -> str:
    out = [f"# {page['title']}", "", page["subtitle"], ""]
    for i, s in enumerate(page["sections"]):
        out += [f"## {s['task']}", ""] if s["task"] else []
        out += _advice(s["advice"]) if s.get("advice") else []
        out += [*s["lead"], ""]
        if s["kind"] == "bench":
            out += [*_main_table(s), *([MORE, ""] if i == 0 else []), *_details(s)]
        elif s["kind"] == "overview":
            out += [*_aligned(["", *s["columns"]], [[r["name"], *r["cells"]] for r in s["table"]]), MORE, ""]
        elif s["table"]:
            out += _md_table(["", *s["columns"]], [[r["name"], *r["cells"]] for r in s["table"]])
    captions = dict.fromkeys(s["caption"] for s in page["sections"] if s.get("caption"))
    out += ["![figure](report.png)", "", *(f"{caption}\n" for caption in captions)]
    if page["failed"]:
        out += [
            "## Failed cells",
            "",
            *[f"- {f['strategy']}, seed {f['seed']}: {_md(f['error'])}" for f in page["failed"]],
            "",
        ]
    out += [f"{note}\n" for note in page["notes"]]
    if page["facts"]:
        facts = [(name, f"`{value}`" if name == "command" else _md(value)) for name, value in page["facts"]]
        out += ["## How it was made", "", *[f"- {name}: {value}" for name, value in facts], ""]
    return "\n".join(out)


def first_screen(text: str) -> str:
    """Of a written page: all of a run's, and of a benchmark's what to do, why, and the table.

    Sentences are wrapped, and nothing else."""
    lines = text.partition(MORE)[0].rstrip().splitlines()
    return "\n".join(line if line.startswith(("|", " ")) else textwrap.fill(line, WIDTH) for line in lines)


def _advice(a: Mapping[str, Any]) -> list[str]:
    how = f" ({_md(a['how'])})" if a["how"] else ""
    command = [f"    {a['command']}", ""] if a["command"] else []
    return [*(f"{line}\n" for line in a["first"]), f"**{_md(a['do'])}**{how}.", "", a["facts"], "", *command]


def _main_table(s: dict[str, Any]) -> list[str]:
    base = s["baseline"]
    head = ["strategy", f"test {s['metric']}", f"to {base}", "verdict", "FLOPs", "memory"]
    keys = ["name", "score", "half", "short", "flops", "peak_ratio"]
    said = (
        "± is a 95 % confidence interval over seeds, for one comparison alone; verdicts are corrected for "
        "all comparisons. No ± where all seeds give the same. FLOPs and memory are per step, relative to "
        f"{base}."
    )
    return [
        *_aligned(head, [[r[key] for key in keys] for r in s["table"] if not r["again"]]),
        *(f"{line}\n" for line in (said, *s["absent"])),
    ]


def _details(s: dict[str, Any]) -> list[str]:
    """The rest of the table of strategies, what checks it, all pairs, and how to run the rows again."""
    out = [*_all_columns(s), *(f"{line}\n" for line in s["checks"])]
    if pairs := s["pairs"]:
        numbers = [str(i) for i in range(1, len(pairs["names"]) + 1)]
        squares = [
            [f"{n} {row['name']}", *(_bold_if_apart(c) if c else "" for c in row["cells"])]
            for n, row in zip(numbers, pairs["rows"], strict=True)
        ]
        out += [
            f"Each strategy less each other; bold: told apart. {pairs['lead']}",
            "",
            *_md_table(["", *numbers], squares),
        ]
    for again in s["again"]:
        out += [f"Any row again, by its hash: `{again['command']}`", ""]
        out += [*(f"- {_md(name)}: {', '.join(hashes)}" for name, hashes in again["rows"]), ""]
    return out


def _all_columns(s: dict[str, Any]) -> list[str]:
    base, ranges = s["baseline"], {"gain": "range", "forgetting": "forgets"}
    columns = {
        "lr": "learning rate", "seeds": "seeds", "median": "median", "boot": "bootstrap", "rank": "rank",
        "gain": f"difference to {base}", "verdict": "verdict", "share": "trainable parameters",
        "step": "time a step", "step_ratio": f"time, × {base}", "time": "time of all steps, nothing cached",
        "peak": "peak memory", "checkpoint": "checkpoint",
    }  # fmt: skip
    if s["forgets"]:
        columns["forgetting"] = "forgetting"
    body = [
        [
            r["name"] + (f" ({r['detail']})" if r["detail"] else ""),
            *(f"{r[k]} {r.get(ranges.get(k), '')}".strip() for k in columns),
        ]
        for r in s["table"]
    ]
    return _md_table(["strategy", *columns.values()], body)


def _bold_if_apart(cell: Mapping[str, str]) -> str:
    return f"**{cell['text']}**" if cell["verdict"] in ("better", "worse") else cell["text"]


def _md_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [_md_row(head), _md_row(["---"] * len(head)), *map(_md_row, body), ""] if body else []


def _aligned(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns line up where it is read as text."""
    widths = [max(len(_md(row[i])) for row in (head, *body)) for i in range(len(head))]

    def padded(row: Sequence[str]) -> list[str]:
        return [cell + " " * (width - len(_md(cell))) for cell, width in zip(row, widths, strict=True)]

    return (
        [
            _md_row(padded(head)),
            _md_row(["-" * width for width in widths]),
            *(_md_row(padded(row)) for row in body),
            "",
        ]
        if body
        else []
    )


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"
