"""A model with its objective: fresh parameters, predictions, and sums of one batch; nothing here learns."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ptft.core import tree
from ptft.core.errors import UserError
from ptft.core.record import Sums
from ptft.core.tree import Flat
from ptft.freeze import adapters, quantize
from ptft.freeze.adapters import Adapter
from ptft.objectives import Objective

# Arrays that a step reads besides its parameters and its batch, and that stay the same in all steps:
# `hidden` f[N, D], the hidden states of all real tokens, row by row (`ptft.train.feature_cache`), or none.
Constants = Mapping[str, jax.Array]


class Dropout(NamedTuple):
    """The dropout of a training step."""

    key: jax.Array
    without: frozenset[str] = frozenset()  # parts of the backbone, such as "block_0", that have none


class Outputs(dict[str, Any]):
    """What a backbone gives, by name; an objective that reads more says so."""

    def __init__(self, given: Any):
        super().__init__(given)

    def __missing__(self, name: str) -> Any:
        there = ", ".join(self) or "nothing"
        raise UserError(f"the objective reads {name!r} of the model, which gives {there}")


class Net(NamedTuple):
    """A model with its objective: everything but numbers. Hashable, so that equal nets share compiled
    steps."""

    backbone: nn.Module
    head: nn.Module
    objective: Objective
    added: tuple[Adapter, ...] = ()
    # the blocks below are not computed: a batch holds what they gave (`hidden`), or where that lies
    start: int = 0
    resident: bool = False  # where: a batch holds `cache_offset`, and `Constants` the hidden states

    def init(self, seed: int | jax.Array, names: tuple[str, ...] | None = None) -> Flat:
        """Fresh float32 parameters `backbone/…`, `head/…`, `adapter/…`, or those in `names` alone, which are
        the same as with all."""
        return _compiled_init(self._replace(start=0, resident=False), names)(seed)

    def create(self, seed: int | jax.Array) -> Flat:
        """`init`, not compiled."""
        key = jax.random.key(seed)
        body, top = jax.random.split(key)
        inputs = self.objective.prepare(_on_device(self.example(1)), row_keys(key, jnp.zeros(1, jnp.int32)))
        backbone = self.backbone.init(body, inputs)["params"]
        outputs = Outputs(self.backbone.apply({"params": backbone}, inputs))
        own = tree.flatten(
            {"backbone": backbone, "head": self.head.init(top, outputs, inputs, False)["params"]}
        )
        return own | adapters.init(self.added, jax.random.fold_in(key, 2))

    def example(self, batch: int) -> dict[str, np.ndarray]:
        """Host arrays of the shapes and dtypes of a batch, for tracing without data."""
        rows = {
            **self.objective.example(batch),
            "example_id": np.zeros(batch, np.int32),
            "weight": np.ones(batch, np.float32),
        }
        if not self.start:
            return rows
        shape = (batch, rows["tokens"].shape[1], self.backbone.dims.hidden)
        return {
            **rows,
            **(
                {"cache_offset": rows["example_id"]}
                if self.resident
                else {"hidden": np.zeros(shape, self.backbone.dims.dtype)}
            ),
        }

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Names and shapes of the parameters, without computing any."""
        return dict(_shapes(self._replace(start=0, resident=False)))

    def inputs(
        self, batch: Mapping[str, jax.Array], key: jax.Array, constants: Constants
    ) -> dict[str, jax.Array]:
        """What backbone and head read: a batch as the objective prepares it, with the hidden states that lie
        in `constants`."""
        made = self.objective.prepare(batch, row_keys(key, batch["example_id"]))
        if not self.resident:
            return made
        return {**made, "hidden": _gather(constants["hidden"], made["cache_offset"], made["mask"])}

    def predict(self, params: Flat, inputs: Mapping[str, jax.Array], dropout: Dropout | None = None) -> Any:
        """Backbone and head on prepared inputs -> the objective's predictions."""
        wide = adapters.insert(self.added, quantize.dequantize(params))
        p = tree.unflatten(wide)
        keys, without = ({"dropout": dropout.key}, dropout.without) if dropout else ({}, frozenset[str]())
        with (
            adapters.attach(self.added, wide),
            nn.intercept_methods(functools.partial(_skip_dropout, without)),
        ):
            entry: dict[str, Any] = {"start": self.start, "hidden": inputs["hidden"]} if self.start else {}
            outputs = Outputs(
                self.backbone.apply({"params": p["backbone"]}, inputs, train=bool(keys), rngs=keys, **entry)
            )
        return self.head.apply({"params": p["head"]}, outputs, inputs, bool(keys), rngs=keys)

    def between(self, params: Flat, batch: Mapping[str, jax.Array], modules: tuple[str, str]) -> jax.Array:
        """What the first module gives and the second reads, one of which the backbone has
        (`Layout.around`); no dropout: f[B, T, D]."""
        inputs = self.inputs(batch, jax.random.key(0), {})
        hidden: list[jax.Array] = []

        def catch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            place = "/".join(context.module.path) if context.method_name == "__call__" else ""
            if place == modules[1]:
                hidden.append(args[0])
            out = call(*args, **kwargs)
            if place == modules[0]:
                hidden.append(out)
            return out

        wide = adapters.insert(self.added, quantize.dequantize(params))
        with adapters.attach(self.added, wide), nn.intercept_methods(catch):
            self.backbone.apply({"params": tree.unflatten(wide)["backbone"]}, inputs)
        return hidden[0]

    def sums(
        self,
        params: Flat,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        dropout: Dropout | None = None,
        constants: Constants = MappingProxyType({}),
    ) -> Sums:
        """`{name: (sum, weight)}` of one batch. Masks are drawn row by row from `key`; with dropout it is one
        of training."""
        inputs = self.inputs(batch, key, constants)
        return self.objective.sums(self.predict(params, inputs, dropout), inputs)

    def squares(self, params: Flat, batch: Mapping[str, jax.Array]) -> Flat:
        """Sums over a batch of the squared gradient of each row's loss, for every parameter of the backbone:
        the diagonal of the empirical Fisher information, times the number of rows."""
        body = {n: x for n, x in params.items() if n.startswith("backbone/")}

        def loss(body: Flat, row: Mapping[str, jax.Array]) -> jax.Array:
            sums = self._replace(added=()).sums({**params, **body}, row, jax.random.key(0))
            return jnp.stack([sums[n][0] / jnp.maximum(sums[n][1], 1) for n in self.objective.loss]).sum()

        def add(total: Flat, row: Mapping[str, jax.Array]) -> tuple[Flat, None]:
            return jax.tree.map(lambda t, g: t + jnp.square(g), total, jax.grad(loss)(body, row)), None

        # one at a time: the square of a sum is no sum of squares
        rows = {k: x[:, None] for k, x in batch.items()}
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, body), rows)[0]


