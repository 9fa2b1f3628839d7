"""The result of a run; a run alone and runs side by side have the same."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ptft.train import build
from ptft.train.build import Run
from ptft.train.state import Progress

Scores = Mapping[str, float]


class Ended(NamedTuple):
    """How far a run came, and what the parameters that it keeps score."""

    steps: int
    best_step: int  # of the parameters that it keeps
    splits: Mapping[str, Scores]  # of dev and test, those that there are


class RunResult(NamedTuple):
    """What `result.json` holds."""

    best_step: int
    steps: int
    chosen_by: str | None  # the dev metric that chose the step; None: it is the last
    dev: Scores | None
    test: Scores | None
    seconds: float
    seconds_per_step: float | None
    trainable: int
    total: int
    trainable_share: float
    flops_per_step: float | None
    config_hash: str
    versions: Mapping[str, str]
    device: Mapping[str, Any]
    data: Mapping[str, Any]
    times: Mapping[str, Any] | None = None  # `ptft.core.times.summary`; None: the run is one of several

    def to_json(self) -> dict[str, Any]:
        """Without what the run does not have."""
        return {k: v for k, v in self._asdict().items() if v is not None or k not in ("dev", "test", "times")}


def of(
    run: Run, header: Mapping[str, Any], progress: Progress, ended: Ended, pace: float | None
) -> RunResult:
    """Of a run that has ended.

    Args:
      header: `description.header` of the run.
      pace: seconds a step; None: not known.
    """
    trainable, total = run.plan.counts()
    return RunResult(
        best_step=ended.best_step,
        steps=ended.steps,
        chosen_by=None if progress.best is None else build.metric(run),
        dev=ended.splits.get("dev"),
        test=ended.splits.get("test"),
        seconds=progress.seconds,
        seconds_per_step=pace,
        trainable=trainable,
        total=total,
        trainable_share=trainable / total,
        flops_per_step=progress.mean_flops(ended.steps),
        config_hash=header["config_hash"],
        versions=header["versions"],
        device=header["device"],
        data=header["data"],
    )
