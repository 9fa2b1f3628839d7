"""Where parameters lie: whole on every device, or cut over the devices of the mesh axis `shard`, with all
that an optimizer keeps for them (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054; XLA does the rest: GSPMD,
Xu et al. 2021, arXiv 2105.04663).

`config.shard` says which parameters are cut: `none`, `all`, `trainable` or `frozen`, or rules as those of a
freeze: `[(pattern, "shard" or "replicate"), …]`, full match, first wins. A matrix is cut along its largest
dimension that the devices divide; one without, and every vector, stays whole.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ptft.core import mesh, tree
from ptft.core.errors import did_you_mean

SETS = ("none", "all", "trainable", "frozen")
ACTIONS = ("shard", "replicate")


def problem(said: Any) -> str | None:
    """What is wrong with `config.shard`, whatever its model."""
    if isinstance(said, str):
        return None if said in SETS else f"{did_you_mean(said, SETS)} (or a list of rules)"
    odd = [r for r in said if not isinstance(r, list | tuple) or len(r) != 2 or r[1] not in ACTIONS]
    return f"rule {odd[0]!r}: expected a pair (pattern, 'shard' or 'replicate')" if odd else None


class Placement(NamedTuple):
    """Hashable, as compiled steps depend on it."""

    grid: Mesh
    cut: frozenset[str] = frozenset()  # names of parameters

    def of(self, arrays: Any) -> Any:
        """The same tree of shardings, of parameters or of what an optimizer keeps: there the name of a
        parameter is a key on the way to its leaves."""
        return jax.tree_util.tree_map_with_path(self._one, arrays)

    def _one(self, path: tuple[Any, ...], x: Any) -> NamedSharding:
        if self.cut.isdisjoint(getattr(key, "key", None) for key in path):
            return mesh.replicated(self.grid)
        return NamedSharding(self.grid, spec(x.shape, self.grid.shape["shard"]))

    def put(self, arrays: Any) -> Any:
        """Arrays where they belong. Each process has all values of those that only it has, and they are the
        same."""
        return mesh.place(arrays, self.of(arrays))

    def like(self, arrays: Any) -> Any:
        """Shapes and dtypes, with the sharding of each."""
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arrays, self.of(arrays)
        )

    def size(self, arrays: Any) -> int:
        """Bytes that a device holds of a tree."""
        pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(self.of(arrays)), strict=True)
        return sum(math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize for x, where in pairs)


def spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """How an array is cut into so many parts."""
    fitting = [i for i, n in enumerate(shape) if len(shape) > 1 and n % parts == 0]
    if not fitting:
        return PartitionSpec()
    at = max(fitting, key=lambda i: shape[i])
    return PartitionSpec(*[None] * at, "shard")


def placement(said: Any, params: Mapping[str, Any], trainable: Collection[str], grid: Mesh) -> Placement:
    """`config.shard` on a model.

    Args:
      trainable: names of all that is trainable in some phase.
    Raises:
      UserError: a rule that matches nothing, or a parameter that no rule claims.
    """
    chosen = _chosen(said, params, set(trainable))
    return Placement(grid, frozenset(n for n in chosen if spec(params[n].shape, grid.shape["shard"])))


def _chosen(said: Any, params: Mapping[str, Any], trainable: set[str]) -> Collection[str]:
    if not isinstance(said, str):
        claimed = tree.match(list(params), [tuple(rule) for rule in said])
        return [n for n, i in claimed.items() if said[i][1] == "shard"]
    return {"none": (), "all": params, "trainable": trainable, "frozen": set(params) - trainable}[said]
