"""WordPiece: train it, load a `vocab.txt`, save it with the run. Ids are those of Google's BERT for the same vocabulary.
Any other `tokenizer.json` (byte-level BPE, SentencePiece) is loaded and used as it is.

The work is done by the `tokenizers` library. Its own BERT normalizer and splitter differ from BERT in a few places
(it drops private-use characters, knows only the punctuation of an old Unicode version, misspells a range of rare Chinese
characters, lower-cases a final Σ to σ), so those steps are spelled out here as regular expressions: the same speed, and
exact. Text that merely looks like a special token, "[MASK]" in a review, is text; tokens that somebody added are found in it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ptft.core.errors import UserError, did_you_mean, short, shown
from ptft.inputs import added_tokens
from ptft.inputs.added_tokens import Added

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
        """`vocab` must hold the five special tokens and nothing twice (else UserError); "" is an id without a token."""
        ids = {token: i for i, token in enumerate(vocab) if token}
        missing = [s for s in SPECIALS if s not in ids]
        if missing:
            raise UserError(
                f"the vocabulary lacks the special tokens {' '.join(missing)}; a BERT vocabulary has {' '.join(SPECIALS)}, one a line"
            )
        if twice := [t for i, t in enumerate(vocab) if t and ids[t] != i]:
            lines = f"{list(vocab).index(twice[0]) + 1} and {ids[twice[0]] + 1}"
            raise UserError(f"the vocabulary has {shown(twice[0])} twice, on lines {lines}")
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
    """A tokenizer.json as it is: whatever vocabulary, normalizer and splitter it holds. Its special tokens in a text are text."""

    def __init__(self, hf: tokenizers.Tokenizer, settings: Mapping[str, Any], numbered: Mapping[str, int] = {}):
        """Takes what the folder says of it.

        Args:
          settings: tokenizer_config.json, whose `cls_token` and the like say what the tokens with a role are called.
          numbered: the ids that added tokens must have.
        """
        hf.no_truncation()
        hf.no_padding()
        ids = hf.get_vocab(with_added_tokens=True)
        if wrong := [t for t, i in numbered.items() if ids.get(t) != i]:
            raise UserError(
                f"the added token {shown(wrong[0])} has the id {shown(numbered[wrong[0]])} in one of the folder's files, and is read as "
                f"{ids.get(wrong[0])}; expected ids without a gap after the vocabulary's, the same in every file: save the tokenizer again"
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
        folder.mkdir(parents=True, exist_ok=True)
        self._hf.save(str(folder / "tokenizer.json"))
        # tokenizer.json says which tokens were added; said again here, they would be special and so cut like text.
        gone = ("name_or_path", "tokenizer_file", "added_tokens_decoder", *added_tokens.LISTS)
        more = {k for k in self._settings if k.endswith("_token") and k not in added_tokens.NAMED}
        kept = {k: v for k, v in self._settings.items() if k not in gone and k not in more}
        _write_settings(folder, {**kept, **settings})


def _roles(settings: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, str]:
    """What the tokens of `ROLES` are called."""
    found = {}
    for role, names in ROLES.items():
        given = settings.get(f"{role}_token")
        given = given.get("content") if isinstance(given, Mapping) else given
        there = [n for n in (given, *names) if isinstance(n, str) and n in ids]
        if not there:
            raise UserError(
                f"the tokenizer has no {role} token; expected one of {', '.join(names)}, or {role}_token in tokenizer_config.json"
            )
        found[role] = there[0]
    return found


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
    if settings.get("word_tokenizer_type", "basic") != "basic":
        raise UserError(f"{file}: words are cut by {shown(settings['word_tokenizer_type'])} first, which ptft does not have")
    if file.name == "tokenizer.json":
        return _from_json(file, settings)
    try:
        return _from_vocab(file, settings, lowercase)
    except UnicodeDecodeError as e:
        raise UserError(f"{file} is not UTF-8 text: {e}") from None
    except UserError as e:
        raise UserError(f"{file}: {e}") from None


def _from_vocab(file: Path, settings: Mapping[str, Any], lowercase: bool | None) -> Tokenizer:
    lines = file.read_bytes().decode("utf-8-sig").split("\n")  # not splitlines: Chinese BERT has U+2028 as an entry
    if lines[-1] == "":
        lines.pop()
    ours = (file.parent / "tokenizer.json").is_file()  # as it was saved, to the byte
    vocab = [line.removesuffix("\r") if ours else line.rstrip(" \t\r") for line in lines]
    if lowercase is None and isinstance(settings.get("do_lower_case"), bool):
        lowercase = settings["do_lower_case"]
    if lowercase is None:
        words = (w for w in vocab if not (w.startswith(("[", "<")) and w.endswith(("]", ">"))))
        lowercase = not any("A" <= c <= "Z" for w in words for c in w)
    added = _added(file.parent, settings)
    if not added.tokens.keys() - _text(added) <= set(SPECIALS):
        return _other_wordpiece(vocab, lowercase, settings, added)
    while not ours and vocab and not vocab[-1]:  # blank lines at the end number nothing
        vocab.pop()
    if settings.get("tokenize_chinese_chars") is False or settings.get("strip_accents") not in (None, lowercase):
        return _other_wordpiece(vocab, lowercase, settings, added)
    return Tokenizer(vocab, lowercase)


def _other_wordpiece(vocab: Sequence[str], lowercase: bool, settings: Mapping[str, Any], added: Added) -> Tokenizer:
    """WordPiece that has added tokens, keeps accents in lower case, strips them in cased text, or leaves Chinese characters in words."""
    Tokenizer(vocab, lowercase)  # its checks
    ids = {token: i for i, token in enumerate(vocab)}
    hf = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    chinese, strip = settings.get("tokenize_chinese_chars") is not False, settings.get("strip_accents")
    hf.normalizer = normalizers.BertNormalizer(handle_chinese_chars=chinese, strip_accents=strip, lowercase=lowercase)
    hf.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    hf.decoder = decoders.WordPiece()
    hf.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    hf.add_special_tokens(list(SPECIALS))
    _add(hf, list(_to_find(added, settings).values()))
    return Pretrained(hf, {**settings, **added.named}, added.ids)


# Added tokens.


def _added(folder: Path, settings: Mapping[str, Any], inside: Sequence[Mapping[str, Any]] = ()) -> Added:
    """The added tokens of a folder; `inside`: those of its tokenizer.json."""
    older = [read_object(f) if f.is_file() else {} for f in (folder / "special_tokens_map.json", folder / "added_tokens.json")]
    with as_written(f"the tokenizer in {folder}"):
        return added_tokens.read(settings, older[0], older[1], inside)


def _text(added: Added) -> set[str]:
    """The names that are text in a text: those of the tokens with a role."""
    unsaid = [name for role, names in ROLES.items() if f"{role}_token" not in added.named for name in names]
    return {*added.named.values(), *unsaid}


def _to_find(added: Added, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The added tokens, special those alone that are text in a text: the library skips these.

    A folder that says so, and so every one of ours, has it as it should be.
    """
    if settings.get("split_special_tokens") is True:
        return {name: dict(flags) for name, flags in added.tokens.items()}
    text = _text(added)
    return {name: {**flags, "special": name in text} for name, flags in added.tokens.items()}


