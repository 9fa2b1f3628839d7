"""A strategy on a model: the table of every parameter with the rule that claimed it, and the phases of a
run."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from ptft.core import tree
from ptft.core.errors import UserError
from ptft.freeze import adapters, language
from ptft.freeze.adapters import Adapter
from ptft.freeze.language import Freeze, Strategy, Term, Timed
from ptft.freeze.layout import Layout, Names
from ptft.freeze.strategies import FACTOR, Named, Span
from ptft.models import Anatomy


@dataclass(frozen=True)
class Row:
    """One parameter in a resolved plan."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    lr_mult: float  # multiplies the learning rate; 0: frozen
    wd_mult: float = 1.0  # multiplies the weight decay


@dataclass(frozen=True)
class Plan:
    """The resolved table: every parameter, the rule that claimed it, and its factors."""

    rows: tuple[Row, ...]

    @property
    def trainable(self) -> tuple[str, ...]:
        return tuple(r.name for r in self.rows if r.lr_mult)

    @property
    def rates(self) -> dict[str, float]:
        """Learning-rate factor of every trainable parameter."""
        return {r.name: r.lr_mult for r in self.rows if r.lr_mult}

    @property
    def decays(self) -> dict[str, float]:
        """Weight-decay factor of every trainable parameter."""
        return {r.name: r.wd_mult for r in self.rows if r.lr_mult}

    def counts(self) -> tuple[int, int]:
        """(trainable, total) numbers of parameters."""
        sizes = [(r.lr_mult, tree.count({r.name: r})) for r in self.rows]
        return sum(n for rate, n in sizes if rate), sum(n for _, n in sizes)

    def table(self) -> list[dict[str, Any]]:
        """The plan as JSON."""
        return [
            {"name": r.name, "shape": list(r.shape), "rule": r.pattern, "rate": r.lr_mult, "decay": r.wd_mult}
            for r in self.rows
        ]


def _factors(action: str) -> tuple[float, float]:
    """Factors of learning rate and weight decay: "freeze" -> (0, 1), "train" -> (1, 1), "train(lr=0.1, wd=0)"
    -> (0.1, 0)."""
    if action in ("freeze", "train"):
        return float(action == "train"), 1.0
    match = re.fullmatch(rf"train\((?:lr={FACTOR})?(?:(?<=[0-9]), )?(?:wd={FACTOR})?\)", action)
    try:
        rate, decay = (
            (float(x) if x else 1.0 for x in match.groups()) if match and any(match.groups()) else (0.0, 0.0)
        )
    except ValueError:
        rate = decay = 0.0
    if not (0 < rate < math.inf and decay < math.inf):
        raise UserError(
            f"freeze action {action!r}: expected 'freeze', 'train' or 'train(lr=FACTOR, wd=FACTOR)', finite, "
            "one or both, lr above 0"
        )
    return rate, decay


def plan(chosen: Any, anatomy: Anatomy, params: Mapping[str, Any]) -> Plan:
    """Resolves a strategy or a list of `(pattern, action)` rules on a flat tree of arrays or shapes.

    Args:
      chosen: a `language.Strategy`, its text, or the rules.
    Raises:
      UserError: unknown strategy, a rule that matches nothing, an unclaimed parameter, or nothing left to
        train.
    """
    if isinstance(chosen, str):
        chosen = language.strategy(chosen)
    if isinstance(chosen, Strategy):
        with _said(chosen.text):
            return Plan(_rows(chosen, Layout(anatomy, params)))
    return _by_hand(chosen, params)


@contextmanager
def _said(text: Any) -> Iterator[None]:
    """A mistake names the strategy that makes it."""
    try:
        yield
    except UserError as e:
        raise e if str(e).startswith("freeze") else UserError(f"freeze={text!r}: {e}") from None


