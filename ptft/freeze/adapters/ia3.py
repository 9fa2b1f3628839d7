"""(IA)³: factors on keys, values and the inside of feed-forward (Liu et al. 2022, arXiv 2205.05638).

It starts as the function that the backbone was, and can be merged into the backbone.
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


@dataclass(frozen=True)
class Kind(Adapter):
    grammar = "ia3"
    order = 4
    undecayed = ("factor",)  # it starts at 1: to decay it would be to shrink what it multiplies
    mergeable = True

    @classmethod
    def parse(cls, argument: str, model: Layout) -> Adapter:
        matrices = adapters.matrices(model, "ia3", "attention", "ffn")
        return cls(tuple(k for k in matrices if k[0].rpartition("/")[2] in ("key", "value", "down")))

    def init(self, site: str, shape: tuple[int, ...], key: jax.Array) -> Flat:
        return {"factor": jnp.ones(shape[0] if self.before(site) else shape[-1])}

    @classmethod
    def before(cls, site: str) -> bool:
        return site.endswith("/down")

    def call(self, own: Flat, module: nn.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
        (x,) = args
        if module.name == "down":
            return call(x * adapters.last(own["factor"], x))
        y = call(x)
        return y * adapters.last(own["factor"], y)

    def merge(self, site: str, own: Flat, params: Flat) -> Flat:
        kernel, bias = f"backbone/{site}/kernel", f"backbone/{site}/bias"
        if self.before(site):
            return {kernel: params[kernel] * own["factor"][:, None]}
        return {n: params[n] * adapters.last(own["factor"], params[n]) for n in (kernel, bias) if n in params}
