"""Masked language model and next-sentence prediction, after google-research/bert
`create_pretraining_data.py`.

Host half: sentence pairs cut from documents. Device half: masking, drawn anew each step, and the two heads.
The decoder is tied to the word embeddings, so a plan that freezes the embeddings freezes the decoder's matrix
too; its bias and the transform before it belong to the head and stay trainable.
"""

import itertools
import random
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
from ptft.models.layers import Style
from ptft.objectives import ArrayRows, _documents, pair_inputs, plain_text, token_dtype
from ptft.objectives._documents import RANDOM, PairRows, RowShape
from ptft.objectives._mlm_head import Head

SPEC = {
    "seq_len": Field(128, int, lo=8, hi=MOST_TOKENS, doc="tokens a row, [CLS] and [SEP] among them"),
    "nsp": Field(True, bool, doc="False: one segment a row and no next-sentence loss"),
    "passes": Field(
        1,
        int,
        lo=1,
        hi=1000,
        doc="how often the corpus is cut into pairs, each time differently (dupe_factor)",
    ),
    "short_prob": Field(0.1, float, lo=0, hi=1, doc="share of documents cut to a random shorter length"),
    "mask_prob": Field(0.15, float, lo=0.01, hi=0.9),
    "max_predictions": Field(
        0, int, lo=0, hi=MOST_TOKENS, doc="masked positions a row; 0: mask_prob of seq_len, rounded up"
    ),
    "whole_word": Field(
        False,
        (bool, str),
        choices=(False, True, "jieba"),
        doc="mask all pieces of a word together; jieba: Chinese words, too",
    ),
}
BEST = 5  # words that are said for a gap


def choose_words(
    u: Float[Array, "B T"], free: Bool[Array, "B T"], continues: Bool[Array, "B T"], quota: Int[Array, "B"]
) -> Bool[Array, "B T"]:
    """Whole words in the order of `u` at their first piece, as many as fit; a word that would overshoot is
    skipped."""
    b, t = u.shape
    begins = free & ~(continues & jnp.roll(free, 1, 1))
    word = jnp.where(free, jnp.cumsum(begins, 1) - 1, t)  # the word of each position; t: none
    row = jnp.arange(b)[:, None]
    size = jnp.zeros((b, t + 1), jnp.int32).at[row, word].add(1)[:, :t]
    score = jnp.full((b, t + 1), 2.0).at[row, jnp.where(begins, word, t)].min(u)[:, :t]
    order = jnp.argsort(jnp.where(size > 0, score, 3.0), axis=1)

    def take(left: Array, w: Array) -> tuple[Array, Array]:
        n = size[jnp.arange(b), w]
        fits = (n > 0) & (n <= left)
        return left - jnp.where(fits, n, 0), fits

    _, fits = jax.lax.scan(take, quota, order.T)
    chosen = jnp.zeros((b, t + 1), bool).at[row, order].set(fits.T)
    return chosen[row, word]


