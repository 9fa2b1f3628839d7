"""What the folders of a benchmark hold, one JSON file a cell: reading, merging, and which learning rate
counts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ptft.bench import ranking
from ptft.bench.cell_result import BenchFile, Row, row_of
from ptft.bench.protocol import LABELS, describe
from ptft.core import config as configs
from ptft.core import record, stored
from ptft.core.errors import UserError
from ptft.core.stored import Object

Split = Literal["dev", "test"]
CURE = "remove the file: the same command makes it again"
# what rows of old lack
OLDER = {"task": "task", "model": "", "size": 0, "lr": None, "kind": "train", "repeat": False, "error": ""}


def higher_is_better(metric: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    """As the objective of the rows declares it. Rows of older versions do not say which of their metrics
    fall."""
    for row in rows:
        if "lower_is_better" in row:
            return metric not in row["lower_is_better"]
    return not metric.endswith(("loss", "perplexity"))


def is_bench(folder: Path) -> bool:
    return (folder / "bench.json").is_file() or any((folder / "cells").glob("*.json"))


def write(folder: Path, row: Row) -> None:
    """At once or not at all."""
    write_json(folder / "cells" / f"{row['cell']}.json", row)


def write_json(file: Path, values: Object) -> None:
    """With a digest of what it holds, by which `read_json` sees that it was changed."""
    record.write_json(file, stored.sealed(values))


def read(folder: Path) -> list[Row]:
    """Every cell's row, by name.

    Raises:
      UserError: a file that is damaged, or another cell's, by its name.
    """
    return [row_of(OLDER, read_row(file)) for file in sorted((folder / "cells").glob("*.json"))]


def finished(folder: Path, cell: str) -> Row | None:
    """The row of a cell that has finished."""
    file = folder / "cells" / f"{cell}.json"
    row = read_row(file) if file.exists() else row_of()
    return row if row.get("status") == "ok" else None


def read_row(file: Path) -> Row:
    """A cell's row, which says of which cell it is."""
    row = row_of(read_json(file, Row))
    if row["cell"] != file.stem:
        what = f"the row of another cell, {row['cell']} ({describe(row)})"
        raise UserError(f"{file} holds {what}: it was renamed or copied; give it back its name, or {CURE}")
    return row


def read_json(file: Path, kind: Any = Object) -> dict[str, Any]:
    """A file of a benchmark's folder. Raises UserError where it is damaged, or holds no such `kind`."""
    return stored.read(file, kind, CURE)


class Merged(NamedTuple):
    """One or several folders as one benchmark."""

    rows: list[Row]  # of the cells that the folders' configs list
    bench: dict[str, Any]  # the first folder's bench.json; each row has its own folder's metric and baseline
    order: list[str]  # strategies
    notes: list[str]  # what is missing, left out or contradictory
    missing: list[dict[str, Any]]  # the labels of cells that have not run yet


def merge(folders: Sequence[Path]) -> Merged:
    """The cells of several folders: of the same cell in two, a finished one counts, and of two finished ones
    the first.

    Rows are called what the folder's `bench.json` now calls them. Rows that no config lists any more are left
    out, and counted.

    Raises:
      UserError: two folders have cells of the same name that something else decides, or judge or train by
        other rules on one task.
    """
    benches = [
        read_json(folder / "bench.json", BenchFile) if (folder / "bench.json").is_file() else {}
        for folder in folders
    ]
    listed = _listed(benches)
    rows, source, notes = _rows(list(zip(folders, benches, strict=True)), listed)
    called = [_called({"metric": "accuracy", **row}, listed.get(cell, {})) for cell, row in rows.items()]
    _refuse_unjudged(called, source)
    _refuse_mixed(called, source)
    _refuse_twins(called, source)
    place = {cell: i for i, cell in enumerate(listed)}
    called.sort(key=lambda row: place.get(row["cell"], len(place)))
    names = [name for b in benches for name in b.get("order", [])] + [row["strategy"] for row in called]
    # By what they are called: where seconds are the budget, two machines' hashes differ.
    planned, there = (
        {tuple(x.get(key) for key in LABELS) for x in items} for items in (listed.values(), called)
    )
    missing = [dict(zip(LABELS, labels, strict=True)) for labels in planned - there]
    if missing:
        notes.insert(0, f"{len(missing)} of {len(planned)} cells have not run yet.")
    return Merged(called, benches[0] if benches else {}, list(dict.fromkeys(names)), notes, missing)


