"""The heads of masked-language-model and next-sentence pretraining."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ptft.models.layers import ACTIVATIONS, LayerNorm, Style, dense


class Decoder(nn.Module):
    """Logits over the vocabulary, tied to the word embeddings, with a bias of its own."""

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"], table: Float[Array, "V D"]) -> Float[Array, "B P V"]:
        logits = jnp.einsum("bpd,vd->bpv", x, table.astype(x.dtype)).astype(jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (table.shape[0],))[None, None]


class Head(nn.Module):
    """MLM logits at the masked positions only (gathered before the vocabulary matmul), and NSP logits."""

    nsp: bool
    dtype: Any
    style: Style = Style()

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], train: bool
    ) -> dict[str, Array]:
        x = jnp.take_along_axis(outputs["hidden"], batch["position"][:, :, None], axis=1)
        width = outputs["word_table"].shape[-1]  # BERT's hidden size; an LSTM's embedding size
        activation, epsilon, bias = self.style
        x = ACTIVATIONS[activation](dense(width, self.dtype, "transform", bias=bias)(x))
        x = LayerNorm(epsilon, bias, name="norm")(x)
        out = {"mlm": Decoder(name="decoder")(x, outputs["word_table"])}
        return (
            {**out, "nsp": dense(2, self.dtype, "nsp")(outputs["pooled"]).astype(jnp.float32)}
            if self.nsp
            else out
        )