@dataclass(frozen=True)
class MlmNsp:
    seq_len: int
    nsp: bool
    passes: int
    short_prob: float
    mask_prob: float
    predictions: int
    whole_word: bool | str
    vocab_size: int
    mask_id: int

    best: str = "mlm_loss"
    reuse_head: bool = True
    stochastic: bool = True

    @property
    def head_rows(self) -> Mapping[str, int]:
        return {"transform": self.predictions, "decoder": self.predictions}

    @property
    def reads_pooled(self) -> bool:
        return self.nsp

    @property
    def loss(self) -> tuple[str, ...]:
        return ("mlm_loss", "nsp_loss") if self.nsp else ("mlm_loss",)

    @property
    def lower_is_better(self) -> frozenset[str]:
        return frozenset({"loss", "perplexity", *self.loss})

    def rows(self, source: Source, tokenizer: Tokenizer) -> PairRows:
        """Cuts the corpus `passes` times; which pairs come out depends on the pass and the document alone."""
        if self.nsp and tokenizer.between != 1:
            raise UserError(
                "this tokenizer puts two separators between texts, and its models know no NSP; set "
                "objective.nsp=False"
            )
        docs = _documents.tokenize(source, tokenizer)
        if self.whole_word:
            marks = (
                _documents.inside_words(source, docs, tokenizer)
                if self.whole_word == "jieba"
                else tokenizer.continues[docs.tokens]
            )
            docs = replace(docs, continues=marks)
        if self.nsp and len(docs) < 2:
            raise UserError(
                "next-sentence prediction takes random sentences from another document, and the corpus is "
                "one document; put a blank line between documents, or set objective.nsp=False"
            )
        cut = _documents.cut_pairs if self.nsp else _documents.cut_single
        room = self.seq_len - (3 if self.nsp else 2)
        rows = []
        with progress.doing("cutting rows", "documents", self.passes * len(docs)) as advance:
            for n, d in itertools.product(range(self.passes), range(len(docs))):
                rows += cut(docs, d, room, self.short_prob, random.Random(f"{n} {d}"))
                advance()
        special = (tokenizer.cls, tokenizer.sep, tokenizer.pad)
        notes = {
            "documents": len(docs),
            "tokens": len(docs.tokens),
            "random_next": sum(r[RANDOM] for r in rows),
        }
        shape = RowShape(self.seq_len, self.nsp, self.mask_prob, self.predictions, bool(self.whole_word))
        return PairRows(docs, np.asarray(rows, np.int64), shape, special, notes)

    def example(self, batch: int) -> dict[str, np.ndarray]:
        one = np.ones(batch, np.int32)
        tokens: np.ndarray = np.zeros((batch, self.seq_len), token_dtype(self.vocab_size))
        out = {"tokens": tokens, "length": one, "segment_b": one, "num_masked": one, "nsp_label": one * 0}
        return {**out, "continues": out["tokens"] > 0} if self.whole_word else out

    def prepare(self, batch: Mapping[str, Array], keys: Key[Array, "B"]) -> dict[str, Array]:
        """Chooses `num_masked` positions a row, and replaces them: 80 % [MASK], 10 % kept, 10 % any id of the
        vocabulary."""
        batch = pair_inputs(batch)
        if "position" in batch:  # gaps that somebody asks for
            return batch
        tokens, p = batch["tokens"], self.predictions
        at = jnp.arange(tokens.shape[1])[None]
        free = (
            batch["mask"]
            & (at != 0)
            & (at != batch["segment_b"][:, None] - 1)
            & (at != batch["length"][:, None] - 1)
        )
        which, how, what = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
        u = jax.vmap(lambda key: jax.random.uniform(key, (tokens.shape[1],)))(which)
        if self.whole_word:
            free = choose_words(u, free, batch["continues"], batch["num_masked"])
        top, position = jax.lax.top_k(jnp.where(free, u, -1.0), p)
        weight = (jnp.arange(p)[None] < batch["num_masked"][:, None]) & (top >= 0)
        target = jnp.take_along_axis(tokens, position, axis=1)
        dice = jax.vmap(lambda key: jax.random.uniform(key, (p,)))(how)
        other = jax.vmap(lambda key: jax.random.randint(key, (p,), 0, self.vocab_size))(what)
        new = jnp.where(dice < 0.8, self.mask_id, jnp.where(dice < 0.9, target, other))
        # Unused slots point at real positions, so they must not write: they are sent out of bounds and
        # dropped.
        where = jnp.where(weight, position, tokens.shape[1])
        masked = tokens.at[jnp.arange(len(tokens))[:, None], where].set(new, mode="drop")
        return {
            **batch,
            "tokens": masked,
            "position": position,
            "target": target,
            "masked": weight.astype(jnp.float32),
        }

    def head(self, dtype: Any, style: Style) -> nn.Module:
        return Head(self.nsp, dtype, style)

    def sums(self, predictions: Mapping[str, Array], batch: Mapping[str, Array]) -> Sums:
        xent = optax.softmax_cross_entropy_with_integer_labels
        valid = batch["weight"]
        logits, target, weight = predictions["mlm"], batch["target"], batch["masked"] * valid[:, None]
        n = weight.sum()
        # Comparing with the maximum, which the loss needs anyway, costs half of an argmax over the
        # vocabulary.
        hit = jnp.take_along_axis(logits, target[..., None], -1)[..., 0] >= logits.max(-1)
        out = {
            "mlm_loss": ((xent(logits, target) * weight).sum(), n),
            "mlm_accuracy": (jnp.where(hit, weight, 0).sum(), n),
        }
        if self.nsp:
            logits, label = predictions["nsp"], batch["nsp_label"]
            out["nsp_loss"] = ((xent(logits, label) * valid).sum(), valid.sum())
            out["nsp_accuracy"] = (jnp.where(logits.argmax(-1) == label, valid, 0).sum(), valid.sum())
        return out

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Losses, accuracies and the perplexity of masked tokens, each from global sums."""
        means = {k: float(v) for k, v in divide(sums).items()}
        return {
            **means,
            "loss": sum(means[k] for k in self.loss),
            "perplexity": float(np.exp(means["mlm_loss"])),
        }

    def ask(self, records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> ArrayRows:
        """Rows of texts with gaps, which the mask token's name marks, or of pairs, where the run knows what
        follows what: `position` i32[N, P] says where the gaps are, `gaps` i32[N] how many."""
        gap, rows, cut = tokenizer.vocab[tokenizer.mask], [], 0
        for r in records:
            parts = [tokenizer.encode_gaps(r[k]) for k in ("text", "text_b") if k in r]
            if not any(tokenizer.mask in ids for ids in parts) and len(parts) < 2:
                pair = ", or two texts with a tab between them" if self.nsp else ""
                what = f"expected {gap} in the text{pair}; got {r['text'][:40]!r}"
                raise UserError(f"{r['where']}: this run fills gaps: {what}")
            over = sum(map(len, parts)) - (self.seq_len - 1 - len(parts))
            cut += over > 0
            for _ in range(over):  # the end of the longer one
                max(parts, key=len).pop()
            rows.append(
                [
                    [tokenizer.cls, *parts[0], tokenizer.sep],
                    [i for b in parts[1:] for i in (*b, tokenizer.sep)],
                ]
            )
        tokens: np.ndarray = np.full((len(rows), self.seq_len), tokenizer.pad, token_dtype(self.vocab_size))
        for row, (a, b) in zip(tokens, rows, strict=True):
            row[: len(a) + len(b)] = a + b
        second = np.asarray([len(a) for a, _ in rows], np.int32)
        length = np.asarray([len(a) + len(b) for a, b in rows], np.int32)
        gaps = (tokens == tokenizer.mask).sum(1)
        width = 1 << int(gaps.max(initial=1) - 1).bit_length()  # few programs
        position = np.argsort(tokens != tokenizer.mask, axis=1, kind="stable")[:, :width].astype(np.int32)
        arrays = {"tokens": tokens, "length": length, "segment_b": second, "position": position, "gaps": gaps}
        return ArrayRows(arrays, {"truncated": cut})

    def outputs(self, predictions: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
        # A model may have more rows than the vocabulary has entries.
        shares = jax.nn.softmax(predictions["mlm"])[..., : self.vocab_size]
        p, token = jax.lax.top_k(shares, min(BEST, self.vocab_size))
        return {"p": p, "token": token, **({"nsp": jax.nn.softmax(predictions["nsp"])} if self.nsp else {})}

    def answer(
        self, record: Mapping[str, Any], row: Mapping[str, Any], names: Sequence[str], tokenizer: Tokenizer
    ) -> dict[str, Any]:
        """Of a pair, the probability that the second text follows the first; the likeliest words for each
        gap."""
        follows = {"follows": float(row["nsp"][0])} if self.nsp and "text_b" in record else {}
        return {
            **follows,
            "gaps": [_likely(row["token"][i].tolist(), row["p"][i], tokenizer) for i in range(row["gaps"])],
        }

    def line(self, record: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        said = [f"follows {answer['follows']:.4f}"] if "follows" in answer else []
        said += [" ".join(f"{w['word']} {w['probability']:.4f}" for w in gap) for gap in answer["gaps"]]
        return "\t".join([*said, plain_text(record)])


def _likely(ids: Sequence[int], shares: np.ndarray, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    words = [tokenizer.decode([i]).strip() for i in ids]
    # Part of a letter, as byte-level BPE has it, is no text.
    words = [w if w and "\ufffd" not in w else tokenizer.vocab[i] for w, i in zip(words, ids, strict=True)]
    return [{"word": w, "probability": float(p)} for w, p in zip(words, shares, strict=True)]


def build(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> MlmNsp:
    predictions = min(
        config.max_predictions or int(np.ceil(config.seq_len * config.mask_prob)), config.seq_len
    )
    return MlmNsp(
        config.seq_len,
        config.nsp,
        config.passes,
        config.short_prob,
        config.mask_prob,
        predictions,
        config.whole_word,
        tokenizer.vocab_size,
        tokenizer.mask,
    )
