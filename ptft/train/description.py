"""What a run says of itself: at its start, and in its files."""

from pathlib import Path
from typing import Any

import numpy as np

from ptft.core import config as configs
from ptft.core import plugins, record, tree
from ptft.core.errors import listed, shown
from ptft.core.tree import Flat
from ptft.freeze import ledger, resolve
from ptft.hub import folders
from ptft.objectives import Rows
from ptft.train import cost, pipeline, spec, weights
from ptft.train.build import Run

UNKNOWN = 0.1  # a larger share of unknown tokens is a mistake


def describe_freeze(run: Run, whole: bool = False) -> list[str]:
    """What is trainable when, rule by rule, or parameter by parameter."""
    said, known = [], list[resolve.Plan]()
    for phase in run.phases:
        start = f"from step {phase.start}" if phase.start is not None else f"at a plateau of {phase.waits}"
        when = f", {start}" if len(run.phases) > 1 else ""
        said.append(
            f"freeze: {phase.strategy}{when}"
            + ("" if phase.plan in known else f"\n{describe_plan(phase.plan, whole)}")
        )
        known.append(phase.plan)
    return said


def describe_plan(plan: resolve.Plan, whole: bool = False) -> str:
    """The plan as text, with counts: one line a rule-and-module, or one a parameter."""
    lines, of = [], {r.name: r.name if whole else _module(r.name) for r in plan.rows}
    width = max(map(len, of.values()))
    grouped: dict[tuple[str, str, str], int] = {}
    for r in plan.rows:
        key = (of[r.name], r.pattern, _action(r))
        grouped[key] = grouped.get(key, 0) + tree.count({r.name: r})
    for (module, pattern, action), n in grouped.items():
        lines.append(f"  {module:<{width}}  {n:>12,}  {action:<14} {pattern}")
    trainable, total = plan.counts()
    return "\n".join([*lines, f"  trainable {trainable:,} of {total:,} parameters ({trainable / total:.2%})"])


def _action(row: resolve.Row) -> str:
    factors = [f"{name}={x:g}" for name, x in (("lr", row.lr_mult), ("wd", row.wd_mult)) if x != 1]
    if not row.lr_mult:
        return "freeze"
    return f"train({', '.join(factors)})" if factors else "train"


def _module(name: str) -> str:
    """The first two levels of a name: what a person wants to see a line for."""
    return "/".join(name.split("/")[:2])


def describe(run: Run) -> None:
    """Says what will run: device, data, what is trainable, for how long."""
    record.say(f"device: {record.device()}")
    drawn = {"train": run.config.data.train_size, "dev": run.config.data.dev_size}
    for split, notes in run.data.notes.items():
        counts = [f"{n:,} {name.replace('_', ' ')}" for name, n in notes.items() if n or name == "records"]
        if 0 < drawn.get(split, 0) < notes["rows"]:
            counts.append(f"{drawn[split]:,} of them drawn")
        record.say(f"  {split:<5} " + ", ".join(counts))
    if run.data.labels:
        record.say(
            f"  {len(run.data.labels)} labels: "
            f"{', '.join(map(str, run.config.data.names or run.data.labels))}"
        )
    record.say("\n".join(describe_freeze(run)))
    if run.config.frozen_dtype != "float32":
        record.say(
            f"frozen matrices are kept in {run.config.frozen_dtype}; the ledger is of their float32, an "
            "export has them rounded"
        )
    if run.placement.cut:
        record.say(describe_cut(run))
    record.say(f"{run.durations.total} steps of {run.config.batch} examples")
    for doubt in doubts(run):
        record.say(f"WARNING: {doubt}")


def describe_cut(run: Run) -> str:
    """What the devices hold of the parameters."""
    where, shapes = run.placement, run.net.shapes()
    held, size = (f"{n / 2**20:,.1f}" for n in (where.size(shapes), cost.size(shapes)))
    return (
        f"{len(where.cut)} of {len(shapes)} parameters are cut over {run.mesh.shape['shard']} devices: each "
        f"holds {held} of {size} MiB, and its part of the optimizer's state"
    )


def doubts(run: Run) -> list[str]:
    """What a run starts from or learns that is allowed, and seldom meant."""
    start, warnings = run.config.init_from if run.config.init_weights else "", list(run.data.doubts)
    trainable = {n for p in run.phases for n in p.plan.trainable}
    if not start and any(n.startswith("backbone/") and n not in trainable for n in run.net.shapes()):
        warnings.append(
            "nothing is loaded (init_from, init_weights): what is frozen keeps its random weights"
        )
    if (
        start
        and not folders.is_folder(start)
        and (Path(start) / "metrics.jsonl").exists()
        and not (Path(start) / "result.json").exists()
    ):
        warnings.append(f"{start} has not finished its training")
    return warnings + pooler_doubts(run, start, trainable) + unknown_doubts(run) + label_doubts(run)


