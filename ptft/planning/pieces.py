"""The pieces of a model that are trainable or frozen as a whole, and the names of choices among them."""

from collections.abc import Sequence
from typing import NamedTuple

from ptft.freeze.layout import Layout, Names


class Piece(NamedTuple):
    """What is trainable or frozen as a whole; its name is a freeze strategy."""

    name: str
    block: int  # -1: the embeddings; one past the last block: the pooler
    leaves: tuple[str, ...]


# strategy -> the group that it trains, of some blocks
ROLES = {"attention": "attention", "ffn": "ffn", "layernorm": "norm"}


def split(model: Layout) -> list[Piece]:
    """The pieces of a model, from the input up; a block is one piece where attention, feed-forward and norms
    are not all of it."""

    def piece(name: str, block: int, names: Names) -> list[Piece]:
        leaves = tuple(n for n in model.params if n in names)
        return [Piece(name, block, leaves)] if leaves else []

    groups, out = model.anatomy.groups, piece("embeddings", -1, model.group("stem"))
    for i, block in enumerate(model.blocks):
        roles = [(name, role) for name, role in ROLES.items() if role in groups]
        own = [p for name, role in roles for p in piece(f"{name}={i}", i, block & model.group(role))]
        out += own if {n for p in own for n in p.leaves} == block else piece(f"layers={i}", i, block)
    return out + (piece("pooler", len(model.blocks), model.group("pooler")) if "pooler" in groups else [])


def named(pieces: Sequence[Piece], chosen: Sequence[int]) -> str:
    """The pieces of these numbers as a strategy: "layers=3-4+ffn=2+pooler"."""
    if len(chosen) == len(pieces):
        return "full"
    broken = {p.block for i, p in enumerate(pieces) if i not in chosen}
    terms: dict[str, list[int]] = {}
    for p in (pieces[i] for i in chosen):
        kind, numbered, _ = p.name.partition("=")
        terms.setdefault("layers" if numbered and p.block not in broken else kind, []).append(p.block)
    return (
        "+".join(
            k if k in ("embeddings", "pooler") else f"{k}={_ranges(sorted({*b}))}" for k, b in terms.items()
        )
        or "head"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    ends = [n for n in numbers if n + 1 not in numbers]
    starts = [n for n in numbers if n - 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
