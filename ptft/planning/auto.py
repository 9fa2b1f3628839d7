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

import functools
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ptft import models
from ptft.core import config as configs
from ptft.core import progress, record, tree
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean
from ptft.freeze.strategies import FACTOR
from ptft.planning import importance, plans
from ptft.planning.knapsack import GRID, Ask, Items, solve
from ptft.planning.pieces import Piece, named, split
from ptft.train import build, contract, optim, programs, spec, train
from ptft.train.build import Run
from ptft.train.cost import Products

UNITS = ("flops", "seconds", "bytes", "params")
PROBE = 5  # timed steps


def ask(strategy: Any) -> Ask | None:
    """What `auto(…)` asks for; None: another strategy. Raises UserError where it cannot be meant."""
    if not isinstance(strategy, str) or not strategy.strip().startswith("auto"):
        return None
    match = re.fullmatch(rf"auto\(budget={FACTOR}([a-z]+)(?:,score=([a-z]+))?\)", "".join(strategy.split()))
    if not match and "signal=" in strategy:
        raise UserError(f"freeze={strategy!r}: signal= is called score= now")
    if not match:
        raise UserError(
            f"freeze={strategy!r}: expected auto(budget=0.5 flops) or auto(budget=0.5 flops, score=rgn), "
            "alone"
        )
    one = Ask(float(match[1]), match[2], match[3] or "rgn")
    for what, word, known in (("unit", one.unit, UNITS), ("score", one.score, importance.NAMES)):
        if word not in known:
            raise UserError(
                f"freeze={strategy!r}: {word!r} is no {what}, expected one of {', '.join(known)}; "
                f"{did_you_mean(word, known)}"
            )
    if not 0 < one.budget <= 1:
        raise UserError(
            f"freeze={strategy!r}: the budget is a share of training everything; expected above 0 and up to "
            f"1, got {match[1]}"
        )
    return one


def choose(config: Config, workdir: Path | None = None, quiet: bool = True) -> str:
    """The strategy that `auto(…)` comes to now, or came to when the run in `workdir` began; "" where
    `config.freeze` is another."""
    if ask(config.freeze) is None:
        return ""
    file, asked = (workdir or Path()) / "auto.json", configs.digest(config)
    started = workdir is not None and (workdir / "run.json").is_file()
    # an error, if it is of another config
    done = started and workdir is not None and train.finished(config, workdir) is not None
    known = spec.read_run(file.parent, file.name) if started or (workdir and file.is_file()) else {}
    # a file that is there is one of a start that ended before its first step
    if not started and known.get("config_hash") != asked:
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
    if models.dims(run.net.backbone) is None:
        raise UserError(
            f"freeze={config.freeze!r}: auto chooses among the blocks of a Transformer encoder; "
            f"{config.model.name!r} is none"
        )
    shapes = run.net.shapes()
    pieces = split(run.layout)
    value = importance.measure(run, pieces, wanted.score)
    with progress.doing("measuring what choices cost", "strategies") as advance:

        @functools.cache
        def price(strategy: str) -> float:
            advance(place=strategy)
            return cost(run, strategy, wanted.unit)

        own, reach = estimates(run, pieces, wanted.unit, price)
        chosen, tried = solve(Items(pieces, value, own, reach), wanted, price)
    rows = [
        {"part": p.name, "score": v, "parameters": tree.count({n: shapes[n] for n in p.leaves}),
        "own": a / GRID, "reach": b / GRID,
         "moves": i in chosen} for i, (p, v, a, b) in enumerate(zip(pieces, value, own, reach, strict=True))
    ]  # fmt: skip
    strategy = named(pieces, chosen)
    return {
        "freeze": config.freeze, **wanted._asdict(), "examples": min(importance.EXAMPLES, len(run.used)),
        "strategy": strategy,
        "cost": price(strategy) / price("full"), "head": price("head") / price("full"),
        "value": sum(value[i] for i in chosen),
        "parts": rows, "tried": tried,
    }  # fmt: skip


def cost(run: Run, strategy: str, unit: str) -> float:
    """What a step of a strategy costs, measured."""
    one = build.refrozen(run, strategy)
    if unit == "params":
        return one.plan.counts()[0]
    if unit == "seconds":
        return statistics.median(plans.in_turns([(one, 0, programs.program(one))], PROBE)[0])
    compiled = programs.program(one).cost
    known = compiled.flops if unit == "flops" else compiled.peak_bytes
    if known is None:
        raise UserError(
            f"the {unit} of a step of this model are not known; expected a budget in params, or in seconds"
        )
    return known


def estimates(
    run: Run, pieces: Sequence[Piece], unit: str, price: Callable[[str], float]
) -> tuple[list[int], list[int]]:
    """(own, reach) of each piece, in GRID-ths of the cost of training everything: of its own, and of the
    gradients that get there.

    Of the formula (`cost.analytic`), scaled so that `head` and `full` cost what they do. Where bytes are
    asked for, own is gradients and optimizer state, and activations are kept in the measure in which
    gradients pass through them.
    """
    full, sizes = price("full"), run.net.shapes()
    counts = [tree.count({n: sizes[n] for n in p.leaves}) for p in pieces]
    if unit == "params":
        return [round(GRID * n / full) for n in counts], [0] * len(pieces)
    formula = {name: _products(run, name) for name in ("head", *(p.name for p in pieces))}
    reach = [formula[p.name].activations - formula["head"].activations for p in pieces]
    if unit == "bytes":
        name = run.config.optim.name
        own = [float(4 * n + optim.state_bytes(name, n, 0) - optim.state_bytes(name, 0, 0)) for n in counts]
        own_scale, reach_scale = 1.0, max(0.0, full - price("head") - sum(own)) / max(*reach, 1)
    else:
        own = [formula[p.name].weights - formula["head"].weights for p in pieces]
        own_scale = reach_scale = (full - price("head")) / (sum(own) + max(reach))
    return [round(GRID * own_scale * x / full) for x in own], [
        round(GRID * reach_scale * x / full) for x in reach
    ]


def _products(run: Run, strategy: str) -> Products:
    products = contract.products(build.refrozen(run, strategy))
    assert products is not None
    return products


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
