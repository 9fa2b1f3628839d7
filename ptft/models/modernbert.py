"""ModernBERT's encoder exactly (Warner et al. 2024, arXiv 2412.13663).

Pre-LayerNorm, no biases, rotary positions, gated feed-forward layers, a LayerNorm at the end. Every
`global_every`-th block, the first among them, sees the whole row; the others see `window // 2` tokens to each
side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from ptft.core.config import Config, Field
from ptft.core.errors import UserError
from ptft.models import MOST_LAYERS, MOST_TOKENS, MOST_WIDE, MOST_WORDS, Anatomy
from ptft.models._modernbert_names import FAMILIES as FAMILIES
from ptft.models.layers import ACTIVATIONS, NORMAL, LayerNorm, Style, attend, dense, masked_mean

# The defaults are ModernBERT-base; large is layers=28, hidden=1024, heads=16, ffn=2624.
SPEC = {
    "layers": Field(22, int, lo=1, hi=MOST_LAYERS),
    "hidden": Field(768, int, lo=1, hi=MOST_WIDE),
    "heads": Field(12, int, lo=1, hi=MOST_WIDE),
    "ffn": Field(
        1152, int, lo=1, hi=MOST_WIDE, doc="width of the feed-forward layer, and as much again for its gate"
    ),
    "vocab": Field(
        0, int, lo=0, hi=MOST_WORDS, doc="rows of the word table; 0: as many as the tokenizer has entries"
    ),
    "max_len": Field(8192, int, lo=1, hi=MOST_TOKENS, doc="tokens a row may have"),
    "window": Field(
        128,
        int,
        lo=0,
        hi=2 * MOST_TOKENS,
        doc="tokens in sight of a local block, half of them (rounded down) to each side",
    ),
    "global_every": Field(3, int, lo=1, doc="block 0 and every so many-th after it is global"),
    "global_theta": Field(160_000.0, float, lo=1, doc="base of the rotary positions in global blocks"),
    "local_theta": Field(10_000.0, float, lo=1, doc="and in local ones"),
    "activation": Field(
        "gelu",
        str,
        choices=("gelu", "gelu_new", "relu", "silu"),
        doc="of the feed-forward layers and the pooler",
    ),
    "epsilon": Field(1e-5, float, lo=0, doc="of the LayerNorms"),
    "pooling": Field(
        "cls", str, choices=("cls", "mean"), doc="what the pooler gets: [CLS], or the mean of all tokens"
    ),
    "dropout": Field(
        0.0,
        float,
        lo=0,
        hi=0.99,
        doc="of embeddings, attention weights and outputs, and gated features; published with 0",
    ),
}

ANATOMY = Anatomy(
    groups={
        "stem": r"backbone/embeddings/.*",
        # all above the last block, so that training the top trains it
        "pooler": r"backbone/(final_norm|pooler)/.*",
        "norm": r"backbone/.*norm/.*",
        "attention": r"backbone/block_\d+/attention/.*",
        "ffn": r"backbone/block_\d+/ffn/.*",
    },
    stacks={"": r"backbone/block_{}/.*"},
    products={r"backbone/pooler/.*kernel": "example", r"backbone/.*/kernel": "token"},
    order=(
        "attention_norm",
        "attention/(query|key|value)",
        "attention/out",
        "ffn_norm",
        "ffn/(up|gate)",
        "ffn/down",
    ),
    table="backbone/embeddings/word/embedding",
    values="attention/value",
)

Turns = tuple[Float[np.ndarray, "T 1 half"], Float[np.ndarray, "T 1 half"]]


@dataclass(frozen=True)
class Dims:
    """Everything of an encoder but its numbers; the words are those of `SPEC`."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    max_len: int
    window: int
    global_every: int
    global_theta: float
    local_theta: float
    activation: str
    epsilon: float
    pooling: str
    dropout: float
    dtype: Any

    def dense(self, features: int, name: str, deep: bool = False) -> nn.Dense:
        """A dense layer. `deep`: drawn narrower the more blocks there are, as 2 a block add to the same
        residual stream."""
        init = nn.initializers.truncated_normal(0.02 / math.sqrt(2 * self.layers)) if deep else NORMAL
        return dense(features, self.dtype, name, init, bias=False)

    def norm(self, name: str | None = None) -> LayerNorm:
        return LayerNorm(self.epsilon, bias=False, name=name)


def turns(length: int, width: int, theta: float) -> Turns:
    """Cosines and sines of rotary positions (Su et al. 2021), for the pairs (i, i + width / 2) of a head.

    Every step is rounded to float32, as in training: at position 8,000 a frequency with more digits is
    another angle.
    """
    frequency = 1 / np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angle = np.arange(length, dtype=np.float32)[:, None, None] * frequency
    return np.cos(angle), np.sin(angle)


