"""What `ptft tune` searches: strategies, a range of learning rates, and the metric on dev that judges."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ptft.bench import problems
from ptft.core import config as configs
from ptft.core.config import Config, Field, Spec
from ptft.core.errors import UserError
from ptft.planning import auto

SPEC: Spec = {
    "strategies": Field(
        ("full", "freeze-embeddings", "top-1", "bitfit", "head"),
        doc='what to try: a strategy, or {"freeze": a strategy, "lr": factor}',
    ),
    "lr": Field(
        (0.1, 10.0), doc="the range of the learning rate, as factors of optim.lr (and of the strategy's own)"
    ),
}


class Search(NamedTuple):
    """What is searched, by what and where."""

    workdir: Path
    page: Sequence[str]  # arguments of the command line that name the config
    test: str  # the split that the best trial alone is evaluated on
    base: Config  # without it
    space: dict[str, tuple[Any, float]]  # name -> (freeze, factor of the learning rate)
    low: float
    high: float
    metric: str
    lower_is_better: frozenset[str]  # of the objective's metrics

    @property
    def falls(self) -> bool:
        return self.metric in self.lower_is_better

    def config(self, name: str, factor: float) -> Config:
        """The run of a trial."""
        strategy, own = self.space[name]
        return self.base.replace(
            freeze=strategy, **{"optim.lr": float(f"{self.base.optim.lr * own * factor:.4g}")}
        )

    def folder(self, config: Config) -> Path:
        return self.workdir / "runs" / configs.digest(config)


def resolve(config: Config, tune: Config, workdir: Path, page: Sequence[str]) -> Search:
    """Raises UserError for whatever would make a trial fail."""
    if not config.data.dev:
        raise UserError("trials are judged on dev; expected data.dev='KIND:WHERE'")
    if jax.process_count() > 1:
        raise UserError("trials run in one process; start it without a coordinator")
    if len(tune.lr) != 2 or not all(map(problems.positive, tune.lr)) or tune.lr[0] >= tune.lr[1]:
        raise UserError(f"tune.lr: expected [LOW, HIGH], factors of optim.lr above 0, got {list(tune.lr)}")
    space = _space(tune)
    base = config.replace(**{"data.test": "", "tensorboard": False})
    nets = [auto.unchosen(base.replace(freeze=f)).net for f, _ in space.values()]
    metric = config.best if config.best not in ("", "last") else nets[0].objective.best
    low, high = map(float, tune.lr)
    return Search(
        workdir, page, config.data.test, base, space, low, high, metric, nets[0].objective.lower_is_better
    )


def _space(tune: Config) -> dict[str, tuple[Any, float]]:
    entries = [s if isinstance(s, Mapping) else {"freeze": s} for s in tune.strategies]
    if not entries or any(
        set(e) - {"freeze", "lr"} or "freeze" not in e or not problems.positive(e.get("lr", 1.0))
        for e in entries
    ):
        raise UserError(
            'tune.strategies: expected strategies, or {"freeze": a strategy, "lr": a factor above 0}, got '
            f"{list(tune.strategies)}"
        )
    space = {
        e["freeze"] if isinstance(e["freeze"], str) else json.dumps(e["freeze"]): (
            e["freeze"],
            float(e.get("lr", 1.0)),
        )
        for e in entries
    }
    if len(space) < len(entries):
        raise UserError(
            "tune.strategies: a strategy is there twice; expected each once, with one factor of the "
            "learning rate"
        )
    return space
