"""BERT's encoder exactly (Devlin et al. 2018; google-research/bert modeling.py).

Post-LayerNorm, exact GELU, LayerNorm epsilon 1e-12, learned positions, token types, tanh pooler on [CLS].
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from ptft.config import Config, Field
from ptft.errors import UserError
from ptft.models.layers import NORMAL, FeedForward, LayerNorm, SelfAttention, dense

# layers, hidden size; heads = hidden / 64, feed-forward = 4 * hidden (google-research/bert README)
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768), "large": (24, 1024)}

SPEC = {
    "size": Field("mini", str, choices=tuple(SIZES)),
    "layers": Field(0, int, lo=0, doc="0: as the size says"),
    "hidden": Field(0, int, lo=0, doc="0: as the size says"),
    "max_len": Field(512, int, lo=1, doc="positions in the table"),
    "pooling": Field("cls", str, choices=("cls", "mean"), doc="what the pooler reads: [CLS] as the original, or the mean of all tokens"),
    "types": Field(2, int, lo=1),
    "dropout": Field(0.1, float, lo=0, hi=0.99, doc="of hidden states and of attention weights"),
}

GROUPS: Mapping[str, str] = {
    "stem": r"backbone/embeddings/.*",
    "block": r"backbone/block_{}/.*",
    "pooler": r"backbone/pooler/.*",
    "bias": r"backbone/.*/bias",
    "norm": r"backbone/.*norm/.*",
    "attention": r"backbone/block_\d+/attention/.*",
    "ffn": r"backbone/block_\d+/ffn/.*",
}


class Embeddings(nn.Module):
    """Token + position + type embeddings, then LayerNorm and dropout."""

    vocab: int
    hidden: int
    max_len: int
    types: int
    dropout: float
    dtype: Any

    def setup(self) -> None:
        self.word = nn.Embed(self.vocab, self.hidden, embedding_init=NORMAL, dtype=self.dtype)
        self.position = nn.Embed(self.max_len, self.hidden, embedding_init=NORMAL, dtype=self.dtype)
        self.type = nn.Embed(self.types, self.hidden, embedding_init=NORMAL, dtype=self.dtype)
        self.norm = LayerNorm()
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, tokens: Int[Array, "B T"], types: Int[Array, "B T"], train: bool) -> Float[Array, "B T D"]:
        if tokens.shape[1] > self.max_len:
            raise UserError(f"sequences of {tokens.shape[1]} tokens do not fit {self.max_len} positions; lower objective.seq_len")
        x = self.word(tokens) + self.position(jnp.arange(tokens.shape[1])) + self.type(types)
        return self.drop(self.norm(x), deterministic=not train)


class Block(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and LayerNorm."""

    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], train: bool) -> Float[Array, "B T D"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attended = SelfAttention(self.heads, self.dropout, self.dtype, name="attention")(x, mask, train)
        x = LayerNorm(name="attention_norm")(x + drop(attended))
        return LayerNorm(name="ffn_norm")(x + drop(FeedForward(4 * x.shape[-1], self.dtype, name="ffn")(x)))


class Bert(nn.Module):
    """The backbone; see `ptft.models` for what it takes and returns."""

    layers: int
    hidden: int
    vocab: int
    max_len: int
    types: int
    dropout: float
    pooling: str
    dtype: Any

    @nn.compact
    def __call__(
        self, batch: Mapping[str, Array], train: bool = False, start: int = 0, hidden: Float[Array, "B T D"] | None = None
    ) -> dict[str, Array]:
        embeddings = Embeddings(self.vocab, self.hidden, self.max_len, self.types, self.dropout, self.dtype, name="embeddings")
        x = embeddings(batch["tokens"], batch["types"], train) if hidden is None else hidden
        for i in range(start, self.layers):
            x = Block(self.hidden // 64, self.dropout, self.dtype, name=f"block_{i}")(x, batch["mask"], train)
        if self.pooling == "mean":
            weight = batch["mask"].astype(x.dtype)
            summary = jnp.einsum("bt,btd->bd", weight, x) / jnp.maximum(weight.sum(-1, keepdims=True), 1)
        else:
            summary = x[:, 0]
        pooled = jnp.tanh(dense(self.hidden, self.dtype, "pooler")(summary))
        return {"hidden": x, "pooled": pooled, "word_table": embeddings.word.embedding}


def build(config: Config, vocab_size: int, dtype: Any) -> Bert:
    layers, hidden = SIZES[config.size]
    layers, hidden = config.layers or layers, config.hidden or hidden
    if hidden % 64:
        raise UserError(f"model.hidden: expected a multiple of 64 (heads are 64 wide), got {hidden}")
    return Bert(layers, hidden, vocab_size, config.max_len, config.types, config.dropout, config.pooling, dtype)
