"""Strategies by name. One is a function beside its grammar; a file in this folder registers as many as it
likes.

    @trains("top-K")
    def top(model: Layout, k: int) -> Names:
        \"\"\"the K blocks nearest to the output (…)\"\"\"

The words in capitals are what the function gets. There are three kinds:

  trains(GRAMMAR…)    names of the backbone's parameters that it trains
  rates(GRAMMAR…)     follows an @: a factor of the learning rate for some parameters; the others have 1
  changes(GRAMMAR…)   what is trainable changes with time: gets its argument as text, the number of blocks
                      and the run's span, and returns [(start, strategy)]
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ptft.core import plugins
from ptft.core.errors import UserError

FACTOR = r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"


def numbers(text: str) -> list[int]:
    """ "0,2,5-7" -> [0, 2, 5, 6, 7]; [] if it is not of that form, upwards and of at most four digits
    each."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text):
        return []
    ranges = [(int(a), int(b or a)) for a, _, b in (part.partition("-") for part in text.split(","))]
    return sorted({i for a, b in ranges for i in range(a, b + 1)}) if all(a <= b for a, b in ranges) else []


class Word(NamedTuple):
    """What may stand for a word of a grammar."""

    pattern: str
    read: Callable[[str], Any]
    said: str


WORDS: Mapping[str, Word] = {
    "K": Word(r"(\d{1,4})", int, "a number"),
    "N": Word(r"(\d{1,4})", int, "a number"),
    "SEED": Word(r"(\d+)", int, "a whole number"),
    "R": Word(FACTOR, float, "a number such as 0.9"),
    "SHARE": Word(FACTOR, float, "a number such as 0.3"),
    "LIST": Word(r"([\d,-]+)", numbers, "numbers from low to high such as 0,2,5-7"),
    "MODULES": Word(r"([\w/]+(?:,[\w/]+)*)", lambda text: text.split(","), "modules such as query,up"),
    "EVERY": Word(r"(.*)", str, "a duration"),
}
_WORD = re.compile("|".join(rf"\b{word}\b" for word in WORDS))


class Span(NamedTuple):
    """The run that a strategy changes in."""

    total: int  # steps
    steps: Callable[[str], int]  # reads a duration or a share of the run
    seed: int


class Named(NamedTuple):
    """A grammar with the function that it calls."""

    grammar: str
    function: Callable[..., Any]

    def read(self, text: str) -> tuple[Any, ...] | None:
        """The values of the grammar's words in a text; None if it is no such text."""
        words = _WORD.findall(self.grammar)
        pattern = "".join(
            WORDS[p].pattern if p in words else re.escape(p)
            for p in re.split(f"({_WORD.pattern})", self.grammar)
        )
        match = re.fullmatch(pattern, text)
        values = (
            [WORDS[word].read(part) for word, part in zip(words, match.groups(), strict=True)]
            if match
            else []
        )
        return None if match is None or [] in values else tuple(values)


def read(table: Mapping[str, Named], text: str) -> tuple[Named, tuple[Any, ...]] | None:
    """The first of a table whose grammar a text fits, with its values."""
    values = ((named, named.read(text)) for named in table.values())
    return next(((named, parsed) for named, parsed in values if parsed is not None), None)


def explained(grammars: Iterable[str]) -> str:
    """What the words of grammars stand for: "; K: a number"."""
    return "".join(
        f"; {word}: {WORDS[word].said}" for word in dict.fromkeys(_WORD.findall(" ".join(grammars)))
    )


TRAINS: dict[str, Named] = {}
RATES: dict[str, Named] = {}
CHANGES: dict[str, Named] = {}


def _register(table: dict[str, Named], grammars: tuple[str, ...]) -> Callable[..., Any]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for grammar in grammars:
            if unknown := set(re.findall(r"\b[A-Z]+\b", grammar)) - set(WORDS):
                words = ", ".join(WORDS)
                raise UserError(
                    f"the grammar {grammar!r}: {min(unknown)} is no word of a grammar; there is {words}"
                )
            old = table.get(grammar)
            if old and old.function.__module__ != function.__module__:
                both = f"{old.function.__module__} and {function.__module__}"
                raise UserError(f"the grammar {grammar!r} is registered by {both}; give one of them another")
            table[grammar] = Named(grammar, function)
        return function

    return add


def trains(*grammars: str) -> Callable[..., Any]:
    return _register(TRAINS, grammars)


def rates(*grammars: str) -> Callable[..., Any]:
    return _register(RATES, grammars)


def changes(*grammars: str) -> Callable[..., Any]:
    return _register(CHANGES, grammars)


def load() -> None:
    """Imports every file that registers strategies: those of this folder, and kinds of added parameters with
    rates of their own."""
    for package in ("freeze.strategies", "freeze.adapters"):
        for name in plugins.names(package):
            plugins.get(package, name)
    named = {re.split("[=-]", grammar)[0] for grammar in (*TRAINS, *CHANGES)}
    if twice := sorted(named & set(plugins.names("freeze.adapters"))):
        raise UserError(f"{twice[0]!r} is a strategy and a kind of added parameters; give one another name")
