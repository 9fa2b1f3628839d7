"""What the JSON files of a run's folder hold; files of older versions lack some of it."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Required, TypedDict

from ptft.core.stored import Object
from ptft.freeze.ledger import VERDICTS

Number = float | None  # null: NaN
Scores = Mapping[str, Number]
Name = Annotated[str, re.compile(r"(backbone|head)(/[^/]+)+|adapter(/[^/]+){3,}")]  # of a parameter
Verdict = Annotated[str, re.compile("|".join(map(re.escape, VERDICTS.values())))]


class _Section(TypedDict):
    name: str


class Config(TypedDict, total=False):
    """config.json, as far as it is read without being resolved."""

    model: Required[_Section]
    objective: _Section
    optim: Object
    data: Object
    checkpoint: str
    init_from: str
    freeze: Required[str | Sequence[Any]]
    frozen_dtype: str


class Counts(TypedDict, total=False):
    """Of a split."""

    records: int
    rows: Required[int]
    truncated: int


class Data(TypedDict, total=False):
    fingerprint: str
    notes: Mapping[str, Counts]
    train_rows: int


class _Frozen(TypedDict):
    name: Name
    rate: float


# Of a folder that `ptft import` made; `by`: of a run that started from one.
Imported = TypedDict(
    "Imported",
    {
        "from": str, "by": str, "model_type": str, "architectures": Sequence[str] | None, "dtype": str,
        "sentence": Object, "head": bool,
    },
    total=False,
)  # fmt: skip


class Run(TypedDict, total=False):
    """run.json."""

    config: Object
    config_hash: Required[str]
    versions: Required[Mapping[str, str]]
    device: Object
    data: Data
    tokenizer: Required[str]
    labels: Required[Sequence[str]]
    freeze: Sequence[_Frozen]
    phases: Sequence[Object]
    plugins: Mapping[str, str]
    base: str | None
    imported: Imported | None
    cost: Object


class Times(TypedDict, total=False):
    """Where the wall time went (`ptft.core.times.summary`)."""

    starts: Required[int]
    seconds: Required[Mapping[str, float]]
    lost_steps: Required[int]
    goodput: Required[float]
    peak_bytes: int | None


class Result(TypedDict, total=False):
    """result.json (`ptft.train.result`)."""

    best_step: Required[int]
    steps: Required[int]
    chosen_by: str | None
    dev: Scores
    test: Scores
    seconds: Required[float]
    seconds_per_step: float | None
    trainable: Required[int]
    total: Required[int]
    trainable_share: float
    flops_per_step: float | None
    config_hash: str
    versions: Mapping[str, str]
    device: Object
    data: Data
    times: Times


class _Leaf(TypedDict, total=False):
    name: Required[Name]
    shape: Sequence[int]
    size: int
    rule: Required[str]
    rate: float
    before: Required[str]
    after: Required[str]
    change: Required[Number]
    relative: Required[Number]
    drift: Number
    verdict: Required[Verdict]


class _Optimizer(TypedDict):
    extra: Sequence[str]
    missing: Sequence[str]


class _Phase(TypedDict):
    strategy: Any
    began: int | None


class Ledger(TypedDict, total=False):
    """freeze_ledger.json (`ptft.freeze.ledger`)."""

    rows: Required[Sequence[_Leaf]]
    frozen_moved: Required[Sequence[str]]
    not_moved: Required[Sequence[str]]
    optimizer: Required[_Optimizer]
    holds: Required[bool]
    phases: Sequence[_Phase]


class _Part(TypedDict):
    part: str
    score: Number
    parameters: int
    own: float
    reach: float
    moves: bool


class _Tried(TypedDict, total=False):
    strategy: Required[str]
    value: Number
    cost: Required[float]
    estimate: Number
    fits: Required[bool]


class Auto(TypedDict, total=False):
    """auto.json (`ptft.planning.auto`)."""

    config_hash: Required[str]
    freeze: str
    budget: Required[float]
    unit: Required[str]
    score: Required[str]
    examples: Required[int]
    strategy: Required[str]
    cost: Required[float]
    head: float
    value: Number
    parts: Required[Sequence[_Part]]
    tried: Required[Sequence[_Tried]]


KINDS = {
    "config.json": Config, "run.json": Run, "result.json": Result, "freeze_ledger.json": Ledger,
    "auto.json": Auto,
}  # fmt: skip
