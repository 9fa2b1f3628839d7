"""Layers shared by backbones and heads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

# BERT draws every weight from a normal distribution of deviation 0.02 cut at two deviations, and does not
# rescale what is left (google-research/bert modeling.py); neither does jax.
NORMAL = nn.initializers.truncated_normal(0.02)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x * Phi(x), that BERT was trained with; Flax's default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


# By the names that published checkpoints use (`hidden_act`).
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Style(NamedTuple):
    """What a head must share with the backbone below it."""

    activation: str = "gelu"
    epsilon: float = 1e-12
    bias: bool = True


def dense(
    features: int, dtype: Any, name: str | None = None, init: Callable[..., Any] = NORMAL, bias: bool = True
) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name)


class LayerNorm(nn.Module):
    """LayerNorm with BERT's epsilon, computed in float32 and returned in the input's dtype."""

    epsilon: float = 1e-12
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        width, others = (x.shape[-1],), tuple(range(x.ndim - 1))
        scale = jnp.expand_dims(self.param("scale", nn.initializers.ones, width), others)
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        out = centred * jax.lax.rsqrt(variance + self.epsilon) * scale
        if self.bias:
            out = out + jnp.expand_dims(self.param("bias", nn.initializers.zeros, width), others)
        return out.astype(x.dtype)


def masked_mean(x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The mean over real tokens; zero where there is none."""
    weight = mask.astype(x.dtype)
    return jnp.einsum("bt,btd->bd", weight, x) / jnp.maximum(weight.sum(-1, keepdims=True), 1)


def attend(
    q: Float[Array, "B T H W"],
    k: Float[Array, "B S H W"],
    v: Float[Array, "B S H W"],
    seen: Bool[Array, "B #T S"],
    drop: Callable[[jax.Array], jax.Array],
) -> Float[Array, "B T D"]:
    """Scaled dot-product attention of queries to the keys that they have seen, heads side by side; softmax in
    float32."""
    b, t, heads, width = q.shape
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * jnp.asarray(width**-0.5, q.dtype)
    # finfo.min, not -inf: a row of padding only must give a number, even though nobody reads it.
    scores = jnp.where(seen[:, None], scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = drop(jax.nn.softmax(scores).astype(q.dtype))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, t, heads * width)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017), bidirectional; padding is masked out."""

    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B S"], train: bool
    ) -> Float[Array, "B T D"]:
        d = x.shape[-1]
        # -1: keys and values may be more than the tokens (prefix tuning).
        q, k, v = (
            dense(d, self.dtype, name)(x).reshape(len(x), -1, self.heads, d // self.heads)
            for name in ("query", "key", "value")
        )
        drop = nn.Dropout(self.dropout, deterministic=not train)
        return dense(d, self.dtype, "out")(attend(q, k, v, mask[:, None, :], drop))


class FeedForward(nn.Module):
    """Two dense layers with an activation between them."""

    width: int
    dtype: Any
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return dense(x.shape[-1], self.dtype, "down")(
            ACTIVATIONS[self.activation](dense(self.width, self.dtype, "up")(x))
        )
