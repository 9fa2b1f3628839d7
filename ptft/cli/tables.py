"""Rows -> a csv, tsv or jsonl file, row by row; it appears once it is whole."""

import contextlib
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ptft.core import record, writing
from ptft.core.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")
BREAKS = re.compile(r"[\t\r\n]+")  # a tsv file has no quoting

Row = Mapping[str, Any]


def to_json(row: Row | Sequence[Any]) -> str:
    """One line; what JSON does not have (a date of a parquet file) as text."""
    return json.dumps(record.plain(row), ensure_ascii=False, allow_nan=False, default=str)


@contextlib.contextmanager
def writer(path: Path) -> Iterator[Callable[[Row], None]]:
    part = None
    try:
        # A lone half of a surrogate pair, which no file can hold, is written as its number.
        with (
            writing.at_once(path) as part,
            part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f,
        ):
            if path.suffix == ".jsonl":
                yield lambda row: print(to_json(row), file=f)
            else:
                yield _table(f, path.suffix == ".tsv")
    except OSError as e:
        if e.filename != str(part):  # another file's
            raise
        raise UserError(f"--to {path} cannot be written: {e.strerror}") from e


def _table(f: TextIO, tabs: bool) -> Callable[[Row], None]:
    """Writes the first row's names, then every row; a dict has a column a key, a list is JSON in its cell."""
    names: list[str] = []
    out = csv.writer(f, lineterminator="\n")

    def write(cells: list[str]) -> None:
        if tabs:
            f.write("\t".join(BREAKS.sub(" ", c) for c in cells) + "\n")
        else:
            out.writerow(cells)

    def add(row: Row) -> None:
        cells = [cell for key, inner in row.items() for cell in _flat(key, inner)]
        flat = dict(cells)
        if len(flat) < len(cells):
            twice = next(name for name, n in Counter(name for name, _ in cells).items() if n > 1)
            raise UserError(f"there is a column {twice!r} already; rename it, leave it out, or write .jsonl")
        if not names:
            names.extend(flat)
            write(names)
        if more := [n for n in flat if n not in names]:
            raise UserError(f"a row has {more[0]!r}, which the first row lacks: .jsonl can hold such rows")
        write([_cell(flat.get(n)) for n in names])

    return add


def _flat(key: str, value: Any) -> list[tuple[str, Any]]:
    return [(f"{key}.{k}", v) for k, v in value.items()] if isinstance(value, Mapping) else [(key, value)]


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return to_json(value)
    return "" if value is None or value != value else str(value)
