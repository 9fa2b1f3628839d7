"""The freeze ledger as a page: layers by parameters, as a picture, a small table, sentences, and every tensor
in words."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ptft.core import tree
from ptft.freeze import adapters
from ptft.report.figures import ACCENT, BAD, INK, QUIET

# The worst first: where one cell stands for several tensors, it shows the worst of them.
VERDICTS = ("frozen, but moved", "trainable, but did not move", "moved", "frozen, the same")
# In the order in which a block computes; what is not named here comes after.
_MODULES = ("query", "key", "value", "out", "attention_norm", "up", "gate", "down", "ffn_norm")
WIDTH, MARGIN, CELL = 340.0, 52.0, 13.0  # of the picture, its names of layers, a row of cells; all in points


@dataclass
class Layers:
    """Layers that have the same parameters: the embeddings, the blocks, the pooler, the head."""

    columns: list[str]
    layers: dict[str, dict[str, list[dict[str, Any]]]]  # layer -> column -> rows of the ledger


class Box(NamedTuple):
    """Where a cell lies, in points."""

    x: float
    y: float
    width: float


def label(column: str) -> str:
    """ "attention/query/kernel" -> "query kernel"."""
    return " ".join(column.removesuffix("/embedding").split("/")[-2:]).replace("_", " ")


def groups(rows: Sequence[Mapping[str, Any]]) -> list[Layers]:
    """From the input to the output; what is added stands beside what it is added to."""
    by_kind: dict[str, Layers] = {}
    for row in rows:
        kind, layer, column = _place(row["name"])
        group = by_kind.setdefault(kind, Layers([], {}))
        group.layers.setdefault(layer, {}).setdefault(column, []).append(dict(row))
    for group in by_kind.values():
        group.layers = dict(
            sorted(group.layers.items(), key=lambda item: int("0" + re.sub(r"\D", "", item[0])))
        )
        group.columns = sorted(dict.fromkeys(c for layer in group.layers.values() for c in layer), key=_order)
    first = {kind: min(its.layers).replace(" ", "_") for kind, its in by_kind.items()}
    return [by_kind[kind] for kind in sorted(by_kind, key=lambda kind: tree.from_input(first[kind]))]


def _place(name: str) -> tuple[str, str, str]:
    """(kind of layer, layer, column): "backbone/block_3/ffn/up/bias" -> ("block", "block 3",
    "ffn/up/bias")."""
    root, layer, *rest = name.split("/")
    if root == "head":
        return "head", "head", "/".join([layer, *rest])
    column = _added(rest) if root == "adapter" else "/".join(rest)
    return tree.numbered(layer)[0], layer.replace("_", " "), column


def _added(parts: Sequence[str]) -> str:
    """["attention", "query", "lora", "a"] -> "attention/query/query lora/a"; what lies inside the tensor
    itself: " in part"."""
    *site, kind, leaf = parts
    if kind in adapters.kinds() and adapters.kinds()[kind].inside("/".join(site)):
        return "/".join(site) + " in part"
    return "/".join([*site, f"{site[-1]} {kind}", leaf] if site else [kind, leaf])


def _order(column: str) -> tuple[int, bool, bool]:
    module = next((i for i, m in enumerate(_MODULES) if m in column.split("/")), len(_MODULES))
    return module, " " in column, column.endswith("bias")


def verdict(cell: Sequence[Mapping[str, Any]]) -> str:
    return min((r["verdict"] for r in cell), key=VERDICTS.index)


def relative(cell: Sequence[Mapping[str, Any]]) -> float | None:
    """The largest change of an element by the largest element before; None: all were zero, or nothing
    moved."""
    return max((r["relative"] for r in cell if r["relative"]), default=None)


def section(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger as a section of a report: sentences, a row a layer, and all tensors."""
    table = []
    for group in groups(ledger["rows"]):
        for layer, cells in group.layers.items():
            rows = [r for cell in cells.values() for r in cell]
            moved = [r for r in rows if r["before"] != r["after"]]
            most = max(moved, key=lambda r: r["relative"] or 0, default=None)
            where = most and label(_place(most["name"])[2])
            table.append(
                {
                    "name": layer,
                    "cells": [str(len(moved)), str(len(rows) - len(moved)), _change(most), where or "–"],
                }
            )
    return {
        "kind": "run", "task": "What moved", "lead": sentences(ledger), "table": table,
        "columns": ["moved", "the same", "largest change", "in"],
        "caption": (
            "Every tensor by the largest change of an element, relative to its largest element before; "
            "hatched: frozen."
        ),
        "all": [{"name": r["name"], "cells": [r["verdict"], _change(r), r["rule"]]} for r in ledger["rows"]],
    }  # fmt: skip


def _change(row: Mapping[str, Any] | None) -> str:
    if row is None or not row["change"]:
        return "–"
    return f"{row['relative']:.1e}" if row["relative"] else "from zero"


def sentences(ledger: Mapping[str, Any]) -> list[str]:
    rows, optimizer = ledger["rows"], ledger["optimizer"]
    moved, same = (sum(r["verdict"] == v for r in rows) for v in ("moved", "frozen, the same"))
    proof = f"{moved} tensors moved; " + (
        f"{same} were frozen and are the same to the bit." if same else "none was frozen all along."
    )
    say = [f"The freeze held: {proof}" if ledger["holds"] else f"The freeze did not hold. {proof}"]
    for what, names in (
        ("Frozen, but moved", ledger["frozen_moved"]),
        ("Trainable, but did not move", ledger["not_moved"]),
        ("Frozen, but with state in the optimizer", optimizer["extra"]),
        ("Trainable, but without state in the optimizer", optimizer["missing"]),
    ):
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        if names:
            say.append(f"{what}: {shown}.")
    return say


