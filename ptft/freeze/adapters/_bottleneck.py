"""What both kinds of bottlenecks are: y + f(y down) up, behind a matrix; it starts as the function that the
backbone was."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from ptft.core.tree import Flat
from ptft.freeze import adapters
from ptft.freeze.adapters import Adapter, Product
from ptft.freeze.layout import Layout
from ptft.models.layers import NORMAL


@dataclass(frozen=True)
class Bottleneck(Adapter):
    width: int

    behind: ClassVar[tuple[str, ...]]  # the matrices, by name

    def activation(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    @classmethod
    def parse(cls, argument: str, model: Layout) -> Adapter:
        width = adapters.only_size(argument, cls.kind(), 32)
        matrices = adapters.matrices(model, cls.kind(), "attention", "ffn")
        return cls(tuple(k for k in matrices if k[0].rpartition("/")[2] in cls.behind), width)

    def init(self, site: str, shape: tuple[int, ...], key: jax.Array) -> Flat:
        down = {"down_kernel": NORMAL(key, (shape[-1], self.width)), "down_bias": jnp.zeros(self.width)}
        return down | {"up_kernel": jnp.zeros((self.width, shape[-1])), "up_bias": jnp.zeros(shape[-1])}

    def call(self, own: Flat, module: nn.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
        y = call(*args, **kwargs)
        p = {n: v.astype(y.dtype) if v.ndim > 1 else adapters.last(v, y) for n, v in own.items()}
        return y + self.activation(y @ p["down_kernel"] + p["down_bias"]) @ p["up_kernel"] + p["up_bias"]

    def products(self, shape: tuple[int, ...]) -> list[Product]:
        size = shape[-1] * self.width
        return [Product("down_kernel", size, "output"), Product("up_kernel", size, "own")]
