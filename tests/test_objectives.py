"""Both objectives. The generators are seeded, so a chi-square below means: these draws, always, fit the
distribution."""

import functools
import math
import random
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import special, stats
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors

from ptft import objectives
from ptft.core import config, record, tree
from ptft.core.errors import UserError
from ptft.data import Source
from ptft.inputs import tokenizer_files, train_tokenizer
from ptft.inputs.tokenizer import SPECIALS, Tokenizer
from ptft.objectives import _documents, classify
from ptft.objectives._documents import A0, A1, B0, B1, RANDOM
from ptft.train.build import metrics as build_metrics
from ptft.train.net import row_keys

FIT = 1e-3  # a smaller p-value is a bug
FIRST = len(SPECIALS)  # the id of the first word in `wide` and in tiny.TOKENIZER


def build(name, tokenizer=tiny.TOKENIZER, labels=tiny.LABELS, **values):
    values = {"name": name, **values}
    return objectives.build(config.resolve(values, objectives.spec(values)), tokenizer, labels)


def source(records):
    return Source([{**r, "where": f"line {i}"} for i, r in enumerate(records, 1)], (), "", {})


def flat(lists):
    return [x for part in lists for x in part]


def with_types(batch):
    return jax.device_get(jax.jit(objectives.pair_inputs)(batch))


@functools.cache
def wide():
    """70,000 words: ids do not fit 16 bits."""
    return Tokenizer([*SPECIALS, *(f"w{i}" for i in range(70_000))], lowercase=True)


# Masking


def mask_batch(o, n, length, second=None, low=FIRST):
    """`n` rows of random words; `length` is one number, or one a row."""
    rng = np.random.default_rng(0)
    length = np.broadcast_to(length, n).astype(np.int32)
    second = length // 2 if second is None else np.full(n, second, np.int32)
    at = np.arange(o.seq_len)[None]
    tokens = rng.integers(low, o.vocab_size, (n, o.seq_len))
    tokens = np.where((at == second[:, None] - 1) | (at == length[:, None] - 1), tiny.TOKENIZER.sep, tokens)
    tokens = np.where(at == 0, tiny.TOKENIZER.cls, np.where(at < length[:, None], tokens, tiny.TOKENIZER.pad))
    quota = np.array([min(o.predictions, max(1, round(o.mask_prob * int(k)))) for k in length], np.int32)
    out = {
        "tokens": tokens.astype(np.uint16),
        "length": length,
        "segment_b": second,
        "num_masked": quota,
        "nsp_label": np.zeros(n, np.int32),
    }
    return {**out, "continues": tiny.TOKENIZER.continues[tokens]} if o.whole_word else out


@functools.cache
def compiled(o):
    return jax.jit(o.prepare)


def prepare(o, batch, number=0):
    keys = row_keys(jax.random.fold_in(jax.random.key(3), number), jax.numpy.arange(len(batch["tokens"])))
    return jax.device_get(compiled(o)(batch, keys))


def chosen_positions(out):
    """bool[B, T]; no position twice."""
    chosen = np.zeros(out["tokens"].shape, int)
    row, slot = np.nonzero(out["masked"])
    np.add.at(chosen, (row, out["position"][row, slot]), 1)
    assert chosen.max() == 1
    return chosen.astype(bool)


@functools.cache
def many():
    """4,000 rows of 61 tokens, 9 of the 58 that are free masked in each: (objective, batch, prepared)."""
    o = build("mlm_nsp", seq_len=64, max_predictions=20)
    batch = mask_batch(o, 4000, 61)
    return o, batch, prepare(o, batch)


def fate(o, out):
    """Of each masked token: 0 became [MASK], 1 kept, 2 another id."""
    rows = np.arange(len(out["tokens"]))[:, None]
    new = out["tokens"][rows, out["position"]]
    return np.where(new == o.mask_id, 0, np.where(new == out["target"], 1, 2))[out["masked"] > 0]


def test_eighty_ten_ten():
    o, _, out = many()
    share, v = fate(o, out), o.vocab_size  # the random id may be [MASK], or the token itself
    expected = np.array([0.8 + 0.1 / v, 0.1 + 0.1 / v, 0.1 * (v - 2) / v]) * len(share)
    assert len(share) == 9 * 4000
    assert stats.chisquare(np.bincount(share), expected).pvalue > FIT


