"""BERT's encoder exactly (Devlin et al. 2018; google-research/bert modeling.py), and its relatives on the
same blocks.

Post-LayerNorm, exact GELU, LayerNorm epsilon 1e-12, learned positions, token types, tanh pooler on [CLS]. The
keys below also say RoBERTa and XLM-R (Liu et al. 2019: positions from 2, one token type, epsilon 1e-5),
DistilBERT (Sanh et al. 2019: no token types, a ReLU pooler) and ELECTRA's discriminator (Clark et al. 2020:
narrow embeddings with a projection, a GELU pooler).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from ptft.core.config import Config, Field
from ptft.core.errors import UserError
from ptft.models import MOST_LAYERS, MOST_TOKENS, MOST_WIDE, MOST_WORDS, Anatomy
from ptft.models._bert_names import FAMILIES as FAMILIES
from ptft.models.layers import (
    ACTIVATIONS,
    NORMAL,
    FeedForward,
    LayerNorm,
    SelfAttention,
    Style,
    dense,
    masked_mean,
)

# layers, hidden size; heads = hidden / 64, feed-forward = 4 * hidden (google-research/bert README)
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
KNOWN = ("bert", "roberta", "xlm-roberta", "distilbert", "electra")

SPEC = {
    "family": Field("bert", str, choices=KNOWN, doc="whose names and files it has outside of ptft"),
    "size": Field("mini", str, choices=tuple(SIZES)),
    "layers": Field(0, int, lo=0, hi=MOST_LAYERS, doc="0: as the size says"),
    "hidden": Field(0, int, lo=0, hi=MOST_WIDE, doc="0: as the size says"),
    "heads": Field(0, int, lo=0, hi=MOST_WIDE, doc="0: as many as are 64 wide"),
    "ffn": Field(0, int, lo=0, hi=MOST_WIDE, doc="width of the feed-forward layer; 0: 4 times hidden"),
    "embedding": Field(
        0,
        int,
        lo=0,
        hi=MOST_WIDE,
        doc="width of the embeddings, projected to hidden; 0: hidden, no projection",
    ),
    "vocab": Field(
        0, int, lo=0, hi=MOST_WORDS, doc="rows of the word table; 0: as many as the tokenizer has entries"
    ),
    "max_len": Field(512, int, lo=1, hi=MOST_TOKENS, doc="tokens a row may have"),
    "offset": Field(0, int, lo=0, hi=MOST_WORDS, doc="row of the position table for the first token"),
    "types": Field(2, int, lo=0, hi=MOST_WORDS, doc="token types; 1: all tokens are of type 0; 0: no table"),
    "activation": Field(
        "gelu", str, choices=("gelu", "gelu_new", "relu", "silu"), doc="of the feed-forward layers"
    ),
    "epsilon": Field(1e-12, float, lo=0, doc="of the LayerNorms"),
    "pooling": Field(
        "cls",
        str,
        choices=("cls", "first", "mean"),
        doc="the pooler on [CLS], [CLS] itself, or the mean of all tokens",
    ),
    "pooler": Field("tanh", str, choices=("tanh", "relu", "gelu"), doc="activation of the pooler"),
    "dropout": Field(0.1, float, lo=0, hi=0.99, doc="of hidden states and of attention weights"),
}

ANATOMY = Anatomy(
    groups={
        "stem": r"backbone/embeddings/.*",
        "pooler": r"backbone/pooler/.*",
        "bias": r"backbone/.*/bias",
        "norm": r"backbone/.*norm/.*",
        "attention": r"backbone/block_\d+/attention/.*",
        "ffn": r"backbone/block_\d+/ffn/.*",
        "prefix": r"backbone/block_\d+/attention/(key|value)/kernel",
    },
    stacks={"": r"backbone/block_{}/.*"},
    products={r"backbone/pooler/kernel": "example", r"backbone/.*/kernel": "token"},
    order=(
        "attention/(query|key|value)",
        "attention/out",
        "attention_norm",
        "ffn/up",
        "ffn/down",
        "ffn_norm",
    ),
    table="backbone/embeddings/word/embedding",
    values="attention/value",
)


@dataclass(frozen=True)
class Dims:
    """Everything of an encoder but its numbers; the words are those of `SPEC`."""

    family: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    embedding: int
    vocab: int
    max_len: int
    offset: int
    types: int
    activation: str
    epsilon: float
    pooling: str
    pooler: str
    dropout: float
    dtype: Any


class Embeddings(nn.Module):
    """Token + position + type embeddings, then LayerNorm, dropout and, where they are narrow, the
    projection."""

    dims: Dims

    def setup(self) -> None:
        s = self.dims
        width = s.embedding or s.hidden
        self.word = nn.Embed(s.vocab, width, embedding_init=NORMAL, dtype=s.dtype)
        self.position = nn.Embed(s.max_len + s.offset, width, embedding_init=NORMAL, dtype=s.dtype)
        if s.types:
            self.type = nn.Embed(s.types, width, embedding_init=NORMAL, dtype=s.dtype)
        self.norm = LayerNorm(s.epsilon)
        self.drop = nn.Dropout(s.dropout)
        if s.embedding:
            self.project = dense(s.hidden, s.dtype)

    def __call__(
        self, tokens: Int[Array, "B T"], types: Int[Array, "B T"], train: bool
    ) -> Float[Array, "B T D"]:
        s = self.dims
        if tokens.shape[1] > s.max_len:
            raise UserError(
                f"sequences of {tokens.shape[1]} tokens do not fit {s.max_len} positions; lower "
                "objective.seq_len"
            )
        x = self.word(tokens) + self.position(jnp.arange(s.offset, s.offset + tokens.shape[1]))[None]
        if s.types:
            # RoBERTa's tokenizers give the second text no type of its own, even where there is a row for it.
            x = x + self.type(jnp.zeros_like(types) if s.types == 1 or "roberta" in s.family else types)
        x = self.drop(self.norm(x), deterministic=not train)
        return self.project(x) if s.embedding else x


class Block(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and LayerNorm."""

    dims: Dims

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], train: bool
    ) -> Float[Array, "B T D"]:
        s = self.dims
        drop = nn.Dropout(s.dropout, deterministic=not train)
        attended = SelfAttention(s.heads, s.dropout, s.dtype, name="attention")(x, mask, train)
        x = LayerNorm(s.epsilon, name="attention_norm")(x + drop(attended))
        return LayerNorm(s.epsilon, name="ffn_norm")(
            x + drop(FeedForward(s.ffn, s.dtype, s.activation, name="ffn")(x))
        )


