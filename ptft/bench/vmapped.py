"""One compiled step of many runs, vmapped over what is trainable in any of them, and their evaluation."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ptft.core import record
from ptft.core.config import Config
from ptft.core.tree import Flat
from ptft.train import evaluate, optim, step
from ptft.train.net import Constants, Net
from ptft.train.step import TrainState


class Recipe(NamedTuple):
    """What decides a compiled step; two runs that have the same share the program."""

    net: Net
    decays: tuple[tuple[str, float], ...]  # parameter -> factor of the weight decay, where it is not 1
    no_dropout: frozenset[str]
    optim: Config  # its learning rate is 1: each member has its own
    warmup: int
    total: int  # steps


class Together(NamedTuple):
    init: Callable[[Flat], TrainState]
    train: Callable[..., Any]


def _scaled(
    tx: optax.GradientTransformation, factors: Mapping[str, jax.Array]
) -> optax.GradientTransformation:
    """`tx` for the parameters whose factor is not 0, its updates times the factor."""

    def update(grads: Flat, state: Any, params: Flat | None = None) -> tuple[Flat, Any]:
        # no clip by a norm sees the others
        mine = {n: jnp.where(factors[n] > 0, g, 0) for n, g in grads.items()}
        updates, after = tx.update(mine, state, params)
        return {n: factors[n] * u for n, u in updates.items()}, after

    return optax.GradientTransformation(tx.init, update)


@functools.lru_cache(maxsize=16)
def program(recipe: Recipe) -> Together:
    def tx(names: Iterable[str], lr: Any) -> optax.GradientTransformation:
        decays = dict(recipe.decays)
        groups = {n: optim.Group(wd_mult=decays.get(n, 1.0)) for n in names}
        return optim.build(recipe.optim.replace(lr=lr), groups, recipe.warmup, recipe.total)

    def one(
        state: TrainState,
        frozen: Flat,
        batch: Mapping[str, jax.Array],
        seed: jax.Array,
        lr: jax.Array,
        factors: Mapping[str, jax.Array],
    ) -> tuple[TrainState, jax.Array]:
        tx_of_one = _scaled(tx(factors, lr), factors)
        own = step.train_step(step.Recipe(recipe.net, tx_of_one, no_dropout=recipe.no_dropout))
        after, sums = own(state, frozen, batch, seed, {})  # many runs' cached features lie on the host
        # What is trainable in another member alone stays as it is, to the bit.
        # No sum does that for -0.0 and denormal numbers on every device.
        after = after._replace(
            params={n: jnp.where(factors[n] > 0, x, state.params[n]) for n, x in after.params.items()}
        )
        loss = [sums[n][0] / jnp.maximum(sums[n][1], 1) for n in recipe.net.objective.loss]
        return after, jnp.stack(loss).sum()

    init = jax.vmap(lambda p: step.init_train_state(p, tx(p, 1.0)))
    return Together(jax.jit(init), jax.jit(jax.vmap(one, in_axes=(0, None, 0, 0, 0, 0)), donate_argnums=0))


@functools.lru_cache(maxsize=32)
def _eval(net: Net) -> Callable[..., Any]:
    one = step.eval_step(net)

    def member(
        trainable: Flat, frozen: Flat, batch: Mapping[str, jax.Array], constants: Constants
    ) -> record.Sums:
        return one({**frozen, **trainable}, batch, constants)

    return jax.jit(jax.vmap(member, in_axes=(0, None, None, None)))


def evaluate_members(
    net: Net, frozen: Flat, trainable: Flat, split: evaluate.Split
) -> list[dict[str, float]]:
    """Metrics of every member on a split; what is frozen is computed once for all."""
    total = evaluate.sums(functools.partial(_eval(net), trainable, frozen), split)
    members = len(next(iter(trainable.values())))
    each = [{name: (s[i], w[i]) for name, (s, w) in total.items()} for i in range(members)]
    return [net.objective.metrics(sums) for sums in each]


def put(batch: Mapping[str, np.ndarray], grid: Any) -> dict[str, jax.Array]:
    """Arrays [members, B, …], their rows split over the devices."""
    sharding = jax.sharding.NamedSharding(grid, jax.sharding.PartitionSpec(None, "data"))
    return {name: jax.device_put(x, sharding) for name, x in batch.items()}


@jax.jit
def where(better: jax.Array, new: Flat, old: Flat) -> Flat:
    return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
