"""Prompt tuning: N vectors after [CLS] and behind the embeddings, as if they were tokens (Lester et al. 2021,
arXiv 2104.08691).

Every token sees them, a mean over tokens counts them. They are seen from the first step.
"""

import re
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

    grammar = "prompt=N"
    order = 5

    @classmethod
    def parse(cls, argument: str, model: Layout) -> Adapter:
        size, pattern = adapters.only_size(argument, "prompt", 16), model.need("attention", "prompt")
        width = max((s.shape[-1] for n, s in model.params.items() if re.fullmatch(pattern, n)), default=0)
        return cls((("embeddings", (width,)),), size)

    def init(self, site: str, shape: tuple[int, ...], key: jax.Array) -> Flat:
        return {"vectors": NORMAL(key, (self.size, shape[-1]))}

    def places(self, site: str) -> tuple[str, ...]:
        return ("", site)  # the mask of the whole grows, too

    def call(self, own: Flat, module: nn.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
        """The vectors stand after the first token, which is the one that heads read."""
        first, *rest = args

        def widen(x: jax.Array, more: jax.Array) -> jax.Array:
            return jnp.concatenate(
                [x[:, :1], jnp.broadcast_to(more.astype(x.dtype), (len(x), *more.shape)), x[:, 1:]], 1
            )

        if module.path:
            return widen(call(first, *rest, **kwargs), own["vectors"])
        out = call({**first, "mask": widen(first["mask"], jnp.ones(self.size, bool))}, *rest, **kwargs)
        return {
            **out,
            "hidden": jnp.concatenate([out["hidden"][:, :1], out["hidden"][:, 1 + self.size :]], 1),
        }

    @property
    def tokens(self) -> int:
        return self.size
