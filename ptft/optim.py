"""Optimizers and schedules, from optax. They see the trainable parameters only, as a flat `{name: array}` dict."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from ptft.config import Config, Field

SPEC = {
    "name": Field("adamw", str, choices=("adamw", "lamb", "adafactor", "sgd")),
    "lr": Field(1e-4, float, lo=0, doc="the highest learning rate"),
    "decay": Field("linear", str, choices=("linear", "cosine", "constant"), doc="after the warm-up, down to 0"),
    "b1": Field(0.9, float, lo=0, hi=0.9999),
    "b2": Field(0.999, float, lo=0, hi=0.999999),
    "eps": Field(1e-6, float, lo=0),
    "bias_correction": Field(True, bool, doc="False: as Google's BERT"),
    "weight_decay": Field(0.01, float, lo=0, doc="decoupled; not on biases and LayerNorms"),
    "clip": Field(1.0, float, lo=0, doc="global norm over the trainable gradients; 0: off"),
    "momentum": Field(0.9, float, lo=0, hi=0.9999, doc="of sgd"),
}

NO_DECAY = re.compile(r".*/bias|.*norm/scale")


def schedule(config: Config, warmup: int, total: int) -> optax.Schedule:
    """Linear warm-up to `lr` over `warmup` steps, then the decay down to 0 at step `total`.

    Step 0 already moves: the rate at step t is lr * (t + 1) / warmup, so that no step is spent on a rate of 0.
    """

    def rate(step: jax.Array) -> jax.Array:
        t = step.astype(jnp.float32)
        left = jnp.clip((total - t) / max(total - warmup, 1), 0.0, 1.0)
        shape = {"linear": left, "cosine": 0.5 - 0.5 * jnp.cos(jnp.pi * left), "constant": jnp.ones_like(t)}[config.decay]
        return config.lr * jnp.where(t < warmup, (t + 1) / max(warmup, 1), shape)

    return rate


def scale_by_adam_uncorrected(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction without bias correction (google-research/bert optimization.py): m / (sqrt(v) + eps)."""

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def build(
    config: Config, rates: Mapping[str, float], warmup: int, total: int, decays: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
    """clip -> direction -> decoupled decay -> learning rate x the parameter's own factor.

    Args:
      rates: learning-rate factor of every trainable parameter (`Plan.rates`).
      warmup, total: steps.
      decays: weight-decay factors (`Plan.decays`), where they are not 1.
    """
    strength = {n: config.weight_decay * (decays or {}).get(n, 1.0) for n in rates if NO_DECAY.fullmatch(n) is None}
    decay = optax.stateless(lambda u, p: {n: x + strength[n] * p[n] if strength.get(n) else x for n, x in u.items()})
    if config.bias_correction:
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    else:
        adam = scale_by_adam_uncorrected(config.b1, config.b2, config.eps)
    direction = {
        "adamw": (adam, decay),
        "lamb": (adam, decay, optax.scale_by_trust_ratio()),  # You et al. 2019
        "adafactor": (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), decay),  # Shazeer & Stern 2018
        "sgd": (optax.trace(config.momentum), decay),
    }[config.name]
    # Factors of 1 are left out, so that a plain plan costs no extra multiplication.
    factors = {n: r for n, r in rates.items() if r != 1.0}
    scale = optax.stateless(lambda u, _: {n: x * factors[n] if n in factors else x for n, x in u.items()})
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    tx = optax.chain(clip, *direction, scale, optax.scale_by_learning_rate(schedule(config, warmup, total)))

    def update(grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, which the strict promotion of the tests refuses
            return tx.update(grads, state, params)

    return optax.GradientTransformation(tx.init, update)
