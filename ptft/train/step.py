"""The training step and the evaluation step: pure functions.

Parameters are split into (trainable, frozen) before differentiation: `grad` is taken with respect to the
trainable ones, and the optimizer, the clip and the norms never see anything else. What is frozen costs no
gradient, no optimizer state, and no backward pass below the lowest trainable layer.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ptft.core.record import Sums
from ptft.core.tree import Flat
from ptft.train.net import Constants, Dropout, Net


class TrainState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # i32[]
    params: Flat  # the trainable parameters
    opt: Any


class Recipe(NamedTuple):
    """What a step trains, and how. Hashable, so that equal recipes share compiled steps."""

    net: Net
    tx: optax.GradientTransformation
    accumulate: int = 1  # the batch is cut into so many parts, whose gradients are added before the update
    no_dropout: frozenset[str] = frozenset()  # parts of the backbone, such as "block_0", without dropout


class _Loss(NamedTuple):
    """The sum over the objective's terms of (global sum / global weight), however the batch is split."""

    sums: Callable[[Flat, Mapping[str, jax.Array], jax.Array | int], Sums]  # (trainable, part, its number)
    terms: tuple[str, ...]
    axis: str | None

    def total(self, x: Any) -> Any:
        """Over all devices."""
        return jax.lax.psum(x, self.axis) if self.axis else x

    def weights(self, sums: Sums) -> dict[str, jax.Array]:
        return {n: jnp.maximum(self.total(sums[n][1]), 1) for n in self.terms}

    def grad(
        self,
        params: Flat,
        part: Mapping[str, jax.Array],
        number: jax.Array | int = 0,
        weights: Mapping[str, jax.Array] | None = None,
    ) -> tuple[Flat, Sums]:
        """Of one part; `weights`: those of the whole batch, where this is not all of it."""

        def loss(params: Flat) -> tuple[jax.Array, Sums]:
            sums = self.sums(params, part, number)
            per = self.weights(sums) if weights is None else weights
            return jnp.stack([sums[n][0] / per[n] for n in self.terms]).sum(), sums

        return jax.grad(loss, has_aux=True)(params)

    def grad_in_parts(
        self, params: Flat, batch: Mapping[str, jax.Array], accumulate: int
    ) -> tuple[Flat, Sums]:
        """Of a batch, one part of it after the other."""
        # Strided parts, so that each device keeps its own rows.
        parts = {
            k: x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
            for k, x in batch.items()
        }
        number = jnp.arange(accumulate)
        # The weights need no forward pass, and XLA drops the one written here.
        each = jax.lax.map(lambda part: {n: self.sums(params, part, 0)[n][1] for n in self.terms}, parts)
        weights = self.weights({n: (w.sum(), w.sum()) for n, w in each.items()})

        def add(
            carry: tuple[Flat, Sums], x: tuple[Mapping[str, jax.Array], jax.Array]
        ) -> tuple[tuple[Flat, Sums], None]:
            return jax.tree.map(jnp.add, carry, self.grad(params, *x, weights)), None

        first = {k: x[0] for k, x in parts.items()}
        shapes = jax.eval_shape(lambda part: self.grad(params, part, 0, weights), first)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zero, (parts, number))[0]


def train_step(recipe: Recipe, axis: str | None = None) -> Callable[..., tuple[TrainState, Sums]]:
    """The pure step `(state, frozen, batch, seed, constants) -> (state, sums)`.

    Args:
      axis: name of the `pmap` axis whose devices hold the parts of a batch; None under `jit`, where arrays
        are global.
    """
    net, tx, accumulate, no_dropout = recipe

    def step(
        state: TrainState, frozen: Flat, batch: Mapping[str, jax.Array], seed: jax.Array, constants: Constants
    ) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        device = jax.random.fold_in(key, jax.lax.axis_index(axis) + 1 if axis else 1)

        def part_sums(params: Flat, part: Mapping[str, jax.Array], number: jax.Array | int) -> Sums:
            dropout = Dropout(jax.random.fold_in(device, number), no_dropout)
            return net.sums({**frozen, **params}, part, key, dropout, constants)

        loss = _Loss(part_sums, net.objective.loss, axis)
        if accumulate == 1:
            grads, sums = loss.grad(state.params, batch)
        else:
            grads, sums = loss.grad_in_parts(state.params, batch, accumulate)
        grads, sums = loss.total(grads), loss.total(sums)
        updates, opt = tx.update(grads, state.opt, state.params)
        sums["grad_norm"] = (optax.tree.norm(grads), jnp.float32(1))
        params = {n: p + updates[n] for n, p in state.params.items()}
        return TrainState(state.step + 1, params, opt), sums

    return step


def eval_step(net: Net) -> Callable[..., Sums]:
    """The pure step `(params, batch, constants) -> sums`, no dropout; masks are the same at every
    evaluation."""
    return lambda params, batch, constants: net.sums(params, batch, jax.random.key(0), constants=constants)


def output_step(net: Net) -> Callable[..., dict[str, jax.Array]]:
    """The pure step `(params, batch, constants) -> outputs`, a row each; masks as at every evaluation."""

    def step(params: Flat, batch: Mapping[str, jax.Array], constants: Constants) -> dict[str, jax.Array]:
        inputs = net.inputs(batch, jax.random.key(0), constants)
        return net.objective.outputs(net.predict(params, inputs), inputs)

    return step


def compile_train(
    recipe: Recipe, mesh: Mesh, parallel: str, out: Any = None
) -> Callable[..., tuple[TrainState, Sums]]:
    """The train step over the mesh: `jit` on global arrays, or the same step under `jax.pmap`.

    The trainable state is donated; what is frozen never is, so that runs may share it.

    Args:
      out: the shardings of what the step gives, where parameters are cut.
    """
    if parallel == "jit":
        return jax.jit(train_step(recipe), donate_argnums=0, out_shardings=out)
    step = train_step(recipe, "data")
    mapped = jax.pmap(
        step, "data", in_axes=(None, None, 0, None, None), out_axes=None, devices=list(mesh.devices.flat)
    )
    n = mesh.size

    def call(
        state: TrainState, frozen: Flat, batch: Mapping[str, jax.Array], seed: jax.Array, constants: Constants
    ) -> tuple[TrainState, Sums]:
        parts = {k: x.reshape(n, len(x) // n, *x.shape[1:]) for k, x in batch.items()}
        return mapped(state, frozen, parts, seed, constants)

    return call


def init_train_state(
    params: Flat, tx: optax.GradientTransformation, of: Callable[[Any], Any] | None = None
) -> TrainState:
    """Step 0 of the trainable parameters, with optimizer state for them alone.

    Args:
      of: shapes -> shardings, where parameters are cut: their state never lies whole on a device.
    """
    out = of(jax.eval_shape(tx.init, params)) if of else None
    init = jax.jit(tx.init, out_shardings=out)  # one program, not one for every shape
    return TrainState(jnp.int32(0), params, init(params))
