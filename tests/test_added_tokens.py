"""Added tokens in every layout of a tokenizer's files. tests/test_peers.py holds the same folders beside
transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from ptft.core.errors import UserError
from ptft.inputs import added_tokens, tokenizer, tokenizer_files

GOLDEN = Path(__file__).parent / "golden" / "hub"
WORDS = [*"abe1x[]/<>", "##1", "##r", "us", "was", "cold", "ferry", "new", "york", "mask", "sep", "[unused1]"]
VOCAB = [*tokenizer.SPECIALS, *WORDS]
FIRST = len(VOCAB)  # the id of the first token that is added
NAMES = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
ADDED = ("[E1]", "[/E1]", "<usr>", "New York")
SPECIAL = ADDED[:3]
TEXT = "[E1] ferry [/E1] was cold, <usr>x new york NEW YORK x<usr>"
FOUND = ["[E1]", "ferry", "[/E1]", "was", "cold", "[UNK]", "<usr>", "x", "New York", "New York", "x", "<usr>"]


def entry(content: str, **flags: bool) -> dict[str, Any]:
    special = content in SPECIAL or content in tokenizer.SPECIALS
    return {
        "content": content,
        **dict.fromkeys(added_tokens.FLAGS, False),
        "normalized": not special,
        "special": special,
        **flags,
    }


def put(folder: Path, **files: Any) -> Path:
    """JSON files, their names without the ending."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def old(folder: Path, settings: dict[str, Any], vocab: list[str] = VOCAB, **files: Any) -> Path:
    """The files of a tokenizer that was not fast: vocab.txt, and what is said beside it."""
    put(
        folder,
        tokenizer_config={"tokenizer_class": "BertTokenizer", "do_lower_case": True, **settings},
        **files,
    )
    (folder / "vocab.txt").write_text("".join(f"{w}\n" for w in vocab))
    return folder


def whole(folder: Path, inside: tuple[str, ...], settings: dict[str, Any], **flags: bool) -> Path:
    """A tokenizer.json with added tokens."""
    hf = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(VOCAB)}, unk_token="[UNK]")
    )
    hf.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    hf.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = ("[SEP]", VOCAB.index("[SEP]")), ("[CLS]", VOCAB.index("[CLS]"))
    hf.post_processor = tokenizers.processors.BertProcessing(*ends)
    made = [entry(c, **flags) for c in (*tokenizer.SPECIALS, *inside)]
    hf.add_tokens([tokenizers.AddedToken(e.pop("content"), **e) for e in [dict(e) for e in made]])
    put(
        folder,
        tokenizer_config={"tokenizer_class": "BertTokenizer", "do_lower_case": True, **NAMES, **settings},
    )
    hf.save(str(folder / "tokenizer.json"))
    return folder


def decoder(tokens: tuple[str, ...] = ADDED, **flags: bool) -> dict[str, Any]:
    numbered = {**dict(enumerate(tokenizer.SPECIALS)), **dict(enumerate(tokens, FIRST))}
    return {
        "added_tokens_decoder": {
            str(i): entry(t, **(flags if i >= FIRST else {})) for i, t in numbered.items()
        }
    }


