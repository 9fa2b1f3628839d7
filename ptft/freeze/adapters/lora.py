"""LoRA: y + s (x a) b on matrices, s = alpha / R (Hu et al. 2021, arXiv 2106.09685).

Options: the matrices by name or group (lora=8,query,value, which is the default; attention, ffn), alpha=A
(else R), blocks=LIST, and
  rs    s = alpha / sqrt(R) (rsLoRA: Kalajdzievski 2023, arXiv 2312.03732)
  dora  direction and length apart (DoRA: Liu et al. 2024, arXiv 2402.09353)
It starts as the function that the backbone was, and can be merged into the backbone.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ptft.core.errors import UserError, did_you_mean
from ptft.core.tree import Flat
from ptft.freeze import adapters
from ptft.freeze.adapters import Adapter, Product
from ptft.freeze.layout import Layout
from ptft.freeze.strategies import FACTOR, numbers, rates


@dataclass(frozen=True)
class Kind(Adapter):
    rank: int
    scale: float = 1.0
    dora: bool = False

    grammar = "lora=R,OPTION…"
    order = 1
    undecayed = ("magnitude",)  # a length: to decay it would be to shrink what it multiplies
    mergeable = True

    @classmethod
    def parse(cls, argument: str, model: Layout) -> Adapter:
        # a comma before a digit is one of a list: blocks=0,2-3
        size, *options = re.split(r",(?!\d)", argument)
        rank, kernels = (
            adapters.whole(size or "8", "lora"),
            adapters.matrices(model, "lora", "attention", "ffn"),
        )
        alpha, blocks, targets = float(rank), None, []
        for option in options:
            name, _, value = option.partition("=")
            if name == "alpha" and re.fullmatch(FACTOR, value) and 0 < float(value) < math.inf:
                alpha = float(value)
            elif name == "blocks":
                blocks = numbers(value)
                if not blocks or max(blocks) >= len(model.blocks):
                    raise UserError(
                        f"{option!r} names no blocks of this model; expected such as blocks=0,2-3"
                    )
            elif option not in ("rs", "dora"):
                targets.append(option)
        sites = [k for target in targets or ("query", "value") for k in _chosen(target, kernels, model)]
        if blocks is not None:
            inside = model.some_blocks(blocks)
            sites = [k for k in sites if f"backbone/{k[0]}/kernel" in inside]
        scale = alpha / (rank**0.5 if "rs" in options else rank)
        return cls(tuple(dict.fromkeys(sites)), rank, scale, "dora" in options)

    def init(self, site: str, shape: tuple[int, ...], key: jax.Array) -> Flat:
        bound = shape[0] ** -0.5  # as in the authors' code
        a = jax.random.uniform(key, (shape[0], self.rank), minval=-bound, maxval=bound)
        return {"a": a, "b": jnp.zeros((self.rank, shape[-1]))} | (
            {"magnitude": jnp.ones(shape[-1])} if self.dora else {}
        )

    def fill(self, site: str, own: Flat, params: Flat, squares: Flat | None) -> Flat:
        return (
            {**own, "magnitude": _length(self._sum(own, params[f"backbone/{site}/kernel"]))}
            if self.dora
            else own
        )

    def call(self, own: Flat, module: nn.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
        (x,) = args
        y = call(x)
        added = (
            (x.astype(y.dtype) @ own["a"].astype(y.dtype))
            @ own["b"].astype(y.dtype)
            * jnp.asarray(self.scale, y.dtype)
        )
        if not self.dora:
            return y + added
        base = module.variables["params"]
        # The length counts as a constant in the gradient (section 4.3 of the paper), so no gradient of a full
        # weight arises.
        length = _length(
            jax.lax.stop_gradient(base["kernel"].astype(jnp.float32) + self.scale * (own["a"] @ own["b"]))
        )
        ratio = adapters.last(own["magnitude"] / length, y)
        bias = adapters.last(base["bias"], y) if "bias" in base else 0
        return y + (ratio - 1) * (y - bias) + ratio * added

    def merge(self, site: str, own: Flat, params: Flat) -> Flat:
        name = f"backbone/{site}/kernel"
        whole = self._sum(own, params[name])
        return {name: whole * (own["magnitude"] / _length(whole))[None] if self.dora else whole}

    def products(self, shape: tuple[int, ...]) -> list[Product]:
        return [Product("a", shape[0] * self.rank, "input"), Product("b", self.rank * shape[-1], "own")]

    def flops(self, shape: tuple[int, ...]) -> float:
        # the lengths are those of the whole matrix, x or no x
        return 2.0 * math.prod(shape) * self.rank if self.dora else 0.0

    def _sum(self, own: Flat, kernel: jax.Array) -> jax.Array:
        return kernel + self.scale * (own["a"] @ own["b"])


def _chosen(
    target: str, kernels: list[tuple[str, tuple[int, ...]]], model: Layout
) -> list[tuple[str, tuple[int, ...]]]:
    """The matrices of a name or a group."""
    chosen = [k for k in kernels if k[0].rpartition("/")[2] == target]
    if target in ("attention", "ffn"):
        chosen = [k for k in kernels if f"backbone/{k[0]}/kernel" in model.group(target)]
    if not chosen:
        known = [
            "attention",
            "ffn",
            "rs",
            "dora",
            "alpha=A",
            "blocks=LIST",
            *dict.fromkeys(n.rpartition("/")[2] for n, _ in kernels),
        ]
        raise UserError(
            f"lora has no option and this model no matrix {target!r}; {did_you_mean(target, known)}"
        )
    return chosen


def _length(kernel: jax.Array) -> jax.Array:
    # of a column of zeros, too, something to divide by
    return jnp.sqrt(jnp.maximum(jnp.square(kernel).sum(0), 1e-24))


@rates("plus=R")
def plus(model: Layout, factor: float) -> Mapping[str, float]:
    """R times the rate for LoRA's second matrix (LoRA+: Hayou et al. 2024, arXiv 2402.12354)"""
    if not factor > 0:
        raise UserError(f"the rate {factor:g} is out of range; expected a factor above 0")
    if not (second := [n for n in model.params if n.startswith("adapter/") and n.endswith("/lora/b")]):
        raise UserError("@plus is for LoRA, and there is none here")
    return dict.fromkeys(second, factor)
