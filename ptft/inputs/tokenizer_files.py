"""Finds the tokenizer of a folder and loads it: a `vocab.txt`, or a `tokenizer.json` and the files that say
more of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from ptft.core.errors import UserError, did_you_mean, short, shown
from ptft.inputs import added_tokens
from ptft.inputs.added_tokens import Added
from ptft.inputs.hf_json import as_written, read_object
from ptft.inputs.tokenizer import MAX_WORD, ROLES, SPECIALS, Pretrained, Tokenizer

MAX_ID = 2**24  # a list of that many entries is made; the largest vocabularies have a million


def load(path: Path | str, lowercase: bool | None = None) -> Tokenizer:
    """Loads a vocabulary: the folder of a run, a folder with a tokenizer.json or a vocab.txt, or the file
    itself.

    The ids of a vocab.txt are its line numbers. A tokenizer.json that is BERT's WordPiece is read as its
    vocabulary.

    Args:
      path: where it is.
      lowercase: None reads it from `do_lower_case` in a tokenizer_config.json beside the file, and failing
        that guesses: a vocabulary without upper-case Latin letters is lower-case.
    Raises:
      UserError: no such file, not UTF-8, no special tokens, a line twice.
    """
    file = _find(Path(path))
    beside = file.parent / "tokenizer_config.json"
    settings = read_object(beside) if beside.is_file() else {}
    if settings.get("word_tokenizer_type", "basic") != "basic":
        raise UserError(
            f"{file}: words are cut by {shown(settings['word_tokenizer_type'])} first, which ptft does not "
            "have"
        )
    if file.name == "tokenizer.json":
        return _from_json(file, settings)
    try:
        return _from_vocab(file, settings, lowercase)
    except UnicodeDecodeError as e:
        raise UserError(f"{file} is not UTF-8 text: {e}") from None
    except UserError as e:
        raise UserError(f"{file}: {e}") from None


def _from_vocab(file: Path, settings: Mapping[str, Any], lowercase: bool | None) -> Tokenizer:
    # not splitlines: Chinese BERT has U+2028 as an entry
    lines = file.read_bytes().decode("utf-8-sig").split("\n")
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
    if settings.get("tokenize_chinese_chars") is False or settings.get("strip_accents") not in (
        None,
        lowercase,
    ):
        return _other_wordpiece(vocab, lowercase, settings, added)
    return Tokenizer(vocab, lowercase)


def _other_wordpiece(
    vocab: Sequence[str], lowercase: bool, settings: Mapping[str, Any], added: Added
) -> Tokenizer:
    """WordPiece that has added tokens, keeps accents in lower case, strips them in cased text, or leaves
    Chinese characters in words."""
    Tokenizer(vocab, lowercase)  # its checks
    ids = {token: i for i, token in enumerate(vocab)}
    hf = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    chinese, strip = settings.get("tokenize_chinese_chars") is not False, settings.get("strip_accents")
    hf.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=chinese, strip_accents=strip, lowercase=lowercase
    )
    hf.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    hf.decoder = decoders.WordPiece()
    hf.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    hf.add_special_tokens(list(SPECIALS))
    _add(hf, list(_to_find(added, settings).values()))
    return Pretrained(hf, {**settings, **added.named}, added.ids)


def _added(folder: Path, settings: Mapping[str, Any], inside: Sequence[Mapping[str, Any]] = ()) -> Added:
    """The added tokens of a folder; `inside`: those of its tokenizer.json."""
    older = [
        read_object(f) if f.is_file() else {}
        for f in (folder / "special_tokens_map.json", folder / "added_tokens.json")
    ]
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
        raise UserError(
            f"the added token {shown(twice[0])} gets the id of another entry, because the vocabulary has "
            "gaps; number it"
        )


def _part(stored: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of a tokenizer.json; {} for what the library will not read either."""
    part = stored.get(key)
    return part if isinstance(part, dict) else {}


def _is_ours(stored: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json was written by `Tokenizer.save`, and nothing was added to it since."""
    model, normalizer, added = _part(stored, "model"), _part(stored, "normalizer"), stored.get("added_tokens")
    plain = model.get("type") == "WordPiece" and model.get("max_input_chars_per_word") == MAX_WORD
    return (
        plain
        and normalizer.get("type") == "Sequence"
        and isinstance(added, list)
        and len(added) <= len(SPECIALS)
    )


def _from_json(file: Path, settings: Mapping[str, Any]) -> Tokenizer:
    stored = read_object(file)
    normalizer, splitter = _part(stored, "normalizer"), _part(stored, "pre_tokenizer")
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
    inside = stored.get("added_tokens") or []
    added = _added(file.parent, settings, inside)
    tokens = _to_find(added, settings)
    stored["added_tokens"] = [{"id": t["id"], **tokens[t["content"]]} for t in inside]
    try:
        hf = tokenizers.Tokenizer.from_str(json.dumps(stored))
    except Exception as e:  # the library raises Exception itself
        raise UserError(f"{file} is no tokenizer that the tokenizers library reads: {short(e)}") from None
    known = {t["content"] for t in inside}
    _add(hf, [t for name, t in tokens.items() if name not in known])
    ids = hf.get_vocab(with_added_tokens=True)
    last = max(ids, key=ids.__getitem__, default="")
    if ids.get(last, 0) >= MAX_ID:
        raise UserError(
            f"{file}: the entry {shown(last)} has the id {ids[last]}; expected less than {MAX_ID}"
        )
    # old files do not say the model's type
    if normalizer.get("type") == "BertNormalizer" and isinstance(hf.model, models.WordPiece):
        lower = normalizer["lowercase"]
        usual = normalizer["handle_chinese_chars"] and normalizer.get("strip_accents") in (None, lower)
        plain = (
            added.tokens.keys() - _text(added)
            <= set(SPECIALS)
            <= ids.keys()
            == stored["model"]["vocab"].keys()
        )
        if usual and plain and sorted(ids.values()) == list(range(len(ids))):
            return Tokenizer(sorted(ids, key=ids.__getitem__), lower)
    try:
        return Pretrained(hf, {**settings, **added.named}, added.ids)
    except UserError as e:
        raise UserError(f"{file}: {e}") from None


def _find(path: Path) -> Path:
    for folder in (path / "tokenizer", path):
        full, plain = folder / "tokenizer.json", folder / "vocab.txt"
        # In our own folders vocab.txt says it all; in others tokenizer.json may hold settings and added
        # tokens that it does not.
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
            f"{folder} holds {', '.join(sorted(slow))} and no tokenizer.json, the form of it that ptft "
            "reads; where transformers is installed, "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        )
    beside = did_you_mean(path.name if folder != path else "vocab.txt", there)
    raise UserError(
        f"there is no vocabulary at {path}: expected a vocab.txt or a folder that holds one; in {folder}: "
        f"{beside}"
    )
