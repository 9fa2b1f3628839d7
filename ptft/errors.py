"""The one exception that means "the user can fix this": a clear message, exit code 2, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What was expected, what came, the nearest valid thing, and what to do."""


def nearest(name: str, options: Iterable[str], n: int = 3) -> list[str]:
    """The `n` options closest to `name`, best first; capitals count for nothing."""
    spelled = {str(o).casefold(): str(o) for o in options}
    return [spelled[o] for o in difflib.get_close_matches(name.casefold(), spelled, n=n, cutoff=0.4)]


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """ "did you mean 'a' or 'b'?", or the list of what exists when nothing is close."""
    options = sorted(str(o) for o in options)
    close = nearest(name, options)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(options[:20]) + (" …" if len(options) > 20 else "")
    return f"there is: {shown}" if shown else "there is none"


def table(rows: list[tuple[str, str, str]], most: int = 20) -> str:
    """Rows (path, have, want) as lines, the first `most` of them."""
    more = [f"  … and {len(rows) - most} more"] if len(rows) > most else []
    rows = [("path", "have", "want"), *rows[:most]]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join([f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows] + more)