class Bert(nn.Module):
    """The backbone; see `ptft.models` for what it takes and returns."""

    dims: Dims

    @property
    def style(self) -> Style:
        # The MLM heads of RoBERTa, XLM-R and ELECTRA have a GELU, whatever their blocks have.
        blocks = self.dims.family in ("bert", "distilbert")
        return Style(self.dims.activation if blocks else "gelu", self.dims.epsilon)

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, Array],
        train: bool = False,
        start: int = 0,
        hidden: Float[Array, "B T D"] | None = None,
    ) -> dict[str, Array]:
        s = self.dims
        embeddings = Embeddings(s, name="embeddings")
        x = embeddings(batch["tokens"], batch["types"], train) if hidden is None else hidden
        for i in range(start, s.layers):
            x = Block(s, name=f"block_{i}")(x, batch["mask"], train)
        if s.pooling == "mean":
            pooled = masked_mean(x, batch["mask"])
        elif s.pooling == "first":
            pooled = x[:, 0]
        else:
            pooled = ACTIVATIONS[s.pooler](dense(s.hidden, s.dtype, "pooler")(x[:, 0]))
        return {"hidden": x, "pooled": pooled, "word_table": embeddings.word.embedding}


def build(config: Config, vocab_size: int, dtype: Any) -> Bert:
    layers, hidden = SIZES[config.size]
    layers, hidden = config.layers or layers, config.hidden or hidden
    heads = config.heads or hidden // 64
    if not heads or hidden % heads or (not config.heads and hidden % 64):
        width = f"{heads} heads" if config.heads else "heads that are 64 wide"
        raise UserError(
            f"model.hidden: {hidden} is not divisible into {width}; expected a multiple, or another "
            "model.heads"
        )
    dims = Dims(
        config.family,
        layers, hidden, heads, config.ffn or 4 * hidden, config.embedding, config.vocab or vocab_size,
        config.max_len, config.offset, config.types, config.activation, config.epsilon, config.pooling,
        config.pooler,
        config.dropout, dtype,
    )  # fmt: skip
    return Bert(dims)
