"""Objectives, one file each: what is learned from the data. An objective owns both ends, and says what it has
learned.

A file exports `SPEC` (its keys of `config.objective`) and `build(config, tokenizer, labels) -> Objective`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Key

from ptft.core import plugins
from ptft.core.config import Config, Field, Spec
from ptft.core.record import Sums
from ptft.data import Source
from ptft.inputs.tokenizer import Tokenizer
from ptft.models.layers import Style


@runtime_checkable
class Rows(Protocol):
    """Fixed-shape examples on the host, by index, so that a batch is a pure function of its indices."""

    @property
    def notes(self) -> Mapping[str, int]:
        """Counts worth printing: truncated, empty …"""
        ...

    def __len__(self) -> int: ...

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at `index` i64[B] as named arrays, each with a leading axis B."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows that lie in memory, padded: arrays with a leading axis N."""

    arrays: Mapping[str, np.ndarray]
    notes: Mapping[str, int]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        return {k: x[index] for k, x in self.arrays.items()}


@runtime_checkable
class Objective(Protocol):
    """Host half (`rows`), device half (`prepare`, `head`, `sums`), what is reported, and what `ptft predict`
    asks and prints."""

    loss: tuple[str, ...]  # the terms whose means add up to the loss
    best: str  # the metric that chooses the best checkpoint
    lower_is_better: frozenset[str]  # of the names that `metrics` gives; of all others, higher is
    # whether a run from weights with this objective's head goes on with it, or makes a new one
    reuse_head: bool
    reads_pooled: bool  # whether the head reads the backbone's `pooled`
    # module of the head -> rows of an example that it reads, in the order of computation; others read 1
    head_rows: Mapping[str, int]
    stochastic: bool  # whether `prepare` makes random choices, so that a row is not the same twice

    def rows(self, source: Source, tokenizer: Tokenizer) -> Rows: ...

    def example(self, batch: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes and dtypes of `Rows.batch`, for tracing without data."""
        ...

    def prepare(self, batch: Mapping[str, Array], keys: Key[Array, "B"]) -> dict[str, Array]:
        """Host arrays -> what backbone and head read. Random choices are drawn from one key a row."""
        ...

    def head(self, dtype: Any, style: Style) -> nn.Module:
        """The head over a backbone of this style."""
        ...

    def sums(self, predictions: Any, batch: Mapping[str, Array]) -> Sums:
        """`{name: (sum, weight)}` over the batch."""
        ...

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Sums over a whole data set -> metrics."""
        ...

    def ask(self, records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Rows:
        """Rows of records that have no targets: "text" (and "text_b"), or "words"; with "where"."""
        ...

    def outputs(self, predictions: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        """What is kept of the predictions, row by row: arrays with a leading axis B."""
        ...

    def answer(
        self, record: Mapping[str, Any], row: Mapping[str, Any], names: Sequence[str], tokenizer: Tokenizer
    ) -> dict[str, Any]:
        """A row's arrays and `outputs` -> what is said of its record, as JSON has it. `names` are those of
        the labels."""
        ...

    def line(self, record: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        """The answer for people, with its record."""
        ...


def falls(objective: Objective, metric: str) -> bool:
    """Whether a metric of this objective is the better the lower it is."""
    return metric in objective.lower_is_better


def spec(section: Mapping[str, Any]) -> Spec:
    """The spec of `config.objective`, which depends on its `name`."""
    name = section.get("name", "classify")
    return {"name": Field("classify", str), **plugins.get("objectives", name).SPEC}


def build(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Objective:
    return plugins.get("objectives", config.name).build(config, tokenizer, labels)


def pair_inputs(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Adds `mask` bool[B, T] and `types` i32[B, T] to `tokens`, from `length` and `segment_b` (where segment
    B starts)."""
    at = jnp.arange(batch["tokens"].shape[1])[None]
    mask = at < batch["length"][:, None]
    types = ((at >= batch["segment_b"][:, None]) & mask).astype(jnp.int32)
    return {**batch, "tokens": batch["tokens"].astype(jnp.int32), "mask": mask, "types": types}


def plain_text(record: Mapping[str, Any]) -> str:
    """A record's texts on one line."""
    return "\t".join(" ".join(record[k].splitlines()) for k in ("text", "text_b") if k in record)


def token_dtype(vocab_size: int) -> type:
    """The smallest unsigned dtype that holds every id: uint16 would wrap from 65,536 on."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32
