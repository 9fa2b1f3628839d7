"""Runs that share frozen blocks train together: one compiled step, vmapped over what is trainable, one frozen
part.

Members differ in seed, learning rate and, where the lowest trainable block is the same, in strategy. The
parameters that any member trains have a leading axis of members. Each member has its own learning-rate
factor for each of them; 0 freezes it. What lies below is computed once an example for all of them
(`ptft.train.feature_cache`), for training and evaluation. Members do not touch each other: if one diverges,
it fails, and the others go on. Their numbers are those of runs alone, up to the rounding of batched products.
Such a run does not show what a step costs: `ptft.bench.probe` measures seconds, FLOPs and bytes apart, of a
step that computes everything.

A CPU gains little from wide steps: per member, they took 0.8 to 1.4 times as long as one member alone
(MiniLM, 3 to 15 members on two cores: tests/benchmarks/vectorized_steps.py). There, members take turns in one
compiled step.

When to log and evaluate, how the best is chosen, the evaluation and the result are `ptft.train`'s, the same
as for a run alone. The loop itself is not shared: a run alone has phases, checkpoints and a log, which
members lack, and each member has a seed, a best and a divergence of its own. One loop for both would need a
condition at almost every line.
"""

import functools
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ptft import models
from ptft.bench import forgetting, vmapped
from ptft.bench.cell_result import CellResult, drift
from ptft.bench.vmapped import evaluate_members, put, where
from ptft.core import config as configs
from ptft.core import mesh, signals, tree
from ptft.core.config import Config
from ptft.core.tree import Flat
from ptft.freeze import ledger
from ptft.planning import auto
from ptft.train import (
    build,
    description,
    evaluate,
    feature_cache,
    pipeline,
    programs,
    result,
    schedule,
    weights,
)
from ptft.train.build import Run
from ptft.train.net import Net
from ptft.train.result import Ended, RunResult
from ptft.train.state import Progress
from ptft.train.step import TrainState

Outcome = CellResult | Exception
SHARE = 0.5  # of the memory that is free, for one group


class Member(NamedTuple):
    """A run and the weights that it starts on."""

    run: Run
    params: Flat


def wide() -> bool:
    """Whether a step of many members costs less than as many steps of one."""
    return jax.default_backend() != "cpu"


def group_key(config: Config) -> str | None:
    """Configs with the same key may train together. None: this one trains alone, such as one of auto(…),
    where each seed may train other parameters."""
    if auto.ask(config.freeze):
        return None
    return _group_key(config.replace(seed=0, **{"optim.lr": 0.0}), wide())


@functools.lru_cache(maxsize=1024)
def _group_key(c: Config, across: bool) -> str | None:
    run = build.build(c)
    # what is chosen by data is frozen, and another seed's is another
    sparse = any(a.examples for a in run.net.added)
    if (
        len(run.phases) > 1
        or sparse
        or c.parallel != "jit"
        or c.shard != "none"
        or c.accumulate > 1
        or c.frozen_dtype != "float32"
        or c.early_stop
    ):
        return None
    # two strategies that come to the same are of one group
    updated: Any = [(r.name, r.lr_mult, r.wd_mult) for r in run.plan.rows]
    if (
        across
        and not feature_cache.why_not(run, feature_cache.Use(many=True))
        and all(r.wd_mult == 1 for r in run.plan.rows)
    ):
        # nothing above the blocks has dropout
        layout = run.layout
        blocks = {part for part in programs.no_dropout(run, 0) if layout.level(f"backbone/{part}/")}
        updated = feature_cache.entry(run, 0), sorted(blocks) if c.model.get("dropout", 0) else []
    # LoRA of rank 8 and of rank 16, or of another alpha, have the same names.
    return hashlib.sha256(
        repr((configs.to_json({**c.to_dict(), "freeze": ""}), updated, run.net.added)).encode()
    ).hexdigest()


def train_together(asked: Sequence[Config]) -> Iterator[dict[int, Outcome]]:
    """Trains configs of one group, as many at a time as fit; yields for those of a time, by number, the
    results, without what a step costs, or the exception of a member that diverged.

    Raises:
      SystemExit(75): stopped by SIGTERM or SIGINT; nothing is kept of those that were in training.
    """
    runs = [build.build(config) for config in asked]
    names = tuple(dict.fromkeys(name for run in runs for name in run.plan.trainable))
    starts: dict[int, Flat] = {}
    groups: dict[str, list[int]] = {}
    for run in {r.config.seed: r for r in runs}.values():
        params = weights.start_params(run, quiet=True)
        trainable, frozen = tree.split(params, names)
        # What is frozen and was drawn by a seed, such as a pooler that a checkpoint lacks, is not the same
        # for another.
        seeds = groups.setdefault(ledger.digest_of(frozen), [])
        # in memory once
        starts[run.config.seed] = trainable | (tree.split(starts[seeds[0]], names)[1] if seeds else frozen)
        seeds.append(run.config.seed)
    for seeds in groups.values():
        mine = [i for i, run in enumerate(runs) if run.config.seed in seeds]
        room = max(1, int(SHARE * _free() / _bytes(runs[mine[0]], names))) if wide() else 1
        for at in range(0, len(mine), room):
            chunk = mine[at : at + room]
            yield dict(
                zip(
                    chunk,
                    _train([Member(runs[i], starts[runs[i].config.seed]) for i in chunk], names),
                    strict=True,
                )
            )


