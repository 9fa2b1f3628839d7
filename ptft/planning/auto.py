"""`freeze=auto(budget=0.5 flops)`: the data choose what is trainable, within a share of what training
everything costs.

  auto(budget=SHARE UNIT)               ranks by rgn
  auto(budget=SHARE UNIT, score=NAME)  by another of `ptft.planning.importance`; depth and random are controls

UNIT is what the budget is a share of: the `flops` of the compiled step; the `seconds` of a step, timed;
`bytes`, the most that a device holds during a step; the trainable `params`.

Parts are chosen: the embeddings, of each block attention, feed-forward and norms, and the pooler. The head is
always trainable. The value of a choice is the sum of its parts' scores. Its cost is no such sum: a part costs
its own, and the lowest also the gradients that pass through all above it. With the lowest part given the rest
is a knapsack, solved exactly, at costs of the formula that are scaled to the measured ones of `head` and
`full`. The most valuable choice is then measured, and others after it at costs that are corrected by what it
cost, until none that is more valuable seems to fit, or TRIES were measured. `depth` takes whole blocks from
the top, as many as are measured to fit.

The choice is an ordinary strategy. `auto.json` in the run's folder has it with its reasons; a run that
resumes goes by that file.
"""

import bisect
import functools
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ptft.core import config as configs
from ptft.core import record, tree
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean
from ptft.freeze.layout import Layout, Names
from ptft.freeze.strategies import FACTOR
from ptft.planning import importance, plans
from ptft.planning.importance import Part
from ptft.train import build, contract, optim, programs, spec, train
from ptft.train.build import Run
from ptft.train.cost import Products

# strategy -> the group that it trains, of some blocks
ROLES = {"attention": "attention", "ffn": "ffn", "layernorm": "norm"}
UNITS = ("flops", "seconds", "bytes", "params")
PROBE = 5  # timed steps
TRIES = 8  # choices that are measured; more only until one fits
GRID = 10**6  # costs are whole numbers of this part of the full cost, so that equal sums are equal


class Ask(NamedTuple):
    budget: float  # of what training everything costs
    unit: str
    score: str


def ask(strategy: Any) -> Ask | None:
    """What `auto(…)` asks for; None: another strategy. Raises UserError where it cannot be meant."""
    if not isinstance(strategy, str) or not strategy.strip().startswith("auto"):
        return None
    found = re.fullmatch(rf"auto\(budget={FACTOR}([a-z]+)(?:,score=([a-z]+))?\)", "".join(strategy.split()))
    if not found:
        raise UserError(
            f"freeze={strategy!r}: expected auto(budget=0.5 flops) or auto(budget=0.5 flops, score=rgn), "
            "alone"
        )
    one = Ask(float(found[1]), found[2], found[3] or "rgn")
    for what, word, known in (("unit", one.unit, UNITS), ("score", one.score, importance.NAMES)):
        if word not in known:
            raise UserError(
                f"freeze={strategy!r}: {word!r} is no {what}, expected one of {', '.join(known)}; "
                f"{did_you_mean(word, known)}"
            )
    if not 0 < one.budget <= 1:
        raise UserError(
            f"freeze={strategy!r}: the budget is a share of training everything; expected above 0 and up to "
            f"1, got {found[1]}"
        )
    return one


def choose(config: Config, workdir: Path | None = None, quiet: bool = True) -> str:
    """The strategy that `auto(…)` comes to now, or came to when the run in `workdir` began; "" where
    `config.freeze` is another."""
    if ask(config.freeze) is None:
        return ""
    file, asked = (workdir or Path()) / "auto.json", configs.digest(config)
    begun = workdir is not None and (workdir / "run.json").is_file()
    # an error, if it is of another config
    done = begun and workdir is not None and train.finished(config, workdir) is not None
    known = spec.read_run(file.parent, file.name) if begun or (workdir and file.is_file()) else {}
    # a file that is there is one of a start that ended before its first step
    if not begun and known.get("config_hash") != asked:
        known = {"config_hash": asked, **decide(config)}
        if workdir:
            record.write_json(file, known)
    if not quiet and not done:
        record.say(describe(known))
    return known["strategy"]


