"""Backbones, one file each.

A model file exports
  SPEC            the keys of `config.model` that it reads;
  build(config, vocab_size, dtype) -> nn.Module   the backbone; its `style` says how a head on it looks;
  GROUPS          its parameters by role, as patterns: what freeze strategies speak.

A backbone is called as `module(batch, train=, start=0, hidden=None)`. `batch` holds `tokens` i32[B, T], `mask`
bool[B, T] (True on real tokens) and `types` i32[B, T]. It returns named outputs: `hidden` f[B, T, D], `pooled`
f[B, D], and `word_table` f[V, D], to which an objective may tie its decoder. With `start=k` it skips the stem and
the first k blocks and goes on from `hidden`, so that a frozen prefix may be computed once.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from ptft.core import plugins
from ptft.core.config import Config, Field, Spec


def spec(section: Mapping[str, Any]) -> Spec:
    """The spec of `config.model`, which depends on its `name`."""
    name = section.get("name", "bert")
    return {"name": Field("bert", str), **plugins.get("models", name).SPEC}


def build(config: Config, vocab_size: int, dtype: Any) -> nn.Module:
    """The backbone that `config.model` describes; weights float32, computation in `dtype`."""
    return plugins.get("models", config.name).build(config, vocab_size, dtype)


def groups(name: str) -> Mapping[str, str]:
    """Role -> pattern over parameter names; `block` holds a `{}` for the block's number."""
    return plugins.get("models", name).GROUPS