def test_what_becomes_of_a_token_does_not_depend_on_its_place():
    """Three draws a row: where, how, what."""
    o, _, out = many()
    place = out["position"][out["masked"] > 0]
    slot = np.nonzero(out["masked"])[1]
    for where in (place // 4, slot):
        table = np.stack([np.bincount(where[fate(o, out) == k], minlength=where.max() + 1) for k in range(3)])
        assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > FIT


def test_random_ids_are_any_of_the_vocabulary():
    o, batch, _ = many()
    word = FIRST + 7
    batch = {**batch, "tokens": np.where(batch["tokens"] >= FIRST, word, batch["tokens"]).astype(np.uint16)}
    out = prepare(o, batch)
    counts = np.bincount(out["tokens"][chosen_positions(out)], minlength=o.vocab_size)
    assert len(counts) == o.vocab_size and counts.all()  # specials, too
    rest = np.delete(counts, [o.mask_id, word])
    assert stats.chisquare(rest).pvalue > FIT


def test_positions_are_uniform_and_never_special():
    _, batch, out = many()
    counts = chosen_positions(out).sum(0)
    free = (np.arange(64) > 0) & (np.arange(64) != 29) & (np.arange(64) < 60)  # [SEP] is at 29 and at 60
    assert (batch["tokens"][0][free] >= FIRST).all() and (batch["tokens"][0][~free] < FIRST).all()
    assert not counts[~free].any()
    # Drawn without replacement: the statistic of 9 out of 58 is smaller than chi-square by this factor.
    n, q = 58, 9
    statistic = stats.chisquare(counts[free]).statistic * (n - 1) / (n - q)
    assert FIT < stats.chi2(n - 1).cdf(statistic) < 1 - FIT
    assert stats.chisquare(np.bincount(out["position"][:, 0], minlength=64)[free]).pvalue > FIT


def test_rows_of_every_length_mask_their_quota():
    o = build("mlm_nsp", seq_len=64, max_predictions=7)
    batch = mask_batch(o, 240, np.resize(np.arange(5, 65), 240))
    out = prepare(o, batch)
    chosen, length = chosen_positions(out), batch["length"]
    want = [min(7, max(1, round(0.15 * int(k)))) for k in length]
    assert set(want) == set(range(1, 8)) and chosen.sum(1).tolist() == want
    assert set(np.unique(out["masked"]).tolist()) == {0, 1} and out["masked"].shape == (240, 7)
    assert (batch["tokens"][chosen] >= FIRST).all()  # neither [CLS], [SEP] nor padding
    # Slots that are not used write nothing.
    assert (out["tokens"] == batch["tokens"])[~chosen].all()
    rows = np.arange(240)[:, None]
    assert (out["target"] == batch["tokens"][rows, out["position"]]).all()


def test_a_quota_above_what_is_free_masks_all_that_is_free():
    o = build("mlm_nsp", seq_len=8, mask_prob=0.9)
    batch = mask_batch(o, 8, 6, second=4)
    assert set(batch["num_masked"]) == {5}
    out = prepare(o, batch)
    assert chosen_positions(out).tolist() == [[False, True, True, False, True, False, False, False]] * 8


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_are_drawn_anew_each_step_and_each_row(whole_word):
    o = build("mlm_nsp", seq_len=32, whole_word=whole_word)
    batch = mask_batch(o, 40, 30, low=FIRST)
    batch = {k: np.repeat(x[:1], 40, 0) for k, x in batch.items()}
    first, again, other = (prepare(o, batch, k) for k in (0, 0, 1))
    for name in first:
        assert np.array_equal(first[name], again[name]), name
    a, b = chosen_positions(first), chosen_positions(other)
    assert (a != b).any(1).mean() > 0.9
    assert len({tuple(r) for r in a}) > 30  # equal rows, masks of their own


def words_of(tokens, length):
    """Positions of each word, in plain Python: a piece belongs to what stands before it, unless that is
    special."""
    words, previous = [], "[CLS]"
    for at in range(1, length):
        token = tiny.TOKENIZER.vocab[tokens[at]]
        if token != "[SEP]":
            if token.startswith("##") and previous not in SPECIALS:
                words[-1].append(at)
            else:
                words.append([at])
        previous = token
    return words


def test_whole_words():
    o = build("mlm_nsp", seq_len=32, whole_word=True)
    batch = mask_batch(o, 400, np.resize(np.arange(6, 33), 400), low=50)  # words and pieces by halves
    out = prepare(o, batch)
    long, skipped, exact = 0, 0, 0
    for tokens, length, quota, chosen in zip(
        batch["tokens"], batch["length"], batch["num_masked"], chosen_positions(out), strict=True
    ):
        words = words_of(tokens, length)
        taken = [w for w in words if chosen[w].any()]
        assert all(chosen[w].all() for w in taken)
        left = quota - sum(map(len, taken))
        assert chosen.sum() == quota - left and left >= 0
        # a word that overshoots is skipped, not the rest
        assert all(len(w) > left for w in words if w not in taken)
        long += any(len(w) > 1 for w in taken)
        skipped += left > 0
        exact += left == 0
    assert long > 50 and skipped > 10 and exact > 200


def test_whole_words_are_drawn_uniformly():
    o = build("mlm_nsp", seq_len=32, whole_word=True)
    batch = mask_batch(o, 2000, 29, second=14)
    at = np.arange(32)
    free = batch["tokens"][0] >= FIRST
    word, piece = tiny.TOKENIZER.vocab.index("w3"), tiny.TOKENIZER.vocab.index("##p3")
    starts = free & (np.where(at < 14, at - 1, at - 14) % 2 == 0)  # 6 and 7 words of two pieces
    tokens = np.where(free, np.where(starts, word, piece), batch["tokens"]).astype(np.uint16)
    batch |= {
        "tokens": tokens,
        "continues": tiny.TOKENIZER.continues[tokens],
        "num_masked": np.full(2000, 2, np.int32),
    }
    counts = chosen_positions(prepare(o, batch)).sum(0)
    assert counts[starts].sum() == 2000 and len(counts[starts]) == 13
    assert stats.chisquare(counts[starts]).pvalue > FIT


# Cutting a corpus into pairs


@functools.cache
def corpus():
    """(source, documents as lists of sentences of ids): word i of the corpus is "w{i}", so that an id tells
    where it was."""
    rng, at, records, documents = random.Random(0), 0, [], []
    while at < 70_000:
        lengths = [rng.randint(1, 12) for _ in range(rng.randint(1, 14))]
        sentences = []
        for n in lengths:
            sentences.append(list(range(at, min(at + n, 70_000))))
            at = min(at + n, 70_000)
        sentences = [s for s in sentences if s]
        texts = [" ".join(f"w{i}" for i in s) for s in sentences]
        if len(documents) % 10 == 0:  # what has no token leaves no trace
            texts.insert(rng.randint(0, len(texts)), " ")
            records.append({"sentences": ["", " "]})
        records.append({"sentences": texts})
        documents.append([[FIRST + i for i in s] for s in sentences])
    return source(records), documents


@functools.cache
def pairs(**values):
    """(objective, rows, all of them as one batch, prepared with `types` and `mask`)."""
    o = build("mlm_nsp", wide(), seq_len=32, **values)
    rows = o.rows(corpus()[0], wide())
    batch = rows.batch(np.arange(len(rows)))
    return o, rows, batch, with_types(batch)


def segments(row, length, second):
    return row[1 : second - 1].tolist(), row[second : length - 1].tolist()


def google(documents, d, room, short_prob, rng):
    """Google's loop over lists: [(A, B, is random)] of document `d`, before nothing is left to cut."""
    pending, out, chunk = list(documents[d]), [], []
    target = rng.randint(2, room) if rng.random() < short_prob else room
    while pending:
        chunk.append(pending.pop(0))
        if pending and sum(map(len, chunk)) < target:
            continue
        n = 1 if len(chunk) == 1 else rng.randint(1, len(chunk) - 1)
        a, rest = flat(chunk[:n]), chunk[n:]
        randomly = not rest or rng.random() < 0.5
        if randomly:
            for _ in range(10):
                other = rng.randint(0, len(documents) - 1)
                if other != d:
                    break
            b = []
            for sentence in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
                b += sentence
                if len(b) >= target - len(a):
                    break
            pending = rest + pending
        else:
            b = flat(rest)
        while len(a) + len(b) > room:
            longer = a if len(a) > len(b) else b
            longer.pop(0 if rng.random() < 0.5 else -1)
        out.append((a, b, int(randomly)))
        chunk = []
    return out


def test_the_corpus_of_these_tests():
    tokens = [i for d in corpus()[1] for s in d for i in s]
    docs = pairs()[1].docs
    assert tokens == list(range(FIRST, FIRST + 70_000)) and max(tokens) > 65_535
    assert docs.tokens.dtype == np.uint32 and docs.tokens.tolist() == tokens
    assert np.diff(docs.document).tolist() == [len(d) for d in corpus()[1]] and len(docs) > 1000
    assert np.diff(docs.sentence).tolist() == [len(s) for d in corpus()[1] for s in d]


def test_rows_are_those_of_googles_loop():
    """The same generator, the same rows, to the token."""
    _, rows, batch, _ = pairs()
    want = [
        r for d in range(len(corpus()[1])) for r in google(corpus()[1], d, 29, 0.1, random.Random(f"0 {d}"))
    ]
    got = [
        (*segments(*r[:3]), int(r[3]))
        for r in zip(batch["tokens"], batch["length"], batch["segment_b"], batch["nsp_label"], strict=True)
    ]
    assert len(got) == len(rows) == len(want) and got == want


def test_the_share_of_random_pairs_is_googles():
    """Generators of its own: what counts is the distribution, of the label and of the lengths of A and B."""
    _, rows, batch, _ = pairs(passes=2)
    rng = random.Random(99)
    other = [
        r for _ in range(2) for d in range(len(corpus()[1])) for r in google(corpus()[1], d, 29, 0.1, rng)
    ]
    ours, theirs = int(batch["nsp_label"].sum()), sum(r[2] for r in other)
    assert rows.notes["random_next"] == ours > 0.5 * len(rows)  # one sentence alone always gets a random one
    assert (
        stats.chi2_contingency(
            [[ours, len(rows) - ours], [theirs, len(other) - theirs]], correction=False
        ).pvalue
        > FIT
    )
    a, b = batch["segment_b"] - 2, batch["length"] - batch["segment_b"] - 1
    for mine, its in ((a, [len(r[0]) for r in other]), (b, [len(r[1]) for r in other])):
        table = np.stack([np.bincount(mine, minlength=30), np.bincount(its, minlength=30)])
        assert stats.chi2_contingency(table[:, table.sum(0) > 10]).pvalue > FIT


def test_layout():
    """[CLS] A [SEP] B [SEP] and padding, with types and mask to match."""
    o, rows, batch, out = pairs()
    t = wide()
    assert (out["tokens"] == batch["tokens"]).all() and out["tokens"].max() > 65_535
    for tokens, length, second, types, mask in zip(
        *(out[k] for k in ("tokens", "length", "segment_b", "types", "mask")), strict=True
    ):
        a, b = segments(tokens, length, second)
        assert tokens.tolist() == [t.cls, *a, t.sep, *b, t.sep] + [t.pad] * (32 - length)
        assert a and b and min(a + b) >= FIRST
        assert types.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (32 - length)
        assert mask.tolist() == [True] * length + [False] * (32 - length)
    assert batch["length"].max() == 32 and (batch["length"] < 32).any()
    example = o.example(len(rows))
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in example.items()
    }


