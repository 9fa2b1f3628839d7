"""WordPiece: train it, load a `vocab.txt`, save it with the run. Ids are those of Google's BERT for the same vocabulary.
Any other `tokenizer.json` (byte-level BPE, SentencePiece) is loaded and used as it is.

The work is done by the `tokenizers` library. Its own BERT normalizer and splitter differ from BERT in a few places
(it drops private-use characters, knows only the punctuation of an old Unicode version, misspells a range of rare Chinese
characters, lower-cases a final Σ to σ), so those steps are spelled out here as regular expressions: the same speed, and
exact. Text that merely looks like a special token, "[MASK]" in a review, is text.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ptft.errors import UserError, did_you_mean

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD = 200  # BERT: a longer word is [UNK]
MAX_ID = 2**24  # a list of that many entries is made; the largest vocabularies have a million
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}

# NUL, the replacement character, control and format characters vanish; tab and line ends are white space.
_CONTROL = Regex(r"[\x00\x{FFFD}\p{Cf}[\p{Cc}&&[^\t\n\r]]]")
# Punctuation of Unicode and every ASCII symbol stand alone; so does the Chinese range that the library forgets.
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
        """`vocab` must hold the five special tokens and nothing twice (else UserError)."""
        ids = {token: i for i, token in enumerate(vocab)}
        missing = [s for s in SPECIALS if s not in ids]
        if missing:
            raise UserError(
                f"the vocabulary lacks the special tokens {' '.join(missing)}; a BERT vocabulary has {' '.join(SPECIALS)}, one a line"
            )
        if len(ids) < len(vocab):
            twice = next(t for i, t in enumerate(vocab) if ids[t] != i)
            raise UserError(f"the vocabulary has {twice!r} twice, on lines {list(vocab).index(twice) + 1} and {ids[twice] + 1}")
        self.vocab, self.lowercase, self.vocab_size = tuple(vocab), lowercase, len(vocab)
        self.pad, self.unk, self.cls, self.sep, self.mask = (ids[s] for s in SPECIALS)
        self.between, self.before = 1, ""
        self.continues = np.array([t.startswith("##") and len(t) > 2 for t in vocab], dtype=bool)
        self.fingerprint = hashlib.sha256(json.dumps(["wordpiece", MAX_WORD, lowercase, *vocab]).encode()).hexdigest()
        self._hf = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD))
        self._hf.normalizer = _normalizer(lowercase)
        self._hf.pre_tokenizer = _splitter()
        self._hf.decoder = decoders.WordPiece()
        # For whoever opens tokenizer.json elsewhere: without it a WordPiece tokenizer adds no [CLS] and [SEP].
        self._hf.post_processor = processors.BertProcessing(("[SEP]", self.sep), ("[CLS]", self.cls))
        self._hf.add_special_tokens(list(SPECIALS))
        self._hf.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, no special tokens added; uses all cores."""
        try:
            encoded = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # half a surrogate pair, as broken JSON has it, cannot cross into the library
            encoded = self._hf.encode_batch_fast([_whole(t) for t in texts], add_special_tokens=False)
        return [e.ids for e in encoded]

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
        """Writes vocab.txt, tokenizer.json (for the `tokenizers` library) and tokenizer_config.json (lower-casing, and `settings`)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.txt").write_text("".join(t + "\n" for t in self.vocab), encoding="utf-8", newline="\n")
        self._hf.save(str(folder / "tokenizer.json"))
        names = {f"{role}_token": name for role, (name, _) in ROLES.items()}
        types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        _write_settings(folder, {"do_lower_case": self.lowercase, **names, **types, **settings})


class Pretrained(Tokenizer):
    """A tokenizer.json as it is: whatever vocabulary, normalizer and splitter it holds. Special tokens in a text are text."""

    def __init__(self, hf: tokenizers.Tokenizer, settings: Mapping[str, Any]):
        """`settings`: the tokenizer_config.json, whose `cls_token` and the like say what the special tokens are called."""
        hf.no_truncation()
        hf.no_padding()
        ids = hf.get_vocab(with_added_tokens=True)
        self._hf, self._settings = hf, dict(settings)
        for role, names in ROLES.items():
            given = settings.get(f"{role}_token")
            given = given.get("content") if isinstance(given, Mapping) else given
            found = [n for n in (given, *names) if isinstance(n, str) and n in ids]
            if not found:
                raise UserError(
                    f"the tokenizer has no {role} token; expected one of {', '.join(names)}, or {role}_token in tokenizer_config.json"
                )
            setattr(self, role, ids[found[0]])
            self._settings[f"{role}_token"] = found[0]
        self.vocab_size = max(ids.values()) + 1
        by_id = {i: token for token, i in ids.items()}
        self.vocab = tuple(by_id.get(i, "") for i in range(self.vocab_size))
        marked = [t.startswith(("Ġ", "▁")) for t in self.vocab]
        special = {self.pad, self.unk, self.cls, self.sep, self.mask}
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
        folder.mkdir(parents=True, exist_ok=True)
        self._hf.save(str(folder / "tokenizer.json"))
        kept = {k: v for k, v in self._settings.items() if k not in ("name_or_path", "tokenizer_file")}
        _write_settings(folder, {**kept, **settings})


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """tokenizer_config.json. Other classes than the plain one make a tokenizer of their own out of the vocabulary, which differs."""
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
    text = json.dumps({**settings, **plain}, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _whole(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")


def _normalizer(lowercase: bool) -> normalizers.Normalizer:
    clean = [normalizers.Replace(_CONTROL, "")] + [normalizers.Replace(_FINAL_SIGMA, "ς")] * lowercase
    return normalizers.Sequence([*clean, normalizers.BertNormalizer(clean_text=False, strip_accents=lowercase, lowercase=lowercase)])


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(_ALONE, "isolated")])


def load(path: Path | str, lowercase: bool | None = None) -> Tokenizer:
    """Loads a vocabulary: the folder of a run, a folder with a tokenizer.json or a vocab.txt, or the file itself.

    The ids of a vocab.txt are its line numbers. A tokenizer.json that is BERT's WordPiece is read as its vocabulary.

    Args:
      path: where it is.
      lowercase: None reads it from `do_lower_case` in a tokenizer_config.json beside the file, and failing that
        guesses: a vocabulary without upper-case Latin letters is lower-case.
    Raises:
      UserError: no such file, not UTF-8, no special tokens, a line twice.
    """
    file = _find(Path(path))
    beside = file.parent / "tokenizer_config.json"
    settings = read_object(beside) if beside.is_file() else {}
    if file.name == "tokenizer.json":
        return _from_json(file, settings)
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")  # not splitlines: Chinese BERT has U+2028 as an entry
    except UnicodeDecodeError as e:
        raise UserError(f"{file} is not UTF-8 text: {e}") from None
    if lines[-1] == "":
        lines.pop()
    vocab = [line.removesuffix("\r") for line in lines]
    if lowercase is None and isinstance(settings.get("do_lower_case"), bool):
        lowercase = settings["do_lower_case"]
    if lowercase is None:
        words = (w for w in vocab if not (w.startswith(("[", "<")) and w.endswith(("]", ">"))))
        lowercase = not any("A" <= c <= "Z" for w in words for c in w)
    try:
        if settings.get("tokenize_chinese_chars") is False or settings.get("strip_accents") not in (None, lowercase):
            return _other_wordpiece(vocab, lowercase, settings)
        return Tokenizer(vocab, lowercase)
    except UserError as e:
        raise UserError(f"{file}: {e}") from None


def _other_wordpiece(vocab: Sequence[str], lowercase: bool, settings: Mapping[str, Any]) -> Tokenizer:
    """WordPiece that keeps accents in lower case, strips them in cased text, or leaves Chinese characters in their words."""
    Tokenizer(vocab, lowercase)  # its checks
    ids = {token: i for i, token in enumerate(vocab)}
    hf = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    chinese, strip = settings.get("tokenize_chinese_chars") is not False, settings.get("strip_accents")
    hf.normalizer = normalizers.BertNormalizer(handle_chinese_chars=chinese, strip_accents=strip, lowercase=lowercase)
    hf.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    hf.decoder = decoders.WordPiece()
    hf.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    hf.add_special_tokens(list(SPECIALS))
    return Pretrained(hf, settings)


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object, every string in it one that a file can hold."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is none
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is no JSON ({e}); fetch it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values


def _part(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of a tokenizer.json; {} for what the library will not read either."""
    part = found.get(key)
    return part if isinstance(part, dict) else {}