def _listed(benches: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Every cell that a config lists -> what it is called; of two configs, by the first."""
    listed: dict[str, Mapping[str, Any]] = {}
    for bench in benches:
        # A row says what it was when it ran.
        now = {key: bench[key] for key in ("metric", "baseline", "budget") if bench.get(key)} | {
            "page": bench.get("config") or {}
        }
        listed = {**{cell: {**labels, **now} for cell, labels in bench.get("cells", {}).items()}, **listed}
    return listed


def _rows(
    benches: Sequence[tuple[Path, Mapping[str, Any]]], listed: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Row], dict[str, Path], list[str]]:
    """(cell -> its row, cell -> the folder that it is from, what is left out or contradictory)."""
    rows: dict[str, Row] = {}
    source: dict[str, Path] = {}
    conflicts, older = list[str](), 0
    for folder, bench in benches:
        for row in read(folder):
            cell = row["cell"]
            if bench.get("cells") and cell not in listed:
                older += 1
                continue
            if (
                cell in rows
                and rows[cell]["status"] == row["status"] == "ok"
                and (why := _conflict(rows[cell], row))
            ):
                conflicts.append(
                    f"{describe({**row, **listed.get(cell, {})})}: {why} in {source[cell]} and {folder}"
                )
            if cell not in rows or (row["status"] == "ok" and rows[cell]["status"] != "ok"):
                rows[cell], source[cell] = row, folder
    notes = [f"{older} runs of an earlier config of this benchmark are left out."] if older else []
    if conflicts:
        many = f"{len(conflicts)} cells have" if len(conflicts) > 1 else "One cell has"
        more = " …" if len(conflicts) > 5 else ""
        shown = "; ".join(conflicts[:5])
        notes.append(f"{many} two results, of which the first is shown: {shown}{more}.")
    return rows, source, notes


def _called(row: Row, now: Mapping[str, Any]) -> Row:
    """A row as the folder's `bench.json` has it now: cells with the same steps in two budgets are the same
    cells."""
    kind = now.get("budget", budget(row))
    return row_of(row, now, {"budget": {**(row.get("budget") or {}), "kind": kind}})


def budget(row: Row) -> str:
    return (row.get("budget") or {}).get("kind", "steps")


def _refuse_unjudged(rows: Sequence[Row], source: Mapping[str, Path]) -> None:
    """A run that has finished has what it is judged by."""
    for row in rows:
        if row["status"] == "ok" and math.isnan(score(row, "test", row["metric"])):
            folder, reports = source[row["cell"]], ", ".join(row.get("test") or {}) or "nothing"
            raise UserError(
                f"{folder}/cells/{row['cell']}.json is judged by test {row['metric']} and reports {reports}: "
                f"it or {folder}/bench.json is damaged; {CURE}"
            )


def _refuse_mixed(rows: Sequence[Row], source: Mapping[str, Path]) -> None:
    """What stands in one table was judged by one metric and trained within one budget."""
    seen: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        twin = seen.setdefault((row["task"], row["model"], row["size"], row["kind"] == "train"), row)
        for what, a, b in (
            ("judged by", twin["metric"], row["metric"]),
            ("trained within a budget of", budget(twin), budget(row)),
        ):
            if a != b:
                where = f"{source[twin['cell']]} and {b} in {source[row['cell']]}"
                raise UserError(
                    f"{row['task']} is {what} {a} in {where}. Report them apart, or give their tasks other "
                    "names"
                )


def _refuse_twins(rows: Sequence[Row], source: Mapping[str, Path]) -> None:
    """Two folders may not have other cells of one name: a table would take them for one, and the choice of a
    rate, too."""
    seen: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        name = tuple(row.get(key) for key in LABELS)
        twin = seen.setdefault(name, row)
        a, b = source[twin["cell"]], source[row["cell"]]
        if a != b:
            changed = configs.difference(twin.get("config") or {}, row.get("config") or {})
            why = "; ".join(changed[:5]) or "their data, weights or tokenizer differ"
            raise UserError(
                f"{describe(row)} is another cell in {a} and in {b}: {why}. Report them apart, or give their "
                "tasks or models other names"
            )


def _conflict(a: Row, b: Row) -> str:
    """How two results of one cell differ; "" if they do not, beyond the rounding in which cells that trained
    together differ."""
    splits: tuple[Split, ...] = ("test", "dev")
    for split in splits:
        x, y = a.get(split) or {}, b.get(split) or {}
        for key in x.keys() & y.keys():
            p, q = x[key], y[key]
            if p is None or q is None or not math.isclose(p, q, rel_tol=1e-3, abs_tol=1e-6):
                return f"{split} {key} is {p} and {q}"
    return ""


class Quoted(NamedTuple):
    """What counts of one strategy, on one task, model and size."""

    lr: float | None  # None for the references
    rows: list[Row]  # of that learning rate, one a seed, failed ones included
    # learning rate -> seed -> dev score, NaN for a failed run; of one alone, nothing is asked
    tried: dict[float, dict[int, float]]


def quoted(rows: Sequence[Row], metric: str) -> dict[str, Quoted]:
    """Strategy -> the learning rate that has the best mean dev score over seeds, and its rows; their test
    scores are what is quoted.

    Args:
      rows: of one task, model and size. Every number that a report quotes comes through here.
    """
    higher, names = higher_is_better(metric, rows), dict.fromkeys(r["strategy"] for r in rows)
    return {name: _quoted([r for r in rows if r["strategy"] == name], metric, higher) for name in names}


def _quoted(mine: list[Row], metric: str, higher: bool) -> Quoted:
    lrs = list(dict.fromkeys(r["lr"] for r in mine))
    tried = {
        lr: {r["seed"]: score(r, "dev", metric) for r in mine if r["lr"] == lr}
        for lr in lrs
        if lr is not None
    }
    known = any(math.isfinite(x) for seeds in tried.values() for x in seeds.values())
    if len(lrs) > 1 and not known and any(r["status"] == "ok" for r in mine):
        rates = ", ".join(f"{lr:g}" for lr in lrs)
        raise UserError(
            f"{mine[0]['strategy']}: the learning rates {rates}, and no dev {metric} to choose by; report "
            "them apart"
        )
    lr = lrs[0] if len(lrs) == 1 or not known else ranking.choose(tried, higher)
    return Quoted(lr, [r for r in mine if r["lr"] == lr], tried)


def score(row: Row, split: Split, metric: str) -> float:
    """A row's number; NaN for a run that has none."""
    value = (row.get(split) or {}).get(metric) if row["status"] == "ok" else None
    return math.nan if value is None else float(value)
