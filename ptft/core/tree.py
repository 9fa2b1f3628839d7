"""Parameters by name.

Every parameter has one flat name, `backbone/block_3/attention/query/kernel`. Freezing, learning-rate
groups, weight decay, loading and reports all speak these names, so a parameter tree is handled as a flat
`{name: array}` dict everywhere but inside `apply` and inside a checkpoint.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ptft.core.errors import UserError, did_you_mean

Flat = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Flat:
    """Nested dict -> `{"a/b/c": leaf}`, in the order of the tree."""
    flat: Flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, name + "/"))
        else:
            flat[name] = value
    return flat


def numbered(layer: str) -> tuple[str, int | None]:
    """A layer's kind, and its number from the input up: "block_3" -> ("block", 3), "pooler" -> ("pooler",
    None)."""
    kind, _, number = layer.rpartition("_")
    return (kind, int(number)) if kind and number.isdecimal() else (layer, None)


def from_input(layer: str) -> tuple[int, int]:
    """Sorts the layers of a model from the input up, by their names alone: embeddings, what is numbered,
    anything else, the head."""
    kind, number = numbered(layer)
    place = 1 if number is not None else {"embeddings": 0, "head": 3}.get(kind, 2)
    return place, number or 0


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b/c": leaf}` -> nested dict."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def split(flat: Mapping[str, Any], chosen: Iterable[str]) -> tuple[Flat, Flat]:
    """(leaves whose name is chosen, the others); `{**a, **b}` is the inverse."""
    chosen = set(chosen)
    inside = {k: v for k, v in flat.items() if k in chosen}
    outside = {k: v for k, v in flat.items() if k not in chosen}
    return inside, outside


def count(flat: Mapping[str, Any]) -> int:
    """Number of parameters (scalars) in a flat tree of arrays or shapes."""
    total = 0
    for leaf in flat.values():
        size = 1
        for n in leaf.shape:
            size *= n
        total += size
    return total


def claims(names: Iterable[str], patterns: Sequence[str]) -> dict[str, int]:
    """`{name: index of the first pattern that matches all of it}`; names that none matches are left out."""
    compiled = [re.compile(p) for p in patterns]
    first = {name: next((i for i, p in enumerate(compiled) if p.fullmatch(name)), None) for name in names}
    return {name: i for name, i in first.items() if i is not None}


def match(names: Sequence[str], rules: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Which rule claims each name: an ordered table, full match, first wins.

    The table must be *total* (every name is claimed) and *live* (every rule claims something).

    Args:
      names: parameter names.
      rules: `(pattern, action)` pairs; patterns are regular expressions.
    Returns:
      `{name: index of its rule}`.
    Raises:
      UserError: a pattern that is no regular expression, a dead rule, or an unclaimed parameter.
    """
    for pattern, action in rules:
        try:
            re.compile(pattern)
        except re.error as e:
            raise UserError(
                f"freeze rule ({pattern!r}, {action!r}) is not a regular expression: {e}"
            ) from None
    claimed = claims(names, [pattern for pattern, _ in rules])
    problems = []
    for i, (pattern, action) in enumerate(rules):
        if i in claimed.values():
            continue
        if any(re.fullmatch(pattern, n) for n in names):
            problems.append(
                f"rule ({pattern!r}, {action!r}) never wins: rules above it claim all it matches; delete it "
                "or move it up"
            )
        else:
            problems.append(
                f"rule ({pattern!r}, {action!r}) matches no parameter; {did_you_mean(pattern, names)}"
            )
    unclaimed = [n for n in names if n not in claimed]
    if unclaimed:
        shown = ", ".join(unclaimed[:5]) + (f" and {len(unclaimed) - 5} more" if len(unclaimed) > 5 else "")
        problems.append(f"no rule claims {shown}; end the list with a rule such as ('.*', 'freeze')")
    if problems:
        raise UserError("the freeze rules do not fit the model:\n  " + "\n  ".join(problems))
    return claimed


class Diff(NamedTuple):
    """Names of a two-way comparison of two trees; `shape` holds (name, have, want)."""

    same: list[str]
    missing: list[str]  # wanted, not there
    unused: list[str]  # there, not wanted
    shape: list[tuple[str, tuple[int, ...], tuple[int, ...]]]


def diff(have: Mapping[str, Any], want: Mapping[str, Any]) -> Diff:
    """Compares the names and shapes of two flat trees of arrays or shapes."""
    shape = [
        (n, tuple(have[n].shape), tuple(want[n].shape))
        for n in want
        if n in have and tuple(have[n].shape) != tuple(want[n].shape)
    ]
    clash = {n for n, _, _ in shape}
    return Diff(
        same=[n for n in want if n in have and n not in clash],
        missing=[n for n in want if n not in have],
        unused=[n for n in have if n not in want],
        shape=shape,
    )