def test_label_0_is_what_really_follows_and_label_1_is_from_elsewhere():
    document = np.concatenate([np.full(sum(map(len, d)), n) for n, d in enumerate(corpus()[1])])
    begins = np.cumsum([0] + [len(s) for d in corpus()[1] for s in d])
    _, _, batch, _ = pairs()
    shortened = 0
    for tokens, length, second, random_next in zip(
        *(batch[k] for k in ("tokens", "length", "segment_b", "nsp_label")), strict=True
    ):
        a, b = (np.array(s) - FIRST for s in segments(tokens, length, second))
        for part in (a, b):
            assert (np.diff(part) == 1).all() and (document[part] == document[part[0]]).all()
        if random_next:
            assert document[a[0]] != document[b[0]]
        else:
            assert document[a[0]] == document[b[0]] and b[0] > a[-1]
            gap = range(a[-1] + 1, b[0] + 1)  # tokens that truncation took, around where a sentence ends
            assert any(begins[np.searchsorted(begins, g)] == g for g in gap)
            assert len(gap) == 1 or length == 32
            shortened += len(gap) > 1
    assert shortened > 20 and 0 < batch["nsp_label"].mean() < 1


def test_ten_tries_to_find_another_document():
    """Of two documents the wrong one comes up all ten times in one row of 1024; of four, never here."""
    for n, few in ((2, range(1, 9)), (4, range(1))):
        docs = documents(5, 5, 5, 5, times=n)
        lists = [[list(range(20 * d + s, 20 * d + s + 5)) for s in (0, 5, 10, 15)] for d in range(n)]
        same = 0
        for seed in range(1200):
            rows = _documents.cut_pairs(docs, 1, 13, 0.1, random.Random(seed))
            want = google(lists, 1, 13, 0.1, random.Random(seed))
            assert [(list(range(r[A0], r[A1])), list(range(r[B0], r[B1])), r[RANDOM]) for r in rows] == want
            same += sum(r[RANDOM] and r[B0] // 20 == 1 for r in rows)
        assert same in few


def test_a_single_document_has_no_other_to_draw_from():
    one = source([{"sentences": ["w1 w2 w3", "w4 w5 w6 w7"] * 20}])
    with pytest.raises(UserError, match="one document; put a blank line"):
        build("mlm_nsp", seq_len=16).rows(one, tiny.TOKENIZER)
    assert len(build("mlm_nsp", seq_len=16, nsp=False).rows(one, tiny.TOKENIZER)) > 5
    o = build("mlm_nsp", seq_len=16)
    with pytest.raises(UserError, match="no text"):
        o.rows(source([{"sentences": ["", " "]}]), tiny.TOKENIZER)


@pytest.mark.parametrize(("nsp", "max_predictions"), [(True, 0), (True, 3), (False, 0)])
def test_the_quota_of_rows_counts_specials(nsp, max_predictions):
    o, _, batch, _ = pairs(nsp=nsp, max_predictions=max_predictions)
    assert o.predictions == (max_predictions or 5)  # 4.8, rounded up
    assert batch["num_masked"].tolist() == [
        min(o.predictions, max(1, round(0.15 * int(n)))) for n in batch["length"]
    ]
    assert len(set(batch["num_masked"])) > 2
    others = [min(o.predictions, max(1, round(0.15 * (int(n) - 3)))) for n in batch["length"]]
    assert batch["num_masked"].tolist() != others


def test_whole_word_rows_know_their_pieces():
    o = build("mlm_nsp", seq_len=16, whole_word=True)
    batch = o.rows(source([{"sentences": ["w1p1 w2 w3p4p5", "w7"]}] * 3), tiny.TOKENIZER).batch(np.arange(3))
    assert batch["continues"].sum() >= 9
    want = [[tiny.TOKENIZER.vocab[i].startswith("##") for i in row] for row in batch["tokens"]]
    assert batch["continues"].tolist() == want
    assert batch.keys() == o.example(3).keys()


def test_a_pretraining_that_has_nothing_to_tell_is_said():
    lines = source([{"sentences": ["w1 w2 w3 w4 w5 w6"]}] * 9)
    (said,) = build("mlm_nsp", seq_len=32).rows(lines, tiny.TOKENIZER).doubts
    assert (
        said.startswith("100% of next sentences are random, as every document is one sentence")
        and "format='paragraphs'" in said
    )
    texts = source([{"sentences": ["w1 w2 w3 w4 w5 w6"] * 4}] * 9)
    assert "objective.seq_len is short" in build("mlm_nsp", seq_len=8).rows(texts, tiny.TOKENIZER).doubts[0]
    assert not build("mlm_nsp", seq_len=32).rows(texts, tiny.TOKENIZER).doubts
    assert not build("mlm_nsp", seq_len=32, nsp=False).rows(lines, tiny.TOKENIZER).doubts
    (said,) = build("mlm_nsp", seq_len=32, whole_word=True).rows(texts, tiny.TOKENIZER).doubts
    assert (
        said.startswith("objective.whole_word: 0.0% of the text's tokens go on with a word")
        and "whole_word='jieba'" in said
    )
    assert (
        not build("mlm_nsp", seq_len=32, whole_word=True)
        .rows(source([{"sentences": ["w1p1 w2"] * 4}] * 9), tiny.TOKENIZER)
        .doubts
    )


def test_chinese_words_are_masked_together():
    pytest.importorskip("jieba", reason="Chinese words need jieba")
    texts = ["他在北京大学学习，用 Python3 。", "北京大学很大。", "\u200b"]
    tokenizer = train_tokenizer.train(texts, 200)
    o = build("mlm_nsp", tokenizer, seq_len=40, nsp=False, whole_word="jieba", short_prob=0.0)
    batch = o.rows(source([{"sentences": texts}]), tokenizer).batch(np.arange(1))
    tokens, marks = tokenizer.tokens(batch["tokens"][0]), batch["continues"][0]
    assert [t for t, goes_on in zip(tokens, marks, strict=True) if goes_on and not t.startswith("##")] == [
        *"京大学习",
        *"京大学大",
    ]
    assert all(goes_on for t, goes_on in zip(tokens, marks, strict=True) if t.startswith("##"))


def test_chinese_words_need_jieba(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(
        UserError, match=r"objective.whole_word='jieba' needs jieba; .* pip install 'ptft\[zh\]'"
    ):
        build("mlm_nsp", seq_len=16, whole_word="jieba").rows(
            source([{"sentences": ["w1", "w2"]}] * 3), tiny.TOKENIZER
        )


def test_one_segment():
    """nsp=False: [CLS] text [SEP], every token of the corpus once, documents apart."""
    o, rows, batch, out = pairs(nsp=False)
    t, seen = wide(), []
    for tokens, length in zip(batch["tokens"], batch["length"], strict=True):
        text = tokens[1 : length - 1].tolist()
        assert text and tokens.tolist() == [t.cls, *text, t.sep] + [t.pad] * (32 - length)
        seen.append(text)
    assert flat(seen) == list(range(FIRST, FIRST + 70_000))
    starts = {d[0][0] for d in corpus()[1]}
    assert starts <= {s[0] for s in seen}
    assert (
        (batch["segment_b"] == batch["length"]).all()
        and not out["types"].any()
        and not batch["nsp_label"].any()
    )
    assert batch["length"].max() == 32 and rows.notes["random_next"] == 0
    assert o.loss == ("mlm_loss",)


@pytest.mark.parametrize("nsp", [True, False])
def test_rows_are_the_same_each_time_and_other_rows_each_pass(nsp):
    o, rows, _, _ = pairs(nsp=nsp)
    again = o.rows(corpus()[0], wide())
    assert np.array_equal(again.ranges, rows.ranges)
    index = np.array([5, 3, 5])
    for name, x in rows.batch(index).items():
        assert np.array_equal(x, again.batch(index)[name]) and np.array_equal(x[0], x[2]), name
    twice = pairs(nsp=nsp, passes=2)[1].ranges
    first, second = twice[: len(rows)], twice[len(rows) :]
    assert np.array_equal(first, rows.ranges)
    # Documents that fit one row are cut alike when there is one segment.
    assert len({*map(tuple, second)} - {*map(tuple, first)}) > (0.8 if nsp else 0.04) * len(second)


def documents(*lengths, times):
    """`times` documents, each of sentences of these lengths."""
    sentence = np.cumsum([0, *(list(lengths) * times)])
    return _documents.Documents(np.arange(sentence[-1]), sentence, np.arange(times + 1) * len(lengths))


@pytest.mark.parametrize("short_prob", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("cut", [_documents.cut_pairs, _documents.cut_single])
def test_some_documents_are_cut_short(cut, short_prob):
    """With sentences of one token the first row, unless its B is random, is as long as the target."""
    room, n = 13, 4000
    docs = documents(*[1] * 30, times=n)
    first = [cut(docs, d, room, short_prob, random.Random(d))[0] for d in range(n)]
    length = [r[A1] - r[A0] + r[B1] - r[B0] for r in first if not r[RANDOM]]
    counts = np.bincount(length, minlength=room + 1)
    assert len(length) > 0.45 * n and not counts[:2].any()
    if short_prob == 0:
        assert set(length) == {room}
    else:
        expected = np.full(room - 1, short_prob / (room - 1))
        expected[-1] += 1 - short_prob
        assert stats.chisquare(counts[2:], expected * len(length)).pvalue > FIT


def test_truncation_takes_from_the_longer_side_at_either_end():
    """A of 12 and B of 20 must fit 13: B gives 14, A gives 5, each from its front or its back."""
    docs = documents(12, 20, times=3000)
    rows = [r for d in range(3000) for r in _documents.cut_pairs(docs, d, 13, 0.0, random.Random(d))]
    assert {(r[A1] - r[A0], r[B1] - r[B0]) for r in rows} == {(7, 6)}
    start = docs.sentence
    real = np.array([r for r in rows if not r[RANDOM]])
    first = np.searchsorted(start, real[:, A0], "right") - 1
    for front, gives in ((real[:, A0] - start[first], 5), (real[:, B0] - start[first + 1], 14)):
        counts = np.bincount(front, minlength=gives + 1)
        expected = stats.binom(gives, 0.5).pmf(np.arange(gives + 1)) * len(real)
        usual = expected > 5
        assert len(counts) == gives + 1
        assert (
            stats.chisquare(
                [*counts[usual], counts[~usual].sum() + 1e-9],
                [*expected[usual], expected[~usual].sum() + 1e-9],
            ).pvalue
            > FIT
        )
    # The shorter side is not touched while the other is longer.
    docs = documents(3, 20, times=200)
    rows = [_documents.cut_pairs(docs, d, 13, 0.0, random.Random(d))[0] for d in range(200)]
    real = [r for r in rows if not r[RANDOM]]
    assert len(real) > 60 and {(r[A1] - r[A0], r[B1] - r[B0]) for r in real} == {(3, 10)}


# Losses


def softmax_loss(logits, label):
    return special.logsumexp(logits, axis=-1) - np.take_along_axis(logits, label[..., None], -1)[..., 0]


def forward(model, task):
    """(net, params, batch with two rows that do not count, inputs, backbone outputs, sums), numbers in
    float64."""
    net = tiny.net(model, task, dropout=0.0)
    params = tiny.params(net)
    # large enough to tell one GELU from the other
    params |= {n: 4 * params[n] for n in params if n.startswith("head/")}
    batch = tiny.batch(net, 6)
    batch["weight"][[1, 4]] = 0
    key = jax.random.key(1)

    def run(params, batch):
        inputs = net.objective.prepare(batch, row_keys(key, batch["example_id"]))
        return (
            inputs,
            net.backbone.apply({"params": tree.unflatten(params)["backbone"]}, inputs),
            net.sums(params, batch, key),
        )

    inputs, outputs, sums = jax.device_get(jax.jit(run)(params, batch))
    return params, batch, inputs, {k: np.asarray(x, np.float64) for k, x in outputs.items()}, sums


@pytest.mark.parametrize(
    ("model", "table"),
    [("bert", "backbone/embeddings/word/embedding"), ("lstm", "backbone/embeddings/embedding")],
)
def test_pretraining_loss_in_numpy(model, table):
    params, batch, inputs, outputs, sums = forward(model, "mlm_nsp")
    p = {k.removeprefix("head/"): np.asarray(x, np.float64) for k, x in params.items()}
    loss, hit, weight = 0.0, 0, 0
    for row in np.flatnonzero(batch["weight"]):
        for slot in range(int(batch["num_masked"][row])):
            at = inputs["position"][row, slot]
            x = outputs["hidden"][row, at] @ p["transform/kernel"] + p["transform/bias"]
            x = x * 0.5 * (1 + special.erf(x / math.sqrt(2)))
            x = (x - x.mean()) / math.sqrt(x.var() + 1e-12) * p["norm/scale"] + p["norm/bias"]
            logits = p[table] @ x + p["decoder/bias"]
            truth = batch["tokens"][row, at].astype(int)
            loss, hit, weight = (
                loss + softmax_loss(logits, truth),
                hit + (logits.argmax() == truth),
                weight + 1,
            )
    assert weight == sums["mlm_loss"][1] == sums["mlm_accuracy"][1] > 4
    assert sums["mlm_loss"][0] == pytest.approx(loss, rel=1e-6) and sums["mlm_accuracy"][0] == hit
    logits = outputs["pooled"] @ p["nsp/kernel"] + p["nsp/bias"]
    valid = batch["weight"] > 0
    assert sums["nsp_loss"] == (
        pytest.approx(softmax_loss(logits, batch["nsp_label"])[valid].sum(), rel=2e-5),
        4,
    )
    assert sums["nsp_accuracy"] == ((logits.argmax(-1) == batch["nsp_label"])[valid].sum(), 4)


def test_pretraining_accuracy_counts_the_tokens_found():
    o = build("mlm_nsp", seq_len=16, max_predictions=2)
    logits = np.zeros((3, 2, o.vocab_size), np.float32)
    logits[[0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], [9, 8, 7, 6, 5, 5]] = 3
    nsp = np.array([[2, 1], [2, 1], [2, 1]], np.float32)
    batch = {
        "target": np.array([[9, 9], [7, 6], [5, 5]], np.int32),
        "masked": np.array([[1, 1], [1, 0], [1, 1]], np.float32),
        "nsp_label": np.array([0, 1, 0], np.int32),
        "weight": np.array([1, 1, 0], np.float32),
    }
    got = o.metrics(jax.device_get(jax.jit(o.sums)({"mlm": logits, "nsp": nsp}, batch)))
    assert got["mlm_accuracy"] == pytest.approx(2 / 3) and got["nsp_accuracy"] == 0.5


def test_classification_loss_in_numpy():
    params, batch, _, outputs, sums = forward("bert", "classify")
    logits = outputs["pooled"] @ params["head/classifier/kernel"] + params["head/classifier/bias"]
    valid = batch["weight"] > 0
    assert sums["loss"] == (pytest.approx(softmax_loss(logits, batch["label"])[valid].sum(), rel=2e-5), 4)
    table = np.zeros((3, 3))
    np.add.at(table, (batch["label"][valid], logits.argmax(-1)[valid]), 1)
    assert sums["counts"][0].tolist() == [
        table.sum(1).tolist(),
        table.sum(0).tolist(),
        np.diag(table).tolist(),
    ]


# Reports


@pytest.mark.parametrize(
    ("name", "values"), [("classify", {}), ("tag", {}), ("mlm_nsp", {}), ("mlm_nsp", {"nsp": False})]
)
def test_every_metric_has_a_direction(name, values):
    o = build(name, labels=("B-X", "I-X", "O"), seq_len=16, **values)
    net = tiny.net("bert", name)._replace(
        objective=o, head=o.head(jnp.float32, tiny.net("bert").backbone.style)
    )
    known = build_metrics(net)
    assert o.best in known and o.lower_is_better == {m for m in known if objectives.falls(o, m)}
    assert o.lower_is_better == {m for m in known if m.endswith(("loss", "perplexity"))}


def test_pretraining_report():
    sums = {
        "mlm_loss": (6.0, 4.0),
        "mlm_accuracy": (1.0, 4.0),
        "nsp_loss": (3.0, 2.0),
        "nsp_accuracy": (1.0, 2.0),
    }
    want = {
        "mlm_loss": 1.5,
        "mlm_accuracy": 0.25,
        "nsp_loss": 1.5,
        "nsp_accuracy": 0.5,
        "loss": 3.0,
        "perplexity": math.exp(1.5),
    }
    assert build("mlm_nsp").metrics(sums) == pytest.approx(want)
    alone = {k: s for k, s in sums.items() if k.startswith("mlm")}
    want = {"mlm_loss": 1.5, "mlm_accuracy": 0.25, "loss": 1.5, "perplexity": math.exp(1.5)}
    assert build("mlm_nsp", nsp=False).metrics(alone) == pytest.approx(want)
    assert math.isnan(
        build("mlm_nsp", nsp=False).metrics({"mlm_loss": (0.0, 0.0), "mlm_accuracy": (0.0, 0.0)})[
            "perplexity"
        ]
    )


def classified(label, said, k):
    """The report of examples whose classes and predictions these are, in two batches with rows that do not
    count."""
    o = build("classify", labels=tuple(map(str, range(k))))
    sums = None
    for part in (slice(None, 2), slice(2, None)):
        y, x = ([*v[part], 0] for v in (label, said))
        batch = {"label": np.array(y, np.int32), "weight": np.array([1] * (len(y) - 1) + [0], np.float32)}
        sums = record.add(sums, jax.jit(o.sums)(np.eye(k, dtype=np.float32)[x], batch))
    return o.metrics(jax.device_get(sums))


def test_binary_metrics():
    label, said = [1] * 7 + [0] * 5, [1] * 4 + [0] * 3 + [1] + [0] * 4
    tp, fn, fp, tn = 4, 3, 1, 4
    got = classified(label, said, 2)
    f1 = [2 * t / (2 * t + fn + fp) for t in (tp, tn)]
    assert got["accuracy"] == pytest.approx(8 / 12) and got["macro_f1"] == pytest.approx(sum(f1) / 2)
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert got["matthews"] == pytest.approx(matthews)
    loss = math.log(math.e + 1) - np.equal(label, said).mean()
    assert got["loss"] == pytest.approx(loss)


def test_metrics_of_three_classes():
    rng = np.random.default_rng(0)
    label = rng.choice(3, 60, p=[0.6, 0.3, 0.1])
    said = np.where(rng.random(60) < 0.6, label, rng.choice(3, 60))
    got = classified(label.tolist(), said.tolist(), 3)
    f1 = []
    for k in range(3):
        precision, recall = (label[said == k] == k).mean(), (said[label == k] == k).mean()
        f1.append(2 * precision * recall / (precision + recall))
    y, x = (np.eye(3)[v] - np.eye(3)[v].mean(0) for v in (label, said))
    matthews = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())  # the correlation of one-hot vectors
    assert got["accuracy"] == pytest.approx((label == said).mean())
    assert got["macro_f1"] == pytest.approx(np.mean(f1)) and got["matthews"] == pytest.approx(matthews)
    assert 0.2 < matthews < 0.9


def test_what_classes_cost_grows_with_their_number_and_not_with_its_square():
    """Beside the predictions themselves, which the head makes."""
    k, batch = 3000, 8
    o = build("classify", labels=tuple(map(str, range(k))))
    shapes = (
        jax.ShapeDtypeStruct((batch, k), np.float32),
        {"label": np.zeros(batch, np.int32), "weight": np.ones(batch, np.float32)},
    )
    compiled = jax.jit(o.sums).lower(*shapes).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 20 * batch * k * 4 < k * k
    label = np.random.default_rng(0).integers(0, k, 200)
    got = classified(label.tolist(), np.where(np.arange(200) % 4, label, 0).tolist(), k)
    assert got["accuracy"] == pytest.approx(0.75, abs=0.01) and 0.7 < got["matthews"] < 0.8


def test_sums_that_an_older_version_left_in_a_checkpoint_count():
    """It kept a table of true against predicted classes, and a resumed run's next line of the log is of
    both."""
    o = build("classify", labels=("a", "b", "c"))
    table = np.array([[3, 1, 0], [0, 2, 2], [1, 0, 4]], np.float32)
    counts = np.stack([table.sum(1), table.sum(0), np.diag(table)])
    both = o.metrics({"loss": (6.0, 26.0), "counts": (counts, 2.0), "confusion": (table, 1.0)})
    assert (
        both == o.metrics({"loss": (6.0, 26.0), "counts": (2 * counts, 3.0)}) and both["accuracy"] == 9 / 13
    )


def test_metrics_at_the_edge():
    one = classified([0, 0, 1], [0, 0, 0], 2)  # a constant says nothing
    assert one == {
        "loss": one["loss"],
        "accuracy": pytest.approx(2 / 3),
        "macro_f1": pytest.approx(0.4),
        "matthews": 0.0,
    }
    single = classified([1, 1, 1], [1, 1, 1], 3)  # a class that neither occurs nor is predicted has no F1
    assert single["macro_f1"] == single["accuracy"] == 1 and single["matthews"] == 0
    perfect, wrong = classified([0, 1, 0, 1], [0, 1, 0, 1], 2), classified([0, 1, 0, 1], [1, 0, 1, 0], 2)
    assert (perfect["matthews"], perfect["macro_f1"]) == (1, 1) and (
        wrong["matthews"],
        wrong["macro_f1"],
    ) == (-1, 0)
    empty = classified([], [], 2)
    assert all(math.isnan(empty[k]) for k in ("loss", "accuracy", "macro_f1")) and empty["matthews"] == 0


# Rows of texts


def text_rows(records, tokenizer=tiny.TOKENIZER, **values):
    """(rows, [(ids without padding, types)])."""
    o = build("classify", tokenizer, **values)
    rows = o.rows(source(records), tokenizer)
    batch = rows.batch(np.arange(len(rows)))
    example = o.example(len(rows))
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in example.items()
    }
    out = with_types(batch)
    for tokens, mask, types in zip(out["tokens"], out["mask"], out["types"], strict=True):
        assert (
            (tokens[~mask] == tokenizer.pad).all()
            and not types[~mask].any()
            and (np.diff(mask.astype(int)) <= 0).all()
        )
    return rows, [
        (t[m].tolist(), y[m].tolist())
        for t, m, y in zip(out["tokens"], out["mask"], out["types"], strict=True)
    ]


def words(start, n):
    return " ".join(f"w{i}" for i in range(start, start + n))


def twice_separated(tmp):
    """RoBERTa's kind: `<s> a </s> </s> b </s>`, over whole words."""
    vocab = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *tiny.WORDS])}
    hf = Library(models.WordLevel(vocab, unk_token="<unk>"))
    hf.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(t, vocab[t]) for t in ("<s>", "</s>")]
    hf.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    hf.save(str(tmp / "tokenizer.json"))
    return tokenizer_files.load(tmp)


