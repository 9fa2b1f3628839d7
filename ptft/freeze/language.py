"""What is trainable, as a text -> one value: phases x sets x learning-rate rules.

A set is one of `strategies.TRAINS` or a kind of `adapters`; the head is new in every finetuning and always
trained. Sets combine from left to right: `top-2+bitfit` trains what either trains, `top-2&bitfit` what both
do, `full!embeddings` the first without the second. Added parameters join with + like the others:
`lora=8+bitfit`. Learning rates (`strategies.RATES`) follow after an @.

What is trainable may change with time (`strategies.CHANGES`), or by hand:

  A; START: B; …     A from the first step, B from START on: `head; 20%: top-2; plateau=2: full`

A start is a step, a duration, a share of the run, or `plateau=N`: N evaluations on dev without a better best
(a step after a plateau does not wait for it). What stays trainable keeps its optimizer state, what begins has
new state, what is frozen loses its.

`auto(budget=0.5 flops)` leaves the choice to the data: it becomes one of these before training starts
(`ptft.planning.auto`).

A rule list says the same by hand: `[(pattern, action), …]`, full match, first wins, with the actions
`freeze`, `train`, `train(lr=F)` and `train(lr=F, wd=G)`: factors of the learning rate and of the weight
decay. Phases of rule lists are `[(start, rules), …]`.

Ties: with `mlm_nsp` the decoder is the word-embedding table, so whatever freezes or trains the embeddings
does the same to the decoder's matrix. A table that is trained gets both gradients, the decoder's and the
embeddings'.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ptft.core.errors import UserError, did_you_mean, joined
from ptft.freeze import adapters, strategies
from ptft.freeze.strategies import Named

AUTO = "auto(budget=SHARE UNIT)"
LONGEST = 10_000  # characters of a strategy: a config may be a stranger's


class Term(NamedTuple):
    """One set of a strategy: what the model has (`named` and its `values`), or a kind of added parameters and
    its `argument`."""

    text: str
    op: str  # + & !
    named: Named | None = None
    values: tuple[Any, ...] = ()
    kind: str = ""
    argument: str = ""


class Strategy(NamedTuple):
    """Sets and learning-rate rules; what is trainable in one phase."""

    text: str
    terms: tuple[Term, ...]
    rates: tuple[tuple[Named, tuple[Any, ...]], ...]


Rules = Sequence[Any]  # (pattern, action), by hand


class Timed(NamedTuple):
    """A strategy that decides by itself what is trainable when; its phases have the `rates` as a suffix."""

    named: Named
    argument: str
    rates: str


class Freeze(NamedTuple):
    """`config.freeze`, parsed. Either it has `phases`, each with its start, or it is `timed`: a strategy that
    makes the phases once the run's length is known. `auto(…)` has neither until it has chosen."""

    said: Any
    phases: tuple[tuple[str, "Strategy | Rules"], ...]
    timed: Timed | None = None


def parse(freeze: Any) -> Freeze:
    """Reads `config.freeze`. Raises UserError, which names the nearest valid thing."""
    if isinstance(freeze, str):
        return _of_text(freeze)
    if not isinstance(freeze, list | tuple):
        raise UserError(
            f"freeze={freeze!r}: expected a strategy's name, a list of (pattern, action), or a list of "
            "(start, such a list)"
        )
    if not any(
        isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[1], list | tuple) for p in freeze
    ):
        return Freeze(freeze, (("0", freeze),))
    if odd := [p for p in freeze if not isinstance(p, list | tuple) or len(p) != 2]:
        raise UserError(f"freeze phase {odd[0]!r}: expected a pair (start, rules), as the others are")
    return Freeze(freeze, tuple(_phase(str(start), s, freeze) for start, s in freeze))


def problem(freeze: Any) -> str | None:
    """What is wrong with `config.freeze`, whatever its model; None: nothing, or `auto` has to say it."""
    if isinstance(freeze, str) and freeze.strip().startswith("auto"):
        return None
    try:
        parse(freeze)
    except UserError as e:
        return str(e).removeprefix(f"freeze={freeze!r}: ")
    return None