def _free() -> int:
    """Bytes that a device can still hold; of the machine, where the device has none of its own."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (
        stats["bytes_limit"] - stats["bytes_in_use"]
        if "bytes_limit" in stats
        else feature_cache.free_memory()
    )


def _bytes(run: Run, names: Sequence[str]) -> int:
    """What one more member needs: its trainable parameters four times over, and activations from the lowest
    trainable block up (twice Korthikanti et al. 2022, arXiv 2205.05198, equation 2, which counts half
    precision)."""
    dims, c = models.dims(run.net.backbone), run.config
    own = 16 * tree.count(tree.split(run.net.shapes(), names)[0])
    if dims is None:
        return 2 * own
    tokens, blocks = c.batch * c.objective.seq_len, dims.layers - feature_cache.entry(run, 0) + 1
    return own + 2 * tokens * blocks * (34 * dims.hidden + 5 * dims.heads * c.objective.seq_len)


class Trained(NamedTuple):
    """What a training leaves of all members; arrays have a leading axis of members."""

    state: TrainState  # after the last step
    best: Flat  # trainable parameters of the step that is best on dev; else of the last
    progress: list[Progress]
    alive: np.ndarray  # bool: the loss stayed finite
    splits: dict[str, list[dict[str, float]]]  # split -> member -> metrics of `best`


def _train(members: Sequence[Member], names: tuple[str, ...]) -> list[Outcome]:
    start_time = time.perf_counter()
    frozen = tree.split(members[0].params, names)[1]
    trained = _steps(members, names, frozen)
    seconds = (time.perf_counter() - start_time) / len(members)
    out: list[Outcome] = []
    for i, m in enumerate(members):
        if not trained.alive[i]:
            why = "the training loss is not a number: the run diverged; lower optim.lr or optim.clip"
            out.append(FloatingPointError(why))
            continue
        own, total = trained.progress[i]._replace(seconds=seconds), m.run.durations.total
        at = total if own.best is None else own.best_step
        ended = Ended(total, at, {name: scores[i] for name, scores in trained.splits.items()})
        known = result.of(m.run, description.header(m.run), own, ended, None)
        last = {**frozen, **{name: x[i] for name, x in trained.state.params.items()}}
        # of the last step, as a run's ledger
        proof = ledger.make(m.run.plan, m.params, last, _own(trained.state.opt, m.run.plan.trainable))
        kept = {**frozen, **{name: x[i] for name, x in trained.best.items()}}
        out.append(_outcome(m.run, kept, proof, known, len(members)))
    return out


def _steps(members: Sequence[Member], names: tuple[str, ...], frozen: Flat) -> Trained:
    first, n = members[0].run, len(members)
    c, d = first.config, first.durations
    use = feature_cache.Use(many=True)
    by_seed = {m.run.config.seed: feature_cache.shorten(m.run, use, m.params) for m in members}
    one = by_seed[c.seed]
    together = vmapped.program(_recipe(first, one.net))
    stacked = {name: jnp.stack([m.params[name] for m in members]) for name in names}
    state = mesh.place(together.init(stacked), first.mesh)
    seeds = np.asarray([m.run.config.seed for m in members], np.uint32)
    lrs = np.asarray([m.run.config.optim.lr for m in members], np.float32)
    factors = {
        name: np.asarray([m.run.plan.rates.get(name, 0.0) for m in members], np.float32) for name in names
    }
    batches = {
        s: pipeline.train_batches(r.data.train, r.used, s, c.batch, 0, d.total) for s, r in by_seed.items()
    }
    progress, best = [Progress().at_cost(None)] * n, None
    alive = np.ones(n, bool)
    with signals.preemption() as caught:
        for k in range(1, d.total + 1):
            parts = {s: next(b) for s, b in batches.items()}
            batch = {name: np.stack([parts[int(s)][name] for s in seeds]) for name in parts[c.seed]}
            state, losses = together.train(state, frozen, put(batch, first.mesh), seeds, lrs, factors)
            due = schedule.at(first, k)
            if due.log:
                alive &= np.isfinite(np.asarray(losses))
            if caught:
                raise SystemExit(signals.PREEMPTED)
            if due.evaluate and build.metric(first) != "last":
                scores = evaluate_members(one.net, frozen, state.params, evaluate.splits(one)["dev"])
                progress = [evaluate.judged(first, s, k, p) for s, p in zip(scores, progress, strict=True)]
                better = np.asarray([p.best_step == k for p in progress])
                best = where(better, state.params, state.params if best is None else best)
    last = state.params if best is None else best
    splits = {
        name: evaluate_members(one.net, frozen, last, split) for name, split in evaluate.splits(one).items()
    }
    return Trained(state, last, progress, alive, splits)


def _recipe(run: Run, net: Net) -> vmapped.Recipe:
    """Of a group, by its first run; `net` begins above what is cached."""
    c, d = run.config, run.durations
    decays = tuple((name, decay) for name, decay in run.plan.decays.items() if decay != 1)
    dropout_free = programs.no_dropout(run, 0)
    return vmapped.Recipe(net, decays, dropout_free, c.optim.replace(lr=1.0), d.warmup, d.total)


def _outcome(run: Run, params: Flat, proof: Mapping[str, Any], known: RunResult, members: int) -> Outcome:
    """What is known of a member but for what a step costs, unless its freeze did not hold."""
    if not proof["holds"]:
        return RuntimeError(f"the freeze did not hold: {ledger.describe(proof)}")
    return CellResult.of(
        known.to_json(),
        lower_is_better=sorted(run.net.objective.lower_is_better),
        drift=drift(proof),
        forgetting=forgetting.measure(run, params),
        members=members,
    )


def _own(opt: Any, names: Sequence[str]) -> Any:
    """An optimizer's state without that of other members' parameters."""

    def pick(x: Any) -> Any:
        return {n: x[n] for n in names if n in x} if isinstance(x, dict) else x

    return jax.tree.map(pick, opt, is_leaf=lambda x: isinstance(x, dict))