def _gather(flat: jax.Array, at: jax.Array, mask: jax.Array) -> jax.Array:
    """Rows that begin at `at` i32[B]; zero where there is padding, which no real token sees."""
    place = jnp.where(mask, at[:, None] + jnp.arange(mask.shape[1])[None], 0)
    return jnp.where(mask[..., None], flat[place], 0)


def _skip_dropout(
    parts: frozenset[str], call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """Dropout in these parts of the backbone, or beside them as block_0_dropout, gives back its input."""
    skipped = (
        isinstance(context.module, nn.Dropout) and context.module.path[0].removesuffix("_dropout") in parts
    )
    return args[0] if skipped else call(*args, **kwargs)


# Runs of one process that differ in seed alone, such as a benchmark's, compile once.
@functools.lru_cache(maxsize=64)
def _compiled_init(net: Net, names: tuple[str, ...] | None) -> Callable[..., Flat]:
    return jax.jit(lambda seed: {n: x for n, x in net.create(seed).items() if names is None or n in names})


@functools.lru_cache(maxsize=64)
def _shapes(net: Net) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(lambda: net.create(0))


def _on_device(batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {k: jnp.asarray(v) for k, v in batch.items()}


def row_keys(key: jax.Array, row: jax.Array) -> jax.Array:
    """One key a row, from its place in the global batch: the same masks however the batch is split over
    devices."""
    return jax.vmap(lambda r: jax.random.fold_in(jax.random.fold_in(key, 0), r))(row)
