"""Classification of one text or a pair into k classes: dropout and one dense layer on the pooled output.

With `blank`, on the hidden state of the blank instead: a word of the text is missing and becomes [MASK], as
in pretraining (a cloze: Schick & Schütze 2021, arXiv 2001.07676).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from ptft.core import progress
from ptft.core.config import Config, Field
from ptft.core.errors import UserError
from ptft.core.record import Sums, divide
from ptft.data import Source
from ptft.inputs.tokenizer import Tokenizer
from ptft.models import MOST_TOKENS
from ptft.models.layers import Style, dense
from ptft.objectives import pair_inputs, plain_text, token_dtype

SPEC = {
    "seq_len": Field(128, int, lo=3, hi=MOST_TOKENS, doc="tokens a row, [CLS] and [SEP] among them"),
    "truncate": Field("head", str, choices=("head", "tail"), doc="which end of a long text is kept"),
    "dropout": Field(0.1, float, lo=0, hi=0.99),
    "blank": Field(
        "",
        str,
        doc=(
            "what stands once in every text for a missing word, such as ___: it becomes [MASK], the class "
            "is read there"
        ),
    ),
}


@dataclass(frozen=True)
class TextRows:
    """Ragged token ids of `[CLS] text [SEP]` or `[CLS] text [SEP] text_b [SEP]` (RoBERTa: twice [SEP]),
    padded when a batch is cut."""

    tokens: np.ndarray  # all rows, one after the other
    start: np.ndarray  # i64[N + 1]
    second: np.ndarray  # i32[N], where text_b begins; the row's length if there is none
    label: np.ndarray  # i32[N]
    seq_len: int
    pad: int
    notes: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        length = (self.start[index + 1] - self.start[index]).astype(np.int32)
        tokens = np.full((len(index), self.seq_len), self.pad, self.tokens.dtype)
        for row, i in enumerate(index):
            tokens[row, : length[row]] = self.tokens[self.start[i] : self.start[i + 1]]
        return {
            "tokens": tokens,
            "length": length,
            "segment_b": self.second[index],
            "label": self.label[index],
        }


class Head(nn.Module):
    classes: int
    dropout: float
    dtype: Any
    mask: int | None  # the id of [MASK], where the class is read at the blank

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], train: bool
    ) -> Float[Array, "B k"]:
        read = (
            outputs["pooled"]
            if self.mask is None
            else at_blank(outputs["hidden"], batch["tokens"], self.mask)
        )
        read = nn.Dropout(self.dropout, deterministic=not train)(read)
        return dense(self.classes, self.dtype, "classifier")(read).astype(jnp.float32)


def at_blank(hidden: Float[Array, "B T D"], tokens: Int[Array, "B T"], mask: int) -> Float[Array, "B D"]:
    """The hidden state of each row's one [MASK]."""
    return jnp.take_along_axis(hidden, jnp.argmax(tokens == mask, axis=1)[:, None, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Classify:
    labels: tuple[str, ...]
    seq_len: int
    truncate: str
    dropout: float
    vocab_size: int
    blank: str
    mask: int | None  # the id that stands for the blank; None: there is none
    loss: tuple[str, ...] = ("loss",)
    best: str = "accuracy"
    lower_is_better: frozenset[str] = frozenset({"loss"})
    reuse_head: bool = False
    stochastic: bool = False

    @property
    def head_rows(self) -> Mapping[str, int]:
        return {}

    @property
    def reads_pooled(self) -> bool:
        return self.mask is None

    def rows(self, source: Source, tokenizer: Tokenizer) -> TextRows:
        """Tokenizes every record; texts longer than the row are cut and counted, empty ones kept as [CLS]
        [SEP]."""
        records = source.records
        a = (
            self._with_blank(records, tokenizer)
            if self.blank
            else tokenizer.encode([r["text"] for r in records])
        )
        b = tokenizer.encode([r.get("text_b", "") for r in records])
        rows, second, truncated = [], [], 0
        counted = progress.each(records, "cutting rows", "texts", len(records))
        for r, x, y in zip(counted, a, b, strict=True):
            pair = "text_b" in r
            room = self.seq_len - (2 + tokenizer.between if pair else 2)
            truncated += len(x) + len(y) > room
            x, y = self._cut(x, y, room)
            middle = [tokenizer.sep] * (tokenizer.between if pair else 1)
            second.append(1 + len(x) + len(middle))
            rows.append([tokenizer.cls, *x, *middle, *y, *([tokenizer.sep] if pair else [])])
        label = np.asarray([r.get("label", 0) for r in records], np.int32)
        bad = np.flatnonzero((label < 0) | (label >= len(self.labels)))
        if len(bad):
            raise UserError(
                f"{records[bad[0]]['where']}: label {label[bad[0]]} is outside 0 … {len(self.labels) - 1}"
            )
        flat = np.concatenate([np.asarray(r) for r in rows]) if rows else np.zeros(0, np.int64)
        return TextRows(
            tokens=flat.astype(token_dtype(self.vocab_size)),
            start=np.cumsum([0, *map(len, rows)]),
            second=np.asarray(second, np.int32),
            label=label,
            seq_len=self.seq_len,
            pad=tokenizer.pad,
            notes={"truncated": truncated, "empty": sum(not x for x in a)},
        )

    def _cut(self, x: list[int], y: list[int], room: int) -> tuple[list[int], list[int]]:
        """Shortens the longer text until both fit, as transformers does: an odd place is the longer text's,
        or text_b's of two alike."""
        if room < 0:
            raise UserError(
                f"objective.seq_len={self.seq_len} has no room for the separators of a pair; expected "
                f"{self.seq_len - room} or more"
            )
        short = min(len(x), len(y), room // 2)
        long = min(max(len(x), len(y)), room - short)
        keep_x, keep_y = (long, short) if len(x) > len(y) else (short, long)
        if self.mask is not None:  # what is left of the first text has the blank in its middle
            start = min(max(x.index(self.mask) - keep_x // 2, 0), len(x) - keep_x)
            return x[start : start + keep_x], y[:keep_y]
        return (
            (x[len(x) - keep_x :], y[len(y) - keep_y :])
            if self.truncate == "tail"
            else (x[:keep_x], y[:keep_y])
        )

    def _with_blank(self, records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[list[int]]:
        """The ids of every text, [MASK] in place of its blank."""
        for r in records:
            if (n := r["text"].count(self.blank)) != 1:
                raise UserError(
                    f"{r.get('where', 'the text')}: expected {self.blank!r} (objective.blank) once, where "
                    f"the word is missing; it is {n} times in {r['text'][:60]!r}"
                )
        parts = [r["text"].partition(self.blank) for r in records]
        heads, tails = (
            tokenizer.encode([p[0].rstrip() for p in parts]),
            tokenizer.encode([p[2] for p in parts]),
        )
        return [[*x, tokenizer.mask, *y] for x, y in zip(heads, tails, strict=True)]

    def example(self, batch: int) -> dict[str, np.ndarray]:
        one = np.ones(batch, np.int32)
        return {
            "tokens": np.zeros((batch, self.seq_len), token_dtype(self.vocab_size)),
            "length": one,
            "segment_b": one,
            "label": one * 0,
        }

    def prepare(self, batch: Mapping[str, Array], keys: Key[Array, "B"]) -> dict[str, Array]:
        return pair_inputs(batch)

    def head(self, dtype: Any, style: Style) -> nn.Module:
        return Head(len(self.labels), self.dropout, dtype, self.mask)

    def sums(self, predictions: Float[Array, "B k"], batch: Mapping[str, Array]) -> Sums:
        valid, label = batch["weight"], batch["label"]
        loss = optax.softmax_cross_entropy_with_integer_labels(predictions, label)
        said = predictions.argmax(-1).astype(label.dtype)
        counted = (label, valid), (said, valid), (label, jnp.where(label == said, valid, 0))
        # By class and not by pair of classes: of thousands of labels, pairs would cost more than the model.
        counts = jnp.stack([jnp.zeros(len(self.labels)).at[of].add(weight) for of, weight in counted])
        return {"loss": ((loss * valid).sum(), valid.sum()), "counts": (counts, jnp.float32(1))}

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss, accuracy, macro-F1 (over the classes that occur) and Matthews correlation (multi-class,
        Gorodkin 2004)."""
        true, said, hits = np.asarray(sums["counts"][0], np.float64)
        if "confusion" in sums:  # left over in the checkpoint of an older version
            table = np.asarray(sums["confusion"][0], np.float64)
            true, said, hits = true + table.sum(1), said + table.sum(0), hits + np.diag(table)
        total, hit = true.sum(), hits.sum()
        present = true + said > 0
        f1 = 2 * hits[present] / (true + said)[present]
        spread = np.sqrt((total**2 - said @ said) * (total**2 - true @ true))
        return {
            "loss": float(divide({"loss": sums["loss"]})["loss"]),
            "accuracy": float(hit / total) if total else float("nan"),
            "macro_f1": float(f1.mean()) if present.any() else float("nan"),
            "matthews": float((hit * total - said @ true) / spread) if spread else 0.0,
        }

    def ask(self, records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> TextRows:
        return self.rows(Source(records, (), "", {}), tokenizer)

    def outputs(self, predictions: Float[Array, "B k"], batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"probabilities": nn.softmax(predictions)}

    def answer(
        self, record: Mapping[str, Any], row: Mapping[str, Any], names: Sequence[str], tokenizer: Tokenizer
    ) -> dict[str, Any]:
        """The label and every label's probability."""
        p = row["probabilities"]
        return {
            "label": names[int(p.argmax())],
            "probabilities": dict(zip(names, map(float, p), strict=True)),
        }

    def line(self, record: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        return f"{answer['label']}\t{answer['probabilities'][answer['label']]:.4f}\t{plain_text(record)}"


def build(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Classify:
    if len(labels) < 2:
        raise UserError(f"classify needs at least two classes; the training data has {list(labels)}")
    mask = tokenizer.mask if config.blank else None
    return Classify(
        tuple(labels),
        config.seq_len,
        config.truncate,
        config.dropout,
        tokenizer.vocab_size,
        config.blank,
        mask,
    )
