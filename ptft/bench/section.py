"""The `bench` section of a config: its keys, the strategies that it enters, the learning rates they try."""

from collections.abc import Mapping
from typing import Any

from ptft.core import config as configs
from ptft.core.config import Config, Field, Spec

SPEC: Spec = {
    "strategies": Field(
        (),
        doc=(
            'what to compare: {"name": "top-2", "freeze": "top-2", "lr": 1e-4, "optim.decay": 0.9}; or '
            '"lrs": [...]'
        ),
    ),
    "lr_factors": Field(
        (1.0,), tuple, doc="what a strategy tries: its lr times each; a strategy with a list lrs tries those"
    ),
    "seeds": Field((0, 1, 2, 3, 4), doc="every strategy runs once with each"),
    "sizes": Field((), tuple, doc="numbers of training examples, 0: all; empty: data.train_size"),
    "tasks": Field(
        (),
        tuple,
        doc='named changes of the page: {"name": "sst2", "data.train": …}; empty: the page as it is',
    ),
    "models": Field((), tuple, doc='the same for models: {"name": "minilm", "init_from": …}'),
    "budget": Field(
        "steps",
        str,
        choices=("steps", "flops", "seconds"),
        doc="train_for as it is, or what the baseline spends in it",
    ),
    "baseline": Field("", doc="the strategy that the others are compared with; empty: the first"),
    "repeat": Field("", (str, bool), doc="the strategy of the A/A check; empty: the baseline; False: none"),
    "random_init": Field(
        True, bool, doc="add a strategy that trains everything from random weights, if there is none"
    ),
    "metric": Field("accuracy", doc="the metric that chooses learning rates on dev and is quoted on test"),
    "task": Field(
        "", doc="the name of the page's own task in the report; empty: where the training data come from"
    ),
}
RANDOM = "full, random init"
REFERENCES = {  # see baselines.py
    "majority": "majority class", "tfidf": "TF-IDF + logistic regression",
    "features": "frozen features + logistic regression",
}  # fmt: skip
AGAIN = " (A/A)"


def of(values: Mapping[str, Any]) -> Config:
    """The resolved `bench` section of a bench config, with baseline, repeat and task named."""
    bench = configs.resolve({"bench": values.get("bench", {})}, {"bench": SPEC}).to_dict()["bench"]
    named = [s["name"] for s in bench["strategies"] if isinstance(s, Mapping) and "name" in s]
    bench["baseline"] = bench["baseline"] or (named[0] if named else "")
    if bench["repeat"] in ("", True):
        bench["repeat"] = bench["baseline"]
    bench["task"] = bench["task"] or str(values.get("data", {}).get("train", "task"))
    return Config(bench, "bench.")


def entered(bench: Config, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The strategies that run: those of the config, random init, and last the A/A check's copy, which has
    `repeat`."""
    own = [{**s, **({"lr": s["optim.lr"]} if "optim.lr" in s else {})} for s in bench.strategies if named(s)]
    out = [{k: v for k, v in s.items() if k != "optim.lr"} for s in own]
    by_name = {s["name"]: s for s in reversed(out)}
    entries = [e for e in (*bench.tasks, *bench.models, *bench.strategies) if named(e)]
    pretrained = (base.get("init_from") or any(e.get("init_from") for e in entries)) and base.get(
        "init_weights", True
    )
    if (
        out
        and bench.random_init
        and pretrained
        and not any(s.get("init_weights") is False or s["name"] == RANDOM for s in out)
    ):
        full = next((s for s in out if s.get("freeze", base.get("freeze", "full")) == "full"), None)
        rates = {k: v for k, v in by_name.get(bench.baseline, out[0]).items() if k in ("lr", "lrs")}
        out.append({**(full or {"freeze": "full", **rates}), "name": RANDOM, "init_weights": False})
    if bench.repeat and bench.repeat in by_name:
        out.append({**by_name[bench.repeat], "name": bench.repeat + AGAIN, "repeat": True})
    return out


def rates(strategy: Mapping[str, Any], bench: Config, default: float) -> list[float]:
    """The learning rates that a strategy tries."""
    if "lrs" in strategy:
        return list(strategy["lrs"])
    return [float(f"{strategy.get('lr', default) * factor:.6g}") for factor in bench.lr_factors]


def named(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("name"), str) and entry["name"] != ""
