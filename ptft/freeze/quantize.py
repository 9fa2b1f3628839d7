"""What is frozen may be quantized on the devices: bfloat16, or 8-bit integers with a scale for each output
channel.

Matrices alone are quantized; biases, norms and other vectors are few and stay float32. A step dequantizes
each matrix where it is used. What a checkpoint holds are the original weights.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ptft.core.tree import Flat

DTYPES = ("float32", "bfloat16", "int8")


class Int8(NamedTuple):
    """round(w / scale) and the scale of each output channel: symmetric, so that 0 stays 0 (Jacob et al. 2017,
    arXiv 1712.05877)."""

    values: jax.Array  # i8[..., D]
    scale: jax.Array  # f32[1, D]; of a table of embeddings f32[V, 1]


def quantize(params: Flat, dtype: str) -> Flat:
    """Frozen parameters as they are kept during training; float32: the same."""
    return params if dtype == "float32" else {n: _quantize(n, x, dtype) for n, x in params.items()}


def _quantize(name: str, x: Any, dtype: str) -> Any:
    if x.ndim < 2 or x.dtype != jnp.float32:
        return x
    if dtype == "bfloat16":
        return jnp.asarray(x, jnp.bfloat16)
    # A row of a table is read as a whole, so it has a scale of its own.
    axes = x.ndim - 1 if name.endswith("embedding") else tuple(range(x.ndim - 1))
    largest = jnp.abs(x).max(axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1).astype(jnp.float32)
    return Int8(jnp.round(x / scale).astype(jnp.int8), scale)


def dequantize(params: Flat) -> Flat:
    """The same parameters in float32."""
    return {n: _dequantize(x) for n, x in params.items()}


def _dequantize(x: Any) -> Any:
    if isinstance(x, Int8):
        return x.values.astype(jnp.float32) * x.scale
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def computed(params: Flat, names: Sequence[str], dtype: str) -> Flat:
    """Original weights as a step computes with them that keeps `names` quantized."""
    return params | dequantize(quantize({n: params[n] for n in names}, dtype))
