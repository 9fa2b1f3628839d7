"""What a benchmark runs: strategies x seeds over one task, declared in `config.bench`.

A bench config is a finetune config with a `bench` section. A cell is one training run of it: the finetune
config with the strategy's overrides and a seed. Its name is a hash of everything that decides its result, so
that a benchmark can be stopped, extended and started again without running anything twice.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptft import config as configs
from ptft.config import Config, Field, Spec
from ptft.errors import UserError, did_you_mean

SPEC: Spec = {
    "strategies": Field((), doc='what to compare: {"name": "top-2", "freeze": "top-2", "lr": 1e-4, "any.other.key": value}'),
    "seeds": Field((0, 1, 2, 3, 4), doc="every strategy runs once with each"),
    "baseline": Field("", doc="the strategy that the others are compared with; empty: the first"),
    "metric": Field("accuracy", doc="the test metric that the report is about"),
    "task": Field("", doc="the task's name in the report; empty: where the training data come from"),
}

# Keys that decide what a run prints and keeps, not what it computes.
SILENT = ("log_every", "save_every", "keep", "tensorboard")


@dataclass(frozen=True)
class Cell:
    """One training run of the benchmark."""

    strategy: str
    seed: int
    overrides: Mapping[str, Any]  # {"freeze": "top-2", "optim.lr": 1e-4, …}
    config: Config  # resolved, without the bench section
    cell: str  # 12 hex digits: the hash of all that decides the result


def section(values: Mapping[str, Any]) -> Config:
    """The resolved `bench` section of a bench config, with the baseline and the task named."""
    bench = configs.resolve({"bench": values.get("bench", {})}, {"bench": SPEC}).to_dict()["bench"]
    named = [s["name"] for s in bench["strategies"] if isinstance(s, Mapping) and "name" in s]
    bench["baseline"] = bench["baseline"] or (named[0] if named else "")
    bench["task"] = bench["task"] or str(values.get("data", {}).get("train", "task"))
    return Config(bench)


def cells(values: Mapping[str, Any], resolve: Callable[[dict[str, Any]], Config]) -> list[Cell]:
    """Every cell of a bench config, strategies interleaved within a seed, so that what is there after a stop can be compared.

    Args:
      values: a finetune config with a `bench` section, as a nested dict.
      resolve: checks a finetune config (without `bench`) and fills in its defaults.
    Raises:
      UserError: all problems of the benchmark at once.
    """
    bench = section(values)
    base = copy.deepcopy({k: v for k, v in values.items() if k != "bench"})
    resolve(copy.deepcopy(base))  # what is wrong with every cell is said once, not once a strategy
    problems = _problems(bench)
    out: list[Cell] = []
    for strategy in bench.strategies:
        if not isinstance(strategy, Mapping) or "name" not in strategy:
            continue  # already a problem
        overrides = {"optim.lr" if key == "lr" else key: value for key, value in strategy.items() if key != "name"}
        for seed in [s for s in bench.seeds if type(s) is int and s >= 0]:
            try:
                config = _apply(base, {**overrides, "seed": seed}, resolve)
            except UserError as e:
                problems.append(f"bench.strategies {strategy['name']!r}: " + "; ".join(str(e).split("\n  ")[1:] or [str(e)]))
                break
            out.append(Cell(strategy["name"], seed, overrides, config, identity(config)))
    first: dict[str, Cell] = {}
    for cell in [] if problems else out:
        twin = first.setdefault(cell.cell, cell)
        if twin.strategy != cell.strategy and cell.seed == bench.seeds[0]:
            problems.append(f"bench.strategies: {twin.strategy!r} and {cell.strategy!r} are the same training run; drop one or change one")
    if problems:
        many = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"the benchmark has {many}:\n  " + "\n  ".join(problems))
    return sorted(out, key=lambda c: bench.seeds.index(c.seed))


def _problems(bench: Config) -> list[str]:
    """What is wrong with the bench section itself, beyond types."""
    problems = [f"bench.{key}: is empty; list at least one" for key in ("strategies", "seeds") if not bench[key]]
    problems += [f"bench.seeds: expected whole numbers >= 0, got {s!r}" for s in bench.seeds if type(s) is not int or s < 0]
    problems += [f"bench.seeds: {s!r} is there twice" for s in _twice(bench.seeds)]
    names = []
    for i, strategy in enumerate(bench.strategies):
        if not isinstance(strategy, Mapping):
            problems.append(f"bench.strategies[{i}]: expected {{'name': …, 'freeze': …, 'lr': …}}, got {strategy!r}")
        elif not isinstance(strategy.get("name"), str) or not strategy["name"]:
            problems.append(f"bench.strategies[{i}]: needs a name (text), got {dict(strategy)!r}")
        else:
            names.append(strategy["name"])
            own = [key for key in strategy if key.split(".")[0] in ("seed", "bench")]
            problems += [f"bench.strategies {names[-1]!r}: {key!r} is the benchmark's own, not a strategy's" for key in own]
    problems += [f"bench.strategies: {name!r} is there twice; names must differ" for name in _twice(names)]
    if names and bench.baseline not in names:
        problems.append(f"bench.baseline: no strategy {bench.baseline!r}; {did_you_mean(bench.baseline, names)}")
    return problems


def _twice(items: list[Any]) -> list[Any]:
    return [x for i, x in enumerate(items) if items.index(x) < i]


def _apply(base: dict[str, Any], overrides: Mapping[str, Any], resolve: Callable[[dict[str, Any]], Config]) -> Config:
    values = copy.deepcopy(base)
    for key, value in overrides.items():
        try:
            configs.set_key(values, key, copy.deepcopy(value))
        except (AttributeError, TypeError):
            raise UserError(f"{key}: {key.rpartition('.')[0]!r} is a value, not a section") from None
    return resolve(values)


def identity(config: Config) -> str:
    """12 hex digits that name a run: its config, and the content (not the place) of the weights it starts from."""
    plain = {k: v for k, v in config.to_dict().items() if k not in SILENT}
    if plain.get("init_from"):
        folder = Path(plain["init_from"], "manifests")
        saved = sorted(folder.glob("best-*.json")) or sorted(folder.glob("checkpoints-*.json"), key=lambda p: int(p.stem.split("-")[-1]))
        if saved:
            plain["init_from"] = hashlib.sha256(saved[-1].read_bytes()).hexdigest()
    return hashlib.sha256(configs.to_json(plain).encode()).hexdigest()[:12]
