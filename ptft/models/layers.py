"""Layers shared by backbones and heads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

# BERT draws every weight from a normal distribution of deviation 0.02 cut at two deviations, and does not rescale what is
# left (google-research/bert modeling.py); neither does jax.
NORMAL = nn.initializers.truncated_normal(0.02)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x * Phi(x), that BERT was trained with; Flax's default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def dense(features: int, dtype: Any, name: str | None = None, init: Callable[..., Any] = NORMAL) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


class LayerNorm(nn.Module):
    """LayerNorm with BERT's epsilon, computed in float32 and returned in the input's dtype."""

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + 1e-12) * scale + bias).astype(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017), bidirectional; padding is masked out."""

    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], train: bool) -> Float[Array, "B T D"]:
        b, t, d = x.shape
        q, k, v = (dense(d, self.dtype, name)(x).reshape(b, t, self.heads, d // self.heads) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * jnp.asarray((d // self.heads) ** -0.5, self.dtype)
        # finfo.min, not -inf: a row of padding only must give a number, even though nobody reads it.
        scores = jnp.where(mask[:, None, None, :], scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
        weights = nn.Dropout(self.dropout)(jax.nn.softmax(scores).astype(self.dtype), deterministic=not train)
        return dense(d, self.dtype, "out")(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, t, d))


class FeedForward(nn.Module):
    """Two dense layers with a GELU between them."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return dense(x.shape[-1], self.dtype, "down")(gelu(dense(self.width, self.dtype, "up")(x)))