@pytest.mark.parametrize("truncate", ["head", "tail"])
@pytest.mark.parametrize(("separators", "seq_len"), [(1, 3), (1, 9), (1, 10), (2, 4), (2, 9), (2, 10)])
def test_pairs_are_cut_as_transformers_cuts(separators, seq_len, truncate, tmp_path):
    """The longer text is shortened; of an odd number of places it gets one more, and of two alike the second
    does."""
    ours = tiny.TOKENIZER if separators == 1 else twice_separated(tmp_path)
    sizes = [(a, b) for a in range(13) for b in range(13)]
    texts = [(words(0, a), words(30, b)) for a, b in sizes]
    rows, got = text_rows(
        [{"text": a, "text_b": b, "label": 1} for a, b in texts], ours, seq_len=seq_len, truncate=truncate
    )
    ours.save(tmp_path)
    theirs = Library.from_file(str(tmp_path / "tokenizer.json"))
    theirs.enable_truncation(
        seq_len, strategy="longest_first", direction={"head": "right", "tail": "left"}[truncate]
    )
    assert [tokens for tokens, _ in got] == [e.ids for e in theirs.encode_batch(texts)]
    room = seq_len - 2 - separators
    assert rows.notes == {"truncated": sum(a + b > room for a, b in sizes), "empty": 13} and len(rows) == 169
    # text_b of the longest pair
    assert [sum(types) for _, types in got][13 * 12 + 12] == 1 + room - room // 2
    if room % 2:
        kept = [len(tokens) - sum(types) - 1 - separators for tokens, types in got]
        assert (kept[13 * 12 + 11], kept[13 * 11 + 12]) == (room // 2 + 1, room // 2)


def test_a_row_without_room_for_separators(tmp_path):
    with pytest.raises(
        UserError, match=r"objective\.seq_len=3 has no room for the separators of a pair; expected 4 or more"
    ):
        text_rows([{"text": "w1", "text_b": "w2", "label": 1}], twice_separated(tmp_path), seq_len=3)


@pytest.mark.parametrize(("truncate", "kept"), [("head", range(6)), ("tail", range(4, 10))])
def test_long_texts_keep_one_end(truncate, kept):
    rows, got = text_rows(
        [{"text": words(0, n), "label": n % 3} for n in (10, 6, 0, 2)], seq_len=8, truncate=truncate
    )
    cls, sep = tiny.TOKENIZER.cls, tiny.TOKENIZER.sep
    want = [[FIRST + i for i in kept], [FIRST + i for i in range(6)], [], [FIRST, FIRST + 1]]
    assert got == [([cls, *w, sep], [0] * (len(w) + 2)) for w in want]
    assert rows.notes == {"truncated": 1, "empty": 1}
    batch = rows.batch(np.array([2, 0]))  # in any order
    assert batch["label"].tolist() == [0, 1] and batch["length"].tolist() == [2, 8]
    assert batch["tokens"][0].tolist() == [cls, sep] + [tiny.TOKENIZER.pad] * 6


def test_a_blank_is_one_mask_in_the_middle_of_what_is_kept():
    t, texts = tiny.TOKENIZER, [f"{words(0, a)} ___ {words(30, b)}" for a in range(9) for b in range(9)]
    rows, got = text_rows([{"text": text, "label": 0} for text in texts], seq_len=8, blank="___")
    for (a, b), (tokens, _) in zip(((a, b) for a in range(9) for b in range(9)), got, strict=True):
        whole = [*range(FIRST, FIRST + a), t.mask, *range(FIRST + 30, FIRST + 30 + b)]
        at = min(max(a - 3, 0), max(len(whole) - 6, 0))
        assert tokens == [t.cls, *whole[at : at + 6], t.sep] and tokens.count(t.mask) == 1
    assert rows.notes["truncated"] == sum(a + b > 5 for a in range(9) for b in range(9))
    for text in ("w1 w2", "w1 ___ w2 ___"):
        with pytest.raises(
            UserError, match=r"line 1: expected '___' \(objective.blank\) once.*it is [02] times in 'w1"
        ):
            text_rows([{"text": text}], blank="___")
    assert len(text_rows([], blank="___")[0]) == 0


def test_the_class_is_read_at_the_blank():
    hidden, tokens = jnp.arange(24.0).reshape(2, 3, 4), jnp.array([[5, 4, 6], [4, 9, 9]])
    assert classify.at_blank(hidden, tokens, 4).tolist() == [hidden[0, 1].tolist(), hidden[1, 0].tolist()]
    head = classify.Head(2, 0.0, np.float32, 4)
    params = head.init(jax.random.key(0), {"hidden": hidden}, {"tokens": tokens}, False)
    elsewhere = hidden.at[0, 0].set(0).at[0, 2].set(0)
    a, b = (head.apply(params, {"hidden": h}, {"tokens": tokens}, False) for h in (hidden, elsewhere))
    assert a.shape == (2, 2) and np.array_equal(a, b)


def test_ids_above_16_bits_do_not_wrap():
    assert objectives.token_dtype(65_536) == np.uint16 and objectives.token_dtype(65_537) == np.uint32
    assert [np.array([n - 1]).astype(objectives.token_dtype(n)).item() for n in (65_536, 65_537)] == [
        65_535,
        65_536,
    ]
    _, got = text_rows([{"text": "w1 w65530 w65531 w69999", "label": 0}], wide(), seq_len=8)
    assert got[0][0] == [wide().cls, 6, 65_535, 65_536, 70_004, wide().sep]


def test_classes_and_labels_that_cannot_be():
    with pytest.raises(UserError, match="at least two classes"):
        build("classify", labels=("only",))
    for label in (-1, 3):
        with pytest.raises(UserError, match=rf"line 2: label {label} is outside 0 … 2"):
            text_rows([{"text": "w1", "label": 2}, {"text": "w1", "label": label}])
    rows, got = text_rows([{"text": "w1"}])  # to predict
    assert len(rows) == len(got) == 1
    assert isinstance(rows, classify.TextRows) and isinstance(rows, objectives.Rows)
    assert len(text_rows([])[0]) == 0
