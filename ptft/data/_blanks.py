"""The labelled task of the corpus: sentences that lack a word, split by the module that they are from."""

import hashlib
from collections.abc import Sequence

from ptft.data._docstrings import Module
from ptft.data._sentences import sentences

SHARES = {"test": 0.15, "dev": 0.10}  # of all paragraphs, by module; train has the rest
BLANKS = ("the", "of", "to", "is")
BLANK = "___"
WORDS = (8, 20)  # of a sentence with a blank: whole, and seldom cut at 40 tokens
MOST = {"train": 1000, "dev": 250, "test": 250}  # sentences a missing word


def drawn(text: str) -> bytes:
    """A hash: the order in which modules and sentences are drawn."""
    return hashlib.sha256(text.encode()).digest()


def held_out(modules: Sequence[Module]) -> dict[str, str]:
    """{path: "test" or "dev"} of the modules kept from training, drawn by hash until a split has its share of
    paragraphs."""
    out = {}
    room = {split: share * sum(len(m.paragraphs) for m in modules) for split, share in SHARES.items()}
    for module in sorted(modules, key=lambda m: drawn(m.path)):
        size = len(module.paragraphs)
        if split := next((s for s in room if room[s] >= size), None):
            room[split] -= size
            out[module.path] = split
    return out


def blanked(sentence: str) -> tuple[str, str] | None:
    """(the sentence with a blank, the word that is missing), or None where it has none of the words, or more
    or fewer words than WORDS.

    >>> blanked("It returns a number of rows in a table that was open.")
    ('It returns a number ___ rows in a table that was open.', 'of')
    """
    words = sentence.split()
    places = [i for i, word in enumerate(words) if word in BLANKS]
    if not places or not WORDS[0] <= len(words) <= WORDS[1] or BLANK in sentence:
        return None
    at = places[drawn(sentence)[0] % len(places)]
    return " ".join([*words[:at], BLANK, *words[at + 1 :]]), words[at]


def blanks(modules: Sequence[Module]) -> dict[str, list[tuple[str, str, str]]]:
    """{split: [(text, missing word, module)]}, as many of each word: as many as there are of the rarest, and
    not more than MOST.

    A sentence that is in two splits is in none; so the pretraining documents have none of dev or test.
    """
    split = held_out(modules)
    said = [(s, m.path) for m in modules for p in m.paragraphs for s in sentences(p)]
    places: dict[str, set[str]] = {}
    for sentence, path in said:
        places.setdefault(sentence, set()).add(split.get(path, "train"))
    by_word: dict[str, dict[str, list[tuple[str, str, str]]]] = {
        s: {word: [] for word in BLANKS} for s in MOST
    }
    for sentence, path in dict(said).items():
        if len(places[sentence]) == 1 and (made := blanked(sentence)):
            by_word[split.get(path, "train")][made[1]].append((*made, path))
    out = {}
    for name, words in by_word.items():
        n = min(MOST[name], *map(len, words.values()))
        out[name] = [row for rows in words.values() for row in sorted(rows, key=lambda r: drawn(r[0]))[:n]]
    return out
