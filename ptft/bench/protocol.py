"""What a benchmark runs: strategies x learning rates x seeds x sizes x tasks x models, declared in
`config.bench`.

A bench config is a finetune config with a `bench` section. A cell is one run of it. Fair means:

* Every strategy has as many learning rates to try. Which of them counts is decided on dev, what is quoted is
  test, once (`results.quoted`).
* Cells of a seed are paired: the same training examples (smaller sets lie inside larger ones), in the same
  order, under a head with the same first weights, whatever the strategy.
* The budget is stated: as many steps as the page says, or as many FLOPs or seconds as the baseline spends.
* Rows of reference are always there: the most frequent class, TF-IDF with logistic regression, and where
  there are pretrained weights their frozen features with logistic regression, and the same model from random
  weights. So is a strategy that is entered twice (the A/A check): what tells it from itself is no difference
  between strategies.
"""

import bisect
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptft.bench import identity
from ptft.core import config as configs
from ptft.core.config import Config, Field, Spec
from ptft.core.errors import UserError, did_you_mean
from ptft.freeze.resolve import BadStart

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
# what tells a cell from the others of its benchmark
LABELS = ("strategy", "task", "model", "size", "lr", "seed", "kind", "repeat")


# the steps that a config trains for, and what one costs in the unit of the budget
Spend = Callable[[Config], tuple[int, float]]


@dataclass(frozen=True)
class Cell:
    """One run of the benchmark."""

    strategy: str
    seed: int
    config: Config  # resolved, without the bench section
    cell: str  # 12 hex digits: the hash of all that decides the result
    task: str
    model: str  # "" where there is no choice of models, and for the references that have none
    size: int  # training examples; 0: all
    lr: float | None  # None for the references
    kind: str = "train"  # or a key of REFERENCES
    repeat: bool = False  # the A/A check's second copy
    share: float = 1.0  # of the page's steps, which the budget gives it

    @property
    def labels(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in LABELS}


def describe(labels: Mapping[str, Any]) -> str:
    """A cell's labels (`Cell.labels`) in words, but for its task."""
    parts = [
        labels["strategy"],
        labels.get("model"),
        f"{labels['size']} examples" if labels.get("size") else "",
    ]
    parts += [f"lr {labels['lr']:g}" if labels.get("lr") is not None else "", f"seed {labels['seed']}"]
    return ", ".join(filter(None, parts))


def section(values: Mapping[str, Any]) -> Config:
    """The resolved `bench` section of a bench config, with baseline, repeat and task named."""
    bench = configs.resolve({"bench": values.get("bench", {})}, {"bench": SPEC}).to_dict()["bench"]
    named = [s["name"] for s in bench["strategies"] if isinstance(s, Mapping) and "name" in s]
    bench["baseline"] = bench["baseline"] or (named[0] if named else "")
    if bench["repeat"] in ("", True):
        bench["repeat"] = bench["baseline"]
    bench["task"] = bench["task"] or str(values.get("data", {}).get("train", "task"))
    return Config(bench, "bench.")


def cells(
    values: Mapping[str, Any],
    resolve: Callable[[dict[str, Any]], Config],
    content: Callable[[Config], Mapping[str, str]] = lambda config: {},
    spend: Spend | None = None,
) -> list[Cell]:
    """Every cell of a bench config: task by task, model by model, size by size, and there strategies inside
    seeds, so that what is there after a stop can be compared.

    Args:
      values: a finetune config with a `bench` section, as a nested dict.
      resolve: checks a finetune config (without `bench`) and fills in its defaults.
      content: what stands in a cell's hash for keys that name files (`identity.content`).
      spend: for other budgets than steps.
    Raises:
      UserError: all problems of the benchmark at once.
    """
    bench = section(values)
    base = copy.deepcopy({k: v for k, v in values.items() if k != "bench"})
    resolve(copy.deepcopy(base))  # what is wrong with every cell is said once, not once a strategy
    problems = _problems(bench)
    strategies = entered(bench, base)
    tasks = [t for t in bench.tasks if _named(t)] or [{"name": bench.task}]
    models = [m for m in bench.models if _named(m)] or [{"name": ""}]
    found: dict[tuple[str, str], dict[str, Config]] = {}  # (task, model) -> strategy -> config
    for task in tasks:
        for model in models:
            here = found[task["name"], model["name"]] = {}
            for strategy in strategies:
                try:
                    here[strategy["name"]] = _apply(base, [task, model, strategy], resolve)
                except UserError as e:
                    own = any(strategy["name"] == s["name"] for s in bench.strategies if _named(s))
                    # the rows that the benchmark adds are copies, and so are their mistakes
                    if own or not problems:
                        problems.append(
                            _where(bench, strategy, task, model)
                            + "; ".join(str(e).split("\n  ")[1:] or [str(e)])
                        )
    problems += _splits(found, max(map(_trials(bench), strategies), default=1))
    if problems:
        many = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"the benchmark has {many}:\n  " + "\n  ".join(dict.fromkeys(problems)))
    out = [
        c
        for (task, model), here in found.items()
        for c in _of_page(bench, strategies, here, task, model, content, spend)
    ]
    return _once(out)


