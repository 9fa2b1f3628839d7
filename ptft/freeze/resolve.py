"""A strategy on a model: the table of every parameter with the rule that claimed it, and the phases of a run."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ptft.core import tree
from ptft.core.errors import UserError
from ptft.freeze import language
from ptft.freeze.language import FACTOR, Steps


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
        return [{"name": r.name, "shape": list(r.shape), "rule": r.pattern, "rate": r.lr_mult, "decay": r.wd_mult} for r in self.rows]


def _factors(action: str) -> tuple[float, float]:
    """Factors of learning rate and weight decay: "freeze" -> (0, 1), "train" -> (1, 1), "train(lr=0.1, wd=0)" -> (0.1, 0)."""
    if action in ("freeze", "train"):
        return float(action == "train"), 1.0
    found = re.fullmatch(rf"train\((?:lr={FACTOR})?(?:(?<=[0-9]), )?(?:wd={FACTOR})?\)", action)
    try:
        rate, decay = (float(x) if x else 1.0 for x in found.groups()) if found and any(found.groups()) else (0.0, 0.0)
    except ValueError:
        rate = decay = 0.0
    if not (0 < rate < math.inf and decay < math.inf):
        raise UserError(
            f"freeze action {action!r}: expected 'freeze', 'train' or 'train(lr=FACTOR, wd=FACTOR)', finite, one or both, lr above 0"
        )
    return rate, decay


def plan(strategy: str | Sequence[Sequence[str]], groups: Mapping[str, str], params: Mapping[str, Any]) -> Plan:
    """Resolves a strategy name or a list of `(pattern, action)` rules on a flat tree of arrays or shapes.

    Raises:
      UserError: unknown strategy, a rule that matches nothing, an unclaimed parameter, or nothing left to train.
    """
    names = list(params)
    if isinstance(strategy, str):
        chosen = language.rules(strategy, groups, params)
    else:
        for rule in strategy:
            if not isinstance(rule, list | tuple) or len(rule) != 2:
                raise UserError(f"freeze rule {rule!r}: expected a pair (pattern, action)")
        chosen = [(str(p), str(a)) for p, a in strategy]
    factors = [_factors(action) for _, action in chosen]
    claimed = tree.match(names, chosen)
    rows = tuple(Row(n, tuple(params[n].shape), chosen[claimed[n]][0], *factors[claimed[n]]) for n in names)
    if not any(r.lr_mult for r in rows):
        raise UserError(f"freeze={strategy!r} leaves nothing to train")
    return Plan(rows)


class BadStart(UserError):
    """Phases that a run of this length has no room for."""


class Phase(NamedTuple):
    """What moves from some step on."""

    start: int | None  # a step; None: when the phase before has seen `waits` evaluations without a better best
    waits: int
    strategy: Any  # a name or a list of rules
    plan: Plan


def phases(freeze: Any, groups: Mapping[str, str], params: Mapping[str, Any], total: int, steps: Steps, seed: int) -> tuple[Phase, ...]:
    """The phases of a run, every one resolved. Raises UserError as `plan`, and where a start makes no sense."""
    found: list[Phase] = []
    for start, strategy in language.strategies(freeze, language.depth_of(groups, params), total, steps, seed):
        at, waits = _start(freeze, start, strategy, steps)
        if not found and at != 0:
            raise UserError(f"freeze={freeze!r}: the first phase, {strategy!r}, begins at {start!r}; expected 0, or no start at all")
        before = max((p.start or 0 for p in found), default=-1)
        if at is not None and at <= before:
            raise BadStart(
                f"freeze={freeze!r}: {strategy!r} would begin at step {at} ({start!r}), one before it at step {before}; "
                f"expected each phase later than those before it (the run has {total} steps)"
            )
        found.append(Phase(at, waits, strategy, plan(strategy, groups, params)))
    if late := [p for p in found if p.start is not None and p.start >= total]:
        raise BadStart(
            f"freeze={freeze!r}: the phase {late[0].strategy!r} would begin at step {late[0].start}, the run has {total}; "
            "begin it earlier or train for longer"
        )
    return tuple(found)


def _start(freeze: Any, start: str, strategy: Any, steps: Steps) -> tuple[int | None, int]:
    """(the step, 0), or of a plateau (None, its evaluations)."""
    if not start:
        raise UserError(f"freeze={freeze!r}: {strategy!r} has no start; expected START: {strategy}, such as 50%: {strategy}")
    if found := re.fullmatch(r"plateau\s*=\s*([1-9]\d*)", start):
        return None, int(found[1])
    if start.startswith("plateau"):
        raise UserError(f"freeze={freeze!r}: {start!r} is no start; expected plateau=N, N evaluations without a better best")
    try:
        return steps(start), 0
    except UserError as e:
        raise UserError(f"{e}; or plateau=N, N evaluations on dev without a better best") from None


def union(found: Sequence[Phase]) -> Plan:
    """Everything that moves in some phase, by the rule under which it first does."""
    rows = list(found[0].plan.rows)
    for phase in found[1:]:
        rows = [old if old.lr_mult else new for old, new in zip(rows, phase.plan.rows, strict=True)]
    return Plan(tuple(rows))


def describe(plan: Plan) -> str:
    """The plan as text, one line a rule-and-module, with counts."""
    lines, width = [], max(len(_module(r.name)) for r in plan.rows)
    grouped: dict[tuple[str, str, str], int] = {}
    for r in plan.rows:
        key = (_module(r.name), r.pattern, _action(r))
        grouped[key] = grouped.get(key, 0) + tree.count({r.name: r})
    for (module, pattern, action), n in grouped.items():
        lines.append(f"  {module:<{width}}  {n:>12,}  {action:<14} {pattern}")
    trainable, total = plan.counts()
    return "\n".join([*lines, f"  trainable {trainable:,} of {total:,} parameters ({trainable / total:.2%})"])


def _action(row: Row) -> str:
    factors = [f"{name}={x:g}" for name, x in (("lr", row.lr_mult), ("wd", row.wd_mult)) if x != 1]
    if not row.lr_mult:
        return "freeze"
    return f"train({', '.join(factors)})" if factors else "train"


def _module(name: str) -> str:
    """The first two levels of a name: what a person wants to see a line for."""
    return "/".join(name.split("/")[:2])
