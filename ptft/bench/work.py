"""One cell's work: training and what is known of it afterwards, or a reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptft import auto, build, plans, train
from ptft.bench import baselines, population, probe
from ptft.bench.protocol import Cell
from ptft.config import Config
from ptft.errors import UserError, did_you_mean


def do(cell: Cell, folder: Path, metric: str) -> dict[str, Any]:
    """Trains a cell in a folder, where a stopped run goes on, and returns its result: that of `train.run`, bytes, drift, and with
    freeze=auto(…) what that has chosen.

    Raises:
      baselines.Unavailable: a reference that cannot be had here.
    """
    if cell.kind != "train":
        return baselines.run(cell.kind, cell.config, metric)
    result = train.run(cell.config.replace(tensorboard=False), folder, quiet=True)
    ledger = build.read_run(folder, "freeze_ledger.json")
    chosen = {"chosen": ledger["phases"][0]["strategy"]} if auto.ask(cell.config.freeze) else {}
    drift = {r["name"]: r["relative"] for r in ledger["rows"] if r["verdict"] == "moved"}
    return {**result, **chosen, "bytes": sizes(cell.config.replace(freeze=chosen.get("chosen", cell.config.freeze))), "drift": drift}


def kin(cell: Cell) -> str | None:
    """Cells of one kin may train together (`population`)."""
    return population.kin(cell.config) if cell.kind == "train" else None


def together(cells: Sequence[Cell], workdir: Path) -> list[dict[str, Any] | Exception]:
    """Trains cells of one `population.kin` together. What a step costs is measured apart, once for all of them."""
    outcomes = population.train_together([cell.config for cell in cells])
    alone = probe.measure(cells[0].config, workdir)
    cost = {
        "seconds_per_step": alone["seconds_per_step"],
        "flops_per_step": alone["flops"],
        "bytes": {key.removesuffix("_bytes"): alone[key] for key in alone if key.endswith("_bytes") and key != "device_bytes"},
    }
    return [{**o, **cost} if isinstance(o, dict) else o for o in outcomes]


def sizes(config: Config) -> dict[str, int | None]:
    """Bytes on a device and on disk, from shapes and the compiled step; where what moves changes with time, the largest."""
    row = plans.row(build.build(config), config.freeze, 0)
    return {key.removesuffix("_bytes"): row[key] for key in row if key.endswith("_bytes") and key != "device_bytes"}


def check(cells: Sequence[Cell], metric: str) -> None:
    """Builds a run of every kind that is to come, so that what cannot run is said before the first one does.

    Raises:
      UserError: all problems at once.
    """
    problems: dict[str, None] = {}
    kinds = {(c.task, c.model, c.strategy, c.size): c for c in cells if c.kind == "train"}
    for cell in kinds.values():
        try:
            known = build.metrics(auto.unchosen(cell.config).net)
        except UserError as e:
            problems[f"{cell.strategy}: {e}"] = None
            continue
        if metric not in known:
            problems[f"bench.metric: runs report no {metric!r}; {did_you_mean(metric, known)}"] = None
    if problems:
        raise UserError("the benchmark has cells that cannot run:\n  " + "\n  ".join(problems))
