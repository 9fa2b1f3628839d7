"""Tags of words: files, rows, entities, a run that learns, and its way out and in."""

import json
import re
import shutil
from pathlib import Path

import flow
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

from ptft import data, objectives
from ptft.core import checkpoint, config, record
from ptft.core.errors import UserError
from ptft.data import Source
from ptft.hub import config_json, folders, read, write
from ptft.inputs import tokenizer_files
from ptft.objectives.tag import NONE
from ptft.train import build, dataset, spec
from ptft.train.net import Net, row_keys

GOLDEN = Path(__file__).parent / "golden" / "hub"
IOB = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
CONLL = "-DOCSTART- -X- O\n\nAnn NNP B-PER\nLee NNP I-PER\nsleeps VB O\n\n\n Paris NNP B-LOC\r\n"


def load(path: Path, known: tuple[str, ...] = (), **options: object) -> Source:
    return data.load(f"files:{path}", config.resolve(options, data.SPEC), known)


def write_text(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def objective(tokenizer=tiny.TOKENIZER, labels=IOB, **values):
    values = {"name": "tag", "seq_len": 8, **values}
    return objectives.build(config.resolve(values, objectives.spec(values)), tokenizer, labels)


def source(*sentences: str) -> Source:
    """Sentences such as "w1/0 w2/3": words with the numbers of their tags."""
    pairs = [[token.rsplit("/", 1) for token in s.split(" ")] for s in sentences]
    records = [
        {"words": [w for w, _ in p], "tags": [int(t) for _, t in p], "where": f"line {i}"}
        for i, p in enumerate(pairs, 1)
    ]
    return Source(records, (), "", {})


# Files


def test_words_and_tags_of_a_file(tmp_path):
    found = load(write_text(tmp_path / "train", CONLL), format="conll")
    assert found.labels == ("B-LOC", "B-PER", "I-PER", "O")
    assert [(r["words"], r["tags"], r["where"][-2:]) for r in found.records] == [
        (["Ann", "Lee", "sleeps"], [1, 2, 3], ":3"),
        (["Paris"], [0], ":8"),
    ]
    assert found.notes == {"records": 2}


@pytest.mark.parametrize("name", ["x.conll", "x.iob", "x.bio"])
def test_the_format_of_a_suffix(tmp_path, name):
    assert (
        load(write_text(tmp_path / name, CONLL)).labels
        == load(write_text(tmp_path / "x", CONLL), format="conll").labels
    )


def test_tabs_leave_spaces_in_a_word(tmp_path):
    found = load(write_text(tmp_path / "x.conll", "New York\tB-LOC\n#\tx\tO\n\u00a0\tO\n\n1\u00a0000 O\n"))
    assert [r["words"] for r in found.records] == [["New York", "#", "\u00a0"], ["1\u00a0000"]]


def test_fingerprint_is_of_words_and_tags(tmp_path):
    texts = {
        "a": "x O\ny B-A\n",
        "b": "x\tNN\tO\ny\tNN\tB-A\n",
        "c": "x O\n\ny B-A\n",
        "d": "x B-A\ny O\n",
        "e": "x O\nz B-A\n",
    }
    prints = {
        name: load(write_text(tmp_path / name, text), format="conll").fingerprint
        for name, text in texts.items()
    }
    assert prints["a"] == prints["b"] and len(set(prints.values())) == 4
    assert load(tmp_path / "a", format="conll", labels=("O", "B-A")).fingerprint != prints["a"]


def test_numbers_as_tags_are_sorted_as_numbers(tmp_path):
    assert load(write_text(tmp_path / "x.conll", "a 10\nb 9\nc 2\n")).labels == ("2", "9", "10")


BAD = {
    "no tag": (
        "a O\nb\n\nc O\n",
        r":2: expected a word and its tag, with a tab or a space between them, got 'b' "
        r"\(data.on_bad_row='skip'",
    ),
    "an empty tag": ("a O\nb\t\n\nc O\n", ":2: expected a word and its tag, .* got"),
    "an empty word": ("a O\n\tO\n\nc O\n", ":2: expected a word and its tag"),
    "other bytes": (b"a O\n\xff O\n\nc O\n", ":2: expected UTF-8, got other bytes"),
    "an unknown tag": ("a O\nb B-X\n\nc O\n", ":1: tag 'B-X' of 'b' is unknown; expected one of 'O', 'B-A'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_sentence_stops_or_is_left_out_whole(tmp_path, case):
    text, message = BAD[case]
    path = write_text(tmp_path / "x.conll", text)
    with pytest.raises(UserError, match=message):
        load(path, ("O", "B-A"))
    found = load(path, ("O", "B-A"), on_bad_row="skip")
    assert [r["words"] for r in found.records] == [["c"]] and found.notes == {"records": 1, "skipped_rows": 1}


@pytest.mark.parametrize("end", ["b\n", "b", "\xff\n", "\nb\n", "\nb"])
def test_a_broken_line_at_the_end(tmp_path, end):
    path = write_text(tmp_path / "x.conll", ("k O\n\na O\n" + end).encode("latin-1"))
    words = [r["words"] for r in load(path, on_bad_row="skip").records]
    assert words == ([["k"], ["a"]] if end[0] == "\n" else [["k"]])


def test_what_a_file_of_tags_cannot_be(tmp_path):
    path = write_text(tmp_path / "x.conll", CONLL)
    with pytest.raises(
        UserError,
        match=(
            r"data.label='tag': tagged words have no names of columns: the first is the word and the last "
            r"the tag, or those"
        ),
    ):
        load(path, label="tag")
    write_text(tmp_path / "y.tsv", "a\tb\n")
    with pytest.raises(
        UserError, match=r"y.tsv has no tags and .*x.conll does: give files of one format, or set data.format"
    ):
        load(tmp_path)
    with pytest.raises(UserError, match=r"data 'files:.*' is empty: 0 records"):
        load(write_text(tmp_path / "z.conll", "-DOCSTART- O\n\n"))
    with pytest.raises(UserError, match=r"data.labels has a label twice: 'O', 'O'"):
        load(path, labels=("O", "O"))


def tagged(folder, content, **options):
    source = load(write_text(folder / "x.conll", content), **options)
    return [
        (" ".join(r["words"]), " ".join(source.labels[t] for t in r["tags"])) for r in source.records
    ], source


def test_comments_and_headers_are_no_words_and_are_counted(tmp_path):
    text = (
        "word\tner_tag\n# id 7 domain=en\n#sent 1\na\tO\nb\tB-X\n\n# text = "
        "a\n#rain\tB-X\n#\tO\n\n-DOCSTART-\t-X-\n\nc\tO\n"
    )
    found, source = tagged(tmp_path, text)
    assert found == [("a b", "O B-X"), ("#rain #", "B-X O"), ("c", "O")]
    assert source.notes == {"records": 3, "comment_lines": 3, "header_lines": 1}
    found, source = tagged(tmp_path, "# id 0 d=en\nNew _ _ B-X\n# _ _ O\n\n# _ _ O\nYork _ _ I-X\n")
    assert found == [("New #", "B-X O"), ("# York", "O I-X")] and source.notes["comment_lines"] == 1
    assert tagged(tmp_path, "label\tNN\nx\tNN\n")[0] == [("label x", "NN NN")]


CONLLU = "# text = zum Haus\n1-2\tzum\t_\t_\n1\tzu\tADP\t_\n2\tdem\tDET\t_\n2.1\t\t_\t_\n3\tHaus\tNOUN\t_\n"


def test_numbers_of_words_are_no_words(tmp_path):
    with pytest.raises(
        UserError, match=r"x.conll: its first column counts the words of a sentence; data.text=1 says"
    ):
        tagged(tmp_path, CONLLU)
    found, source = tagged(tmp_path, CONLLU, text="1", label="2")
    assert found == [("zu dem Haus", "ADP DET NOUN")]
    assert source.notes == {"records": 1, "comment_lines": 1, "multiword_lines": 2}
    with pytest.raises(UserError, match=r"data.label where the tag is, such as 3"):
        tagged(tmp_path, "".join(f"{i}\tw\tl\tNOUN\t_\t_\t_\t_\t_\t_\n" for i in (1, 2)), text="1")
    assert tagged(tmp_path, "1 O\n\n1 O\n2 O\n\n3 B-X\n")[0][1] == ("1 2", "O O"), "numbers may be words"


NO_WORDS = {
    "a sentence a line": (
        "a b c\tO O B-X\n",
        r":1: expected a word and its tag, got several tags, 'O O B-X': a line holds one word",
    ),
    "a blank in a word": (
        "a O\nNew York B-X\n",
        r":2: expected 2 columns, as in the line before, got 3: 'New York B-X'",
    ),
    "words with their tags": (
        "a/O b/B-X\nc/O d/O e/O\n",
        ":2: expected 2 columns, as in the line before, got 3",
    ),
}


@pytest.mark.parametrize("case", NO_WORDS)
def test_what_cannot_be_words_and_tags_is_refused(tmp_path, case):
    text, message = NO_WORDS[case]
    with pytest.raises(UserError, match=message):
        tagged(tmp_path, text)


def test_odd_and_rare_tags_are_said_with_their_place(tmp_path):
    text = "Ann B-PER\nLee I-PER\nsat O\n\n" * 60 + "sat 0\nLee I-PRE\nIda b-per\n"
    (zero, lower, rare, alike) = tagged(tmp_path, text)[1].doubts
    assert re.search(r"x.conll:241: tag '0' of 'sat' is neither O nor of a kind, as B-X is: a slip\?", zero)
    assert "tag 'b-per' of 'Ida'" in lower and "tag 'I-PRE' of 'Lee' stands only 1 of 183 times" in rare
    assert "labels 'B-PER', 'b-per' differ in capitals" in alike
    assert not tagged(tmp_path, "a NN\nb VB\n")[1].doubts, "parts of speech are built otherwise"
    assert not tagged(tmp_path, text, labels=("O", "0", "B-PER", "I-PER", "I-PRE", "b-per"))[1].doubts, (
        "meant"
    )


def test_tokenizers_are_trained_on_the_words(tmp_path):
    assert list(dataset.texts(load(write_text(tmp_path / "x.conll", CONLL)).records)) == [
        "Ann Lee sleeps",
        "Paris",
    ]


# Rows


def test_the_first_piece_of_a_word_has_its_tag():
    o, t = objective(), tiny.TOKENIZER
    rows = o.rows(source("w1p2p3/0 w4/4 w5p6/2", "w7/1"), t)
    batch = rows.batch(np.array([1, 0]))
    want = [
        ["[CLS]", "w7", "[SEP]"] + ["[PAD]"] * 5,
        ["[CLS]", "w1", "##p2", "##p3", "w4", "w5", "##p6", "[SEP]"],
    ]
    assert [t.tokens(row.tolist()) for row in batch["tokens"]] == want
    assert batch["tags"].tolist() == [[NONE, 1] + [NONE] * 6, [NONE, 0, NONE, NONE, 4, 2, NONE, NONE]]
    assert batch["length"].tolist() == batch["segment_b"].tolist() == [3, 8] and not any(rows.notes.values())
    example = o.example(2)
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in example.items()
    }


def test_words_beyond_the_row_are_counted_and_no_metric_sees_them():
    o = objective()
    rows = o.rows(
        source(
            "w1/0 w2/1 w3/2 w4/3 w5p1/4 w6/0 w7/1", "w1/0 w2/1 w3/2 w4/3 w5/4 w6p1p2/0", "w1p1p1p1p1p1p1p1/0"
        ),
        tiny.TOKENIZER,
    )
    batch = rows.batch(np.arange(3))
    assert rows.notes == {"truncated": 3, "truncated_words": 2, "empty_words": 0}
    assert batch["tags"].tolist() == [
        [NONE, 0, 1, 2, 3, 4, NONE, NONE],
        [NONE, 0, 1, 2, 3, 4, 0, NONE],  # its further pieces are lost, its tag is not
        [NONE, 0, NONE, NONE, NONE, NONE, NONE, NONE],
    ]
    assert (batch["tokens"][:, -1] == tiny.TOKENIZER.sep).all() and batch["length"].tolist() == [8, 8, 8]


def test_a_word_without_a_piece_is_unknown():
    """Control characters alone, or white space; the tags of its neighbours stay theirs."""
    rows = objective().rows(source("w1/0 \u200b/1 w2/2 \u00a0/3"), tiny.TOKENIZER)
    batch = rows.batch(np.array([0]))
    assert tiny.TOKENIZER.tokens(batch["tokens"][0, :6].tolist()) == [
        "[CLS]",
        "w1",
        "[UNK]",
        "w2",
        "[UNK]",
        "[SEP]",
    ]
    assert batch["tags"][0, :6].tolist() == [NONE, 0, 1, 2, 3, NONE] and rows.notes["empty_words"] == 2


@pytest.mark.parametrize("case", ["bert_tags", "roberta_tags"])
def test_rows_are_those_of_transformers(case):
    """Ids and words of `is_split_into_words`, RoBERTa's with `add_prefix_space`."""
    want, tokenizer = (
        json.loads((GOLDEN / case / "ids.json").read_text()),
        tokenizer_files.load(GOLDEN / case),
    )
    o = objective(tokenizer, [f"t{i}" for i in range(10)], seq_len=60)
    records = [{"words": w, "tags": list(range(len(w))), "where": ""} for w in map(str.split, want["texts"])]
    batch = o.rows(Source(records, (), "", {}), tokenizer).batch(np.arange(5))
    for i, (ids, words) in enumerate(zip(want["split"], want["word_ids"], strict=True)):
        assert batch["tokens"][i, : batch["length"][i]].tolist() == ids
        first = [NONE if w is None or w == words[at - 1] else w for at, w in enumerate(words)]
        assert batch["tags"][i].tolist() == first + [NONE] * (60 - len(ids))


def test_rows_say_what_is_wrong():
    with pytest.raises(UserError, match=r"line 2: tag 5 is outside 0 … 4"):
        objective().rows(source("w1/0", "w1/4 w2/5"), tiny.TOKENIZER)
    with pytest.raises(UserError, match=r"line 1: tag -1 is outside 0 … 4"):
        objective().rows(source("w1/-1"), tiny.TOKENIZER)
    with pytest.raises(UserError, match=r"tag needs at least two tags; the training data has \['O'\]"):
        objective(labels=["O"])


# Loss and metrics


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """Entities as (first word, last word, kind), in plain Python."""
    found, begin, kind = set(), 0, "O"
    for at, tag in enumerate([*tags, "O"]):
        new = "O" if tag == "O" else tag[2:]
        if kind != "O" and (new != kind or tag.startswith("B-")):
            found.add((begin, at - 1, kind))
            kind = "O"
        if kind == "O" and new != "O":
            begin, kind = at, new
    return found


def counted(o, logits, batch) -> record.Sums:
    return jax.device_get(jax.jit(o.sums)(logits, batch))


@pytest.mark.parametrize(
    "labels", [IOB, ("O", "I-X", "B-X"), ("B-A", "B-B", "B-C", "I-A", "I-B", "I-D", "O", "B-A-B")]
)
def test_entities_are_those_of_plain_python(labels):
    rng = np.random.default_rng(0)
    o = objective(labels=labels, seq_len=20)
    hit = said_total = true_total = right = words = 0
    sums = None
    for _ in range(3):
        n = 200
        tags = rng.integers(0, len(labels), (n, 20))
        same = rng.random((n, 1)) < 0.5
        said = np.where(
            rng.random((n, 20)) < np.where(same, 0.9, 0.5), tags, rng.integers(0, len(labels), (n, 20))
        )
        on = rng.random((n, 20)) < rng.choice([0.0, 0.4, 1.0], (n, 1))
        valid = rng.random(n) < 0.9
        batch = {"tags": np.where(on, tags, NONE).astype(np.int32), "weight": valid.astype(np.float32)}
        logits = rng.normal(size=(n, 20, len(labels))).astype(np.float32)
        np.put_along_axis(logits, said[..., None], 9, -1)
        sums = record.add(sums, counted(o, logits, batch))
        for row in np.flatnonzero(valid):
            a, b = (spans([labels[t] for t in x[row][on[row]]]) for x in (tags, said))
            hit, true_total, said_total = hit + len(a & b), true_total + len(a), said_total + len(b)
        right += (tags == said)[on & valid[:, None]].sum()
        words += (on & valid[:, None]).sum()
    assert sums["entities"][0].tolist() == [hit, said_total, true_total] and 100 < hit < min(
        said_total, true_total
    )
    want = {
        "precision": hit / said_total,
        "recall": hit / true_total,
        "f1": 2 * hit / (said_total + true_total),
        "accuracy": right / words,
    }
    got = o.metrics(sums)
    assert {k: got[k] for k in want} == pytest.approx(want) and o.best == "f1"


def test_entities_by_hand():
    """Edges that random tags may miss: what an I begins, neighbours of one kind, the end of the row."""
    assert spans(["I-A", "I-A", "B-A", "I-B", "O", "I-B"]) == {
        (0, 1, "A"),
        (2, 2, "A"),
        (3, 3, "B"),
        (5, 5, "B"),
    }
    o = objective(seq_len=4)
    rows = [  # (tags, said, found, said to be, there)
        ("B-PER I-PER I-PER I-PER", "B-PER I-PER I-PER I-PER", 1, 1, 1),
        ("B-PER I-PER I-PER I-PER", "B-PER I-PER I-PER O", 0, 1, 1),
        ("B-PER B-PER O O", "B-PER I-PER O O", 0, 1, 2),
        ("B-PER I-PER O O", "I-PER I-PER O O", 1, 1, 1),
        ("B-PER I-PER O O", "B-PER I-LOC O O", 0, 2, 1),
        ("O O O O", "O O O O", 0, 0, 0),
    ]
    for tags, said, *want in rows:
        batch = {
            "tags": np.array([[IOB.index(t) for t in tags.split()]], np.int32),
            "weight": np.ones(1, np.float32),
        }
        logits = np.eye(5, dtype=np.float32)[[[IOB.index(t) for t in said.split()]]]
        assert counted(o, logits, batch)["entities"][0].tolist() == want, (tags, said)
    assert o.metrics({"loss": (0.0, 1.0), "accuracy": (1.0, 1.0), "entities": (np.zeros(3), 1.0)})["f1"] == 0


# Whole entities as (first word, last word), with the kind where there are several; seqeval says the same of
# each, M read as I, L as E, U and W as S, which it does not know by default.
SCHEMES = {
    "BIO": ("B-A I-A B-A O I-A I-B B-B", "A01 A22 A44 B55 B66"),
    "IOB1": ("I-A I-A B-A I-A O I-A I-B", "A01 A23 A55 B66"),
    "IO": ("I-A I-A O I-B I-A", "A01 B33 A44"),
    "BIOES": ("B-A I-A E-A S-A B-A E-A E-A I-A O E-B", "A02 A33 A45 A66 A77 B99"),
    "BIOES, cut short": ("B-A I-A O B-A S-A I-A B-B E-A", "A01 A33 A44 A55 B66 A77"),
    "BMES": ("B-A M-A M-A E-A S-A S-A M-B E-B", "A03 A44 A55 B67"),
    "BMES, words": ("B E S B M E S", "01 22 35 66"),
    "BMEW": ("B-A E-A W-A O W-A", "A01 A22 A44"),
    "BILOU": ("B-A L-A B-A I-A L-A U-A O U-B U-B L-A", "A01 A24 A55 B77 B88 A99"),
    "BIO, underscores": ("B_A I_A O B_B", "A01 B33"),
}


@pytest.mark.parametrize("case", SCHEMES)
def test_entities_of_every_scheme(case):
    tags, want = (x.split() for x in SCHEMES[case])
    labels = [*sorted({*tags, "O"} if case != "BMES, words" else set(tags))]
    o, ids = objective(labels=labels, seq_len=len(tags)), [labels.index(t) for t in tags]
    assert o.best == "f1" and not o.lacks
    assert [f"{kind}{a}{b - 1}" for kind, a, b in o.entities(ids)] == want
    # on the device, against itself and against the same moved by a word
    other = [labels.index(tags[0]), *ids[:-1]]
    rows = np.asarray([ids, ids], np.int32)
    hit, said, true = jax.jit(o._entities)(
        rows, np.asarray([ids, other], np.int32), np.ones(rows.shape, bool)
    ).tolist()
    both = set(o.entities(ids)) & set(o.entities(other))
    assert (hit, said, true) == (len(want) + len(both), len(want) + len(o.entities(other)), 2 * len(want))


@pytest.mark.parametrize(
    ("labels", "odd"),
    [
        (("NN", "VB", "O"), "'NN' is none"),  # parts of speech
        (("B-X", "I-X", "O", "V"), "'V' is none"),
        (("S", "M", "L"), "'S, M, L' is none"),  # sizes
        (("B-X", "M-X", "U-X"), "'B-X, M-X, U-X' is none"),  # of no one scheme
        (("0", "1"), "'0' is none"),
    ],
)
def test_other_tags_have_accuracy_alone(labels, odd):
    o = objective(labels=labels)
    assert o.best == "accuracy" and o.lacks.endswith(odd)
    assert "f1" not in o.metrics({"loss": (1.0, 1.0), "accuracy": (1.0, 1.0)})


def test_loss_is_of_first_pieces_alone():
    rng = np.random.default_rng(1)
    o = objective(labels=("x", "y", "z"), seq_len=6)
    logits = rng.normal(size=(3, 6, 3)).astype(np.float32)
    tags = np.array([[NONE, 0, NONE, 2, 1, NONE], [NONE] * 6, [NONE, 2, 2, 2, 2, NONE]], np.int32)
    batch = {"tags": tags, "weight": np.array([1, 1, 0], np.float32)}
    sums = counted(o, logits, batch)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert sums["loss"] == (
        pytest.approx(-np.log([shares[0, 1, 0], shares[0, 3, 2], shares[0, 4, 1]]).sum(), rel=1e-5),
        3,
    )
    assert set(sums) == {"loss", "accuracy"} and o.best == "accuracy"  # no IOB, no entities
    other = logits + 9 * (tags == NONE)[..., None] * rng.normal(size=3).astype(np.float32)
    grad = jax.jit(jax.grad(lambda x, batch: o.sums(x, batch)["loss"][0]))(other, batch)
    assert not np.asarray(grad)[(tags == NONE) | (batch["weight"] == 0)[:, None]].any()
    np.testing.assert_allclose(counted(o, other, batch)["loss"], sums["loss"], rtol=1e-6)


def predict(net: Net, params, batch) -> np.ndarray:
    """Logits of host arrays."""

    def logits(params, batch):
        return net.predict(
            params, net.objective.prepare(batch, row_keys(jax.random.key(0), batch["example_id"]))
        )

    return np.asarray(jax.jit(logits)(params, batch))


def test_a_row_is_the_same_beside_others_and_with_more_padding():
    net = tiny.net("bert", "tag", dropout=0.0)
    params = tiny.params(net)
    found = source("w1p2/0 w4/1 w5p6/2", "w7/1", "w1/0 w2/1 w3/2 w4/0")
    sums, logits = {}, {}
    for seq_len in (8, 16):
        o = objective(labels=tiny.LABELS, seq_len=seq_len)
        made = net._replace(objective=o)
        rows = o.rows(found, tiny.TOKENIZER)
        for index in ([0, 1, 2], [0], [1], [2]):
            batch = {
                **rows.batch(np.array(index)),
                "example_id": np.arange(len(index), dtype=np.int32),
                "weight": np.ones(len(index), np.float32),
            }
            predicted = predict(made, params, batch)
            assert predicted.shape == (len(index), seq_len, 3) and predicted.dtype == np.float32
            for i, p, n in zip(index, predicted, batch["length"], strict=True):
                np.testing.assert_allclose(p[:n], logits.setdefault(i, p[:n]), atol=1e-5)
            if len(index) == 1:
                sums[seq_len] = record.add(sums.get(seq_len), counted(o, predicted, batch))
            else:
                whole = counted(o, predicted, batch)
        for name, x in whole.items():
            np.testing.assert_allclose(x[0], sums[seq_len][name][0], rtol=1e-5)


# Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tags")
    return folder, flow.run(flow.tagging(folder), folder / "run")


def test_a_run_learns(trained):
    folder, result = trained
    assert result["chosen_by"] == "f1" and result["dev"]["f1"] > 0.95 and result["dev"]["accuracy"] > 0.97
    assert {"loss", "accuracy", "f1", "precision", "recall"} == set(result["dev"])
    first = flow.lines(folder / "run")[0]
    assert first["split"] == "train" and first["loss"] > 2 * result["dev"]["loss"] and first["f1"] < 0.9


def test_eval_scores_what_plain_python_scores(trained, capsys):
    """From the command to the number; 21 rows over four devices, the last batch filled up."""
    folder, result = trained
    assert flow.ptft("eval", "--workdir", folder / "run", "--split", "dev") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["f1"] == result["dev"]["f1"]
    resolved = spec.resolve(flow.tagging(folder))
    tokenizer = dataset.run_tokenizer(folder / "run")
    dev = load(folder / "dev.conll")
    net = build.net(resolved, tokenizer, dev.labels)
    params, _ = checkpoint.load_params(folder / "run", net.shapes(), skip="")
    batch = net.objective.rows(dev, tokenizer).batch(np.arange(21))
    said = predict(net, params, {**batch, "example_id": np.arange(21, dtype=np.int32)}).argmax(-1)
    a, b = [], []
    for row, (tags, x) in enumerate(zip(batch["tags"], said, strict=True)):
        for all_of_them, numbers in ((a, tags), (b, x)):
            all_of_them += [(row, *s) for s in spans([dev.labels[t] for t in numbers[tags != NONE]])]
    hit = len({*a} & {*b})
    assert found["f1"] == pytest.approx(2 * hit / (len(a) + len(b))) and hit > 20


def test_out_and_in_again(trained, tmp_path, capsys):
    folder, result = trained
    assert flow.ptft("export", "--workdir", folder / "run", "--to", tmp_path / "out") == 0
    assert (
        "left out, transformers has no place for them: backbone/pooler/bias, backbone/pooler/kernel"
        in capsys.readouterr().out
    )
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["architectures"] == ["BertForTokenClassification"] and "problem_type" not in said
    assert (
        list(said["id2label"].values()) == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
        and said["classifier_dropout"] == 0.1
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card and f"dev f1 | {result['dev']['f1']:.4f}" in card
    assert flow.ptft("import", tmp_path / "out", "--workdir", tmp_path / "again") == 0
    assert "objective: tag, labels B-LOC, B-PER, I-LOC, I-PER, O" in capsys.readouterr().out
    # It is a run, although its file has no pooler: it is evaluated, exported and tuned on.
    assert flow.ptft("eval", "--workdir", tmp_path / "again", "--data", f"files:{folder}/dev.conll") == 0
    assert json.loads(capsys.readouterr().out)["f1"] == pytest.approx(result["dev"]["f1"])
    assert flow.ptft("export", "--workdir", tmp_path / "again", "--to", tmp_path / "twice") == 0
    one, two = (
        safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("out", "twice")
    )
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    assert {"classifier.weight", "classifier.bias"} <= one.keys()
    for start in ("out", "again"):
        more = flow.changed(
            flow.tagging(folder),
            {"init_from": str(tmp_path / start), "train_for": "1 step", "freeze": "head"},
        )
        del more["model"], more["data"]["vocab_size"]
        assert flow.run(more, tmp_path / f"from_{start}")["trainable"] == 64 * 5 + 5


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra"])
def test_the_names_of_every_family(kind, tmp_path):
    """A head over the other encoders, there and back; the tables of names are read in both directions."""
    opened = folders.open_folder(GOLDEN / f"{kind}_classify")
    keys = config_json.model_keys(opened)
    resolved = spec.resolve({"model": keys, "objective": {"name": "tag", "seq_len": 12, "dropout": 0.3}})
    tokenizer = tokenizer_files.load(opened.path)
    net = build.net(resolved, tokenizer, IOB)
    params = tiny.params(net)
    left = write.write(tmp_path, write.Model(resolved, net.backbone.dims, params, tokenizer, IOB))
    assert left == ["backbone/pooler/bias", "backbone/pooler/kernel"]
    folder = folders.open_folder(tmp_path)
    again, what = read.load_params(folder, net.shapes(), skip="nothing")
    assert (
        config_json.task(folder) == "tag"
        and config_json.labels(folder) == list(IOB)
        and what.new == left
        and not what.unused
    )
    assert {"classifier.weight", "classifier.bias"} < set(folder.tensors)
    assert all(np.array_equal(again[n], params[n]) for n in params if n not in left)


def test_modernberts_tagger_has_more_layers(tmp_path):
    resolved = spec.resolve(
        {
            "model": {"name": "modernbert", **tiny.SIZES["modernbert"]},
            "objective": {"name": "tag", "seq_len": 12},
        }
    )
    net = build.net(resolved, tiny.TOKENIZER, IOB)
    model = write.Model(resolved, net.backbone.dims, tiny.params(net), tiny.TOKENIZER, IOB)
    with pytest.raises(
        UserError,
        match=(
            r"ModernBertForTokenClassification has layers before its classifier that a run of 'tag' lacks; "
            r".*: bert, "
        ),
    ):
        write.write(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "modernbert_classify" / file, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text()) | {
        "architectures": ["ModernBertForTokenClassification"]
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    folder = folders.open_folder(tmp_path)
    assert config_json.task(folder) == "" and config_json.labels(folder) == []  # the encoder alone


MISTAKES = {
    "classify on tags": (["objective.name=classify"], (
        "the objective reads 'text' of every record, these have words, tags, "
        "where"
    )),
    "tag on documents": (["data.format=lines"], (
        r"tag needs at least two tags; .*: it is read as documents; .*, or "
        r"data.format='conll'"
    )),
    "tag on a table": (
        ["data.format=tsv", "data.train=files:{0}/t.tsv", "data.dev=", "data.label=label"],
        "the objective reads 'words' of every record, these have text, label, where; .* tagged words "
        "data.format='conll'",
    ),
    "a metric of entities": (
        ["best=f1", "data.train=files:{0}/pos.conll", "data.dev=files:{0}/pos.conll"],
        r"best: 'f1' is no metric of this objective; f1, precision and recall need tags as B-X, I-X, O .*; "
        r"'NN' is none",
    ),
    "no such metric": (["best=f2"], "best: 'f2' is no metric of this objective; did you mean 'f1'"),
    "a dev tag that train lacks": (["data.dev=files:{0}/x.conll"],
    r"x.conll:1: tag 'B-ORG' of 'a' is unknown; expected one of 'B-LOC', "),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake(case, trained, tmp_path, capsys):
    folder, _ = trained
    items, message = MISTAKES[case]
    flow.table(folder / "t.tsv")
    write_text(folder / "x.conll", "a B-ORG\n")
    write_text(folder / "pos.conll", "a NN\nb VB\n")
    page = flow.page(tmp_path / "page.py", flow.tagging(folder))
    capsys.readouterr()
    assert (
        flow.ptft(
            "train",
            "--config",
            page,
            "--workdir",
            tmp_path / "run",
            *[f"--config.{i.format(folder)}" for i in items],
        )
        == 2
    )
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not (tmp_path / "run").exists()


def test_predict_prints_tagged_words(trained, tmp_path, capsys):
    """As a file of tagged words, which `eval` then reads; with --json the entities, too."""
    run = trained[0] / "run"
    write_text(tmp_path / "in.txt", "alpha beta zeta\n\ngamma " + "eta " * 20 + "\n")
    capsys.readouterr()
    assert flow.ptft("predict", "--workdir", run, "--file", tmp_path / "in.txt") == 0
    out, err = capsys.readouterr()
    assert out.startswith("alpha\tB-PER\nbeta\tI-PER\nzeta\tO\n\n\ngamma\tB-LOC\neta\tO\n") and out.endswith(
        "eta\t_\n\n"
    )
    assert "cut texts longer than 12 tokens: 1" in err and "words beyond that, which have no tag: 11" in err
    for file, text in (
        ("in.conll", "alpha O\nbeta O\nzeta O\n"),
        ("bare.conll", "alpha\nbeta\nzeta\n"),
        ("in.csv", "text\nalpha beta zeta\n"),
    ):
        write_text(tmp_path / file, text)
        assert flow.ptft("predict", "--workdir", run, "--json", "--file", tmp_path / file) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["words"] == ["alpha", "beta", "zeta"] and found["tags"] == ["B-PER", "I-PER", "O"]
        assert found["entities"] == [{"kind": "PER", "text": "alpha beta", "start": 0, "end": 2}]
        assert (
            flow.ptft("predict", "--workdir", run, "--file", tmp_path / file, "--to", tmp_path / "out.tsv")
            == 0
        )
        own = "text\tpredicted_words" if file == "in.csv" else "words"
        assert (tmp_path / "out.tsv").read_text().startswith(f"{own}\tpredicted_tags\tpredicted_entities\n")
    capsys.readouterr()
