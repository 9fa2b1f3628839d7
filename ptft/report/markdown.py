"""A report's page as Markdown, and its first screen, which a terminal shows.

What a page says is plain text, and the names in it may hold any signs: Markdown shows them as they are.
"""

import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MORE = "<!-- more -->"  # what stands above it is the first screen
WIDTH = 100
# Signs that Markdown takes for its own: everywhere, at the edge of a word, before an address, at a heading's
# end; and as a line's first.
_SIGNS = re.compile(r"[\\`*|]|~(?=~)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|(?<!\S)#(?=#*\s*$)")
_FIRST = re.compile(r"^(?:(?=[#>+=-])|\d{1,9}(?=[.)](?:\s|$)))")
_TAGS = re.compile(r"<|&(?=#?\w+;)")
# A line end in a name, or what would steer a terminal, is seen: its picture.
_PICTURES = {**{i: 0x2400 + i for i in range(32)}, 0x7F: 0x2421, 0x85: 0x240A, 0x2028: 0x240A, 0x2029: 0x240A}


def write(page: dict[str, Any]) -> str:
    out = [f"# {inline(page['title'])}", "", line(page["subtitle"]), ""]
    for i, s in enumerate(page["sections"]):
        out += [f"## {inline(s['task'])}", ""] if s["task"] else []
        out += _advice(s["advice"]) if s.get("advice") else []
        out += [*map(line, s["lead"]), ""]
        if s["kind"] == "bench":
            out += [*_main_table(s), *([MORE, ""] if i == 0 else []), *_details(s)]
        elif s["kind"] == "overview":
            out += [*_aligned(["", *s["columns"]], [[r["name"], *r["cells"]] for r in s["table"]]), MORE, ""]
        elif s["table"]:
            out += _md_table(["", *s["columns"]], [[r["name"], *r["cells"]] for r in s["table"]])
    captions = dict.fromkeys(s["caption"] for s in page["sections"] if s.get("caption"))
    out += ["![figure](report.png)", "", *_paragraphs(captions)]
    if page["failed"]:
        out += [
            "## Failed cells",
            "",
            *[f"- {line(f['strategy'])}, seed {f['seed']}: {inline(f['error'])}" for f in page["failed"]],
            "",
        ]
    out += _paragraphs(page["notes"])
    if page["facts"]:
        facts = [(name, _code(x) if name == "command" else inline(x)) for name, x in page["facts"]]
        out += ["## How it was made", "", *[f"- {name}: {value}" for name, value in facts], ""]
    return "\n".join(out)


def first_screen(text: str) -> str:
    """Of a written page: all of a run's, and of a benchmark's what to do, why, and the table.

    Sentences are wrapped, and nothing else."""
    lines = text.partition(MORE)[0].rstrip().split("\n")
    return "\n".join(x if x.startswith(("|", " ")) else textwrap.fill(_as_text(x), WIDTH) for x in lines)


def inline(text: str) -> str:
    """Plain text as Markdown, on one line."""
    seen = _SIGNS.sub(r"\\\g<0>", text.translate(_PICTURES))
    return _TAGS.sub(lambda sign: html.escape(sign[0]), seen)


def line(text: str) -> str:
    """`inline`, where it begins a line."""
    return _FIRST.sub(r"\g<0>\\", inline(text.strip(" ")))


def _as_text(markdown: str) -> str:
    """What `inline` was given."""
    return html.unescape(re.sub(r"\\([\W_])", r"\1", markdown))


def _code(text: str) -> str:
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if len(fence) > 1 else ""  # beside a sign of its own
    return f"{fence}{blank}{text.translate(_PICTURES)}{blank}{fence}"


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [f"{line(text)}\n" for text in texts]


def _advice(a: Mapping[str, Any]) -> list[str]:
    how = f" ({inline(a['how'])})" if a["how"] else ""
    command = [f"    {a['command'].translate(_PICTURES)}", ""] if a["command"] else []
    do = f"**{inline(a['do'].strip())}**{how}."
    return [*_paragraphs(a["first"]), do, "", line(a["facts"]), "", *command]


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
        *_paragraphs((said, *s["absent"])),
    ]


def _details(s: dict[str, Any]) -> list[str]:
    """The rest of the table of strategies, what checks it, all pairs, and how to run the rows again."""
    out = [*_all_columns(s), *_paragraphs(s["checks"])]
    if pairs := s["pairs"]:
        numbers = [str(i) for i in range(1, len(pairs["names"]) + 1)]
        squares = [
            [inline(f"{n} {row['name']}"), *(_bold_if_apart(c) if c else "" for c in row["cells"])]
            for n, row in zip(numbers, pairs["rows"], strict=True)
        ]
        out += [
            line(f"Each strategy less each other; bold: told apart. {pairs['lead']}"),
            "",
            *_table(["", *numbers], squares),
        ]
    for again in s["again"]:
        out += [f"Any row again, by its hash: {_code(again['command'])}", ""]
        out += [*(f"- {line(name)}: {', '.join(hashes)}" for name, hashes in again["rows"]), ""]
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
    return _table([*map(inline, head)], [[*map(inline, row)] for row in body])


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Of cells that are Markdown."""
    return [_row(head), _row(["---"] * len(head)), *map(_row, body), ""] if body else []


def _aligned(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns line up where it is read as text."""
    rows = [[*map(inline, row)] for row in (head, *body)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_row(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [lines[0], _row("-" * width for width in widths), *lines[1:], ""] if body else []


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
