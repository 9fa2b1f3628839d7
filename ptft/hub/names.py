"""Where a parameter lies in a file of Hugging Face's, by the names that its model declares
(`ptft.models.Family`)."""

import re
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
    number = re.search(r"block_(\d+)", module)
    key = re.sub(r"block_\d+", "block_{}", module)
    tables = [*(getattr(family, kind) for kind in heads), family.body]
    found = []
    for table in [t for t in tables if key in t]:
        path, part, parts = re.fullmatch(r"([^\[]+)(?:\[(\d)/(\d)\])?", table[key]).groups()  # type: ignore[union-attr]
        path = path.format(number[1] if number else "")
        found.append(
            Place(
                f"{path}.{LEAVES[leaf]}",
                table is family.body,
                int(part or 0),
                int(parts or 1),
                leaf == "kernel",
            )
        )
    return found