NUMBERS = {t: i for i, t in enumerate(ADDED, FIRST)}
MAP = {**NAMES, "additional_special_tokens": SPECIAL}
DICTS = {**NAMES, "mask_token": entry("[MASK]"), "additional_special_tokens": [entry(t) for t in SPECIAL]}
LIST = [*SPECIAL, {"__type": "AddedToken", **entry(ADDED[3])}]
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "tokenizer.json": lambda f: whole(f, ADDED, {"extra_special_tokens": list(SPECIAL)}),
    "tokenizer.json and a decoder": lambda f: whole(f, ADDED,
    decoder() | {"additional_special_tokens": list(SPECIAL)}),
    "tokenizer.json and added_tokens.json": lambda f: put(whole(f, ADDED, {}), added_tokens=NUMBERS,
    special_tokens_map=NAMES),
    "a decoder beside tokenizer.json": lambda f: whole(f, (), decoder()),
    "a list beside tokenizer.json": lambda f: whole(f, (), {"extra_special_tokens": LIST}),
    "vocab.txt, numbers and a map": lambda f: old(f, {}, added_tokens=NUMBERS, special_tokens_map=MAP),
    "vocab.txt and numbers": lambda f: old(f, NAMES, added_tokens=NUMBERS),
    "vocab.txt, numbers and a list": lambda f: old(f, {"additional_special_tokens": SPECIAL},
    added_tokens=NUMBERS),
    "vocab.txt and a decoder": lambda f: old(f, decoder()),
}  # fmt: skip
# Without the token of two words, which needs a file that says it is not special.
SHORT = "[E1] ferry [/E1] was cold, <usr>x x<usr>"
SHORT_FOUND = ["[E1]", "ferry", "[/E1]", "was", "cold", "[UNK]", "<usr>", "x", "x", "<usr>"]
SPECIAL_ALONE: dict[str, Callable[[Path], Path]] = {
    "vocab.txt and a map": lambda f: old(f, {}, special_tokens_map=MAP),
    "vocab.txt and a list": lambda f: old(f, {"extra_special_tokens": SPECIAL}),
    "names of their own": lambda f: old(
        f, {"extra_special_tokens": {f"{i}_token": t for i, t in enumerate(SPECIAL)}}
    ),
    "keys of their own": lambda f: whole(f, (), {f"key{i}_token": t for i, t in enumerate(SPECIAL)}),
    "keys of roles first": lambda f: old(f, {"bos_token": "<bos>", "extra_special_tokens": SPECIAL}),
}
# transformers 5 fails on these, transformers 4 wrote them.
OLDER: dict[str, Callable[[Path], Path]] = {
    "a map of objects": lambda f: old(f, {}, special_tokens_map=DICTS),
}
CASES = {n: (make, TEXT, FOUND) for n, make in LAYOUTS.items()}
CASES |= {n: (make, SHORT, SHORT_FOUND) for n, make in {**SPECIAL_ALONE, **OLDER}.items()}


def cut(t: tokenizer.Tokenizer, text: str) -> list[str]:
    return t.tokens(t.encode([text])[0])


@pytest.mark.parametrize("case", CASES)
def test_added_tokens_are_found_in_a_text(case, tmp_path):
    make, text, expected = CASES[case]
    t = tokenizer_files.load(make(tmp_path / "in"))
    assert cut(t, text) == expected
    first = FIRST + (case == "keys of roles first")
    assert [t.vocab.index(token) for token in expected if token in ADDED] == [
        first + ADDED.index(token) for token in expected if token in ADDED
    ]
    assert not t.continues[FIRST:].any()
    for name in tokenizer.SPECIALS:  # what merely looks like one is text
        assert t.vocab.index(name) not in t.encode([f"a {name}b"])[0] or name == "[UNK]"
    t.save(tmp_path / "run")  # a run's folder, and an export
    again = tokenizer_files.load(tmp_path / "run")
    assert (again.encode([text]), again.fingerprint, again.vocab) == (
        t.encode([text]),
        t.fingerprint,
        t.vocab,
    )
    kept = json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())
    assert not {*added_tokens.LISTS, "added_tokens_decoder", "key0_token"} & kept.keys()


@pytest.mark.parametrize("make", [old, whole], ids=["vocab.txt", "tokenizer.json"])
def test_an_entry_of_the_vocabulary_that_is_added(make, tmp_path):
    settings = {"additional_special_tokens": ["[unused1]"]}
    folder = make(tmp_path, settings) if make is old else make(tmp_path, ("[unused1]",), settings)
    assert cut(tokenizer_files.load(folder), "a [unused1]") == ["a", "[unused1]"]


def test_a_folder_without_any_stays_berts(tmp_path):
    files = {"special_tokens_map": NAMES, "added_tokens": {}}
    assert type(tokenizer_files.load(old(tmp_path / "old", decoder(()), **files))) is tokenizer.Tokenizer
    assert type(tokenizer_files.load(whole(tmp_path / "new", (), decoder(())))) is tokenizer.Tokenizer


def byte_level(folder: Path, **flags: bool) -> Path:
    """RoBERTa's kind, in which blanks count, with one token more."""
    source = GOLDEN / "roberta_masked"
    found, said = (json.loads((source / f"{n}.json").read_text()) for n in ("tokenizer", "tokenizer_config"))
    numbered = {t["id"]: {k: v for k, v in t.items() if k != "id"} for t in found["added_tokens"]}
    first = 1 + max(found["model"]["vocab"].values())
    said["added_tokens_decoder"] = numbered | {first: entry("[E1]", **flags)}
    return put(folder, tokenizer=found, tokenizer_config=said)