def _by_hand(rules: Sequence[Sequence[str]], params: Mapping[str, Any]) -> Plan:
    for rule in rules:
        if not isinstance(rule, list | tuple) or len(rule) != 2:
            raise UserError(f"freeze rule {rule!r}: expected a pair (pattern, action)")
    given = [(str(p), str(a)) for p, a in rules]
    factors = [_factors(action) for _, action in given]
    claimed = tree.match(list(params), given)
    rows = tuple(Row(n, tuple(params[n].shape), given[claimed[n]][0], *factors[claimed[n]]) for n in params)
    if not any(r.lr_mult for r in rows):
        raise UserError(f"freeze={rules!r} leaves nothing to train")
    return Plan(rows)


def _rows(strategy: Strategy, model: Layout) -> tuple[Row, ...]:
    """Every parameter with what of the strategy claimed it."""
    claimed = _claimed(strategy, model)
    if not claimed and {t.text for t in strategy.terms} != {"head"}:
        raise UserError("trains nothing but the head on this model; say freeze='head' if that is meant")
    rates = [_factors_of(named, values, model) for named, values in strategy.rates]

    def row(name: str) -> Row:
        shape = tuple(model.params[name].shape)
        if name.startswith("head/"):
            return Row(name, shape, "head", 1.0)
        rate = float(f"{math.prod(factors.get(name, 1.0) for factors in rates):.6g}")
        if not 0 < rate < math.inf:
            raise UserError(
                f"gives {name} the learning-rate factor {rate:g}; expected one above 0, and finite"
            )
        return Row(name, shape, claimed.get(name, "not named"), rate if name in claimed else 0.0)

    return tuple(map(row, model.params))


def _factors_of(named: Named, values: tuple[Any, ...], model: Layout) -> Mapping[str, float]:
    """What a rule for rates returns, whose author may be the user."""
    factors = named.function(model, *values)
    if not isinstance(factors, Mapping) or (unknown := set(factors) - set(model.params)):
        got = min(unknown) if isinstance(factors, Mapping) else type(factors).__name__
        raise UserError(f"@{named.grammar} returns {got}; expected factors by the names of parameters")
    return factors


def _claimed(strategy: Strategy, model: Layout) -> dict[str, str]:
    """Name -> the set that trains it, the first of those that do."""
    sets: list[tuple[str, Names]] = []
    for term in strategy.terms:
        text, names = term.text, _names(term, model)
        if term.op == "+":
            sets.append((text, names))
        elif term.op == "&":
            sets = [(f"{said}&{text}", had & names) for said, had in sets]
        else:
            sets = [(f"{said}!{text}", had - names) for said, had in sets]
    return {n: said for said, names in reversed(sets) for n in names}


def _names(term: Term, model: Layout) -> Names:
    if term.named is None:
        return adapters.trainable(model.params, term.kind)
    names = term.named.function(model, *term.values)
    if not isinstance(names, Set) or (unknown := names - model.backbone):
        got = min(unknown) if isinstance(names, Set) else type(names).__name__
        raise UserError(
            f"{term.named.grammar} returns {got}; expected a set of names of the backbone's parameters"
        )
    return frozenset(names)


def added(freeze: Freeze, anatomy: Anatomy, params: Mapping[str, Any]) -> tuple[Adapter, ...]:
    """The added parameters that `config.freeze` names in any phase. Raises UserError: an option or a place
    that does not exist."""
    model = Layout(anatomy, params)
    with _said(freeze.said):
        return adapters.union([_added(s, model) for _, s in freeze.phases if isinstance(s, Strategy)])


