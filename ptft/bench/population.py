"""Runs that differ in learning rate and seed alone train together: one compiled step, vmapped over what moves, one frozen part.

What is frozen is one array for all members: what lies below the lowest leaf that moves is computed once an example for all of
them (`ptft.prefix`); what moves has a leading axis of members. Members do not touch each other: one that diverges fails, the
others go on. The numbers are those of solo runs up to the rounding of batched products. What a step costs cannot be read off
such a run: seconds and bytes are those of a run of its own.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ptft import auto, build, ledger, mesh, optim, pipeline, prefix, record, step, train, tree
from ptft import config as configs
from ptft.build import Run
from ptft.config import Config
from ptft.state import Progress
from ptft.step import Moving
from ptft.tree import Flat

SHARE = 0.5  # of the memory that is free, for one group


class Member(NamedTuple):
    """A run and the weights that it starts on."""

    run: Run
    params: Flat


def kin(config: Config) -> str | None:
    """Configs of one kin may train together; None: this one trains alone, as where each seed chooses what moves."""
    if auto.ask(config.freeze):
        return None
    plain = config.to_dict()
    same = {**plain, "seed": 0, "optim": {**plain["optim"], "lr": 0.0}}
    return _kin(json.dumps(same, sort_keys=True))


@functools.lru_cache(maxsize=1024)
def _kin(text: str) -> str | None:
    c = Config(json.loads(text))
    run = build.build(c)
    sparse = any(a.kind == "fish" for a in run.net.added)  # its places are frozen, and another seed's are others
    if len(run.phases) > 1 or sparse or c.parallel != "jit" or c.accumulate > 1 or c.frozen_dtype != "float32" or c.early_stop:
        return None
    moves = [(r.name, r.rate, r.decay) for r in run.plan.rows]  # two strategies that come to the same are of one kin
    # LoRA of rank 8 and of rank 16, or of another alpha, have the same names.
    return hashlib.sha256(repr((configs.digest({**c.to_dict(), "freeze": ""}), moves, run.net.added)).encode()).hexdigest()


def train_together(asked: Sequence[Config]) -> list[dict[str, Any] | Exception]:
    """Trains configs of one kin; each result is that of `train.run`, or the exception of a member that diverged.

    Raises:
      SystemExit(75): stopped by SIGTERM or SIGINT; nothing of the group is kept.
    """
    members: dict[str, list[tuple[int, Member]]] = {}
    for i, config in enumerate(asked):
        run = build.build(config)
        params = build.start_params(run, quiet=True)
        # What is frozen and was drawn by a seed, such as a pooler that a checkpoint lacks, is not the same for another.
        group = members.setdefault(ledger.digest_of(tree.split(params, run.plan.trainable)[1]), [])
        if group:
            params |= tree.split(group[0][1].params, run.plan.trainable)[1]  # the same numbers, in memory once
        group.append((i, Member(run, params)))
    out: dict[int, dict[str, Any] | Exception] = {}
    for group in members.values():
        size = min(len(group), max(1, int(SHARE * prefix.free_memory() / _bytes(group[0][1].run))))
        for at in range(0, len(group), size):
            chunk = group[at : at + size]
            out |= zip((i for i, _ in chunk), _train([m for _, m in chunk]), strict=True)
    return [out[i] for i in range(len(asked))]


def _bytes(run: Run) -> int:
    """What one more member needs: what moves four times over, and activations (twice Korthikanti et al. 2022, arXiv 2205.05198,
    equation 2, which counts half precision), in every block at which something moves or above it."""
    shape, c = run.net.backbone.shape if hasattr(run.net.backbone, "shape") else None, run.config
    moving = 16 * run.plan.counts()[0]
    if shape is None:
        return 2 * moving
    tokens, blocks = c.batch * c.objective.seq_len, shape.layers - prefix.entry(run, 0) + 1
    return moving + 2 * tokens * blocks * (34 * shape.hidden + 5 * shape.heads * c.objective.seq_len)


def _train(members: Sequence[Member]) -> list[dict[str, Any] | Exception]:
    first, n, begun = members[0].run, len(members), time.perf_counter()
    c, d, chosen_by = first.config, first.durations, build.metric(first)
    everywhere, moves = mesh.replicated(first.mesh), first.plan.trainable
    frozen = tree.split(members[0].params, moves)[1]
    here = [prefix.shorten(m.run, 0, 0, m.params, spread=True) for m in members]
    inside = {name: jnp.stack([m.params[name] for m in members]) for name in moves}
    net, still = here[0].net, build.still(first, 0)
    together = _program(net, _rows(first), still, configs.to_json(c.optim), d.warmup, d.total)
    moving = jax.device_put(together.init(inside), everywhere)
    seeds = np.asarray([m.run.config.seed for m in members], np.uint32)
    rates = np.asarray([m.run.config.optim.lr for m in members], np.float32)
    batches = [pipeline.train_batches(r.data.train, r.used, int(s), c.batch, 0, d.total) for r, s in zip(here, seeds, strict=True)]
    progress, best = [Progress()] * n, None
    alive = np.ones(n, bool)
    with mesh.preemption() as caught:
        for k in range(1, d.total + 1):
            parts = [next(b) for b in batches]
            batch = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
            moving, losses = together.train(moving, frozen, _put(batch, first.mesh), seeds, rates)
            if k % d.log == 0 or k == d.total:
                alive &= np.isfinite(np.asarray(losses))
            if caught:
                raise SystemExit(train.PREEMPTED)
            if first.data.dev is not None and chosen_by != "last" and (k == d.total or (d.evaluate and k % d.evaluate == 0)):
                scores = evaluate(here[0], frozen, moving.params, "dev")
                progress = [train.judge(chosen_by, s[chosen_by], k, p) for s, p in zip(scores, progress, strict=True)]
                better = np.asarray([p.best_step == k for p in progress])
                best = _where(better, moving.params, moving.params if best is None else best)
    last = moving.params if best is None else best
    splits = {s: evaluate(first, frozen, last, s) for s in ("dev", "test") if getattr(first.data, s) is not None}
    seconds = (time.perf_counter() - begun) / n
    out: list[dict[str, Any] | Exception] = []
    for i, m in enumerate(members):
        if not alive[i]:
            out.append(FloatingPointError("the training loss is not a number: the run diverged; lower optim.lr or optim.clip"))
            continue
        mine = {**frozen, **{name: x[i] for name, x in last.items()}}
        proof = ledger.make(m.run.plan, m.params, mine, moving.opt)
        if not proof["holds"]:
            out.append(RuntimeError(f"the freeze did not hold: {ledger.describe(proof)}"))
            continue
        header, (trainable, total) = build.header(m.run), m.run.plan.counts()
        chosen = progress[i].best is not None
        out.append({
            "best_step": progress[i].best_step if chosen else d.total, "steps": d.total, "chosen_by": chosen_by if chosen else None,
            **{split: scores[i] for split, scores in splits.items()},
            "seconds": seconds, "seconds_per_step": None, "flops_per_step": None, "members": n,
            "drift": {r["name"]: r["relative"] for r in proof["rows"] if r["verdict"] == "moved"},
            "trainable": trainable, "total": total, "trainable_share": trainable / total,
            **{k: header[k] for k in ("config_hash", "versions", "device", "data")},
        })  # fmt: skip
    return out


def _rows(run: Run) -> tuple[tuple[str, float, float], ...]:
    return tuple((r.name, r.rate, r.decay) for r in run.plan.rows if r.rate)


def _put(batch: Mapping[str, np.ndarray], grid: Any) -> dict[str, jax.Array]:
    """Arrays [members, B, …], their rows split over the devices."""
    sharding = jax.sharding.NamedSharding(grid, jax.sharding.PartitionSpec(None, "data"))
    return {name: jax.device_put(x, sharding) for name, x in batch.items()}


@jax.jit
def _where(better: jax.Array, new: Flat, old: Flat) -> Flat:
    return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


class Together(NamedTuple):
    init: Callable[[Flat], Moving]
    train: Callable[..., Any]


@functools.lru_cache(maxsize=16)
def _program(
    net: step.Net, moves: tuple[tuple[str, float, float], ...], still: frozenset[str], optim_json: str, warmup: int, total: int
) -> Together:
    values = configs.Config(json.loads(optim_json))
    rates, decays = {n: rate for n, rate, _ in moves}, {n: decay for n, _, decay in moves}

    def tx(lr: Any) -> Any:
        return optim.build(values.replace(lr=lr), rates, warmup, total, decays)

    def one(moving: Moving, frozen: Flat, batch: Mapping[str, jax.Array], seed: jax.Array, lr: jax.Array) -> tuple[Moving, jax.Array]:
        after, sums = step.train_step(net, tx(lr), still=still)(moving, frozen, batch, seed)
        return after, jnp.stack([sums[n][0] / jnp.maximum(sums[n][1], 1) for n in net.objective.loss]).sum()

    init = jax.vmap(lambda p: step.init_moving(p, tx(1.0)))
    return Together(jax.jit(init), jax.jit(jax.vmap(one, in_axes=(0, None, 0, 0, 0)), donate_argnums=0))


@functools.lru_cache(maxsize=32)
def _eval(net: step.Net) -> Callable[..., Any]:
    one = step.eval_step(net)
    return jax.jit(jax.vmap(lambda moving, frozen, batch: one({**frozen, **moving}, batch), in_axes=(0, None, None)))


def evaluate(run: Run, frozen: Flat, moving: Flat, split: str) -> list[dict[str, float]]:
    """Metrics of every member on a split of the run; what is frozen is computed once for all."""
    rows, c = getattr(run.data, split), run.config
    limit = c.data.dev_size if split == "dev" else 0
    size = -(-(c.eval_batch or c.batch) // run.mesh.size) * run.mesh.size
    total: record.Sums | None = None
    for batch in pipeline.eval_batches(rows, size, limit):
        total = record.add(total, jax.device_get(_eval(run.net)(moving, frozen, mesh.put(batch, run.mesh))))
    members = len(next(iter(moving.values())))
    each = [{name: (s[i], w[i]) for name, (s, w) in (total or {}).items()} for i in range(members)]
    return [run.net.objective.report(sums) for sums in each]