HOW = [
    ({}, "a[E1] x", ["a", "[E1]", "Ġ", "x"]),
    ({"single_word": True}, "a[E1] x", ["a", "[", "E", "1", "]", "Ġ", "x"]),
    ({"single_word": True}, "a [E1] x", ["a", "Ġ", "[E1]", "Ġ", "x"]),
    ({"rstrip": True}, "a [E1]  x", ["a", "Ġ", "[E1]", "x"]),
    ({"lstrip": True}, "a  [E1] x", ["a", "[E1]", "Ġ", "x"]),
]


@pytest.mark.parametrize(("flags", "text", "expected"), HOW)
def test_how_a_token_is_found(flags, text, expected, tmp_path):
    assert cut(tokenizer_files.load(byte_level(tmp_path, **flags)), text) == expected


@pytest.mark.parametrize("split", [False, True])
def test_a_folder_that_splits_its_special_tokens(split, tmp_path):
    """Runs of before have such a folder, and texts were cut so when they were trained."""
    folder = whole(tmp_path, ADDED, {"split_special_tokens": split, "extra_special_tokens": list(SPECIAL)})
    before = (folder / "tokenizer.json").read_text()
    assert (cut(tokenizer_files.load(folder), "[E1] new york") == ["[E1]", "New York"]) != split
    tokenizer_files.load(folder).save(folder)
    assert (
        json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        == json.loads(before)["added_tokens"]
    ) == split


def test_tokens_that_were_added_to_an_export_of_ours(tmp_path):
    """By transformers, which leaves vocab.txt beside it as it was."""
    tokenizer.Tokenizer(VOCAB, True).save(tmp_path)
    hf = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    hf.add_tokens(["<usr>"])
    hf.save(str(tmp_path / "tokenizer.json"))
    assert cut(tokenizer_files.load(tmp_path), "a <usr>") == ["a", "<usr>"]


BACK = {**decoder(ADDED[::-1]), "tokenizer_class": "PreTrainedTokenizerFast"}
GAPS = [*VOCAB[:-1], "", "", VOCAB[-1]]
WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a gap": (lambda f: old(f, {}, added_tokens={"[E1]": FIRST + 2}), (
        rf"token '\[E1\]' has the id {FIRST + 2} .* is read as "
        rf"{FIRST};"
    )),
    "two ids": (lambda f: whole(f, ADDED, BACK), "the added token '.*' has the id .*without a gap"),
    "two files that differ": (lambda f: whole(f, ADDED, decoder(ADDED[:2])), (
        "lacks '<usr>', 'New York', which tokenizer.json "
        "adds"
    )),
    "no number": (lambda f: old(f, {}, added_tokens={"[E1]": "x"}), (
        "the tokenizer in .* is not as transformers writes "
        "it"
    )),
    "no token": (lambda f: old(f, {"extra_special_tokens": [5]}), "is not as transformers writes it"),
    "no list": (lambda f: old(f, {"extra_special_tokens": 5}), "is not as transformers writes it"),
    "a list for an object": (lambda f: old(f, {}, added_tokens=[1]), (
        "added_tokens.json: expected a JSON object, got "
        "list"
    )),
    "a gap in the vocabulary": (lambda f: old(f, {"extra_special_tokens": ["[E1]"]}, GAPS),
    "because the vocabulary has gaps"),
    "another way of cutting": (lambda f: old(f, {"word_tokenizer_type": "mecab"}),
    "words are cut by 'mecab' first"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_to_be_told_is_refused(case, tmp_path):
    make, expected = WRONG[case]
    with pytest.raises(UserError, match=expected):
        tokenizer_files.load(make(tmp_path))


def test_blank_lines_in_a_vocabulary(tmp_path):
    """A line's number is its id, blank lines too; those at the end number nothing."""
    text = "\n".join([*VOCAB[:6], "", " ", *VOCAB[6:], "", " ", ""])
    (tmp_path / "vocab.txt").write_text(text)
    t = tokenizer_files.load(tmp_path)
    assert t.vocab_size == len(VOCAB) + 2 and t.encode(["a b", "x"]) == [[5, 8], [VOCAB.index("x") + 2]]
    t.save(tmp_path / "run")
    again = tokenizer_files.load(tmp_path / "run")
    assert again.fingerprint == t.fingerprint and np.array_equal(again.continues, t.continues)


def test_a_tokenizer_without_a_tokenizer_json_is_named(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        UserError, match=r"holds merges.txt, vocab.json and no tokenizer.json.*AutoTokenizer.*save_pretrained"
    ):
        tokenizer_files.load(tmp_path)
