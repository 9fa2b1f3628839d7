"""Tokens that were added to a vocabulary, such as [E1] or <usr>, which a tokenizer finds in a text before it
cuts words.

Hugging Face's tokenizers keep them in up to four files, newer and older ones side by side; read here as
transformers reads them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ptft.core.errors import listed

# The tokens that have a part to play: a text that merely holds their names is text.
NAMED = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")


class Added(NamedTuple):
    """What the files say."""

    # by content, in the order in which transformers adds them: its flags
    tokens: Mapping[str, Mapping[str, Any]]
    ids: Mapping[str, int]  # of those that a file numbers
    named: Mapping[str, str]  # what those of `NAMED` are called, where a file says it


def read(
    settings: Mapping[str, Any],
    special_map: Mapping[str, Any],
    numbers: Mapping[str, Any],
    inside: Sequence[Mapping[str, Any]],
) -> Added:
    """The added tokens of a folder.

    Args:
      settings: tokenizer_config.json; where it has `added_tokens_decoder`, the next two count for nothing.
      special_map: special_tokens_map.json, {} if there is none.
      numbers: added_tokens.json, {} if there is none.
      inside: `added_tokens` of tokenizer.json.
    Raises:
      TypeError, ValueError, LookupError, AttributeError: they are not as transformers writes them.
    """
    decoder = settings.get("added_tokens_decoder")
    files = (settings,) if decoder is not None else (settings, special_map)
    named = {k: _entry(file[k])["content"] for k in NAMED for file in files if file.get(k)}
    roles = [file[k] for k in NAMED for file in files[::-1] if file.get(k)]
    extra = [t for file in files for key in LISTS for t in _values(file.get(key))]
    extra += [
        v
        for k, v in settings.items()
        if k.endswith("_token") and k not in NAMED and isinstance(v, str | Mapping)
    ]
    whole = {int(t["id"]): _entry(t, special=False) for t in inside}
    if decoder is not None:
        numbered = {int(i): _entry(t, special=False) for i, t in decoder.items()}
        by_id = whole | numbered
        _agree(settings, whole, numbered, set(named.values()))
    else:
        # transformers does not look into the map's additional_special_tokens here; for texts in lower case it
        # matters.
        told = [
            *roles,
            *_values(settings.get(LISTS[0])),
            *(t for file in files for t in _values(file.get(LISTS[1]))),
        ]
        special = {_entry(t)["content"] for t in told}
        numbered = {int(i): _entry(t, special=t in special) for t, i in numbers.items()}
        by_id = numbered | whole
    tokens = {t["content"]: t for _, t in sorted(by_id.items())}
    for token in map(_entry, [*roles, *extra]):
        tokens.setdefault(token["content"], token)
    ids = {t["content"]: i for part in (whole, numbered) for i, t in part.items()}
    return Added(tokens, ids, named)


def _agree(
    settings: Mapping[str, Any], whole: Mapping[int, Any], numbered: Mapping[int, Any], named: set[str]
) -> None:
    """A class that builds its tokenizer from the vocabulary would drop what `added_tokens_decoder` does not
    repeat."""
    more = {t["content"] for t in whole.values()} - {t["content"] for t in numbered.values()} - named
    if more and settings.get("tokenizer_class") not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        raise ValueError(f"added_tokens_decoder lacks {listed(sorted(more))}, which tokenizer.json adds")


def _values(tokens: Any) -> list[Any]:
    """Of a list of tokens, or of an object of named ones."""
    return list(tokens.values()) if isinstance(tokens, Mapping) else list(tokens or [])


def _entry(token: str | Mapping[str, Any], special: bool = True) -> dict[str, Any]:
    """A token's content and flags; where a flag is not written, the library's own."""
    given = {"content": token} if isinstance(token, str) else token
    special = bool(given.get("special", special))
    flags = {**dict.fromkeys(FLAGS, False), "special": special, "normalized": not special}
    return {"content": str(given["content"]), **flags, **{k: bool(given[k]) for k in FLAGS if k in given}}
