"""Token tagging: dropout and one dense layer on the hidden state of each word's first piece.

Where the tags mark whole entities (names, chunks, the words of a Chinese sentence), these are scored, as
CoNLL's script and seqeval (its default) do; other tag sets, such as parts of speech, have the accuracy alone.
The tags say which it is:

| scheme | tags |
|---|---|
| BIO | B-X begins an entity of kind X, I-X goes on, O is outside; IOB1: B-X only right behind another X |
| BIOES, BMES, BMEW, BILOU | as BIO; E, L end an entity of several words, S, W, U are one word, M goes on |
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from ptft.core import progress
from ptft.core.config import Config, Field
from ptft.core.errors import UserError
from ptft.core.record import Sums, divide
from ptft.data import Source
from ptft.inputs.tokenizer import Tokenizer
from ptft.models import MOST_TOKENS
from ptft.models.layers import Style, dense
from ptft.objectives import pair_inputs, token_dtype

SPEC = {
    "seq_len": Field(128, int, lo=3, hi=MOST_TOKENS, doc="tokens a row, [CLS] and [SEP] among them"),
    "dropout": Field(0.1, float, lo=0, hi=0.99),
}
NONE = -1  # of a token that is not the first piece of a word
SCHEMES = ("BIES", "BMES", "BMEW", "BILU")  # and less of each: IOB has B and I alone
BEGIN, END = "BSUW", "ESLUW"  # letters that always begin, or end, an entity
PLACE = re.compile(r"O|([BIMELSUW])(?:[-_](.+))?")


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
        return {"tokens": tokens, "length": length, "segment_b": length, "tags": tags}


class Head(nn.Module):
    classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], train: bool
    ) -> Float[Array, "B T k"]:
        hidden = nn.Dropout(self.dropout, deterministic=not train)(outputs["hidden"])
        return dense(self.classes, self.dtype, "tagger")(hidden).astype(jnp.float32)


@dataclass(frozen=True)
class Tag:
    labels: tuple[str, ...]
    seq_len: int
    dropout: float
    vocab_size: int
    loss: tuple[str, ...] = ("loss",)
    lower_is_better: frozenset[str] = frozenset({"loss"})
    reuse_head: bool = False
    reads_pooled: bool = False
    stochastic: bool = False

    @property
    def head_rows(self) -> Mapping[str, int]:
        return {"tagger": self.seq_len}

    @property
    def places(self) -> list[tuple[str, str]]:
        """Each tag's letter and kind, ("B", "PER") of B-PER, ("O", "") of O; [] if they mark no whole
        entities."""
        matches = [PLACE.fullmatch(name) for name in self.labels]
        split = [(m[1] or "O", m[2] or "") for m in matches if m]
        letters = {letter for letter, _ in split} - {"O"}
        of_one = any(letters <= set(s) for s in SCHEMES)
        # S, M and L may be sizes
        sure = letters & {"B", "I"} or ("O" in self.labels and any(kind for _, kind in split))
        return split if all(matches) and of_one and sure else []

    @property
    def best(self) -> str:
        return "f1" if self.places else "accuracy"

    @property
    def lacks(self) -> str:
        """Why a metric of entities is none of this objective's."""
        odd = next((name for name in self.labels if not PLACE.fullmatch(name)), ", ".join(self.labels))
        need = "f1, precision and recall need tags as B-X, I-X, O (BIO, BIOES, BMES, BILOU)"
        return "" if self.places else f"{need}; {odd[:40]!r} is none"

    def rows(self, source: Source, tokenizer: Tokenizer) -> TaggedRows:
        """Tokenizes every word for itself; one that leaves no piece is [UNK]. Words that begin beyond the row
        are counted and lost."""
        records = source.records
        words = list(dict.fromkeys(word for r in records for word in r["words"]))
        pieces = dict(zip(words, tokenizer.encode_words(words), strict=True))
        tokens, tags, start = [], [], [0]
        cut = lost = empty = 0
        for r in progress.each(records, "cutting rows", "sentences", len(records)):
            if bad := [t for t in r["tags"] if not 0 <= t < len(self.labels)]:
                raise UserError(f"{r['where']}: tag {bad[0]} is outside 0 … {len(self.labels) - 1}")
            ids, marks = list[int](), list[int]()
            for word, tag in zip(r["words"], r["tags"], strict=True):
                empty += not pieces[word]
                lost += len(ids) >= self.seq_len - 2
                word_ids = pieces[word] or [tokenizer.unk]
                ids += word_ids
                marks += [tag] + [NONE] * (len(word_ids) - 1)
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
            "segment_b": one,
            "tags": np.full(shape, NONE, np.int32),
        }

    def prepare(self, batch: Mapping[str, Array], keys: Key[Array, "B"]) -> dict[str, Array]:
        return pair_inputs(batch)

    def head(self, dtype: Any, style: Style) -> nn.Module:
        return Head(len(self.labels), self.dropout, dtype)

    def sums(self, predictions: Float[Array, "B T k"], batch: Mapping[str, Array]) -> Sums:
        on = (batch["tags"] != NONE) & (batch["weight"] > 0)[:, None]
        # NONE would be the last class
        tags, said = jnp.where(on, batch["tags"], 0), predictions.argmax(-1).astype(jnp.int32)
        weight = on.astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(predictions, tags)
        n = weight.sum()
        out = {"loss": ((loss * weight).sum(), n), "accuracy": (jnp.where(tags == said, weight, 0).sum(), n)}
        if self.places:
            out["entities"] = (self._entities(tags, said, on), jnp.float32(1))
        return out

    def _entities(
        self, tags: Int[Array, "B T"], said: Int[Array, "B T"], on: Bool[Array, "B T"]
    ) -> Float[Array, "3"]:
        """How many entities were found exactly, how many were said, and how many there are."""
        order = jnp.argsort(~on, axis=1, stable=True)  # words first, side by side
        on = jnp.take_along_axis(on, order, 1)
        (kind, begin, end), (kind_said, begin_said, end_said) = (
            self._spans(jnp.take_along_axis(t, order, 1), on) for t in (tags, said)
        )
        hit = end & end_said & (begin == begin_said) & (kind == kind_said)
        return jnp.stack([x.sum(dtype=jnp.float32) for x in (hit, end_said, end)])

    def _spans(
        self, tags: Int[Array, "B T"], on: Bool[Array, "B T"]
    ) -> tuple[Int[Array, "B T"], Int[Array, "B T"], Bool[Array, "B T"]]:
        """For each word: the kind of its entity (-1: none), the place where this begins, and whether it ends
        here."""
        letters, names = zip(*self.places, strict=True)
        kinds = sorted(set(names))
        kind_of = jnp.asarray([kinds.index(name) if letter != "O" else -1 for letter, name in self.places])
        begins, ends = (jnp.asarray([letter in which for letter in letters]) for which in (BEGIN, END))
        kind = jnp.where(on, kind_of[tags], -1)
        # Whatever follows an end, or another kind, begins an entity, too.
        starts = (kind >= 0) & (begins[tags] | _shift(ends[tags], 1, False) | (kind != _shift(kind, 1, -1)))
        begin = jax.lax.cummax(jnp.where(starts, jnp.arange(tags.shape[1]), -1), axis=1)
        return kind, begin, (kind >= 0) & (_shift(starts, -1, True) | (_shift(kind, -1, -1) < 0))

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss and accuracy of words; micro-averaged F1, precision and recall of entities, 0 where there is
        none to divide by."""
        out = {k: float(v) for k, v in divide({k: sums[k] for k in ("loss", "accuracy")}).items()}
        if self.places:
            hit, said, true = np.asarray(sums["entities"][0], np.float64)
            ratios = {"f1": (2 * hit, said + true), "precision": (hit, said), "recall": (hit, true)}
            out |= {name: float(a / b) if b else 0.0 for name, (a, b) in ratios.items()}
        return out

    def entities(self, tags: Sequence[int]) -> list[tuple[str, int, int]]:
        """(kind, first word, the word after the last) of each entity, by the same rules as `_spans`."""
        entities, before = list[tuple[str, int, int]](), ("O", "")
        for at, (letter, kind) in enumerate(self.places[t] for t in tags):
            if letter != "O":
                begins = letter in BEGIN or before[0] in "O" + END or before[1] != kind
                entities.append((kind, at if begins else entities.pop()[1], at + 1))
            before = letter, kind
        return entities

    def ask(self, records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> TaggedRows:
        """Of a text, the words are what blanks separate; a sentence without any is counted, if it is long."""
        words = [_words(r) for r in records]
        tagged = [{"words": w, "tags": [0] * len(w), "where": ""} for w in words]
        rows = self.rows(Source(tagged, (), "", {}), tokenizer)
        alone = sum(len(w) == 1 and n > 8 for w, n in zip(words, np.diff(rows.start), strict=True))
        return replace(rows, notes={**rows.notes, "without_blanks": alone})

    def outputs(self, predictions: Float[Array, "B T k"], batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"said": predictions.argmax(-1)}

    def answer(
        self, record: Mapping[str, Any], row: Mapping[str, Any], names: Sequence[str], tokenizer: Tokenizer
    ) -> dict[str, Any]:
        """The words, their tags (None beyond the row), and the entities: from word `start` up to `end`, which
        is not in it."""
        words, tags = _words(record), row["said"][np.flatnonzero(row["tags"] != NONE)].tolist()
        out: dict[str, Any] = {} if "words" in record else {"words": words}
        out["tags"] = [names[t] for t in tags] + [None] * (len(words) - len(tags))
        if self.places:
            spans = self.entities(tags)
            out["entities"] = [
                {"kind": k, "text": " ".join(words[a:b]), "start": a, "end": b} for k, a, b in spans
            ]
        return out

    def line(self, record: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        """A word and its tag a line, and an empty line, as files of tagged words have them."""
        return "".join(
            f"{word}\t{tag or '_'}\n" for word, tag in zip(_words(record), answer["tags"], strict=True)
        )


def _words(record: Mapping[str, Any]) -> list[str]:
    return record["words"] if "words" in record else record["text"].split()


def _shift(x: Array, by: int, fill: Any) -> Array:
    """`x` moved by one along its rows, to the right (1) or to the left (-1)."""
    edge = jnp.full((len(x), 1), fill, x.dtype)
    return jnp.concatenate([edge, x[:, :-1]] if by == 1 else [x[:, 1:], edge], 1)


def build(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Tag:
    if len(labels) < 2:
        raise UserError(f"tag needs at least two tags; the training data has {list(labels)}")
    return Tag(tuple(labels), config.seq_len, config.dropout, tokenizer.vocab_size)