def entered(bench: Config, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The strategies that run: those of the config, random init, and last the A/A check's copy, which has
    `repeat`."""
    own = [{**s, **({"lr": s["optim.lr"]} if "optim.lr" in s else {})} for s in bench.strategies if _named(s)]
    out = [{k: v for k, v in s.items() if k != "optim.lr"} for s in own]
    by_name = {s["name"]: s for s in reversed(out)}
    entries = [e for e in (*bench.tasks, *bench.models, *bench.strategies) if _named(e)]
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


def _of_page(
    bench: Config,
    strategies: Sequence[Mapping[str, Any]],
    here: Mapping[str, Config],
    task: str,
    model: str,
    content: Callable[[Config], Mapping[str, str]],
    spend: Spend | None,
) -> Iterator[Cell]:
    """The cells of one task and model."""
    first = here[strategies[0]["name"]]
    pretrained = next((c for c in here.values() if c.get("init_from") and c.get("init_weights", True)), None)
    for size in bench.sizes or [first.to_dict().get("data", {}).get("train_size", 0)]:
        for seed in bench.seeds:
            sized = {name: _sized(config, size).replace(seed=seed) for name, config in here.items()}
            for strategy in strategies:
                name, again = strategy["name"], strategy.get("repeat", False)
                config, share = (
                    (sized[name], 1.0)
                    if bench.budget == "steps"
                    else _within_budget(name, sized[name], sized[bench.baseline], spend)
                )
                for lr in rates(strategy, bench, config.optim.lr):
                    one = config.replace(**{"optim.lr": lr})
                    cell = identity.of(one, content(one), "train", again)
                    yield Cell(name, seed, one, cell, task, model, size, lr, "train", again, share)
            if first.to_dict().get("objective", {}).get("name") == "classify":
                for kind, name in REFERENCES.items():
                    source, of = (pretrained, model) if kind == "features" else (first, "")
                    if source:
                        one = _sized(source, size).replace(seed=seed)
                        cell = identity.of(one, content(one), kind, metric=bench.metric)
                        yield Cell(name, seed, one, cell, task, of, size, None, kind)


def _within_budget(name: str, config: Config, base: Config, spend: Spend | None) -> tuple[Config, float]:
    """A config for as many steps as cost no more than the baseline's, and their share of the page's."""
    assert spend is not None, "a budget other than steps needs `spend`"
    (steps, cost), (given, each) = spend(config), spend(base)
    budget = given * each * (1 + 1e-9)  # the baseline's own steps fit

    def of(n: int) -> Config:
        return config if n == steps else config.replace(train_for=f"{n} steps")

    def spent(n: int) -> float:
        """What n steps cost, which grows with n; of lengths that the phases have no room in, the short ones
        nothing, the long ones more than there is."""
        try:
            return n * spend(of(n))[1]
        except BadStart:
            return math.inf if n > steps else 0.0

    affordable = math.floor(budget / cost)
    # phases: the mean cost changes with n
    if affordable and not math.isclose(spent(affordable), affordable * cost):
        most = steps
        while spent(most) <= budget:
            most *= 2
        found = bisect.bisect_right(range(1, most + 1), budget, key=spent)
        # Phases begin at whole steps, so that a length may cost less than the one before.
        affordable = max(n for n in range(found, found + 4) if n == found or 0 < spent(n) <= budget)
    if not affordable or not spent(affordable):
        raise UserError(
            f"bench.strategies {name!r}: what the baseline spends in its {given} steps buys {affordable} of "
            f"freeze={config.freeze!r}, too few for all of its phases; train for longer, or begin them "
            "earlier"
        )
    return of(affordable), affordable / steps


def _sized(config: Config, size: int) -> Config:
    return (
        config.replace(**{"data.train_size": size})
        if size or "train_size" in config.to_dict().get("data", {})
        else config
    )


def _once(out: list[Cell]) -> list[Cell]:
    """Each cell once. References may come twice, for other models or for a seed that chooses nothing;
    training runs may not."""
    first: dict[str, Cell] = {}
    problems: dict[tuple[str, str], str] = {}
    for cell in out:
        twin = first.setdefault(cell.cell, cell)
        if twin is not cell and cell.kind == "train":
            said = f"{describe(twin.labels)!r} and {describe(cell.labels)!r} are the same training run"
            problems.setdefault((twin.strategy, cell.strategy), said)
    if problems:
        raise UserError(
            "the benchmark runs the same twice; drop one or change one:\n  " + "\n  ".join(problems.values())
        )
    return list(first.values())


def _problems(bench: Config) -> list[str]:
    """What is wrong with the bench section itself, beyond types."""
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
    for key, own in (
        (
            "strategies",
            ("seed", "bench", "repeat", "data", "batch", "train_for", "eval_every", "best", "early_stop"),
        ),
        ("tasks", ("seed", "bench", "repeat", "lr", "lrs")),
        ("models", ("seed", "bench", "repeat", "lr", "lrs")),
    ):
        for i, entry in enumerate(bench[key]):
            if not isinstance(entry, Mapping):
                problems.append(f"bench.{key}[{i}]: expected {{'name': …, 'any.key': value}}, got {entry!r}")
            elif not _named(entry):
                problems.append(f"bench.{key}[{i}]: needs a name (text), got {dict(entry)!r}")
            else:
                taken = [k for k in configs.leaves(entry) if k in own or k.split(".")[0] in own]
                problems += [
                    f"bench.{key} {entry['name']!r}: {k!r} is the benchmark's own, not one of its {key}'"
                    for k in taken
                ]
        problems += [
            f"bench.{key}: {name!r} is there twice; names must differ"
            for name in _twice([e["name"] for e in bench[key] if _named(e)])
        ]
    strategies = [s for s in bench.strategies if _named(s)]
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
    return problems + _rate_problems(bench, strategies)


def _rate_problems(bench: Config, strategies: Sequence[Mapping[str, Any]]) -> list[str]:
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
    counts = {s["name"]: _trials(bench)(s) for s in strategies}
    if not problems and len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {n}" for name, n in counts.items())
        problems.append(
            f"bench.strategies: unequal numbers of learning-rate trials ({said}): the best of more looks "
            "better by luck alone; expected as many for each strategy (those of its lrs, else one for each "
            "of bench.lr_factors)"
        )
    return problems


def _splits(found: Mapping[tuple[str, str], Mapping[str, Config]], trials: int) -> list[str]:
    """What a task lacks to quote and to choose by."""
    problems = []
    for (task, _), here in found.items():
        if not here:  # no strategy could be read, which is said already
            continue
        data = next(iter(here.values())).to_dict().get("data", {})
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


def _trials(bench: Config) -> Callable[[Mapping[str, Any]], int]:
    return lambda s: len(s["lrs"]) if isinstance(s.get("lrs"), list | tuple) else len(bench.lr_factors)


def _where(bench: Config, *entries: Mapping[str, Any]) -> str:
    strategy, task, model = entries
    beside = [e["name"] for e, many in ((task, bench.tasks), (model, bench.models)) if many]
    return f"bench.strategies {strategy['name']!r}" + (f" ({', '.join(beside)})" if beside else "") + ": "


def _named(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("name"), str) and entry["name"] != ""


def positive(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and x > 0


def _twice(items: Sequence[Any]) -> list[Any]:
    return [x for i, x in enumerate(items) if items.index(x) < i]


def _apply(
    base: dict[str, Any], entries: Sequence[Mapping[str, Any]], resolve: Callable[[dict[str, Any]], Config]
) -> Config:
    """The page with the changes of a task, a model and a strategy; a section among them changes the keys that
    it has."""
    values = copy.deepcopy(base)
    for key, value in configs.leaves(
        {k: v for e in entries for k, v in e.items() if k not in ("name", "lr", "lrs", "repeat")}
    ).items():
        try:
            configs.set_key(values, key, copy.deepcopy(value))
        except (AttributeError, TypeError):
            raise UserError(f"{key}: {key.rpartition('.')[0]!r} is a value, not a section") from None
    return resolve(values)
