"""Embedding, one LSTM, pooling: the classic IMDb classifier, and the baseline without pretraining.

Hochreiter & Schmidhuber 1997; sizes as in the Keras IMDb example: embedding 100, LSTM 128.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ptft.core.config import Config, Field
from ptft.models import MOST_WIDE, Anatomy
from ptft.models.layers import Style, masked_mean

SPEC = {
    "embedding": Field(100, int, lo=1, hi=MOST_WIDE),
    "hidden": Field(128, int, lo=1, hi=MOST_WIDE),
    "pooling": Field("last", str, choices=("last", "mean")),
    "dropout": Field(0.0, float, lo=0, hi=0.99, doc="of the embeddings"),
}

ANATOMY = Anatomy(
    groups={
        "stem": r"backbone/embeddings/.*",
        "bias": r"backbone/.*/bias",
    },
    stacks={"": r"backbone/block_{}/.*"},
    table="backbone/embeddings/embedding",
)


class LSTM(nn.Module):
    """The backbone; see `ptft.models` for what it takes and returns."""

    vocab: int
    embedding: int
    hidden: int
    pooling: str
    dropout: float
    dtype: Any

    style = Style()

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, Array],
        train: bool = False,
        start: int = 0,
        hidden: Float[Array, "B T D"] | None = None,
    ) -> dict[str, Array]:
        word = nn.Embed(
            self.vocab,
            self.embedding,
            dtype=self.dtype,
            embedding_init=nn.initializers.uniform(0.1),
            name="embeddings",
        )
        drop = nn.Dropout(self.dropout, deterministic=not train, name="embeddings_dropout")
        x = drop(word(batch["tokens"])) if hidden is None else hidden
        lengths = batch["mask"].sum(-1)
        if start == 0:
            cell = nn.OptimizedLSTMCell(self.hidden, dtype=self.dtype, name="block_0")
            with jax.numpy_dtype_promotion("standard"):  # the state stays float32 beside products in bfloat16
                x = jnp.asarray(nn.RNN(cell, name="rnn")(x, seq_lengths=lengths), self.dtype)
        chosen = (
            batch["mask"] if self.pooling == "mean" else jnp.arange(x.shape[1])[None] == lengths[:, None] - 1
        )
        return {"hidden": x, "pooled": masked_mean(x, chosen), "word_table": word.embedding}


def build(config: Config, vocab_size: int, dtype: Any) -> LSTM:
    return LSTM(vocab_size, config.embedding, config.hidden, config.pooling, config.dropout, dtype)
