"""What is wrong with a `bench` section and the data of its tasks, beyond the types of single keys."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptft.bench.section import AGAIN, REFERENCES, named
from ptft.core import config as configs
from ptft.core.config import Config
from ptft.core.errors import did_you_mean

# Keys that are not a strategy's, a task's or a model's to change.
OWN = {
    "strategies": ("seed", "bench", "repeat", "data", "batch", "train_for", "eval_every", "best",
                   "early_stop"),
    "tasks": ("seed", "bench", "repeat", "lr", "lrs"),
    "models": ("seed", "bench", "repeat", "lr", "lrs"),
}  # fmt: skip


def of_section(bench: Config) -> list[str]:
    """What is wrong with the bench section itself."""
    problems = _numbers(bench)
    for key, own in OWN.items():
        problems += _entries(key, bench[key], own)
    strategies = [s for s in bench.strategies if named(s)]
    names = [s["name"] for s in strategies]
    kept = [n for n in names if n in REFERENCES.values() or n.endswith(AGAIN)]
    problems += [
        f"bench.strategies: {name!r} is a name of the benchmark's own rows; choose another" for name in kept
    ]
    for key in ("baseline", "repeat"):
        if names and bench[key] and bench[key] not in names:
            problems.append(
                f"bench.{key}: no strategy {bench[key]!r}; {did_you_mean(str(bench[key]), names)}"
            )
    return problems + _rates(bench, strategies)


def _numbers(bench: Config) -> list[str]:
    """Of the seeds, sizes and factors."""
    problems = [
        f"bench.{key}: is empty; list at least one"
        for key in ("strategies", "seeds", "lr_factors")
        if not bench[key]
    ]
    for key in ("seeds", "sizes"):
        problems += [
            f"bench.{key}: expected whole numbers >= 0, got {s!r}"
            for s in bench[key]
            if type(s) is not int or s < 0
        ]
    problems += [
        f"bench.lr_factors: expected numbers above 0, got {f!r}" for f in bench.lr_factors if not positive(f)
    ]
    for key in ("seeds", "sizes", "lr_factors"):
        problems += [f"bench.{key}: {s!r} is there twice" for s in _twice(bench[key])]
    return problems


def _entries(key: str, entries: Sequence[Any], own: Sequence[str]) -> list[str]:
    """Of the strategies, tasks or models: their names, and what they may not change."""
    problems = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            problems.append(f"bench.{key}[{i}]: expected {{'name': …, 'any.key': value}}, got {entry!r}")
        elif not named(entry):
            problems.append(f"bench.{key}[{i}]: needs a name (text), got {dict(entry)!r}")
        else:
            taken = [k for k in configs.leaves(entry) if k in own or k.split(".")[0] in own]
            problems += [
                f"bench.{key} {entry['name']!r}: {k!r} is the benchmark's own, not one of its {key}'"
                for k in taken
            ]
    problems += [
        f"bench.{key}: {name!r} is there twice; names must differ"
        for name in _twice([e["name"] for e in entries if named(e)])
    ]
    return problems


def _rates(bench: Config, strategies: Sequence[Mapping[str, Any]]) -> list[str]:
    problems = []
    for s in strategies:
        lrs = s.get("lrs", [s["lr"]] if "lr" in s else [])
        if sum(k in s for k in ("lr", "lrs", "optim.lr")) > 1:
            problems.append(f"bench.strategies {s['name']!r}: has more than one of lr, lrs and optim.lr")
        if not isinstance(lrs, list | tuple) or not all(map(positive, lrs)) or ("lrs" in s and not lrs):
            problems.append(
                f"bench.strategies {s['name']!r}: expected lr=NUMBER or lrs=[NUMBER, …], all above 0, got "
                f"{s.get('lrs', s.get('lr'))!r}"
            )
        elif _twice(lrs):
            problems.append(
                f"bench.strategies {s['name']!r}: the learning rate {_twice(lrs)[0]:g} is there twice"
            )
    counts = {s["name"]: trials(bench, s) for s in strategies}
    if not problems and len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {n}" for name, n in counts.items())
        problems.append(
            f"bench.strategies: unequal numbers of learning-rate trials ({said}): the best of more looks "
            "better by luck alone; expected as many for each strategy (those of its lrs, else one for each "
            "of bench.lr_factors)"
        )
    return problems


def of_data(pages: Mapping[tuple[str, str], Mapping[str, Config]], trials: int) -> list[str]:
    """What a task lacks to quote and to choose by.

    Args:
      pages: (task, model) -> strategy -> config.
      trials: learning rates that a strategy tries.
    """
    problems = []
    for (task, _), by_strategy in pages.items():
        if not by_strategy:  # no strategy could be read, which is said already
            continue
        data = next(iter(by_strategy.values())).to_dict().get("data", {})
        if not data.get("train"):
            problems.append(
                f"{task}: there is nothing to train on; expected data.train='KIND:WHERE', such as "
                "'files:/data/train.tsv'"
            )
            continue
        if not data.get("test"):
            problems.append(
                f"{task}: a benchmark quotes numbers of a test split, which nothing was chosen on (dev "
                f"cannot stand in for it); expected data.test='KIND:WHERE'{_parts(data)}"
            )
        if data.get("test") and data["test"] == data.get("dev"):
            problems.append(
                f"{task}: data.dev and data.test are both {data['test']!r}: numbers chosen on the test split "
                "cannot be quoted"
            )
        if trials > 1 and not data.get("dev"):
            problems.append(
                f"{task}: which of {trials} learning rates counts is decided on dev; expected "
                "data.dev='KIND:WHERE', or one lr a strategy (bench.lr_factors=[1])"
            )
    return problems


def _parts(data: Mapping[str, Any]) -> str:
    """How one table gives all splits that there are none of yet."""
    where = data["train"]
    if not where.startswith("files:") or where.endswith("]") or Path(where.removeprefix("files:")).is_dir():
        return ""
    dev = "" if data.get("dev") else f" data.dev='{where}[80%:90%]'"
    return (
        f", or parts of one table: data.train='{where}[:{90 if data.get('dev') else 80}%]'{dev} "
        f"data.test='{where}[90%:]'"
    )


def trials(bench: Config, strategy: Mapping[str, Any]) -> int:
    """How many learning rates a strategy tries, whatever else is wrong with it."""
    lrs = strategy.get("lrs")
    return len(lrs) if isinstance(lrs, list | tuple) else len(bench.lr_factors)


def positive(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and x > 0


def _twice(items: Sequence[Any]) -> list[Any]:
    return [x for i, x in enumerate(items) if items.index(x) < i]
