"""One cell's work: training and what is known of it afterwards, or a reference."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptft.bench import baselines, forgetting, probe, vectorized
from ptft.bench.cell_result import CellResult, drift
from ptft.bench.protocol import Cell
from ptft.core import record, signals
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean
from ptft.planning import auto
from ptft.train import build, contract, description, feature_cache, spec, train, weights
from ptft.train.build import Run


def run_cell(cell: Cell, folder: Path, metric: str) -> CellResult:
    """Trains a cell in a folder, where a stopped run goes on, and returns its result.

    Raises:
      baselines.Unavailable: a reference that cannot be had here.
    """
    if cell.kind != "train":
        return baselines.run(cell.kind, cell.config, metric)
    workdir, asked = folder.parents[1], auto.ask(cell.config.freeze)
    # what cannot be measured is said before it is trained
    alone = None if asked else probe.measure(cell.config, workdir)
    config = cell.config.replace(tensorboard=False)
    result = train.run(config, folder, quiet=True, chosen=auto.choose(config, folder))
    ledger = spec.read_run(folder, "freeze_ledger.json")
    chosen = ledger["phases"][0]["strategy"] if asked else None
    alone = alone or probe.measure(cell.config.replace(freeze=chosen), workdir)
    run = auto.built(cell.config, folder)
    known = {"chosen": chosen, "lower_is_better": sorted(run.net.objective.lower_is_better)}
    return CellResult.of(result, drift=drift(ledger), forgetting=forgotten(run, folder), **known).costing(
        alone
    )


def forgotten(run: Run, folder: Path) -> dict[str, float] | None:
    """`forgetting.measure` of a finished run."""
    return forgetting.measure(run, weights.computed_params(folder, run.config, run.net)[0])


def group_key(cell: Cell) -> str | None:
    """Cells of one group may train together (`vectorized`)."""
    return vectorized.group_key(cell.config) if cell.kind == "train" else None


def run_group(cells: Sequence[Cell], workdir: Path) -> Iterator[dict[int, vectorized.Outcome]]:
    """Trains cells of one `vectorized.group_key` together. What a step costs is measured apart, once a
    strategy."""
    alone: dict[int, dict[str, Any]] = {}
    for i, cell in enumerate(cells):
        try:
            alone[i] = _kept_promise(cell, workdir)
        except UserError as e:  # of this strategy; the others go on
            yield {i: e}
    able = list(alone)
    for outcomes in vectorized.train_together([cells[i].config for i in able]) if able else ():
        yield {
            able[k]: outcome.costing(alone[able[k]]) if isinstance(outcome, CellResult) else outcome
            for k, outcome in outcomes.items()
        }


def _kept_promise(cell: Cell, workdir: Path) -> dict[str, Any]:
    """What a step costs, if that is what its plan promises."""
    row, strategy = probe.measure(cell.config, workdir), cell.config.freeze
    if row["problem"] and cell.config.strict_cost:
        raise UserError(f"freeze={strategy!r}: {row['problem']}; strict_cost=False makes a warning of this")
    if row["problem"]:
        record.say(f"WARNING: freeze={strategy!r}: {row['problem']}")
    return row


def expected(groups: Sequence[Sequence[Cell]], workdir: Path, isolated: bool = False) -> dict[str, float]:
    """Seconds that each training cell will take, by the probe of its strategy: steps and evaluations, and its
    part of what is done once: a frozen prefix for the cells of a group; a compiled program for them, or for
    cells alone that differ by their seeds, unless they are `isolated` in processes.

    Raises:
      SystemExit(75): stopped by SIGTERM or SIGINT.
    """
    seconds: dict[str, float] = {}
    trained = [
        (cell, len(group))
        for group in groups
        for cell in group
        if cell.kind == "train" and not auto.ask(cell.config.freeze)
    ]
    alike = Counter(_but_seed(cell) for cell, members in trained if members == 1 and not isolated)
    new = {probe.name(cell.config): cell for cell, _ in trained if probe.known(cell.config, workdir) is None}
    if new:
        record.say(
            f"measuring what a step costs of {len(new)} kinds of cells, in turns, in a process of its own"
        )
        probe.in_turns([cell.config for cell in new.values()], workdir)
    with signals.preemption() as caught:
        for cell, members in trained:
            try:
                row = probe.measure(cell.config, workdir)
            except UserError:
                continue  # what is wrong, the cell will say
            if caught:
                raise SystemExit(signals.PREEMPTED)
            if row["seconds_per_step"] is not None:
                if new.get(probe.name(cell.config)) is cell:
                    record.say(f"  {cell.strategy}: {row['seconds_per_step']:.3g} s a step")
                sharers = alike[_but_seed(cell)] if members == 1 and not isolated else members
                seconds[cell.cell] = _expected(build.build(cell.config), row, members, sharers)
    return seconds


def _but_seed(cell: Cell) -> tuple[Any, ...]:
    return tuple(label for name, label in cell.labels.items() if name != "seed")


def _expected(run: Run, row: Mapping[str, Any], members: int, sharers: int) -> float:
    """Of a cell in a group of so many members, whose compiled program so many cells share."""
    c, d, many = run.config, run.durations, members > 1
    formula = contract.products(run)
    forward = row["seconds_per_step"] * (formula.forward / formula.total if formula else 1 / 3)  # of a batch
    kept = (
        0.0
        if len(run.phases) > 1 or feature_cache.why_not(run, feature_cache.Use(many=many))
        else feature_cache.entry(run, 0) / run.net.backbone.dims.layers
    )
    dev = (
        min(len(run.data.dev), c.data.dev_size or len(run.data.dev)) / c.batch
        if run.data.dev is not None
        else 0
    )
    test = len(run.data.test) / c.batch if run.data.test is not None else 0
    looks = 1 + (d.total // d.evaluate if d.evaluate else c.best != "last")
    steps = d.total * (row["seconds_per_step"] - forward * kept)
    evaluations = forward * (looks * dev * (1 - kept) + test * (1 - kept * many))
    filled = forward * kept * (len(run.used) / c.batch + dev + test * many)
    return steps + evaluations + row["overhead_seconds"] / sharers + filled / members


def leaks(config: Config, task: str) -> list[str]:
    """Warns of rows of test that stand in train or dev, too, whatever their labels; a problem where all of
    them do."""
    splits = baselines.records(config)
    apart = ("label", "tags", "where")
    texts = {
        split: [str({k: v for k, v in r.items() if k not in apart}) for r in rows]
        for split, rows in splits.items()
    }
    problems, test = [], texts.get("test", [])
    for split in ("train", "dev"):
        seen = set(texts.get(split, ()))
        n = sum(text in seen for text in test)
        said = f"{task}: of the {len(test)} test rows {n} stand in {split}, too"
        if n and n == len(test):
            problems.append(f"{said}: numbers that were chosen or trained on them cannot be quoted")
        elif n:
            record.say(f"WARNING: {said}")
    return problems


def check(cells: Sequence[Cell], metric: str) -> None:
    """Builds a run of every kind that is to come, so that what cannot run, or may not be meant, is said
    before the first one does.

    Raises:
      UserError: all problems at once.
    """
    data = {(c.task, c.model): c.config for c in cells if c.kind == "train"}
    problems = dict.fromkeys(problem for (task, _), config in data.items() for problem in leaks(config, task))
    doubts: dict[str, list[str]] = {}
    kinds = {(c.task, c.model, c.strategy, c.size): c for c in cells if c.kind == "train"}
    for cell in kinds.values():
        try:
            run = auto.unchosen(cell.config)
            known = build.metrics(run.net)
        except UserError as e:
            problems[f"{cell.strategy}: {e}"] = None
            continue
        for doubt in description.doubts(run):
            doubts.setdefault(doubt, []).append(cell.strategy)
        if metric not in known:
            problems[f"bench.metric: runs report no {metric!r}; {did_you_mean(metric, known)}"] = None
    if problems:
        say = "\nmend them, or take their strategies out of bench.strategies in a copy of the page"
        raise UserError("the benchmark has cells that cannot run:\n  " + "\n  ".join(problems) + say)
    for doubt, names in doubts.items():
        record.say(f"WARNING: {', '.join(dict.fromkeys(names))}: {doubt}")
