"""Prefix tuning: N keys and values in every block (Li & Liang 2021, arXiv 2101.00190, without their
reparametrisation).

They are seen from the first step.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ptft.core.tree import Flat
from ptft.freeze import adapters
from ptft.freeze.adapters import Adapter
from ptft.freeze.layout import Layout
from ptft.models.layers import NORMAL


@dataclass(frozen=True)
class Kind(Adapter):
    size: int

    grammar = "prefix=N"
    order = 6

    @classmethod
    def parse(cls, argument: str, model: Layout) -> Adapter:
        return cls(
            tuple(adapters.matrices(model, "prefix", "prefix")), adapters.only_size(argument, "prefix", 16)
        )

    def init(self, site: str, shape: tuple[int, ...], key: jax.Array) -> Flat:
        return {"vectors": NORMAL(key, (self.size, shape[-1]))}

    def places(self, site: str) -> tuple[str, ...]:
        return (site.rpartition("/")[0], site)  # the mask of its attention grows, too

    def call(self, own: Flat, module: nn.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Keys and values that every token sees; the mask is the attention's second argument."""

        def before(x: jax.Array, more: jax.Array) -> jax.Array:
            return jnp.concatenate([jnp.broadcast_to(more.astype(x.dtype), (len(x), *more.shape)), x], 1)

        if module.name in ("key", "value"):
            return before(call(*args, **kwargs), own["vectors"])
        x, mask, *rest = args
        return call(x, before(mask, jnp.ones(self.size, bool)), *rest, **kwargs)

    def seen(self, site: str) -> int:
        return self.size if site.endswith("/value") else 0