def built(config: Config, workdir: Path | None = None, quiet: bool = True) -> Run:
    """`build.build`, with what `choose` says."""
    return build.build(config, choose(config, workdir, quiet))


def unchosen(config: Config) -> Run:
    """What `built` would build, before anything is chosen: the head alone is trainable."""
    return build.build(config, "head" if ask(config.freeze) else "")


def chosen(config: Config, quiet: bool) -> str:
    """The strategy that `auto(…)` comes to, for a plan; a UserError where there are no data to choose by."""
    try:
        known = decide(config)
    except UserError as e:
        raise UserError(
            f"{e} (freeze={config.freeze!r} is decided by a sample of the training data)"
        ) from None
    if not quiet:
        record.say(describe(known))
    return known["strategy"]


def decide(config: Config) -> dict[str, Any]:
    """What is trainable, and why. Raises UserError if no choice fits, or data or costs cannot be had."""
    wanted = ask(config.freeze)
    assert wanted is not None
    if wanted.unit == "seconds" and jax.process_count() > 1:
        raise UserError(
            f"freeze={config.freeze!r}: processes that time steps would choose apart; expected another unit, "
            "such as flops"
        )
    # under pmap a step has no whole-program form
    run = build.build(config.replace(freeze="head", parallel="jit"))
    if not hasattr(run.net.backbone, "dims"):
        raise UserError(
            f"freeze={config.freeze!r}: auto chooses among the blocks of a Transformer encoder; "
            f"{config.model.name!r} is none"
        )
    shapes = run.net.shapes()
    parts = split(run.layout)
    value = importance.measure(run, parts, wanted.score)
    price = functools.cache(lambda strategy: cost(run, strategy, wanted.unit))
    own, reach = estimates(run, parts, wanted.unit, price)
    chosen, tried = solve(parts, value, own, reach, wanted, price)
    rows = [
        {"part": p.name, "score": v, "parameters": tree.count({n: shapes[n] for n in p.leaves}),
        "own": a / GRID, "reach": b / GRID,
         "moves": i in chosen} for i, (p, v, a, b) in enumerate(zip(parts, value, own, reach, strict=True))
    ]  # fmt: skip
    strategy = named(parts, chosen)
    return {
        "freeze": config.freeze, **wanted._asdict(), "examples": min(importance.EXAMPLES, len(run.used)),
        "strategy": strategy,
        "cost": price(strategy) / price("full"), "head": price("head") / price("full"),
        "value": sum(value[i] for i in chosen),
        "parts": rows, "tried": tried,
    }  # fmt: skip


def split(model: Layout) -> list[Part]:
    """The parts of a model, from the input up; a block is one part where attention, feed-forward and norms
    are not all of it."""

    def part(name: str, block: int, names: Names) -> list[Part]:
        leaves = tuple(n for n in model.params if n in names)
        return [Part(name, block, leaves)] if leaves else []

    groups, found = model.anatomy.groups, part("embeddings", -1, model.group("stem"))
    for i, block in enumerate(model.blocks):
        roles = [(name, role) for name, role in ROLES.items() if role in groups]
        pieces = [p for name, role in roles for p in part(f"{name}={i}", i, block & model.group(role))]
        found += pieces if {n for p in pieces for n in p.leaves} == block else part(f"layers={i}", i, block)
    return found + (part("pooler", len(model.blocks), model.group("pooler")) if "pooler" in groups else [])


