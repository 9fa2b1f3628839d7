"""FISH mask: inside every tensor of the backbone, the SHARE of elements whose squared gradient is largest
over N training examples (256 if not said) (Sung et al. 2021, arXiv 2111.09839, who rank over all tensors at
once; here each has its share, so that shapes are known before any data are). They are trained as FISH's
alone, whatever else trains the tensor.

It starts as the function that the backbone was, and can be merged into the backbone.
"""

import math
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ptft.core.errors import UserError
from ptft.core.tree import Flat
from ptft.freeze import adapters
from ptft.freeze.adapters import Adapter
from ptft.freeze.layout import Layout
from ptft.freeze.strategies import FACTOR


@dataclass(frozen=True)
class Kind(Adapter):
    share: float
    sample: int = 256

    grammar = "fish=SHARE,N"
    order = 7
    fixed = ("index",)
    mergeable = True

    @classmethod
    def parse(cls, argument: str, model: Layout) -> Adapter:
        size, *options = argument.split(",")
        share = float(size) if re.fullmatch(FACTOR, size) else 0.0
        if not 0 < share < 1 or len(options) > 1:
            raise UserError(
                "expected fish=SHARE or fish=SHARE,EXAMPLES with a share above 0 and below 1, such as "
                "fish=0.005"
            )
        sites = tuple(
            (n.removeprefix("backbone/"), tuple(s.shape))
            for n, s in model.params.items()
            if n in model.backbone
        )
        return cls(sites, share, adapters.whole(options[0], "fish", f"fish={size},256") if options else 256)

    def init(self, site: str, shape: tuple[int, ...], key: jax.Array) -> Flat:
        size = max(1, round(self.share * math.prod(shape)))
        return {"index": jnp.arange(size, dtype=jnp.int32), "values": jnp.zeros(size)}

    def fill(self, site: str, own: Flat, params: Flat, squares: Flat | None) -> Flat:
        index = own["index"]
        if squares is not None:
            # Sorted places, so that equal choices are equal arrays.
            index = jnp.sort(jax.lax.top_k(squares[f"backbone/{site}"].reshape(-1), len(index))[1]).astype(
                jnp.int32
            )
        return {"index": index, "values": params[f"backbone/{site}"].reshape(-1)[index]}

    def insert(self, site: str, own: Flat, params: Flat) -> Flat:
        base = params[f"backbone/{site}"]
        return {f"backbone/{site}": base.reshape(-1).at[own["index"]].set(own["values"]).reshape(base.shape)}

    def places(self, site: str) -> tuple[str, ...]:
        return ()

    @classmethod
    def decays(cls, site: str, leaf: str) -> bool:
        return not site.endswith(("bias", "norm/scale"))  # as the tensor does that it lies in

    @property
    def examples(self) -> int:
        return self.sample

    @classmethod
    def inside(cls, site: str) -> str:
        return f"backbone/{site}"
