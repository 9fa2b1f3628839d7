"""The one exception that means "the user can fix this": a clear message, exit code 2, no traceback."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """What was expected, what came, the nearest valid thing, and what to do."""


def install(extra: str) -> str:
    """How to get what an extra brings."""
    clone = f".venv/bin/pip install -c launch/constraints.txt -e '.[{extra}]'"
    return f"in a clone run: {clone}; elsewhere: pip install 'ptft[{extra}]'"


def shown(value: Any, most: int = 60) -> str:
    """A value as Python writes it, its middle left out where it is long: a cell may hold a whole document."""
    return short(repr(value), most)


def listed(values: Iterable[Any], most: int = 20) -> str:
    """The first values, each shortened, and how many more there are."""
    values = list(values)
    more = [f"… and {len(values) - most} more"] if len(values) > most else []
    return ", ".join([*map(shown, values[:most]), *more])


def nearest(name: str, options: Iterable[str], n: int = 3) -> list[str]:
    """The `n` options closest to `name`, best first; capitals count for nothing."""
    spelled = {str(o).casefold(): str(o) for o in options}
    return [spelled[o] for o in difflib.get_close_matches(name.casefold(), spelled, n=n, cutoff=0.4)]


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """ "did you mean 'a' or 'b'?", or the list of what exists when nothing is close."""
    options = sorted(str(o) for o in options)
    close = nearest(name, options)
    if close:
        return "did you mean " + " or ".join(shown(c, 300) for c in close) + "?"  # a path is long, too
    names = ", ".join(o if len(o) <= 300 else shown(o) for o in options[:20]) + (
        " …" if len(options) > 20 else ""
    )
    return f"there is: {names}" if names else "there is none"


def short(text: object, most: int = 200) -> str:
    """Another library's words, or a name out of a file: as they are, unless they are long."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most - 10]} … {text[-7:]}"


def joined(values: Iterable[object], most: int = 100) -> str:
    """Names out of files, one after the other, the first `most` of them."""
    values = list(values)
    more = [f"… and {len(values) - most} more"] if len(values) > most else []
    return ", ".join([*(short(v, 80) for v in values[:most]), *more])


def table(rows: list[tuple[str, str, str]], most: int = 20) -> str:
    """Rows (path, have, want) as lines, the first `most` of them."""
    more = [f"  … and {len(rows) - most} more"] if len(rows) > most else []
    rows = [("path", "have", "want"), *((short(a), short(b), short(c)) for a, b, c in rows[:most])]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join([f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows] + more)
