"""Token tagging: dropout and one dense layer on the hidden state of each word's first piece.

Names of entities and the like, in IOB: B-X begins an entity of kind X, I-X goes on with it, O is outside. For such tags
whole entities are scored, as CoNLL's script and seqeval (its default) do; other tag sets have the accuracy alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from ptft.config import Config, Field
from ptft.data import Source
from ptft.errors import UserError
from ptft.models.layers import Style, dense
from ptft.objectives import pair_inputs, token_dtype
from ptft.record import Sums, divide
from ptft.tokenizer import Tokenizer

SPEC = {
    "seq_len": Field(128, int, lo=3, doc="tokens a row, [CLS] and [SEP] among them"),
    "dropout": Field(0.1, float, lo=0, hi=0.99),
}
NONE = -1  # of a token that is not the first piece of a word


@dataclass(frozen=True)
class TaggedRows:
    """Ragged token ids of `[CLS] words [SEP]` with a tag or NONE each, padded when a batch is cut."""

    tokens: np.ndarray  # all rows, one after the other
    tags: np.ndarray  # i32, beside `tokens`
    start: np.ndarray  # i64[N + 1]
    seq_len: int
    pad: int
    notes: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.start) - 1

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        length = (self.start[index + 1] - self.start[index]).astype(np.int32)
        tokens = np.full((len(index), self.seq_len), self.pad, self.tokens.dtype)
        tags = np.full(tokens.shape, NONE, np.int32)
        for row, i in enumerate(index):
            tokens[row, : length[row]] = self.tokens[self.start[i] : self.start[i + 1]]
            tags[row, : length[row]] = self.tags[self.start[i] : self.start[i + 1]]
        return {"tokens": tokens, "length": length, "second": length, "tags": tags}


class Head(nn.Module):
    classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, outputs: Mapping[str, Array], batch: Mapping[str, Array], train: bool) -> Float[Array, "B T k"]:
        hidden = nn.Dropout(self.dropout, deterministic=not train)(outputs["hidden"])
        return dense(self.classes, self.dtype, "tagger")(hidden).astype(jnp.float32)


@dataclass(frozen=True)
class Tag:
    labels: tuple[str, ...]
    seq_len: int
    dropout: float
    vocab_size: int
    loss: tuple[str, ...] = ("loss",)
    carries_head: bool = False
    draws: bool = False

    @property
    def iob(self) -> bool:
        return all(re.fullmatch(r"O|[BI]-.+", name) for name in self.labels)

    @property
    def best(self) -> str:
        return "f1" if self.iob else "accuracy"

    def rows(self, source: Source, tokenizer: Tokenizer) -> TaggedRows:
        """Tokenizes every word for itself; one that leaves no piece is [UNK]. Words that begin beyond the row are counted and lost."""
        records = source.records
        words = list(dict.fromkeys(word for r in records for word in r["words"]))
        pieces = dict(zip(words, tokenizer.encode_words(words), strict=True))
        tokens, tags, start = [], [], [0]
        cut = lost = empty = 0
        for r in records:
            if bad := [t for t in r["tags"] if not 0 <= t < len(self.labels)]:
                raise UserError(f"{r['where']}: tag {bad[0]} is outside 0 … {len(self.labels) - 1}")
            ids, marks = list[int](), list[int]()
            for word, tag in zip(r["words"], r["tags"], strict=True):
                empty += not pieces[word]
                lost += len(ids) >= self.seq_len - 2
                found = pieces[word] or [tokenizer.unk]
                ids += found
                marks += [tag] + [NONE] * (len(found) - 1)
            cut += len(ids) > self.seq_len - 2
            tokens += [tokenizer.cls, *ids[: self.seq_len - 2], tokenizer.sep]
            tags += [NONE, *marks[: self.seq_len - 2], NONE]
            start.append(len(tokens))
        return TaggedRows(
            tokens=np.asarray(tokens, token_dtype(self.vocab_size)),
            tags=np.asarray(tags, np.int32),
            start=np.asarray(start),
            seq_len=self.seq_len,
            pad=tokenizer.pad,
            notes={"truncated": cut, "truncated_words": lost, "empty_words": empty},
        )

    def example(self, batch: int) -> dict[str, np.ndarray]:
        one, shape = np.ones(batch, np.int32), (batch, self.seq_len)
        return {
            "tokens": np.zeros(shape, token_dtype(self.vocab_size)),
            "length": one,
            "second": one,
            "tags": np.full(shape, NONE, np.int32),
        }

    def prepare(self, batch: Mapping[str, Array], keys: Key[Array, "B"]) -> dict[str, Array]:
        return pair_inputs(batch)

    def head(self, dtype: Any, style: Style) -> nn.Module:
        return Head(len(self.labels), self.dropout, dtype)

    def terms(self, predictions: Float[Array, "B T k"], batch: Mapping[str, Array]) -> Sums:
        on = (batch["tags"] != NONE) & (batch["valid"] > 0)[:, None]
        tags, said = jnp.where(on, batch["tags"], 0), predictions.argmax(-1).astype(jnp.int32)  # NONE would be the last class
        weight = on.astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(predictions, tags)
        n = weight.sum()
        out = {"loss": ((loss * weight).sum(), n), "accuracy": (jnp.where(tags == said, weight, 0).sum(), n)}
        if self.iob:
            out["entities"] = (self._entities(tags, said, on), jnp.float32(1))
        return out

    def _entities(self, tags: Int[Array, "B T"], said: Int[Array, "B T"], on: Bool[Array, "B T"]) -> Float[Array, "3"]:
        """How many entities were found exactly, how many were said, and how many there are."""
        order = jnp.argsort(~on, axis=1, stable=True)  # words first, side by side
        on = jnp.take_along_axis(on, order, 1)
        (kind, begin, end), (kind_said, begin_said, end_said) = (self._spans(jnp.take_along_axis(t, order, 1), on) for t in (tags, said))
        hit = end & end_said & (begin == begin_said) & (kind == kind_said)
        return jnp.stack([x.sum(dtype=jnp.float32) for x in (hit, end_said, end)])

    def _spans(self, tags: Int[Array, "B T"], on: Bool[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"], Bool[Array, "B T"]]:
        """For each word: the kind of its entity (-1: none), the place where this begins, and whether it ends here."""
        kinds = sorted({name[2:] for name in self.labels})
        kind_of = jnp.asarray([kinds.index(name[2:]) if name != "O" else -1 for name in self.labels])
        begins = jnp.asarray([name.startswith("B-") for name in self.labels])
        kind = jnp.where(on, kind_of[tags], -1)
        # An I-X after anything but its own kind begins an entity, too.
        starts = (kind >= 0) & (begins[tags] | (kind != _shift(kind, 1, -1)))
        begin = jax.lax.cummax(jnp.where(starts, jnp.arange(tags.shape[1]), -1), axis=1)
        return kind, begin, (kind >= 0) & (_shift(starts, -1, True) | (_shift(kind, -1, -1) < 0))

    def report(self, sums: Sums) -> dict[str, float]:
        """Loss and accuracy of words; micro-averaged F1, precision and recall of entities, 0 where there is none to divide by."""
        out = {k: float(v) for k, v in divide({k: sums[k] for k in ("loss", "accuracy")}).items()}
        if self.iob:
            hit, said, true = np.asarray(sums["entities"][0], np.float64)
            ratios = {"f1": (2 * hit, said + true), "precision": (hit, said), "recall": (hit, true)}
            out |= {name: float(a / b) if b else 0.0 for name, (a, b) in ratios.items()}
        return out


def _shift(x: Array, by: int, fill: Any) -> Array:
    """`x` moved by one along its rows, to the right (1) or to the left (-1)."""
    edge = jnp.full((len(x), 1), fill, x.dtype)
    return jnp.concatenate([edge, x[:, :-1]] if by == 1 else [x[:, 1:], edge], 1)


def build(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Tag:
    if len(labels) < 2:
        raise UserError(f"tag needs at least two tags; the training data has {list(labels)}")
    return Tag(tuple(labels), config.seq_len, config.dropout, tokenizer.vocab_size)