def _add(hf: tokenizers.Tokenizer, tokens: Sequence[Mapping[str, Any]]) -> None:
    """Adds tokens up to the last that is not skipped: those after it number nothing."""
    last = max((i for i, t in enumerate(tokens, 1) if not t["special"]), default=0)
    before = hf.get_vocab()
    hf.add_tokens([AddedToken(t["content"], **{k: t[k] for k in added_tokens.FLAGS}) for t in tokens[:last]])
    taken = set(before.values())
    if twice := [t for t, i in hf.get_vocab().items() if t not in before and i in taken]:
        raise UserError(f"the added token {shown(twice[0])} gets the id of another entry, because the vocabulary has gaps; number it")


@contextmanager
def as_written(what: Path | str) -> Iterator[None]:
    """Values of other types than transformers writes are the file's mistake, wherever they are met."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError, RecursionError) as e:
        raise UserError(f"{what} is not as transformers writes it ({type(e).__name__}: {short(e)}); fetch it again") from None


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object, every string in it one that a file can hold."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is none
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is no JSON ({short(e)}); fetch it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values


def _part(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of a tokenizer.json; {} for what the library will not read either."""
    part = found.get(key)
    return part if isinstance(part, dict) else {}


def _is_ours(found: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json was written by `Tokenizer.save`, and nothing was added to it since."""
    model, normalizer, added = _part(found, "model"), _part(found, "normalizer"), found.get("added_tokens")
    plain = model.get("type") == "WordPiece" and model.get("max_input_chars_per_word") == MAX_WORD
    return plain and normalizer.get("type") == "Sequence" and isinstance(added, list) and len(added) <= len(SPECIALS)


def _from_json(file: Path, settings: Mapping[str, Any]) -> Tokenizer:
    found = read_object(file)
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
    inside = found.get("added_tokens") or []
    added = _added(file.parent, settings, inside)
    tokens = _to_find(added, settings)
    found["added_tokens"] = [{"id": t["id"], **tokens[t["content"]]} for t in inside]
    try:
        hf = tokenizers.Tokenizer.from_str(json.dumps(found))
    except Exception as e:  # the library raises Exception itself
        raise UserError(f"{file} is no tokenizer that the tokenizers library reads: {short(e)}") from None
    known = {t["content"] for t in inside}
    _add(hf, [t for name, t in tokens.items() if name not in known])
    ids = hf.get_vocab(with_added_tokens=True)
    last = max(ids, key=ids.__getitem__, default="")
    if ids.get(last, 0) >= MAX_ID:
        raise UserError(f"{file}: the entry {shown(last)} has the id {ids[last]}; expected less than {MAX_ID}")
    if normalizer.get("type") == "BertNormalizer" and isinstance(hf.model, models.WordPiece):  # old files do not say the model's type
        lower = normalizer["lowercase"]
        usual = normalizer["handle_chinese_chars"] and normalizer.get("strip_accents") in (None, lower)
        plain = added.tokens.keys() - _text(added) <= set(SPECIALS) <= ids.keys() == found["model"]["vocab"].keys()
        if usual and plain and sorted(ids.values()) == list(range(len(ids))):
            return Tokenizer(sorted(ids, key=ids.__getitem__), lower)
    try:
        return Pretrained(hf, {**settings, **added.named}, added.ids)
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
    there = [p.name for p in folder.iterdir()]
    if slow := [n for n in there if n in ("vocab.json", "merges.txt", "bpe.codes") or n.endswith(".model")]:
        raise UserError(
            f"{folder} holds {', '.join(sorted(slow))} and no tokenizer.json, the form of it that ptft reads; where transformers is "
            "installed, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        )
    beside = did_you_mean(path.name if folder != path else "vocab.txt", there)
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