def pooler_doubts(run: Run, start: str, trainable: set[str]) -> list[str]:
    """A head that reads a pooler which no run has trained reads a random mixture of the features."""
    own = {n for n in run.net.shapes() if n.startswith("backbone/pooler/")}
    if (
        not start
        or folders.is_folder(start)
        or own & trainable
        or not own
        or not run.net.objective.reads_pooled
    ):
        return []
    frozen = {r["name"] for r in spec.read_run(Path(start), "run.json").get("freeze", ()) if not r["rate"]}
    if not own <= frozen or spec.read_run(Path(start), "config.json").get("init_from"):
        return []
    return [
        f"the head reads backbone/pooler, which {start} never trained and this run freezes: it stays random; "
        "train it, too, such as freeze='head+pooler'"
    ]


def unknown_doubts(run: Run) -> list[str]:
    """Texts in a script that the tokenizer does not have."""
    tokenizer, tokens = run.data.tokenizer, getattr(run.data.train, "tokens", np.zeros(0))
    words = int(np.isin(tokens, [tokenizer.cls, tokenizer.sep, tokenizer.mask], invert=True).sum())
    unknown = int(np.sum(tokens == tokenizer.unk))
    if unknown <= UNKNOWN * words:
        return []
    share = f"{unknown / words:.0%} of the training tokens are unknown to the tokenizer"
    return [
        f"{share}, and look alike to the model; take weights whose vocabulary has these characters "
        "(init_from)"
    ]


def label_doubts(run: Run) -> list[str]:
    """Labels that a split hardly has or lacks, and words that are cut off."""
    train, names, warnings = run.data.train, run.data.labels, []
    if (label := getattr(train, "label", None)) is not None:
        for name, n in zip(names, np.bincount(label, minlength=len(names)), strict=True):
            if n < 3 and 10 * n * len(names) < len(label):
                few = f"label {shown(name)} has {n} of {len(label):,} training rows"
                warnings.append(f"{few}: a slip? data.labels says which labels there are")
    lost = run.data.notes["train"].get("truncated_words", 0)
    if lost > (words := int(np.sum(getattr(train, "tags", np.zeros(0)) >= 0))):
        beyond = f"{lost:,} of {lost + words:,} training words lie beyond objective.seq_len"
        warnings.append(f"{beyond}: is a blank line between the sentences?")
    for split, size in (("dev", run.config.data.dev_size), ("test", 0)):
        rows = getattr(run.data, split)
        if missing := sorted(classes(train) - classes(rows, size)) if rows is not None else []:
            lacks = (
                f"{split} lacks {len(missing)} of the {len(names)} labels, "
                f"{listed(names[i] for i in missing)}"
            )
            warnings.append(
                f"{lacks}: its scores say nothing of them; shuffle a sorted table before it is parted"
            )
    return warnings


def classes(rows: Rows, size: int = 0) -> set[int]:
    """The labels, or tags, of the rows that are looked at."""
    if (label := getattr(rows, "label", None)) is not None:
        return set(label[pipeline.looked_at(len(label), size, label)].tolist())
    return set(np.unique(getattr(rows, "tags", ())).tolist()) - {-1}  # -1: no word begins here


def header(run: Run, base: Flat | None = None) -> dict[str, Any]:
    """What a run's files say of where its numbers come from; `base`: the weights under a delta."""
    return {
        "config": run.config.to_dict(),
        "config_hash": configs.digest(run.config),
        "versions": record.versions(),
        "device": record.device(),
        "data": {"fingerprint": run.data.fingerprint, "notes": run.data.notes, "train_rows": len(run.used)},
        "tokenizer": run.data.tokenizer.fingerprint,
        "labels": list(run.data.labels),
        "freeze": run.plan.table(),
        "phases": [{"start": p.start, "waits": p.waits, "strategy": p.strategy} for p in run.phases],
        **({"plugins": own} if (own := plugins.used()) else {}),
        "base": base
        and ledger.digest_of({n: x for n, x in base.items() if n not in set(weights.changing(run))}),
        "imported": {"by": run.config.init_from}
        if folders.is_imported(run.config.init_from) and run.config.init_weights
        else None,
    }
