"""Panels as one PNG and as inline SVG, in the report's colours."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptft.bench import stats

# in the page, CSS variables take their place: light, dark and print
INK, QUIET, ACCENT, BAD = "#1f2328", "#848b93", "#22618f", "#a33a2a"
SIZE = (4.8, 3.7)  # of a panel in the page, inches, where it has none of its own
_VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", ACCENT: "var(--accent)", BAD: "var(--bad)"}


def style(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)
    ax.tick_params(colors=QUIET, labelcolor=INK, labelsize=9, length=3)


def limits(values: Sequence[float], intervals: Sequence[stats.Summary]) -> tuple[float, float]:
    """What an axis shows: all values, and of their intervals as much as leaves the values two thirds of it or
    more."""
    low, high = min(values), max(values)
    room = (high - low) / 4 or 0.01
    ends = [low, high, *(end for s in intervals for end in (s.lo, s.hi) if end is not None)]
    if min(ends) == max(ends):
        return low - room, high + room
    return max(low - room, min(ends)), min(high + room, max(ends))


def interval(
    ax: Axes, x: float, s: stats.Summary, shown: tuple[float, float], color: str, width: float
) -> None:
    """A 95 % interval, with an arrowhead where it goes on beyond what is shown."""
    if s.lo is None or s.hi is None:
        return
    ax.plot(
        [x, x],
        [max(s.lo, shown[0]), min(s.hi, shown[1])],
        color=color,
        lw=width,
        solid_capstyle="butt",
        zorder=2,
    )
    for end, edge, marker in ((s.lo < shown[0], shown[0], "v"), (s.hi > shown[1], shown[1], "^")):
        if end:
            ax.plot([x], [edge], marker, color=color, ms=4, mew=0, clip_on=False, zorder=2)


def broad(panel: Any) -> bool:
    """Whether a panel takes a whole row."""
    return getattr(panel, "size", SIZE)[0] > 1.5 * SIZE[0]


def _draw(figure: Figure, places: Mapping[Any, Axes]) -> None:
    """Every panel in its place; labels last, as they need to know where all the rest has come to lie."""
    for panel, ax in places.items():
        style(ax)
        panel.draw(ax)
    labelled = [(panel, ax) for panel, ax in places.items() if hasattr(panel, "label")]
    if labelled:
        figure.draw_without_rendering()
    for panel, ax in labelled:
        panel.label(ax)


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is one
def png(panels: Sequence[Sequence[Any]]) -> bytes:
    """All panels on one picture, two a row; a wide one has a row to itself."""
    rows: list[list[Any]] = []
    for row in panels:
        narrow = [panel for panel in row if not broad(panel)]
        rows += [narrow[i : i + 2] for i in range(0, len(narrow), 2)] + [
            [panel] for panel in row if panel not in narrow
        ]
    heights = [max(getattr(panel, "size", SIZE)[1] * 4.2 / SIZE[1] for panel in row) for row in rows] or [4.2]
    figure = Figure(figsize=(10.5, sum(heights)), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr,call-arg]
    grid = figure.add_gridspec(max(1, len(rows)), 2, height_ratios=heights)
    if not rows:
        empty = figure.add_subplot(grid[0, 0])
        empty.axis("off")
        empty.text(0, 0.5, "no finished run", color=QUIET)
    places = {
        panel: figure.add_subplot(grid[y, :] if broad(panel) else grid[y, x])
        for y, row in enumerate(rows)
        for x, panel in enumerate(row)
    }
    _draw(figure, places)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def svg(panel: Any) -> Markup:
    """One panel as inline SVG: text stays text, colours are the page's."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ptft", "text.parse_math": False}):
        figure = Figure(figsize=getattr(panel, "size", SIZE), layout="constrained")
        figure.patch.set_alpha(0)
        ax = figure.subplots()
        ax.patch.set_alpha(0)
        _draw(figure, {panel: ax})
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--face)", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = text.replace("fill: #ffffff", "fill: var(--paper)")
    for gid, title in getattr(panel, "titles", {}).items():
        text = text.replace(f'<g id="{gid}">', f"<g><title>{escape(title)}</title>")
    # our own drawing
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(panel.metric)}"', 1))