class LedgerPanel:
    """Layers by parameters, colour = relative change, on a logarithmic scale."""

    metric = "what moved: layers by parameters"

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self.groups = groups(rows)
        cells = [cell for group in self.groups for layer in group.layers.values() for cell in layer.values()]
        changes = [math.log10(c) for cell in cells if verdict(cell) == "moved" and (c := relative(cell))]
        self.low, self.high = (math.floor(min(changes)), math.ceil(max(changes))) if changes else (-3, 0)
        self.high = max(self.high, self.low + 1)
        shown = {verdict(cell) for cell in cells}
        self.from_zero = any(verdict(cell) == "moved" and relative(cell) is None for cell in cells)
        self.legend = [v for v in VERDICTS if v in shown and v != "moved"]
        self.titles: dict[str, str] = {}  # of the cells, by the ids of their groups in an SVG
        self.size = WIDTH / 72, (sum(map(self._height, self.groups)) + 3 * CELL) / 72

    def _width(self, group: Layers) -> float:
        return (WIDTH - MARGIN) / len(group.columns)

    def _upright(self, group: Layers) -> bool:
        return max(map(len, map(label, group.columns))) * 3.4 + 2 > self._width(group)

    def _head(self, group: Layers) -> float:
        return 3.5 * max(map(len, map(label, group.columns))) + 6 if self._upright(group) else 12.0

    def _height(self, group: Layers) -> float:
        return self._head(group) + CELL * len(group.layers) + 5

    def draw(self, ax: Axes) -> None:
        y = 0.0
        for group in self.groups:
            y += self._head(group)
            width, upright = self._width(group), self._upright(group)
            for i, column in enumerate(group.columns):
                turned = (
                    {"rotation": 90, "ha": "center", "va": "bottom"}
                    if upright
                    else {"ha": "center", "va": "bottom"}
                )
                ax.text(MARGIN + (i + 0.5) * width, y - 2, label(column), fontsize=6.5, color=QUIET, **turned)  # type: ignore[arg-type]
            for layer, cells in group.layers.items():
                ax.text(MARGIN - 4, y + CELL / 2, layer, fontsize=7, color=INK, ha="right", va="center")
                for i, column in enumerate(group.columns):
                    if column in cells:
                        self._cell(ax, Box(MARGIN + i * width, y, width), cells[column])
                y += CELL
            y += 5
        self._legend(ax, y + 0.6 * CELL)
        ax.set_xlim(0, WIDTH)
        ax.set_ylim(y + 3 * CELL, 0)
        ax.axis("off")

    def _cell(self, ax: Axes, at: Box, cell: Sequence[Mapping[str, Any]]) -> None:
        name, what, change = ", ".join(r["name"] for r in cell), verdict(cell), relative(cell)
        gid = f"cell{len(self.titles)}"
        self.titles[gid] = f"{name}: {what}" + (f", {change:.2e} of its largest element" if change else "")
        self._box(ax, at, what, change).set_gid(gid)

    def _box(self, ax: Axes, at: Box, what: str, change: float | None) -> Rectangle:
        """One cell; the colours are those that the page makes light or dark."""
        x, y, width = at
        style: dict[str, Any] = {"facecolor": "none", "edgecolor": "none"}
        if what == "moved" and change:
            level = (math.log10(change) - self.low) / (self.high - self.low)
            style |= {"facecolor": ACCENT, "alpha": 0.12 + 0.88 * min(max(level, 0), 1)}
        elif what == "moved":
            style |= {"edgecolor": ACCENT, "lw": 1.2}
        elif what == "frozen, the same":
            style |= {"edgecolor": QUIET, "hatch": "//////", "lw": 0, "alpha": 0.35}
        elif what == "frozen, but moved":
            style |= {"facecolor": BAD}
        else:
            style |= {"edgecolor": BAD, "lw": 1.2}
            ax.text(
                x + width / 2,
                y + CELL / 2,
                "!",
                fontsize=8,
                color=BAD,
                ha="center",
                va="center",
                weight="bold",
            )
        return ax.add_patch(Rectangle((x + 0.8, y + 0.8), max(width - 1.6, 0.5), CELL - 1.6, **style))  # type: ignore[return-value]

    def _legend(self, ax: Axes, y: float) -> None:
        x = MARGIN
        for power in range(self.low, self.high + 1, max(1, math.ceil((self.high - self.low) / 4))):
            self._box(ax, Box(x, y, 12), "moved", 10.0**power)
            x = self._word(ax, x, y, f"1e{power}" if power else "1")
        x, y = MARGIN, y + 1.2 * CELL
        for what in (["from zero"] if self.from_zero else []) + self.legend:
            self._box(ax, Box(x, y, 12), "moved" if what == "from zero" else what, None)
            x = self._word(
                ax,
                x,
                y,
                {"frozen, the same": "frozen", "trainable, but did not move": "did not move"}.get(what, what),
            )

    def _word(self, ax: Axes, x: float, y: float, text: str) -> float:
        ax.text(x + 14, y + CELL / 2, text, fontsize=7, color=INK, ha="left", va="center")
        return x + 22 + 3.9 * len(text)
