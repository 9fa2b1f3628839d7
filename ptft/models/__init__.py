"""Backbones, one file each.

A model file exports
  SPEC            the keys of `config.model` that it reads;
  build(config, vocab_size, dtype) -> nn.Module   the backbone; its `style` (`layers.Style`) is for heads;
  ANATOMY         its parameters by role and in the order of computation (`Anatomy`);
  FAMILIES        its names at Hugging Face, if it has any there (`Family`).

Where the backbone has `dims` (layers, hidden, heads, dtype), what lies below a block may be kept in a feature
cache, and `auto` may choose among its blocks. Dropout goes by the name `dropout` in its SPEC.

A backbone is called as `module(batch, train=, start=0, hidden=None)`. `batch` holds `tokens` i32[B, T],
`mask` bool[B, T] (True on real tokens) and `types` i32[B, T]. It returns named outputs: `hidden` f[B, T, D],
`pooled` f[B, D], and `word_table` f[V, D], to which an objective may tie its decoder. With `start=k` it skips
the stem and the first k blocks and goes on from `hidden`, so that a frozen prefix may be computed once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from ptft.core import plugins
from ptft.core.config import Config, Field, Spec
from ptft.core.errors import UserError

# The most that keys of a SPEC may ask for, far above what is trained: a config may be a stranger's, and to
# build more would take a machine's hours or its memory.
MOST_LAYERS, MOST_WIDE, MOST_WORDS, MOST_TOKENS = 1000, 2**18, 2**24, 2**17


class Anatomy(NamedTuple):
    """A model's parameters as patterns over their names, from the input to the output."""

    groups: Mapping[str, str]  # role -> its parameters; every model has a "stem", below all blocks
    # name -> the parameters of a block, `backbone/block_{}/.*` with {} for its number from the input up; what
    # stands before /.* is the module. One stack needs no name: ""
    stacks: Mapping[str, str]
    # its matrices, for the formula of `ptft plan` -> what each multiplies: every "token" of a row, or one
    # vector an "example"; the first pattern that fits counts
    products: Mapping[str, str] = {r"backbone/.*/kernel": "token"}
    # the modules inside a block in the order of computation, those side by side in one pattern
    order: tuple[str, ...] = ()
    table: str = ""  # the word table, to which an objective may tie its decoder
    values: str = ""  # the module of a block that gives the attention's values; "": there is no attention


class Family(NamedTuple):
    """How a `model_type` at Hugging Face names what a model has.

    A module's name is enough, the last word follows from ours: kernel [in, out] is `weight` [out, in],
    embedding and scale are `weight`, bias is `bias`. `{}` is the number of a block; `X[1/3]` is the second
    third of X's rows.
    """

    stem: str  # of its classes in transformers
    prefix: str  # before the encoder's names, in a model with a head
    body: Mapping[str, str]
    mlm: Mapping[str, str]
    classify: Mapping[str, str]
    decoder: str  # the copy of the word table that the MLM head may hold
    keys: Mapping[str, str]  # config.model -> config.json
    # what a config.json that is silent means (transformers' configuration class)
    silent: Mapping[str, Any] = {}
    dropout: str = "classifier_dropout"  # key in config.json
    also: Mapping[str, str] = {}  # further keys of config.json -> the key of config.model that they repeat
    roles: Mapping[str, str] = {}  # config.json -> the tokenizer's role whose id it holds: "cls" or "sep"
    shifted: bool = False  # whether positions begin after that of padding
    model: str = "bert"  # config.model.name
    # keys of config.model that its config.json does not hold, because they never differ
    fixed: Mapping[str, Any] = {}
    tag: Mapping[str, str] = {"head/tagger": "classifier"}


def spec(section: Mapping[str, Any]) -> Spec:
    """The spec of `config.model`, which depends on its `name`."""
    name = section.get("name", "bert")
    return {"name": Field("bert", str), **plugins.get("models", name).SPEC}


def build(config: Config, vocab_size: int, dtype: Any) -> nn.Module:
    """The backbone that `config.model` describes; weights float32, computation in `dtype`."""
    return plugins.get("models", config.name).build(config, vocab_size, dtype)


def dims(backbone: nn.Module) -> Any | None:
    """Layers, hidden, heads, dtype of a backbone that has equal blocks; None for any other."""
    return getattr(backbone, "dims", None)


def anatomy(name: str) -> Anatomy:
    return plugins.get("models", name).ANATOMY


def families() -> dict[str, Family]:
    """Every `model_type` that a model file knows the names of."""
    tables = [getattr(plugins.get("models", name), "FAMILIES", {}) for name in plugins.names("models")]
    kinds = [kind for table in tables for kind in table]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise UserError(f"two files of models/ have FAMILIES[{twice[0]!r}]; give one another model_type")
    return {kind: family for table in tables for kind, family in table.items()}
