"""Where a parameter lies in a file of Hugging Face's, by the names that its model declares
(`ptft.models.Family`)."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ptft.models import Family

LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# By the names that published checkpoints use.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Place(NamedTuple):
    """Where a parameter lies: part `part` of `parts` of the rows of a tensor, transposed or not."""

    name: str
    inner: bool  # of the encoder: in a model with a head the family's prefix stands before the name
    part: int
    parts: int
    transposed: bool


def places(family: Family, name: str, heads: tuple[str, ...] = ("classify", "mlm", "tag")) -> list[Place]:
    """Where a parameter may lie in a file, the likeliest first; none if the family has no such thing.

    Args:
      name: `backbone/block_3/attention/query/kernel`.
      heads: the kinds of heads, "classify", "mlm" or "tag", that the file may have.
    """
    module, leaf = name.rsplit("/", 1)
    tables = [*(getattr(family, kind) for kind in heads), family.body]
    candidates = []
    for table, theirs, number in [(t, *fits) for t in tables if (fits := _fits(t, module))]:
        path, part, parts = re.fullmatch(r"([^\[]+)(?:\[(\d)/(\d)\])?", theirs).groups()  # type: ignore[union-attr]
        path = path.format(number)
        candidates.append(
            Place(
                f"{path}.{LEAVES[leaf]}",
                table is family.body,
                int(part or 0),
                int(parts or 1),
                leaf == "kernel",
            )
        )
    return candidates


def _fits(table: Mapping[str, str], module: str) -> tuple[str, str] | None:
    """What a table calls a module, and the number of the module's block, "" outside of all blocks."""
    if module in table:
        return table[module], ""
    numbered = ((re.sub(rf"(?<=_){n}\b", "{}", module), n) for n in re.findall(r"_(\d+)\b", module))
    return next(((table[key], n) for key, n in numbered if key in table), None)
