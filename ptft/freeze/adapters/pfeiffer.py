"""A bottleneck after feed-forward (Pfeiffer et al. 2020, arXiv 2005.00247)."""

from dataclasses import dataclass

import jax

from ptft.freeze.adapters._bottleneck import Bottleneck


@dataclass(frozen=True)
class Kind(Bottleneck):
    grammar = "pfeiffer=W"
    order = 3
    behind = ("down",)

    def activation(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)
