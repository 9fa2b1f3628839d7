"""The result of a cell, as a value and as the row in its file; and what a benchmark's own file holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Required, TypedDict, cast

from ptft.core.stored import Object
from ptft.train.run_files import Data

Scores = Mapping[str, float | None]
# rows of runs say null
NULL = ("chosen_by", "seconds_per_step", "seconds_low", "seconds_high", "flops_per_step", "forgetting")


@dataclass(frozen=True)
class CellResult:
    """A field is None where this kind of cell has none, or it is not known."""

    dev: Scores | None = None
    test: Scores | None = None
    lower_is_better: Sequence[str] | None = None  # of the metrics
    config_hash: str | None = None
    versions: Mapping[str, str] | None = None
    device: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    # Of a run (`ptft.train.result`)
    best_step: int | None = None
    steps: int | None = None
    chosen_by: str | None = None
    seconds: float | None = None
    trainable: int | None = None
    total: int | None = None
    trainable_share: float | None = None
    drift: Mapping[str, float | None] | None = None  # of each parameter that moved
    forgetting: Mapping[str, float] | None = None
    chosen: str | None = None  # what auto(…) came to
    members: int | None = None  # of those that trained together
    # What a step of it costs, measured apart (`ptft.bench.probe`)
    seconds_per_step: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    flops_per_step: float | None = None
    bytes: Mapping[str, int | None] | None = None
    # Of a reference
    notes: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], **more: Any) -> "CellResult":
        """From what a run's result or a cell's row holds, and what is known besides."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values} | more)

    def costing(self, row: Mapping[str, Any]) -> "CellResult":
        """With what a step costs, by the row of a probe."""
        sizes = {
            key.removesuffix("_bytes"): row[key]
            for key in row
            if key.endswith("_bytes") and key != "device_bytes"
        }
        times = {key: row.get(key) for key in ("seconds_per_step", "seconds_low", "seconds_high")}
        return replace(self, flops_per_step=row["flops"], bytes=sizes, **times)

    def to_row(self) -> dict[str, Any]:
        kept = NULL if self.steps is not None else ()
        return {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None or f.name in kept}


class Budget(TypedDict, total=False):
    kind: str
    share: float


class Forgetting(TypedDict):
    before: float
    after: float


class Bytes(TypedDict, total=False):
    parameters: int | None
    gradients: int | None
    optimizer: int | None
    checkpoint: int | None
    temporary: int | None
    peak: int | None


class Row(TypedDict, total=False):
    """What a cell's file holds, as JSON has it. Rows of other versions and of cells that failed lack some of
    it."""

    cell: Required[str]  # the hash, then the labels (`protocol.LABELS`)
    strategy: Required[str]
    task: str
    model: str
    size: int
    lr: float | None
    seed: Required[int]
    kind: str
    repeat: bool

    status: Required[str]  # "ok", "failed" or "skipped"
    error: str
    traceback: str | None

    metric: str  # by which it is judged
    freeze: Any
    train_for: str | int
    budget: Budget
    init_from: str | None
    config: Mapping[str, Any]
    command: str  # that runs it alone

    # What a `CellResult` has
    dev: Scores | None
    test: Scores | None
    lower_is_better: Sequence[str]
    config_hash: str
    versions: Mapping[str, str]
    device: Mapping[str, Any]
    data: Data
    best_step: int
    steps: int
    chosen_by: str | None
    seconds: float | None
    trainable: int
    total: int
    trainable_share: float | None
    drift: Mapping[str, float | None]
    forgetting: Forgetting | None
    chosen: str
    members: int
    seconds_per_step: float | None
    seconds_low: float | None
    seconds_high: float | None
    flops_per_step: float | None
    bytes: Bytes | None
    notes: Mapping[str, Any]

    wall_seconds: float  # of all that was done for it
    isolated: bool  # in a process of its own, whose peaks are the cell's
    peak_rss: int | None
    peak_device: int | None

    baseline: str  # of the folder that it was read from (`results.merge`)
    page: Mapping[str, Any]


def row_of(*parts: Mapping[str, Any]) -> Row:
    """What JSON holds, as a row; what a later part says counts."""
    return cast(Row, {key: value for part in parts for key, value in part.items()})


def drift(ledger: Mapping[str, Any]) -> dict[str, float | None]:
    """Of each parameter that moved, how far, by the ledger of a run's freeze."""
    return {r["name"]: r["relative"] for r in ledger["rows"] if r["verdict"] == "moved"}


class Labels(TypedDict, total=False):
    """`protocol.LABELS`."""

    strategy: Required[str]
    task: str
    model: str
    size: int
    lr: float | None
    seed: Required[int]
    kind: str
    repeat: bool


class _Named(TypedDict):
    name: str


class _Section(TypedDict, total=False):
    strategies: Sequence[_Named]
    tasks: Sequence[_Named]
    models: Sequence[_Named]


class _Page(TypedDict, total=False):
    bench: _Section


class BenchFile(TypedDict, total=False):
    """bench.json (`runner.describe`)."""

    command: str
    versions: Mapping[str, str]
    device: Object
    config_hash: str
    task: str
    metric: str
    baseline: str
    budget: str
    repeat: str | bool
    seeds: Sequence[int]
    order: Sequence[str]
    cells: Mapping[str, Labels]
    config: _Page