def rotate(x: Float[Array, "B T H W"], turns: Turns) -> Float[Array, "B T H W"]:
    """Turns every pair of features by its angle, in float32."""
    (cos, sin), (a, b) = (t[None] for t in turns), jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Embeddings(nn.Module):
    """Token embeddings, then LayerNorm and dropout; positions enter in the attention."""

    dims: Dims

    def setup(self) -> None:
        s = self.dims
        self.word = nn.Embed(s.vocab, s.hidden, embedding_init=NORMAL, dtype=s.dtype)
        self.norm = s.norm()
        self.drop = nn.Dropout(s.dropout)

    def __call__(self, tokens: Int[Array, "B T"], train: bool) -> Float[Array, "B T D"]:
        if tokens.shape[1] > self.dims.max_len:
            raise UserError(
                f"sequences of {tokens.shape[1]} tokens do not fit {self.dims.max_len} positions; lower "
                "objective.seq_len"
            )
        return self.drop(self.norm(self.word(tokens)), deterministic=not train)


class Attention(nn.Module):
    """Multi-head attention with rotary positions to the tokens that are `seen`."""

    dims: Dims

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], seen: Bool[Array, "B #T T"], turns: Turns, train: bool
    ) -> Float[Array, "B T D"]:
        s = self.dims
        drop = nn.Dropout(s.dropout, deterministic=not train)
        q, k, v = (
            s.dense(s.hidden, n)(x).reshape(*x.shape[:2], s.heads, -1) for n in ("query", "key", "value")
        )
        return drop(
            s.dense(s.hidden, "out", deep=True)(attend(rotate(q, turns), rotate(k, turns), v, seen, drop))
        )


class FeedForward(nn.Module):
    """A gated linear unit (Shazeer 2020): the activation of one projection times another, projected back."""

    dims: Dims

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], train: bool) -> Float[Array, "B T D"]:
        s = self.dims
        x = ACTIVATIONS[s.activation](s.dense(s.ffn, "up")(x)) * s.dense(s.ffn, "gate")(x)
        return s.dense(s.hidden, "down", deep=True)(nn.Dropout(s.dropout, deterministic=not train)(x))


class Block(nn.Module):
    """LayerNorm before attention and before feed-forward; the first block's input has just been through
    one."""

    dims: Dims
    first: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], seen: Bool[Array, "B #T T"], turns: Turns, train: bool
    ) -> Float[Array, "B T D"]:
        s = self.dims
        x = x + Attention(s, name="attention")(
            x if self.first else s.norm("attention_norm")(x), seen, turns, train
        )
        return x + FeedForward(s, name="ffn")(s.norm("ffn_norm")(x), train)


class Pooler(nn.Module):
    """Dense, activation, LayerNorm: what stands before the published classifiers."""

    dims: Dims

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B D"]:
        s = self.dims
        return s.norm("norm")(ACTIVATIONS[s.activation](s.dense(s.hidden, "dense", deep=True)(x)))


class ModernBert(nn.Module):
    """The backbone; see `ptft.models` for what it takes and returns."""

    dims: Dims

    @property
    def style(self) -> Style:
        return Style(self.dims.activation, self.dims.epsilon, bias=False)

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, Array],
        train: bool = False,
        start: int = 0,
        hidden: Float[Array, "B T D"] | None = None,
    ) -> dict[str, Array]:
        s, mask = self.dims, batch["mask"]
        embeddings = Embeddings(s, name="embeddings")
        x = embeddings(batch["tokens"], train) if hidden is None else hidden
        everything, at = mask[:, None, :], jnp.arange(x.shape[1])
        nearby = everything & (jnp.abs(at[:, None] - at[None]) <= s.window // 2)[None]
        far, near = (turns(len(at), s.hidden // s.heads, theta) for theta in (s.global_theta, s.local_theta))
        for i in range(start, s.layers):
            sight = (nearby, near) if i % s.global_every else (everything, far)
            x = Block(s, i == 0, name=f"block_{i}")(x, *sight, train)
        x = s.norm("final_norm")(x)
        pooled = Pooler(s, name="pooler")(masked_mean(x, mask) if s.pooling == "mean" else x[:, 0])
        return {"hidden": x, "pooled": pooled, "word_table": embeddings.word.embedding}


def build(config: Config, vocab_size: int, dtype: Any) -> ModernBert:
    hidden, heads = config.hidden, config.heads
    if hidden % heads:
        raise UserError(
            f"model.hidden: {hidden} is not divisible into {heads} heads; expected a multiple, or another "
            "model.heads"
        )
    if hidden // heads % 2:
        raise UserError(
            f"model.heads: {heads} heads are {hidden // heads} wide; rotary positions turn pairs, so "
            "expected an even width"
        )
    dims = Dims(
        config.layers, hidden, heads, config.ffn, config.vocab or vocab_size, config.max_len, config.window,
        config.global_every,
        config.global_theta, config.local_theta, config.activation, config.epsilon, config.pooling,
        config.dropout, dtype,
    )  # fmt: skip
    return ModernBert(dims)