def named(parts: Sequence[Part], chosen: Sequence[int]) -> str:
    """The parts of these numbers as a strategy: "layers=3-4+ffn=2+pooler"."""
    if len(chosen) == len(parts):
        return "full"
    broken = {p.block for i, p in enumerate(parts) if i not in chosen}
    terms: dict[str, list[int]] = {}
    for p in (parts[i] for i in chosen):
        kind, numbered, _ = p.name.partition("=")
        terms.setdefault("layers" if numbered and p.block not in broken else kind, []).append(p.block)
    return (
        "+".join(
            k if k in ("embeddings", "pooler") else f"{k}={_ranges(sorted({*b}))}" for k, b in terms.items()
        )
        or "head"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    ends = [n for n in numbers if n + 1 not in numbers]
    starts = [n for n in numbers if n - 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def cost(run: Run, strategy: str, unit: str) -> float:
    """What a step of a strategy costs, measured."""
    one = build.refrozen(run, strategy)
    if unit == "params":
        return one.plan.counts()[0]
    if unit == "seconds":
        return statistics.median(plans.in_turns([(one, 0, programs.program(one))], PROBE)[0])
    compiled = programs.program(one).cost
    found = compiled.flops if unit == "flops" else compiled.peak_bytes
    if found is None:
        raise UserError(
            f"the {unit} of a step of this model are not known; expected a budget in params, or in seconds"
        )
    return found


def estimates(
    run: Run, parts: Sequence[Part], unit: str, price: Callable[[str], float]
) -> tuple[list[int], list[int]]:
    """(own, reach) of each part, in GRID-ths of the cost of training everything: of its own, and of the
    gradients that get there.

    Of the formula (`cost.analytic`), scaled so that `head` and `full` cost what they do. Where bytes are
    asked for, own is gradients and optimizer state, and activations are kept in the measure in which
    gradients pass through them.
    """
    full, sizes = price("full"), run.net.shapes()
    counts = [tree.count({n: sizes[n] for n in p.leaves}) for p in parts]
    if unit == "params":
        return [round(GRID * n / full) for n in counts], [0] * len(parts)
    formula = {name: _products(run, name) for name in ("head", *(p.name for p in parts))}
    reach = [formula[p.name].activations - formula["head"].activations for p in parts]
    if unit == "bytes":
        name = run.config.optim.name
        own = [float(4 * n + optim.state_bytes(name, n, 0) - optim.state_bytes(name, 0, 0)) for n in counts]
        own_scale, reach_scale = 1.0, max(0.0, full - price("head") - sum(own)) / max(*reach, 1)
    else:
        own = [formula[p.name].weights - formula["head"].weights for p in parts]
        own_scale = reach_scale = (full - price("head")) / (sum(own) + max(reach))
    return [round(GRID * own_scale * x / full) for x in own], [
        round(GRID * reach_scale * x / full) for x in reach
    ]


def _products(run: Run, strategy: str) -> Products:
    found = contract.products(build.refrozen(run, strategy))
    assert found is not None
    return found


def solve(
    parts: Sequence[Part],
    value: Sequence[float],
    own: Sequence[int],
    reach: Sequence[int],
    wanted: Ask,
    price: Callable[[str], float],
) -> tuple[list[int], list[dict[str, Any]]]:
    """(numbers of the trainable parts, what was measured on the way)."""
    full, head = price("full"), price("head")
    if head > wanted.budget * full:
        least = math.ceil(1000 * head / full) / 1000
        raise UserError(
            f"a budget of {wanted.budget:g} {wanted.unit} is less than training the head alone; expected at "
            f"least {least:g}"
        )
    low, most = GRID * head / full, GRID * wanted.budget + len(parts)  # so much is rounding
    ordered, off = choices(parts, value, own, reach, wanted.score == "depth"), 0.0
    tried, best = list[dict[str, Any]](), list[int]()

    def measured(choice: tuple[float, int, list[int]]) -> float:
        strategy = named(parts, choice[2])
        share = price(strategy) / full
        fits = share <= wanted.budget
        tried.append(
            {
                "strategy": strategy,
                "value": choice[0],
                "cost": share,
                "estimate": (low + choice[1]) / GRID,
                "fits": fits,
            }
        )
        return share

    if wanted.score == "depth":  # each costs more than the one before
        ordered.reverse()
        return ordered[bisect.bisect_right(ordered, wanted.budget, key=measured) - 1][2], tried
    while len(tried) < TRIES or not best:
        at = next((i for i, (_, extra, _) in enumerate(ordered) if low + extra + off <= most), None)
        if at is None:
            break
        _, extra, chosen = choice = ordered.pop(at)
        share = measured(choice)
        off = GRID * share - low - extra  # its like will be off by as much
        if share <= wanted.budget:
            best, ordered = chosen, ordered[:at]
    return best, tried


def choices(
    parts: Sequence[Part], value: Sequence[float], own: Sequence[int], reach: Sequence[int], whole: bool
) -> list[tuple[float, int, list[int]]]:
    """(value, cost above the head's, numbers of the parts), the most valuable first.

    With the lowest part given, all that no other beats in both value and cost (Nemhauser & Ullmann 1969,
    Management Science 15).

    Args:
      whole: blocks from the top alone, each with all of its parts.
    """
    down = sorted(range(len(parts)), key=lambda i: (reach[i], -i))
    if whole:
        blocks = [[i for i in down if parts[i].block >= b] for b in {p.block for p in parts}]
        found = [
            (float(len(b)), sum(own[i] for i in b) + max(reach[i] for i in b), sum(1 << i for i in b))
            for b in blocks
        ]
    else:
        best, found = [(0.0, 0, 0)], []
        for i in down:
            new = [(v + value[i], c + own[i], bits | 1 << i) for v, c, bits in best]
            found += [(v, c + reach[i], bits) for v, c, bits in new]
            best = _unbeaten(best + new)
    ordered = sorted([*found, (0.0, 0, 0)], key=lambda x: (-x[0], x[1]))
    return [(v, c, [i for i in range(len(parts)) if bits >> i & 1]) for v, c, bits in ordered]


def _unbeaten(sets: Sequence[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    kept: list[tuple[float, int, int]] = []
    for one in sorted(sets, key=lambda x: (x[1], -x[0])):
        if not kept or one[0] > kept[-1][0]:
            kept.append(one)
    return kept


def describe(known: Mapping[str, Any]) -> str:
    """Why, as a short table: the parts from the output down."""
    lines = [
        f"auto: {known['score']}" + ("" if known["score"] in ("depth",
        "random") else f" of {known['examples']} examples")
        + (
            f", at most {known['budget']:g} of the {known['unit']} of training everything -> "
            f"{known['strategy']} ({known['cost']:.3g})"
        ),
        f"  {'part':<14} {'score':>10} {'parameters':>12} {'own cost':>9} {'to reach':>9}",
    ]  # fmt: skip
    for p in reversed(known["parts"]):
        said = "trainable" if p["moves"] else ""
        lines.append(
            f"  {p['part']:<14} {p['score']:>10.3g} {p['parameters']:>12,} {p['own']:>9.3f} "
            f"{p['reach']:>9.3f}  {said}".rstrip()
        )
    if known.get("head"):
        lines.append(f"  {'head':<14} {'':>10} {'':>12} {known['head']:>9.3f} {0:>9.3f}  trainable")
    lines.append(
        "  costs are shares of full's: its own, and of the gradients that have to reach it; the lowest "
        "trainable part pays for all above it"
    )
    # not in a file from before it was kept
    value = {t["strategy"]: t.get("value", 0.0) for t in known["tried"]}
    more = [
        t
        for t in known["tried"]
        if not t["fits"] and value[t["strategy"]] > value.get(known["strategy"], 0.0)
    ]
    lines += [f"  worth more, but measured to cost too much: {t['strategy']} ({t['cost']:.3g})" for t in more]
    return "\n".join(lines)
