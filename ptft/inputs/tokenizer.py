"""Tokenizers: BERT's WordPiece, whose ids are those of Google's BERT for the same vocabulary, and any other
`tokenizer.json` (byte-level BPE, SentencePiece), which is used as it is.

The work is done by the `tokenizers` library. Its own BERT normalizer and splitter differ from BERT in a few
places (it drops private-use characters, knows only the punctuation of an old Unicode version, misspells a
range of rare Chinese characters, lower-cases a final Σ to σ), so those steps are spelled out here as regular
expressions: the same speed, and exact. Text that merely looks like a special token, "[MASK]" in a review, is
text; tokens that somebody added are found in it.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from ptft.core import progress, writing
from ptft.core.errors import UserError, shown
from ptft.inputs import added_tokens

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD = 200  # BERT: a longer word is [UNK]
PART = 2000  # texts that are tokenized at a time
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}

# NUL, the replacement character, control and format characters vanish; tab and line ends are white space.
_CONTROL = Regex(r"[\x00\x{FFFD}\p{Cf}[\p{Cc}&&[^\t\n\r]]]")
# Punctuation of Unicode and every ASCII symbol stand alone; so does the Chinese range that the library
# forgets.
_ALONE = Regex(r"[\p{P}!-/:-@\[-`{-~\x{2B820}-\x{2B91F}]")
# A capital sigma that ends a word is ς in lower case. Apostrophes and the like do not end it.
_FINAL_SIGMA = Regex(r"(?<=[\p{Lu}\p{Ll}\p{Lt}\p{M}])Σ(?![\p{M}'’.:·]*[\p{Lu}\p{Ll}\p{Lt}])")


class Tokenizer:
    """A WordPiece vocabulary and how text is cut to fit it.

    Attributes:
      vocab: the entries; the id of an entry is its place.
      pad, unk, cls, sep, mask: ids of the special tokens.
      continues: bool [V], True for entries that continue a word ("##ing").
      between: how many [SEP] stand between two texts (RoBERTa: 2).
      before: what must stand before a word that is encoded alone (byte-level BPE: a space).
      fingerprint: sha256 hex of all that decides the ids.
    """

    def __init__(self, vocab: Sequence[str], lowercase: bool):
        """`vocab` must hold the five special tokens and nothing twice (else UserError); "" is an id without a
        token."""
        ids = {token: i for i, token in enumerate(vocab) if token}
        missing = [s for s in SPECIALS if s not in ids]
        if missing:
            raise UserError(
                f"the vocabulary lacks the special tokens {' '.join(missing)}; a BERT vocabulary has "
                f"{' '.join(SPECIALS)}, one a line"
            )
        if twice := [t for i, t in enumerate(vocab) if t and ids[t] != i]:
            lines = f"{list(vocab).index(twice[0]) + 1} and {ids[twice[0]] + 1}"
            raise UserError(f"the vocabulary has {shown(twice[0])} twice, on lines {lines}")
        self.vocab, self.lowercase, self.vocab_size = tuple(vocab), lowercase, len(vocab)
        self.pad, self.unk, self.cls, self.sep, self.mask = (ids[s] for s in SPECIALS)
        self.between, self.before = 1, ""
        self.continues = np.array([t.startswith("##") and len(t) > 2 for t in vocab], dtype=bool)
        self.fingerprint = hashlib.sha256(
            json.dumps(["wordpiece", MAX_WORD, lowercase, *vocab]).encode()
        ).hexdigest()
        self._hf = tokenizers.Tokenizer(
            models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD)
        )
        self._hf.normalizer = bert_normalizer(lowercase)
        self._hf.pre_tokenizer = bert_splitter()
        self._hf.decoder = decoders.WordPiece()
        # For whoever opens tokenizer.json elsewhere: without it a WordPiece tokenizer adds no [CLS] and
        # [SEP].
        self._hf.post_processor = processors.BertProcessing(("[SEP]", self.sep), ("[CLS]", self.cls))
        self._hf.add_special_tokens(list(SPECIALS))
        self._hf.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, no special tokens added; uses all cores."""
        return list(self.encode_each(texts, len(texts)))

    def encode_each(self, texts: Iterable[str], total: int) -> Iterator[list[int]]:
        """`encode`, a part at a time, of so many texts; says how far it is."""
        left = iter(texts)
        with progress.doing("tokenizing", "texts", total) as advance:
            while part := list(itertools.islice(left, PART)):
                try:
                    encoded = self._hf.encode_batch_fast(part, add_special_tokens=False)
                except TypeError:  # half a surrogate pair, as broken JSON has it, cannot cross over
                    encoded = self._hf.encode_batch_fast([whole(t) for t in part], add_special_tokens=False)
                advance(len(part))
                yield from (e.ids for e in encoded)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word as it stands inside of a text; [] for one that holds control characters alone."""
        return self.encode([self.before + word for word in words])

    def encode_gaps(self, text: str) -> list[int]:
        """Ids of a text in which the mask token's name is the mask token."""
        token = self._hf.get_added_tokens_decoder().get(self.mask)
        *parts, last = text.split(self.vocab[self.mask])
        if token and token.lstrip:  # RoBERTa's takes the blank before it
            parts = [p.rstrip() for p in parts]
        ids = self.encode([*parts, last])
        return [i for at, part in enumerate(ids) for i in ([self.mask] * (at > 0) + part)]

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text without special tokens; upper case, accents and spacing may be lost."""
        return self._hf.decode([int(i) for i in ids])

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The vocabulary entries of `ids`."""
        return [self.vocab[i] for i in ids]

    def save(self, folder: Path | str, **settings: Any) -> None:
        """Writes vocab.txt, tokenizer.json (for the `tokenizers` library) and tokenizer_config.json
        (lower-casing, and `settings`)."""
        folder = Path(folder)
        writing.write_text(folder / "vocab.txt", "".join(t + "\n" for t in self.vocab))
        writing.write_text(folder / "tokenizer.json", self._hf.to_str(pretty=True))
        names = {f"{role}_token": name for role, (name, _) in ROLES.items()}
        types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        _write_settings(folder, {"do_lower_case": self.lowercase, **names, **types, **settings})