def _added(strategy: Strategy, model: Layout) -> tuple[Adapter, ...]:
    kinds = adapters.kinds()
    taken: set[tuple[str, str]] = set()
    for term in strategy.terms:
        if term.argument and "=" not in kinds[term.kind].grammar:
            grammar = kinds[term.kind].grammar
            raise UserError(f"{term.kind} has no option {term.argument!r}; expected {grammar}")
    attached = adapters.ordered(kinds[t.kind].parse(t.argument, model) for t in strategy.terms if t.kind)
    modules = {m for n in model.backbone for m in _above(n.removeprefix("backbone/"))}
    for one in attached:
        if lost := [site for site, _ in one.sites if site not in modules]:
            raise UserError(f"{one.kind()} attaches to {lost[0]}, which this model does not have")
        if not one.sites:
            raise UserError(f"{one.kind()} attaches to nothing of this model")
        sites = {(one.kind(), site) for site, _ in one.sites}
        if twice := taken & sites:
            raise UserError(f"adds {one.kind()} to {min(twice)[1]} twice, in different ways")
        taken |= sites
    return attached


def _above(name: str) -> list[str]:
    """ "block_0/ffn/up/bias" -> itself and the modules that it lies in."""
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]


class BadStart(UserError):
    """Phases that a run of this length has no room for."""


class Phase(NamedTuple):
    """What is trainable from some step on."""

    # a step; None: when the phase before has seen `waits` evaluations without a better best
    start: int | None
    waits: int
    strategy: Any  # a text or a list of rules
    plan: Plan


def phases(freeze: Freeze, anatomy: Anatomy, params: Mapping[str, Any], span: Span) -> tuple[Phase, ...]:
    """The phases of a run, every one resolved. Raises UserError as `plan`, and where a start makes no
    sense."""
    resolved: list[Phase] = []
    with _said(freeze.said):
        given = _timed(freeze.timed, Layout(anatomy, params), span) if freeze.timed else freeze.phases
    if not given and freeze.timed:
        raise UserError(
            f"freeze={freeze.said!r}: {freeze.timed.named.grammar} gives no phase; expected one or more"
        )
    if not given:
        raise language.undecided(freeze.said)
    for start, chosen in given:
        said = chosen.text if isinstance(chosen, Strategy) else chosen
        at, waits = _start(freeze.said, start, span.steps)
        if not resolved and at != 0:
            raise UserError(
                f"freeze={freeze.said!r}: the first phase, {said!r}, begins at {start!r}; expected 0, or no "
                "start at all"
            )
        before = max((p.start or 0 for p in resolved), default=-1)
        if at is not None and at <= before:
            raise BadStart(
                f"freeze={freeze.said!r}: {said!r} would begin at step {at} ({start!r}), one before it at "
                f"step {before}; expected each phase later than those before it (the run has {span.total} "
                "steps)"
            )
        resolved.append(Phase(at, waits, said, plan(chosen, anatomy, params)))
    if late := [p for p in resolved if p.start is not None and p.start >= span.total]:
        raise BadStart(
            f"freeze={freeze.said!r}: the phase {late[0].strategy!r} would begin at step {late[0].start}, "
            f"the run has {span.total}; begin it earlier or train for longer"
        )
    return tuple(resolved)


def _timed(timed: Timed, model: Layout, span: Span) -> list[tuple[str, Strategy]]:
    made = timed.named.function(timed.argument, len(model.blocks), span)
    return [(str(start), language.strategy(text + timed.rates)) for start, text in made]


def _start(said: Any, start: str, steps: Callable[[str], int]) -> tuple[int | None, int]:
    """(the step, 0), or of a plateau (None, its evaluations)."""
    if match := re.fullmatch(r"plateau\s*=\s*([1-9]\d*)", start):
        return None, int(match[1])
    if start.startswith("plateau"):
        raise UserError(
            f"freeze={said!r}: {start!r} is no start; expected plateau=N, N evaluations without a better best"
        )
    try:
        return steps(start), 0
    except UserError as e:
        raise UserError(f"{e}; or plateau=N, N evaluations on dev without a better best") from None


def union(resolved: Sequence[Phase]) -> Plan:
    """Everything that is trainable in some phase, by the rule under which it first is."""
    rows = list(resolved[0].plan.rows)
    for phase in resolved[1:]:
        rows = [old if old.lr_mult else new for old, new in zip(rows, phase.plan.rows, strict=True)]
    return Plan(tuple(rows))
