"""Ids are BERT's: checked against a plain Python account of what BERT does, and against numbers."""

import json
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from ptft.core.errors import UserError
from ptft.inputs import tokenizer, tokenizer_files, train_tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data" / "bert_vocab"
HAN = [
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
]

SMALL = [
    *tokenizer.SPECIALS,
    *"abcdefghijklmnopqrstuvwxyzσς0123456789.,!?-'我喜欢书[]",
    *("##" + c for c in "abcdefghijklmnopqrstuvwxyzσς0123456789"),
    *("un", "##aff", "##able", "the", "cafe", "mask", "book"),
]
TEXTS = {
    "english": "Unaffable readers don't re-read the book's $9.99 edition (2nd, 1999)...",
    "accents": "Café naïve Ångström İstanbul ŒUVRE résumé e\u0301 ﬁne",
    "chinese": "我非常喜欢这本书，iPhone12真好！「書」𠀀𫠠𫝀",
    "punctuation": "a--b ^_^ `x` «y» ¿z? …“q” a\u2e5d\u2e5cb ~$+<=>|",
    "control": "a\x00b\x07c\u200bd\ufffde\u00a0f\u2028g\u3000h\ti\r\nj\x1fk\x85l \u00adm\u200d",
    "emoji": "😀 good 👍🏽 👩\u200d👧 🥰x ❤\ufe0f",
    "private": "a\ue000b \uf8ff",
    "greek": "ΟΔΟΣ ΣΑΣ, ΟΔΟΣ.Α Σ ΣΊΣΥΦΟΣ",
    "long": "x" * 200 + " " + "x" * 201,
    "special": "[MASK] a[SEP] [PAD]",
    "empty": " \t\n ",
}


def bert(text: str, ids: dict[str, int], lowercase: bool) -> list[int]:
    """What BERT does, a character at a time."""

    def category(c: str) -> str:
        return unicodedata.category(c)

    spaced = ""
    for c in text:
        if c in "\0\ufffd" or (c not in "\t\n\r" and category(c) in ("Cc", "Cf")):
            continue
        spaced += f" {c} " if any(a <= ord(c) <= b for a, b in HAN) else " " if category(c) == "Zs" else c
    out: list[int] = []
    for word in spaced.split():
        if lowercase:
            word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if category(c) != "Mn")
        alone = [
            f" {c} " if category(c)[0] == "P" or (33 <= ord(c) < 127 and not c.isalnum()) else c for c in word
        ]
        for part in "".join(alone).split():
            out += pieces(part, ids)
    return out


def pieces(word: str, ids: dict[str, int]) -> list[int]:
    """Longest match first; a word that cannot be spelled is [UNK]."""
    found: list[int] = []
    start = 0
    while start < len(word):
        ends = (e for e in range(len(word), start, -1) if "##"[: 2 * (start > 0)] + word[start:e] in ids)
        end = next(ends, None)
        if end is None or len(word) > 200:
            return [ids["[UNK]"]]
        found.append(ids["##"[: 2 * (start > 0)] + word[start:end]])
        start = end
    return found


def index(t: tokenizer.Tokenizer) -> dict[str, int]:
    return {w: i for i, w in enumerate(t.vocab)}


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", TEXTS)
def test_small_vocabulary_as_bert(kind: str, lowercase: bool):
    t = tokenizer.Tokenizer(SMALL, lowercase)
    assert t.encode([TEXTS[kind]]) == [bert(TEXTS[kind], index(t), lowercase)]


# The ranges in which all versions of Unicode since 2010 agree.
COMMON = st.one_of(
    *(
        st.characters(min_codepoint=a, max_codepoint=b, exclude_categories=["Cn", "Cs"])
        for a, b in [
            (0, 0x24F),
            (0x370, 0x58F),
            (0x2000, 0x2BFF),
            (0x3000, 0x30FF),
            (0x4E00, 0x4FFF),
            (0x1F300, 0x1F64F),
        ]
    )
)