class Pretrained(Tokenizer):
    """A tokenizer.json as it is: whatever vocabulary, normalizer and splitter it holds. Its special tokens in
    a text are text."""

    def __init__(
        self, hf: tokenizers.Tokenizer, settings: Mapping[str, Any], numbered: Mapping[str, int] = {}
    ):
        """Takes what the folder says of it.

        Args:
          settings: tokenizer_config.json, whose `cls_token` and the like say what the tokens with a role are
            called.
          numbered: the ids that added tokens must have.
        """
        hf.no_truncation()
        hf.no_padding()
        ids = hf.get_vocab(with_added_tokens=True)
        if wrong := [t for t, i in numbered.items() if ids.get(t) != i]:
            raise UserError(
                f"the added token {shown(wrong[0])} has the id {shown(numbered[wrong[0]])} in one of the "
                f"folder's files, and is read as {ids.get(wrong[0])}; expected ids without a gap after the "
                "vocabulary's, the same in every file: save the tokenizer again"
            )
        self._hf, self._settings = hf, dict(settings)
        for role, name in _roles(settings, ids).items():
            setattr(self, role, ids[name])
            self._settings[f"{role}_token"] = name
        self.vocab_size = max(ids.values()) + 1
        by_id = {i: token for token, i in ids.items()}
        self.vocab = tuple(by_id.get(i, "") for i in range(self.vocab_size))
        marked = [t.startswith(("Ġ", "▁")) for t in self.vocab]
        special = {self.pad, self.unk, self.cls, self.sep, self.mask, *hf.get_added_tokens_decoder()}
        self.continues = np.array(
            [
                not begins and i not in special if any(marked) else t.startswith("##")
                for i, (t, begins) in enumerate(zip(self.vocab, marked, strict=True))
            ]
        )
        self.between = max(1, hf.encode("a", "a").ids[1:-1].count(self.sep))
        self.before = " " if any(t.startswith("Ġ") for t in self.vocab) else ""
        self.fingerprint = hashlib.sha256(hf.to_str().encode()).hexdigest()
        hf.encode_special_tokens = True

    def save(self, folder: Path | str, **settings: Any) -> None:
        """Writes tokenizer.json and tokenizer_config.json."""
        folder = Path(folder)
        writing.write_text(folder / "tokenizer.json", self._hf.to_str(pretty=True))
        # tokenizer.json says which tokens were added; said again here, they would be special and so cut like
        # text.
        gone = ("name_or_path", "tokenizer_file", "added_tokens_decoder", *added_tokens.LISTS)
        more = {k for k in self._settings if k.endswith("_token") and k not in added_tokens.NAMED}
        kept = {k: v for k, v in self._settings.items() if k not in gone and k not in more}
        _write_settings(folder, {**kept, **settings})


def _roles(settings: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, str]:
    """What the tokens of `ROLES` are called."""
    by_role = {}
    for role, names in ROLES.items():
        given = settings.get(f"{role}_token")
        given = given.get("content") if isinstance(given, Mapping) else given
        there = [n for n in (given, *names) if isinstance(n, str) and n in ids]
        if not there:
            raise UserError(
                f"the tokenizer has no {role} token; expected one of {', '.join(names)}, or {role}_token in "
                "tokenizer_config.json"
            )
        by_role[role] = there[0]
    return by_role


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """tokenizer_config.json. Other classes than the plain one make a tokenizer of their own out of the
    vocabulary, which differs."""
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
    text = json.dumps({**settings, **plain}, indent=2, ensure_ascii=False)
    writing.write_text(folder / "tokenizer_config.json", text + "\n")


def whole(text: str) -> str:
    """The text without what is half a surrogate pair."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")


def bert_normalizer(lowercase: bool) -> normalizers.Normalizer:
    """What BERT does to a text before it splits it; `lowercase` also strips accents."""
    clean = [normalizers.Replace(_CONTROL, "")] + [normalizers.Replace(_FINAL_SIGMA, "ς")] * lowercase
    return normalizers.Sequence(
        [*clean, normalizers.BertNormalizer(clean_text=False, strip_accents=lowercase, lowercase=lowercase)]
    )


def bert_splitter() -> pre_tokenizers.PreTokenizer:
    """At white space, and around punctuation."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(_ALONE, "isolated")]
    )