@functools.lru_cache(maxsize=256)
def _of_text(freeze: str) -> Freeze:
    strategies.load()
    if re.fullmatch(r"\s*auto\([^()]*\)\s*", freeze):
        return Freeze(freeze, ())
    if ";" in freeze or ":" in freeze:
        parts = [part.rpartition(":") for part in freeze.split(";")]
        starts = [start.strip() if i or colon else "0" for i, (start, colon, _) in enumerate(parts)]
        return Freeze(
            freeze,
            tuple(_phase(start, s.strip(), freeze) for start, (_, _, s) in zip(starts, parts, strict=True)),
        )
    sets, at, rates = "".join(freeze.split()).partition("@")
    name, _, argument = sets.partition("=")
    if timed := _timed(name):
        _rates(rates.split("@") if at else [], freeze)
        return Freeze(freeze, (), Timed(timed, argument, at + rates))
    return Freeze(freeze, (("0", strategy(freeze, freeze)),))


def _phase(start: str, chosen: Any, said: Any) -> tuple[str, "Strategy | Rules"]:
    if not start:
        raise UserError(
            f"freeze={said!r}: {chosen!r} has no start; expected START: {chosen}, such as 50%: {chosen}"
        )
    if not isinstance(chosen, str | list | tuple):
        raise UserError(f"freeze phase {start!r}: expected a strategy or a list of rules, got {chosen!r}")
    return start, strategy(chosen, said) if isinstance(chosen, str) else chosen


def _timed(name: str) -> Named | None:
    return next(
        (one for grammar, one in strategies.CHANGES.items() if grammar.partition("=")[0] == name), None
    )


def strategy(text: str, said: Any = None) -> Strategy:
    """Reads a strategy without time. `said`: all of `config.freeze`, for messages."""
    strategies.load()
    if len(text) > LONGEST:
        raise UserError(f"a strategy of {len(text):,} characters; expected at most {LONGEST:,}")
    said = text if said is None else said
    sets, *rates = "".join(text.split()).split("@")
    parts = re.split(r"([+&!])", "+" + sets)[1:]
    terms = tuple(_term(op, part, said) for op, part in zip(parts[::2], parts[1::2], strict=True))
    for i, one in enumerate(terms):
        after = [t.op for t in terms[i + 1 :]]
        if one.kind and (one.op != "+" or after[:1] == ["!"] or "&" in after):
            raise UserError(
                f"freeze={said!r}: {one.text!r} is added to other sets with +; & and ! are for what the "
                "model has, and come before it"
            )
    return Strategy(text, terms, _rates(rates, said))


def _term(op: str, text: str, said: Any) -> Term:
    if not text:
        raise UserError(f"freeze={said!r}: '' is no strategy; expected one before and after +, &, !, ; and :")
    name, given, argument = text.partition("=")
    if name in adapters.kinds() and bool(given) == bool(argument):
        return Term(text, op, kind=name, argument=argument)
    if fits := strategies.read(strategies.TRAINS, text):
        return Term(text, op, *fits)
    if name.startswith("auto("):
        raise undecided(said)
    if _timed(name):
        raise UserError(
            f"freeze={said!r}: {name} decides what is trainable when, so it stands alone (rates may follow "
            f"it: {name}@ulmfit)"
        )
    named = {g: re.split("[=-]", g)[0] for g in grammars()}
    stem = re.split(r"[=-]|\d", text)[0]
    expected = [g for g, its in named.items() if its == stem]
    near = f"expected {joined(expected)}" if expected else did_you_mean(text, named)
    words = strategies.explained(g for g in expected if g in strategies.TRAINS)
    raise UserError(f"freeze={said!r}: {text!r} is no strategy; {near}{words} (or a list of rules)")


def undecided(said: Any) -> UserError:
    return UserError(
        f"freeze={said!r}: auto is decided from data before training starts, and stands alone: "
        f"freeze='{AUTO}'"
    )


def _rates(texts: list[str], said: Any) -> tuple[tuple[Named, tuple[Any, ...]], ...]:
    rates = []
    for text in texts:
        fits = strategies.read(strategies.RATES, text)
        if fits is None:
            raise UserError(
                f"freeze={said!r}: {text!r} is no rule for rates; "
                f"{did_you_mean(text, list(strategies.RATES))}"
            )
        rates.append(fits)
    return tuple(rates)


def grammars() -> list[str]:
    """Everything that a strategy may begin with."""
    strategies.load()
    kinds = [kind.grammar for kind in adapters.kinds().values()]
    return [*strategies.TRAINS, *kinds, *strategies.CHANGES, AUTO]
