"""Optimizers and schedules, from optax. They see the trainable parameters only, as a flat `{name: array}`
dict."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ptft.core.config import Config, Field
from ptft.freeze import adapters
from ptft.freeze.resolve import Plan

SPEC = {
    "name": Field("adamw", str, choices=("adamw", "lamb", "adafactor", "sgd")),
    "lr": Field(1e-4, float, lo=0, doc="the highest learning rate", also=("learning_rate",)),
    "decay": Field(
        "linear", str, choices=("linear", "cosine", "constant"), doc="after the warm-up, down to 0"
    ),
    "b1": Field(0.9, float, lo=0, hi=0.9999),
    "b2": Field(0.999, float, lo=0, hi=0.999999),
    "eps": Field(1e-6, float, lo=0),
    "bias_correction": Field(True, bool, doc="False: as Google's BERT"),
    "weight_decay": Field(0.01, float, lo=0, doc="decoupled; not on biases, LayerNorms and added factors"),
    "clip": Field(1.0, float, lo=0, doc="global norm over the trainable gradients; 0: off"),
    "momentum": Field(0.9, float, lo=0, hi=0.9999, doc="of sgd"),
    "at_phase": Field(
        "carry",
        str,
        choices=("carry", "reset"),
        doc="optimizer state of what stays trainable when a phase begins",
    ),
}

# Numbers of state that each keeps a parameter; Adafactor fewer where it factors.
_STATE = {"adamw": 2, "lamb": 2, "adafactor": 1, "sgd": 1}
NO_DECAY = re.compile(r".*[/_]bias|.*norm/scale")


def decayed(name: str) -> bool:
    """Whether a parameter has weight decay."""
    return adapters.decays(name) if name.startswith("adapter/") else NO_DECAY.fullmatch(name) is None


def schedule(config: Config, warmup: int, total: int) -> optax.Schedule:
    """Linear warm-up to `lr` over `warmup` steps, then the decay down to 0 at step `total`.

    Step 0 already learns: the rate at step t is lr * (t + 1) / warmup, so that no step is spent on a rate of
    0.
    """

    def rate(step: jax.Array) -> jax.Array:
        t = step.astype(jnp.float32)
        left = jnp.clip((total - t) / max(total - warmup, 1), 0.0, 1.0)
        shape = {"linear": left, "cosine": 0.5 - 0.5 * jnp.cos(jnp.pi * left), "constant": jnp.ones_like(t)}[
            config.decay
        ]
        return config.lr * jnp.where(t < warmup, (t + 1) / max(warmup, 1), shape)

    return rate


def scale_by_adam_uncorrected(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction without bias correction (google-research/bert optimization.py): m / (sqrt(v) +
    eps)."""

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def by_cohort(tx: optax.GradientTransformation, cohorts: Mapping[str, int]) -> optax.GradientTransformation:
    """`tx` on each cohort of parameters by itself; the state is a tuple, one a cohort."""
    members = [[n for n, c in cohorts.items() if c == k] for k in range(1 + max(cohorts.values(), default=0))]

    def init(params: optax.Params) -> tuple[optax.OptState, ...]:
        return tuple(tx.init({n: params[n] for n in names}) for names in members)

    def update(grads: optax.Updates, state: tuple[optax.OptState, ...], params: optax.Params | None = None):
        parts = [
            tx.update({n: grads[n] for n in names}, s, params and {n: params[n] for n in names})
            for names, s in zip(members, state, strict=True)
        ]
        updates = {n: x for part, _ in parts for n, x in part.items()}
        return {n: updates[n] for n in grads}, tuple(s for _, s in parts)

    return optax.GradientTransformation(init, update)


def carry(old: optax.OptState, new: optax.OptState, came_from: Sequence[int | None]) -> optax.OptState:
    """The state `new` of a phase, with that of what stays trainable taken over from `old`.

    Args:
      came_from: for each cohort of the new state its number in the old one; None: it begins now.
    """

    def take(fresh: Any, had: Any) -> Any:
        known = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(had)}
        return jax.tree_util.tree_map_with_path(
            lambda path, x: known.get(jax.tree_util.keystr(path), x), fresh
        )

    carried = tuple(
        fresh if i is None else take(fresh, old[1][i]) for fresh, i in zip(new[1], came_from, strict=True)
    )
    return (old[0], carried, *old[2:])  # clip, cohorts, and the schedule, which goes on in any case


def state_bytes(name: str, parameters: int, tensors: int) -> int:
    """The most that the state of an optimizer of this name takes: its numbers a parameter, a few a tensor,
    its counts of steps."""
    return 4 * (_STATE[name] * parameters + 4 * tensors + 16)


class Group(NamedTuple):
    """What the optimizer does with a parameter; those of one group share it."""

    lr_mult: float = 1.0
    wd_mult: float = 1.0
    # Parameters that became trainable together, numbered from 0; each cohort has an own state, an own count
    # of steps among it. With one count for all, Adam's bias correction would be missing for those that come
    # later, and their first steps three times too long.
    cohort: int = 0


def groups(plan: Plan, cohorts: Mapping[str, int] = MappingProxyType({})) -> dict[str, Group]:
    """The group of every trainable parameter of a plan."""
    return {r.name: Group(r.lr_mult, r.wd_mult, cohorts.get(r.name, 0)) for r in plan.rows if r.lr_mult}


def build(
    config: Config, groups: Mapping[str, Group], warmup: int, total: int
) -> optax.GradientTransformation:
    """clip -> direction -> decoupled decay -> learning rate x the parameter's own factor.

    Args:
      groups: of every trainable parameter, and of no other.
      warmup, total: steps.
    """
    strength = {n: config.weight_decay * g.wd_mult for n, g in groups.items() if decayed(n)}
    decay = optax.stateless(
        lambda u, p: {n: x + strength[n] * p[n] if strength.get(n) else x for n, x in u.items()}
    )
    if config.bias_correction:
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    else:
        adam = scale_by_adam_uncorrected(config.b1, config.b2, config.eps)
    direction = {
        "adamw": (adam, decay),
        "lamb": (adam, decay, optax.scale_by_trust_ratio()),  # You et al. 2019
        # Shazeer & Stern 2018
        "adafactor": (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), decay),
        "sgd": (optax.trace(config.momentum), decay),
    }[config.name]
    # Factors of 1 are left out, so that a plain plan costs no extra multiplication.
    factors = {n: g.lr_mult for n, g in groups.items() if g.lr_mult != 1.0}
    scale = optax.stateless(lambda u, _: {n: x * factors[n] if n in factors else x for n, x in u.items()})
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    grouped = by_cohort(optax.chain(*direction), {n: g.cohort for n, g in groups.items()})
    tx = optax.chain(clip, grouped, scale, optax.scale_by_learning_rate(schedule(config, warmup, total)))

    def update(grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        # optax mixes dtypes, which the strict promotion of the tests refuses
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(grads, state, params)

    return optax.GradientTransformation(tx.init, update)
