"""A corpus as one array of ids, and how its documents are cut into rows of one or two segments."""

import itertools
import random
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ptft.core import progress
from ptft.core.errors import UserError, install
from ptft.data import Source
from ptft.inputs.tokenizer import Tokenizer
from ptft.objectives import token_dtype

# One row: [CLS] tokens[a0:a1] [SEP] tokens[b0:b1] [SEP], and whether B is a random sentence.
A0, A1, B0, B1, RANDOM = range(5)
CHINESE = re.compile(r"([\u3400-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]+)")


@dataclass(frozen=True)
class Documents:
    """A corpus as one array of ids: sentence s is tokens[sentence[s]:sentence[s+1]], document d is sentences
    document[d]:document[d+1]."""

    tokens: np.ndarray
    sentence: np.ndarray
    document: np.ndarray
    continues: np.ndarray | None = None  # bool, beside `tokens`: whether a token goes on with a word

    def __len__(self) -> int:
        return len(self.document) - 1


def tokenize(source: Source, tokenizer: Tokenizer) -> Documents:
    """Encodes a corpus; empty sentences and documents are dropped."""
    tokens: list[np.ndarray] = []
    sentence, document = [0], [0]
    dtype = token_dtype(tokenizer.vocab_size)
    texts = [record["sentences"] for record in source.records]
    ids = tokenizer.encode_each(itertools.chain.from_iterable(texts), sum(map(len, texts)))
    for sentences in texts:
        for piece in itertools.islice(ids, len(sentences)):
            if piece:
                tokens.append(np.asarray(piece, dtype))
                sentence.append(sentence[-1] + len(piece))
        if len(sentence) - 1 > document[-1]:
            document.append(len(sentence) - 1)
    if len(document) == 1:
        raise UserError(f"the corpus has no text: {len(source.records)} documents, all empty")
    return Documents(np.concatenate(tokens), np.asarray(sentence), np.asarray(document))