def _is_ours(found: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json was written by `Tokenizer.save`."""
    model, normalizer = _part(found, "model"), _part(found, "normalizer")
    return model.get("type") == "WordPiece" and model.get("max_input_chars_per_word") == MAX_WORD and normalizer.get("type") == "Sequence"


def _from_json(file: Path, settings: Mapping[str, Any]) -> Tokenizer:
    found = read_object(file)
    if settings.get("word_tokenizer_type", "basic") != "basic":
        raise UserError(f"{file}: words are cut by {settings['word_tokenizer_type']!r} first, which ptft does not have")
    normalizer, splitter = _part(found, "normalizer"), _part(found, "pre_tokenizer")
    # What tokenizer_config.json says goes before what tokenizer.json says.
    for key, name in (
        ("do_lower_case", "lowercase"),
        ("strip_accents", "strip_accents"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
    ):
        if normalizer.get("type") == "BertNormalizer" and isinstance(settings.get(key), bool):
            normalizer[name] = settings[key]
    if splitter.get("type") == "ByteLevel" and isinstance(settings.get("add_prefix_space"), bool):
        splitter["add_prefix_space"] = settings["add_prefix_space"]
    try:
        hf = tokenizers.Tokenizer.from_str(json.dumps(found))
    except Exception as e:  # the library raises Exception itself
        raise UserError(f"{file} is no tokenizer that the tokenizers library reads: {e}") from None
    ids = hf.get_vocab(with_added_tokens=True)
    last = max(ids, key=ids.__getitem__, default="")
    if ids.get(last, 0) >= MAX_ID:
        raise UserError(f"{file}: the entry {last!r} has the id {ids[last]}; expected less than {MAX_ID}")
    if normalizer.get("type") == "BertNormalizer" and isinstance(hf.model, models.WordPiece):  # old files do not say the model's type
        lower = normalizer["lowercase"]
        usual = normalizer["handle_chinese_chars"] and normalizer.get("strip_accents") in (None, lower)
        if usual and set(SPECIALS) <= ids.keys() == found["model"]["vocab"].keys() and sorted(ids.values()) == list(range(len(ids))):
            return Tokenizer(sorted(ids, key=ids.__getitem__), lower)
    try:
        return Pretrained(hf, settings)
    except UserError as e:
        raise UserError(f"{file}: {e}") from None


def _find(path: Path) -> Path:
    for folder in (path / "tokenizer", path):
        full, plain = folder / "tokenizer.json", folder / "vocab.txt"
        # In our own folders vocab.txt says it all; in others tokenizer.json may hold settings and added tokens that it does not.
        if full.is_file() and not (plain.is_file() and _is_ours(read_object(full))):
            return full
        if plain.is_file():
            return plain
    if path.is_file():
        return path
    named = sorted(path.glob("*vocab.txt"))  # bert-base-uncased-vocab.txt
    if len(named) == 1:
        return named[0]
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise UserError(f"there is no vocabulary at {path}: the folder {folder} does not exist")
    beside = did_you_mean(path.name if folder != path else "vocab.txt", [p.name for p in folder.iterdir()])
    raise UserError(f"there is no vocabulary at {path}: expected a vocab.txt or a folder that holds one; in {folder}: {beside}")


def train(
    texts: Iterable[str], vocab_size: int, lowercase: bool = True, min_frequency: int = 2, limit_alphabet: int | None = None
) -> Tokenizer:
    """Learns a vocabulary: the special tokens ([PAD] is 0), the alphabet, then whole words and pieces.

    The same texts give the same vocabulary, to the id, on every machine. The library's trainer alone does not: it numbers
    "##x" letters and breaks ties in the alphabet in the order of a hash table. So the words are counted and the
    alphabet is chosen here.

    Args:
      texts: read once; only the counts of distinct words are kept.
      vocab_size: at most so many entries.
      lowercase: also strips accents.
      min_frequency: pieces seen less often are not learned.
      limit_alphabet: at most so many characters; None takes the most frequent ones that make up 99.95% of the text.
        A word with any other character is [UNK].
    Raises:
      UserError: no word in the texts, or no room for any.
    """
    words = _count_words(texts, lowercase)
    if not words:
        raise UserError("cannot train a tokenizer: the texts hold no word; is the data set empty?")
    letters = _alphabet(words, vocab_size - len(SPECIALS), limit_alphabet)
    known = {t for t in letters if len(t) == 1}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=[*SPECIALS, *letters], show_progress=False
    )
    tokenizer.train_from_iterator(_repeat({w: n for w, n in words.items() if known.issuperset(w)}), trainer)
    ids = tokenizer.get_vocab()
    return Tokenizer(sorted(ids, key=ids.__getitem__), lowercase)


def _count_words(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    normalizer, splitter = _normalizer(lowercase), _splitter()
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(normalizer.normalize_str(_whole(text)).split())
    words: Counter[str] = Counter()
    for chunk, n in chunks.items():
        for word, _ in splitter.pre_tokenize_str(chunk):
            words[word] += n
    return words


def _alphabet(words: Counter[str], room: int, limit: int | None) -> list[str]:
    """The letters "x", then "##x" for those that continue a word, each in the order of code points."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, n in words.items():
        inside.update(word[1:])
        for c in word:
            counts[c] += n
    enough = 0.9995 * counts.total()
    chosen: list[str] = []
    covered = 0
    for c in sorted(counts, key=lambda c: (-counts[c], c)):
        room -= 1 + (c in inside)
        if room < 0 or (limit is None and covered >= enough) or (limit is not None and len(chosen) >= limit):
            break
        chosen.append(c)
        covered += counts[c]
    if not chosen:
        raise UserError("cannot train a tokenizer: vocab_size leaves no room for a single character; a few thousand is usual")
    return sorted(chosen) + ["##" + c for c in sorted(chosen) if c in inside]


def _repeat(words: dict[str, int]) -> Iterator[str]:
    """Each word as often as it was counted, a few thousand at a time: the trainer takes text, not counts."""
    for word, n in sorted(words.items()):
        for start in range(0, n, 4096):
            yield f"{word} " * min(4096, n - start)