@settings(max_examples=300, deadline=None)
@given(st.text(COMMON, max_size=40), st.booleans())
def test_any_text_as_bert(text: str, lowercase: bool):
    t = tokenizer.Tokenizer(SMALL, lowercase)
    if "Σ" not in text:  # where a word ends, for a sigma: the test above
        assert t.encode([text]) == [bert(text, index(t), lowercase)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/bert_vocab")
@pytest.mark.parametrize(
    "name, size, lowercase", [("uncased", 30522, True), ("cased", 28996, False), ("chinese", 21128, True)]
)
def test_google_vocabularies_as_bert(name: str, size: int, lowercase: bool):
    t = tokenizer_files.load(SHARED / name)
    assert (t.vocab_size, t.lowercase, t.pad, t.unk) == (size, lowercase, 0, 100)
    assert t.encode(list(TEXTS.values())) == [bert(text, index(t), lowercase) for text in TEXTS.values()]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/bert_vocab")
@pytest.mark.parametrize(
    "name, text, ids",
    [
        ("uncased", "Hello, world!", [7592, 1010, 2088, 999]),
        ("uncased", "unaffable café", [14477, 20961, 3468, 7668]),
        ("cased", "Hello, world!", [8667, 117, 1362, 106]),
        ("chinese", "我非常喜欢这本书", [2769, 7478, 2382, 1599, 3614, 6821, 3315, 741]),
    ],
)
def test_google_ids(name: str, text: str, ids: list[int]):
    assert tokenizer_files.load(SHARED / name).encode([text]) == [ids]


CORPUS = [
    "The cats are walking; the dog walked.",
    "A dog walks, a cat talks and talked.",
    "Das Café öffnet. 我喜欢书。 The walking talker!",
] * 20


def test_train():
    t = train_tokenizer.train(iter(CORPUS), 200)
    assert t.tokens(range(5)) == list(tokenizer.SPECIALS) and (t.pad, t.unk, t.cls, t.sep, t.mask) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert t.vocab_size == len(t.vocab) <= 200 and {"the", "walk", "cafe", "我", "书"} <= set(t.vocab)
    assert t.tokens(t.encode(["THE walkers 我书"])[0]) == ["the", "walk", "##er", "##s", "我", "书"]
    assert t.decode([t.cls, *t.encode(["The dog, walking"])[0], t.sep]) == "the dog, walking"
    assert t.continues.dtype == np.bool_ and t.continues.tolist() == [w.startswith("##") for w in t.vocab]
    cased = train_tokenizer.train(CORPUS, 200, lowercase=False)
    assert {"The", "Café"} <= set(cased.vocab) and not cased.lowercase and cased.fingerprint != t.fingerprint
    assert "walking" not in train_tokenizer.train(CORPUS, 200, min_frequency=50).vocab


def test_train_again_gives_the_same_vocabulary():
    # Many ties: every word and most letters are equally frequent, which is where a hash table's order would
    # show.
    texts = ["".join(chr(0x430 + (i * 7 + k * 11) % 32) for k in range(1 + i % 6)) for i in range(200)] * 3
    first = train_tokenizer.train(texts, 150, limit_alphabet=20)
    assert first.vocab == train_tokenizer.train(reversed(texts), 150, limit_alphabet=20).vocab
    assert first.fingerprint == "76fc344f192810da1736f47cb9f1a12f81cf7752c26b9e68c14e7819337e0002"


def test_alphabet_is_limited():
    t = train_tokenizer.train(CORPUS, 200, limit_alphabet=10)
    assert sum(len(w) == 1 for w in t.vocab) == 10
    assert train_tokenizer.train(CORPUS, 30).vocab_size <= 30
    rare = train_tokenizer.train(["common words " * 1000 + "ж"], 100)
    assert "ж" not in rare.vocab and rare.encode(["ж"]) == [[rare.unk]]


def test_training_keeps_counts_not_texts():
    tracemalloc.start()
    train_tokenizer.train((f"one text of many {i % 10} " * 500 for i in range(200)), 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000  # of 4 million characters


@pytest.mark.parametrize("lowercase", [True, False])
def test_save_and_load(tmp_path: Path, lowercase: bool):
    t = train_tokenizer.train(CORPUS, 200, lowercase=lowercase)
    t.save(tmp_path / "run" / "tokenizer")
    for where in (
        tmp_path / "run",
        tmp_path / "run" / "tokenizer",
        str(tmp_path / "run" / "tokenizer" / "vocab.txt"),
    ):
        again = tokenizer_files.load(where)
        assert (again.vocab, again.lowercase, again.fingerprint) == (t.vocab, lowercase, t.fingerprint)
        assert again.encode(CORPUS) == t.encode(CORPUS)
    elsewhere = Library.from_file(str(tmp_path / "run" / "tokenizer" / "tokenizer.json"))
    assert elsewhere.encode(CORPUS[0]).ids == [t.cls, *t.encode(CORPUS[:1])[0], t.sep]


def test_lower_casing_is_given_read_or_guessed(tmp_path: Path):
    file = tmp_path / "vocab.txt"
    file.write_text(
        "\r\n".join(["\ufeff[PAD]", *SMALL[1:], "[unused1]", "<S>"]) + "\r\n", encoding="utf-8", newline=""
    )
    assert tokenizer_files.load(file).lowercase is True
    assert tokenizer_files.load(file, lowercase=False).lowercase is False
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert tokenizer_files.load(tmp_path).lowercase is False
    (tmp_path / "tokenizer_config.json").write_text("{}")
    file.write_text("\n".join([*SMALL, "Book"]), encoding="utf-8")
    assert tokenizer_files.load(tmp_path).lowercase is False
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is no JSON"):
        tokenizer_files.load(tmp_path)


def test_no_text_and_broken_text():
    t = tokenizer.Tokenizer(SMALL, True)
    assert t.encode([]) == [] and t.encode(["", " "]) == [[], []]
    assert t.encode(["the \ud800 book"]) == t.encode(["the book"])
    assert "a" in train_tokenizer.train(["a \udfff a"], 10).vocab


def test_mistakes(tmp_path: Path):
    with pytest.raises(UserError, match="hold no word"):
        train_tokenizer.train([], 100)
    with pytest.raises(UserError, match="hold no word"):
        train_tokenizer.train(["", " \n"], 100)
    with pytest.raises(UserError, match="no room"):
        train_tokenizer.train(["word"], 5)
    with pytest.raises(UserError, match="does not exist"):
        tokenizer_files.load(tmp_path / "nowhere" / "vocab.txt")
    (tmp_path / "vocab.text").write_text("\n".join(SMALL), encoding="utf-8")
    for missing in (tmp_path, tmp_path / "vocab.tx"):
        with pytest.raises(UserError, match=r"did you mean 'vocab\.text'"):
            tokenizer_files.load(missing)
    bad = tmp_path / "bad.txt"
    bad.write_text("[PAD]\n[UNK]\nthe\n")
    with pytest.raises(UserError, match=r"bad\.txt: .*lacks .*\[CLS\] \[SEP\] \[MASK\]"):
        tokenizer_files.load(bad)
    bad.write_text("\n".join([*SMALL, "the"]), encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"'the' twice, on lines {SMALL.index('the') + 1} and {len(SMALL) + 1}"
    ):
        tokenizer_files.load(bad)
    bad.write_bytes(b"\xff\xfe[PAD]")
    with pytest.raises(UserError, match="not UTF-8"):
        tokenizer_files.load(bad)
