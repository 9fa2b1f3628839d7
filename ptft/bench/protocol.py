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
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ptft.bench import identity, problems, section
from ptft.bench.section import named
from ptft.core import config as configs
from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.freeze.resolve import BadStart

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
    bench = section.of(values)
    base = copy.deepcopy({k: v for k, v in values.items() if k != "bench"})
    resolve(copy.deepcopy(base))  # what is wrong with every cell is said once, not once a strategy
    strategies, wrong = section.entered(bench, base), problems.of_section(bench)
    pages, unread = _pages(bench, base, strategies, resolve)
    for own, why in unread:
        if own or not wrong:  # the rows that the benchmark adds are copies, and so are their mistakes
            wrong.append(why)
    most = max((problems.trials(bench, s) for s in strategies), default=1)
    wrong += problems.of_data({(p.task, p.model): p.by_strategy for p in pages}, most)
    if wrong:
        many = "a problem" if len(wrong) == 1 else f"{len(wrong)} problems"
        raise UserError(f"the benchmark has {many}:\n  " + "\n  ".join(dict.fromkeys(wrong)))
    grid = _Grid(bench, strategies, content, spend)
    return _once([cell for page in pages for cell in grid.cells(page)])


class _Page(NamedTuple):
    """One task and model."""

    task: str
    model: str
    by_strategy: dict[str, Config]  # name -> its config, resolved


def _pages(
    bench: Config,
    base: Mapping[str, Any],
    strategies: Sequence[Mapping[str, Any]],
    resolve: Callable[[dict[str, Any]], Config],
) -> tuple[list[_Page], list[tuple[bool, str]]]:
    """Every task with every model; and what cannot be resolved: (whether the config's own strategy, why)."""
    tasks = [t for t in bench.tasks if named(t)] or [{"name": bench.task}]
    models = [m for m in bench.models if named(m)] or [{"name": ""}]
    own = {s["name"] for s in bench.strategies if named(s)}
    pages: dict[tuple[str, str], _Page] = {}
    unread = []
    for task, model in itertools.product(tasks, models):
        by_strategy: dict[str, Config] = {}
        pages[task["name"], model["name"]] = _Page(task["name"], model["name"], by_strategy)
        for strategy in strategies:
            try:
                by_strategy[strategy["name"]] = _apply(base, [task, model, strategy], resolve)
            except UserError as e:
                why = "; ".join(str(e).split("\n  ")[1:] or [str(e)])
                unread.append((strategy["name"] in own, _where(bench, strategy, task, model) + why))
    return list(pages.values()), unread


class _Grid(NamedTuple):
    """What is the same for every task and model."""

    bench: Config
    strategies: Sequence[Mapping[str, Any]]
    content: Callable[[Config], Mapping[str, str]]
    spend: Spend | None

    def cells(self, page: _Page) -> Iterator[Cell]:
        """Size by size, seed by seed."""
        first = page.by_strategy[self.strategies[0]["name"]].to_dict()
        for size in self.bench.sizes or [first.get("data", {}).get("train_size", 0)]:
            for seed in self.bench.seeds:
                yield from self._trained(page, size, seed)
                if first.get("objective", {}).get("name") == "classify":
                    yield from self._references(page, size, seed)

    def _trained(self, page: _Page, size: int, seed: int) -> Iterator[Cell]:
        bench = self.bench
        sized = {name: _sized(c, size).replace(seed=seed) for name, c in page.by_strategy.items()}
        for strategy in self.strategies:
            name, again = strategy["name"], strategy.get("repeat", False)
            config, share = sized[name], 1.0
            if bench.budget != "steps":
                config, share = _within_budget(name, config, sized[bench.baseline], self.spend)
            for lr in section.rates(strategy, bench, config.optim.lr):
                one = config.replace(**{"optim.lr": lr})
                cell = identity.of(one, self.content(one), "train", again)
                yield Cell(name, seed, one, cell, page.task, page.model, size, lr, "train", again, share)

    def _references(self, page: _Page, size: int, seed: int) -> Iterator[Cell]:
        first = page.by_strategy[self.strategies[0]["name"]]
        starts = (c for c in page.by_strategy.values() if c.get("init_from") and c.get("init_weights", True))
        pretrained = next(starts, None)
        for kind, name in section.REFERENCES.items():
            source, model = (pretrained, page.model) if kind == "features" else (first, "")
            if source:
                one = _sized(source, size).replace(seed=seed)
                cell = identity.of(one, self.content(one), kind, metric=self.bench.metric)
                yield Cell(name, seed, one, cell, page.task, model, size, None, kind)


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
        least = bisect.bisect_right(range(1, most + 1), budget, key=spent)
        # Phases begin at whole steps, so that a length may cost less than the one before.
        affordable = max(n for n in range(least, least + 4) if n == least or 0 < spent(n) <= budget)
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


def _once(cells: Sequence[Cell]) -> list[Cell]:
    """Each cell once. References may come twice, for other models or for a seed that chooses nothing;
    training runs may not."""
    first: dict[str, Cell] = {}
    twins: dict[tuple[str, str], str] = {}
    for cell in cells:
        twin = first.setdefault(cell.cell, cell)
        if twin is not cell and cell.kind == "train":
            said = f"{describe(twin.labels)!r} and {describe(cell.labels)!r} are the same training run"
            twins.setdefault((twin.strategy, cell.strategy), said)
    if twins:
        raise UserError(
            "the benchmark runs the same twice; drop one or change one:\n  " + "\n  ".join(twins.values())
        )
    return list(first.values())


def _where(bench: Config, *entries: Mapping[str, Any]) -> str:
    strategy, task, model = entries
    beside = [e["name"] for e, many in ((task, bench.tasks), (model, bench.models)) if many]
    return f"bench.strategies {strategy['name']!r}" + (f" ({', '.join(beside)})" if beside else "") + ": "


def _apply(
    base: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], resolve: Callable[[dict[str, Any]], Config]
) -> Config:
    """The page with the changes of a task, a model and a strategy; a section among them changes the keys that
    it has."""
    values = copy.deepcopy(dict(base))
    for key, value in configs.leaves(
        {k: v for e in entries for k, v in e.items() if k not in ("name", "lr", "lrs", "repeat")}
    ).items():
        try:
            configs.set_key(values, key, copy.deepcopy(value))
        except (AttributeError, TypeError):
            raise UserError(f"{key}: {key.rpartition('.')[0]!r} is a value, not a section") from None
    return resolve(values)
