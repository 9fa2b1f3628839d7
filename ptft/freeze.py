"""What moves: strategy names -> ordered rules -> a plan over parameter names.

A strategy speaks the groups that its model exports (`GROUPS`), never paths. The head is new in every finetuning and
always trained.

  full               everything
  head               the head alone (linear probe)
  top-K              the K blocks nearest to the output, and the pooler
  bottom-K           the K blocks nearest to the input
  embeddings         the embeddings alone
  freeze-embeddings  everything but the embeddings
  bitfit             all biases (Ben Zaken et al. 2021, arXiv 2106.10199)
  layernorm          all LayerNorm scales and biases
  attention          the attention matrices and their biases
  ffn                the feed-forward matrices and their biases

Ties: with `mlm_nsp` the decoder is the word-embedding table, so whatever freezes or trains the embeddings does the same
to the decoder's matrix.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptft import tree
from ptft.errors import UserError, did_you_mean

Rules = Sequence[tuple[str, str]]

HEAD = ("head/.*", "train")
REST = ("backbone/.*", "freeze")
NAMES = ("full", "head", "top-K", "bottom-K", "embeddings", "freeze-embeddings", "bitfit", "layernorm", "attention", "ffn")
# strategy -> the group it trains
GROUP = {"embeddings": "stem", "bitfit": "bias", "layernorm": "norm", "attention": "attention", "ffn": "ffn"}


@dataclass(frozen=True)
class Row:
    """One parameter in a resolved plan."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    rate: float  # multiplies the learning rate; 0: frozen


@dataclass(frozen=True)
class Plan:
    """The resolved table: every parameter, the rule that claimed it, and its learning-rate factor."""

    rows: tuple[Row, ...]

    @property
    def trainable(self) -> tuple[str, ...]:
        return tuple(r.name for r in self.rows if r.rate)

    @property
    def rates(self) -> dict[str, float]:
        """Learning-rate factor of every trainable parameter."""
        return {r.name: r.rate for r in self.rows if r.rate}

    def counts(self) -> tuple[int, int]:
        """(trainable, total) numbers of parameters."""
        sizes = [(r.rate, tree.count({r.name: r})) for r in self.rows]
        return sum(n for rate, n in sizes if rate), sum(n for _, n in sizes)

    def table(self) -> list[dict[str, Any]]:
        """The plan as JSON."""
        return [{"name": r.name, "shape": list(r.shape), "rule": r.pattern, "rate": r.rate} for r in self.rows]


def rules(strategy: str, groups: Mapping[str, str], names: Sequence[str]) -> Rules:
    """The ordered rules of a named strategy on a model with these groups and parameter names."""
    depth = _depth(groups, names)
    if strategy == "full":
        return [(".*", "train")]
    if strategy == "head":
        return [HEAD, REST]
    if strategy == "freeze-embeddings":
        return [(_group(strategy, "stem", groups), "freeze"), (".*", "train")]
    if strategy in GROUP:
        return [HEAD, (_group(strategy, GROUP[strategy], groups), "train"), REST]
    if found := re.fullmatch(r"(top|bottom)-(\d+)", strategy):
        k = int(found[2])
        if not 1 <= k <= depth:
            raise UserError(f"freeze={strategy!r}: the model has {depth} blocks; expected {found[1]}-1 … {found[1]}-{depth}")
        chosen = range(depth - k, depth) if found[1] == "top" else range(k)
        moving = [groups["pooler"]] if found[1] == "top" and "pooler" in groups else []
        moving += [groups["block"].format(i) for i in chosen]
        rest = [REST] if any(not any(re.fullmatch(p, n) for p in [*moving, HEAD[0]]) for n in names) else []
        return [HEAD, *((p, "train") for p in moving), *rest]
    raise UserError(f"freeze={strategy!r} is no strategy; {did_you_mean(strategy, NAMES)} (or a list of rules)")


def _depth(groups: Mapping[str, str], names: Sequence[str]) -> int:
    """Number of blocks that the parameter names show."""
    depth = 0
    while any(re.fullmatch(groups["block"].format(depth), n) for n in names):
        depth += 1
    return depth


def _group(strategy: str, group: str, groups: Mapping[str, str]) -> str:
    if group not in groups:
        raise UserError(f"freeze={strategy!r} needs the group {group!r}, which this model does not have; it has {', '.join(groups)}")
    return groups[group]


def _rate(action: str) -> float:
    """The factor of an action: "freeze" -> 0, "train" -> 1, "train(lr=0.1)" -> 0.1."""
    if action in ("freeze", "train"):
        return float(action == "train")
    found = re.fullmatch(r"train\(lr=([0-9.eE+-]+)\)", action)
    try:
        rate = float(found[1]) if found else 0.0
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UserError(f"freeze action {action!r}: expected 'freeze', 'train' or 'train(lr=FACTOR)' with a factor above 0")
    return rate


def plan(strategy: str | Sequence[Sequence[str]], groups: Mapping[str, str], params: Mapping[str, Any]) -> Plan:
    """Resolves a strategy name or a list of `(pattern, action)` rules on a flat tree of arrays or shapes.

    Raises:
      UserError: unknown strategy, a rule that matches nothing, an unclaimed parameter, or nothing left to train.
    """
    names = list(params)
    if isinstance(strategy, str):
        chosen = rules(strategy, groups, names)
    else:
        for rule in strategy:
            if not isinstance(rule, list | tuple) or len(rule) != 2:
                raise UserError(f"freeze rule {rule!r}: expected a pair (pattern, action)")
        chosen = [(str(p), str(a)) for p, a in strategy]
    rates = [_rate(action) for _, action in chosen]
    claimed = tree.match(names, chosen)
    rows = tuple(Row(n, tuple(params[n].shape), chosen[claimed[n]][0], rates[claimed[n]]) for n in names)
    if not any(r.rate for r in rows):
        raise UserError(f"freeze={strategy!r} leaves nothing to train")
    return Plan(rows)


def describe(plan: Plan) -> str:
    """The plan as text, one line a rule-and-module, with counts."""
    lines, width = [], max(len(_module(r.name)) for r in plan.rows)
    grouped: dict[tuple[str, str, float], int] = {}
    for r in plan.rows:
        key = (_module(r.name), r.pattern, r.rate)
        grouped[key] = grouped.get(key, 0) + tree.count({r.name: r})
    for (module, pattern, rate), n in grouped.items():
        action = "freeze" if not rate else "train" if rate == 1 else f"train(lr={rate:g})"
        lines.append(f"  {module:<{width}}  {n:>12,}  {action:<14} {pattern}")
    trainable, total = plan.counts()
    return "\n".join([*lines, f"  trainable {trainable:,} of {total:,} parameters ({trainable / total:.2%})"])


def _module(name: str) -> str:
    """The first two levels of a name: what a person wants to see a line for."""
    return "/".join(name.split("/")[:2])
