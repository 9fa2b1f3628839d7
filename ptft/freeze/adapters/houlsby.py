"""A bottleneck after attention and after feed-forward (Houlsby et al. 2019, arXiv 1902.00751)."""

from dataclasses import dataclass

import jax

from ptft.freeze.adapters._bottleneck import Bottleneck
from ptft.models.layers import gelu


@dataclass(frozen=True)
class Kind(Bottleneck):
    grammar = "houlsby=W"
    order = 2
    behind = ("out", "down")

    def activation(self, x: jax.Array) -> jax.Array:
        return gelu(x)