def inside_words(source: Source, docs: Documents, tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens go on with a word, where jieba says what a Chinese word is; elsewhere as the tokenizer
    says."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about its own escapes and pkg_resources
            import jieba
    except ImportError:
        raise UserError(f"objective.whole_word='jieba' needs jieba; {install('zh')}") from None
    jieba.setLogLevel(60)
    out, known = tokenizer.continues[docs.tokens], dict[str, list[int]]()
    places = iter(zip(docs.sentence[:-1], docs.sentence[1:], strict=True))
    texts = [s for record in source.records for s in record["sentences"]]
    for text in progress.each(texts, "finding Chinese words", "sentences", len(texts)):
        parts = [
            w
            for run in CHINESE.split(text)
            if run
            for w in (jieba.cut(run) if CHINESE.fullmatch(run) else [run])
        ]
        new = [p for p in dict.fromkeys(parts) if p not in known]
        known |= dict(zip(new, tokenizer.encode(new), strict=True))
        ids = [i for p in parts for i in known[p]]
        if not ids:
            continue  # a sentence without a token was dropped
        start, end = next(places)
        if ids != docs.tokens[start:end].tolist():
            continue  # a tokenizer whose pieces go over the ends of words
        marks = [CHINESE.fullmatch(p) is not None and k > 0 for p in parts for k in range(len(known[p]))]
        out[start:end] |= np.asarray(marks)
    return out


def cut_pairs(
    docs: Documents, d: int, room: int, short_prob: float, rng: random.Random
) -> list[tuple[int, int, int, int, int]]:
    """The rows (A0, A1, B0, B1, RANDOM) of document `d`, A and B together at most `room` tokens."""
    rows = []
    offset, first, last = docs.sentence, int(docs.document[d]), int(docs.document[d + 1])
    target = rng.randint(2, room) if rng.random() < short_prob else room
    start = at = first
    while at < last:
        if at < last - 1 and offset[at + 1] - offset[start] < target:
            at += 1
            continue
        sentences = at - start + 1
        middle = start + (rng.randint(1, sentences - 1) if sentences >= 2 else 1)
        a0, a1 = int(offset[start]), int(offset[middle])
        is_random = sentences == 1 or rng.random() < 0.5
        if is_random:
            other = rng.randrange(len(docs))
            for _ in range(9):  # ten tries in all to find another document
                if other != d:
                    break
                other = rng.randrange(len(docs))
            b_first = rng.randrange(int(docs.document[other]), int(docs.document[other + 1]))
            b_last = int(np.searchsorted(offset, offset[b_first] + max(target - (a1 - a0), 1)))
            b0, b1 = int(offset[b_first]), int(offset[min(b_last, int(docs.document[other + 1]))])
            at = middle - 1  # the sentences that B did not use come again
        else:
            b0, b1 = a1, int(offset[at + 1])
        rows.append((*_truncate(a0, a1, b0, b1, room, rng), int(is_random)))
        at += 1
        start = at
    return rows


def _truncate(a0: int, a1: int, b0: int, b1: int, room: int, rng: random.Random) -> tuple[int, int, int, int]:
    """Drops tokens from the longer of A and B, each from its front or its back at random, until both fit."""
    while (a1 - a0) + (b1 - b0) > room:
        front = rng.random() < 0.5
        if a1 - a0 > b1 - b0:
            a0, a1 = a0 + front, a1 - (not front)
        else:
            b0, b1 = b0 + front, b1 - (not front)
    return a0, a1, b0, b1


def cut_single(
    docs: Documents, d: int, room: int, short_prob: float, rng: random.Random
) -> list[tuple[int, int, int, int, int]]:
    """Rows of one segment: consecutive sentences of document `d` up to the target length."""
    rows = []
    target = rng.randint(2, room) if rng.random() < short_prob else room
    start, end = int(docs.sentence[docs.document[d]]), int(docs.sentence[docs.document[d + 1]])
    for a0 in range(start, end, target):
        a1 = min(a0 + target, end)
        rows.append((a0, a1, a1, a1, 0))
    return rows


class RowShape(NamedTuple):
    """How a row is laid out; the keys of `config.objective`."""

    seq_len: int
    nsp: bool
    mask_prob: float
    predictions: int
    whole_word: bool


@dataclass(frozen=True)
class PairRows:
    """Rows as ranges into the corpus; ids are gathered when a batch is cut."""

    docs: Documents
    ranges: np.ndarray  # i64[N, 5]
    shape: RowShape
    special: tuple[int, int, int]  # ids of [CLS], [SEP], [PAD]
    notes: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.ranges)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What makes a part of the objective learn nothing."""
        said, one = [], bool((np.diff(self.docs.document) == 1).all())
        if self.shape.nsp and (random := self.ranges[:, RANDOM].mean()) > 0.9:
            why = "every document is one sentence" if one else "rows hold hardly two sentences of a document"
            way = (
                "data.format='paragraphs' splits lines into sentences"
                if one
                else "objective.seq_len is short for them"
            )
            said.append(
                f"{random:.0%} of next sentences are random, as {why}: there is nothing to tell; {way}, or "
                "objective.nsp=False"
            )
        if self.docs.continues is not None and (share := self.docs.continues.mean()) < 0.01:
            said.append(
                f"objective.whole_word: {share:.1%} of the text's tokens go on with a word, so that it masks "
                "as without it; whole_word='jieba' cuts Chinese, of which every character is a word to the "
                "tokenizer, into words"
            )
        return tuple(said)

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        cls, sep, pad = self.special
        o, chosen = self.shape, self.ranges[index]
        a, b = chosen[:, A1] - chosen[:, A0], chosen[:, B1] - chosen[:, B0]
        tokens = np.full((len(index), o.seq_len), pad, self.docs.tokens.dtype)
        second = (a + 2).astype(np.int32)
        length = second + ((b + 1).astype(np.int32) if o.nsp else 0)
        tokens[:, 0] = cls
        inside, goes_on = np.zeros(tokens.shape, bool), self.docs.continues
        for row, marks, (a0, a1, b0, b1, _) in zip(tokens, inside, chosen, strict=True):
            end_a, end_b = 1 + a1 - a0, 2 + a1 - a0 + b1 - b0
            row[1:end_a], row[end_a] = self.docs.tokens[a0:a1], sep
            if o.nsp:
                row[end_a + 1 : end_b], row[end_b] = self.docs.tokens[b0:b1], sep
            if goes_on is not None:
                marks[1:end_a], marks[end_a + 1 : end_b] = goes_on[a0:a1], goes_on[b0:b1]
        # The quota counts the special tokens, as Google's script does.
        quota = np.clip(np.round(length * o.mask_prob), 1, o.predictions).astype(np.int32)
        out = {
            "tokens": tokens,
            "length": length,
            "segment_b": second,
            "num_masked": quota,
            "nsp_label": chosen[:, RANDOM].astype(np.int32),
        }
        return {**out, "continues": inside} if o.whole_word else out
