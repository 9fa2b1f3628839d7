"""The most valuable choice among the pieces of a model within a budget: a knapsack for each lowest piece."""

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ptft.core.errors import UserError
from ptft.planning.pieces import Piece, named

TRIES = 8  # choices that are measured; more only until one fits
GRID = 10**6  # costs are whole numbers of this part of the full cost, so that equal sums are equal


class Ask(NamedTuple):
    """What `auto(…)` asks for."""

    budget: float  # of what training everything costs
    unit: str
    score: str


class Items(NamedTuple):
    """The pieces that may be chosen, from the input up; costs in GRID-ths of that of training everything."""

    pieces: Sequence[Piece]
    value: Sequence[float]
    own: Sequence[int]  # of a piece itself
    reach: Sequence[int]  # of the gradients that get there, which the lowest piece pays for all above it


class Choice(NamedTuple):
    value: float
    extra: int  # cost above the head's
    pieces: list[int]  # by number


def solve(items: Items, wanted: Ask, price: Callable[[str], float]) -> tuple[list[int], list[dict[str, Any]]]:
    """(numbers of the trainable pieces, what was measured on the way)."""
    full, head = price("full"), price("head")
    if head > wanted.budget * full:
        least = math.ceil(1000 * head / full) / 1000
        raise UserError(
            f"a budget of {wanted.budget:g} {wanted.unit} is less than training the head alone; expected at "
            f"least {least:g}"
        )
    low, most = GRID * head / full, GRID * wanted.budget + len(items.pieces)  # so much is rounding
    ordered, off = choices(items, whole=wanted.score == "depth"), 0.0
    tried, best = list[dict[str, Any]](), list[int]()

    def measured(choice: Choice) -> float:
        strategy = named(items.pieces, choice.pieces)
        share = price(strategy) / full
        fits, estimate = share <= wanted.budget, (low + choice.extra) / GRID
        tried.append(
            {"strategy": strategy, "value": choice.value, "cost": share, "estimate": estimate, "fits": fits}
        )
        return share

    if wanted.score == "depth":  # each costs more than the one before
        ordered.reverse()
        return ordered[bisect.bisect_right(ordered, wanted.budget, key=measured) - 1].pieces, tried
    while len(tried) < TRIES or not best:
        at = next((i for i, choice in enumerate(ordered) if low + choice.extra + off <= most), None)
        if at is None:
            break
        choice = ordered.pop(at)
        share = measured(choice)
        off = GRID * share - low - choice.extra  # its like will be off by as much
        if share <= wanted.budget:
            best, ordered = choice.pieces, ordered[:at]
    return best, tried


def choices(items: Items, whole: bool) -> list[Choice]:
    """The most valuable first.

    With the lowest piece given, all that no other beats in both value and cost (Nemhauser & Ullmann 1969,
    Management Science 15).

    Args:
      whole: blocks from the top alone, each with all of its pieces.
    """
    pieces, value, own, reach = items
    down = sorted(range(len(pieces)), key=lambda i: (reach[i], -i))
    sets: list[tuple[float, int, int]]  # (value, cost above the head's, a bit for each piece)
    if whole:
        blocks = [[i for i in down if pieces[i].block >= b] for b in {p.block for p in pieces}]
        sets = [
            (float(len(b)), sum(own[i] for i in b) + max(reach[i] for i in b), sum(1 << i for i in b))
            for b in blocks
        ]
    else:
        best, sets = [(0.0, 0, 0)], []
        for i in down:
            new = [(v + value[i], c + own[i], bits | 1 << i) for v, c, bits in best]
            sets += [(v, c + reach[i], bits) for v, c, bits in new]
            best = _unbeaten(best + new)
    ordered = sorted([*sets, (0.0, 0, 0)], key=lambda x: (-x[0], x[1]))
    return [Choice(v, c, [i for i in range(len(pieces)) if bits >> i & 1]) for v, c, bits in ordered]


def _unbeaten(sets: Sequence[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    kept: list[tuple[float, int, int]] = []
    for one in sorted(sets, key=lambda x: (x[1], -x[0])):
        if not kept or one[0] > kept[-1][0]:
            kept.append(one)
    return kept
