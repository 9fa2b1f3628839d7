"""Tables: the rows of a tsv, csv, jsonl or parquet file, and the columns of them that a config names."""

import csv
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean, listed, nearest, short, shown
from ptft.data import BadRows
from ptft.data._reading import DIRTY, UNDECODED, read_bytes, read_lines, read_text

UNBALANCED = (
    "a quote opens there that is not closed, or not doubled inside of its cell; as the lines that it takes "
    "along may be good rows, data.on_bad_row='skip' does not leave them out"
)


class Twice:
    """In the place of a value whose column is there twice."""

    def __repr__(self) -> str:
        return "it twice"


TWICE = Twice()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return (
        made
        if len(made) == len(pairs)
        else made | {k: TWICE for k, n in Counter(k for k, _ in pairs).items() if n > 1}
    )


def json_rows(path: Path, rows: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a file with a JSON object a line."""
    decode = json.JSONDecoder(object_pairs_hook=_object).decode
    for number, line in read_lines(path, rows):
        try:
            row = decode(line)
        except (ValueError, RecursionError) as e:  # a number of 5,000 digits, or 100,000 lists in each other
            why = f"{e.msg} at character {e.pos + 1}" if isinstance(e, json.JSONDecodeError) else short(e)
            rows.bad(f"{path}:{number}", f"expected one JSON object a line: {why}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            rows.bad(f"{path}:{number}", f"expected a JSON object, got {line[:40]!r}")


def read_columns(
    path: Path, how: str, options: Config, rows: BadRows, keys: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """(where, the text of each of the columns that the config gives for `keys`)."""
    names: list[str] = []
    for where, row in read_rows(path, how, options, rows):
        # a column that the first row lacks is a mistake in the config; later it is a broken row
        if not names:
            names = [options[k] or next((n for n in ("text", "sentence") if n in row), "text") for k in keys]
            for key, name in zip(keys, names, strict=True):
                if name not in row:
                    hint = _hint(name, how, options, row)
                    raise UserError(
                        f"{path} has no column {shown(name)} (data.{key}); it has {listed(row)}{hint}"
                    )
                if row[name] is TWICE:
                    raise UserError(
                        f"{path} has the column {shown(name)} (data.{key}) twice: rename the one that is not "
                        "meant"
                    )
        values = [row.get(n) for n in names]
        cells = zip(keys, names, values, strict=True)
        problem = next(
            (f"expected text in {shown(n)}, got {shown(v)}" for k, n, v in cells if not _fits(k, v)), None
        )
        if problem:
            rows.bad(where, problem)
        else:
            yield where, list(map(str, values))


def _hint(name: str, how: str, options: Config, row: Mapping[str, Any]) -> str:
    """What to do about a column that a table lacks."""
    if how == "tsv" and len(row) == 1 and (sign := next((c for c in ",;" if c in next(iter(row))), "")):
        return f"; data.format='csv' if {sign!r} is what parts them"
    if len(row) > 20 and nearest(name, row):
        return f"; {did_you_mean(name, row)}"
    return (
        "; data.header=False if its first line is a row" if options.header and how in ("tsv", "csv") else ""
    )


def _fits(key: str, value: Any) -> bool:
    # a table of numbers has NaN where it has none
    is_nothing = value is None or value is TWICE or value != value
    return isinstance(value, str) or (
        key == "label" and not is_nothing and not isinstance(value, dict | list)
    )


def read_rows(path: Path, how: str, options: Config, rows: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, the value of every column) of each row; broken ones go to `rows`."""
    if how == "jsonl":
        yield from ((f"{path}:{number}", row) for number, row in json_rows(path, rows))
    elif how == "parquet":
        yield from _parquet(path, options)
    else:
        names, twice = list[str](), dict[str, Any]()
        for number, values in _tsv(path, rows, options) if how == "tsv" else _csv(path, rows, options):
            header = not names and options.header
            names = names or (values if header else [str(i) for i in range(len(values))])
            if header:
                twice = {name: TWICE for name, n in Counter(names).items() if n > 1}
            elif len(values) != len(names):
                why = f"expected {len(names)} columns, got {len(values)}"
                if (lines := 1 + sum(v.count("\n") for v in values)) > 1:
                    why += f" over {lines} lines: {UNBALANCED}"
                rows.bad(f"{path}:{number}", why, lines > 1)
            else:
                row = dict[str, Any](zip(names, values, strict=True))
                yield f"{path}:{number}", row | twice if twice else row


def _tsv(path: Path, rows: BadRows, options: Config) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path, rows, options.header):
        yield number, line.split("\t")


def _csv(path: Path, rows: BadRows, options: Config) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # a field may be a whole document
    text, header = read_text(path), options.header
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text, options))
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            lines = reader.line_num - number + 1
            got = f"got {lines} lines: {e}; {UNBALANCED}" if lines > 1 else f"{e}; is a quote unbalanced?"
            why = f"expected a row of comma-separated values: {got}"
            rows.bad(f"{path}:{number}", why, lines > 1 or header)
            continue
        if any(UNDECODED.search(v) for v in values):
            rows.bad(f"{path}:{number}", DIRTY, header)
        elif values:
            yield number, values
            header = False


def _separator(text: str, options: Config) -> str:
    """The comma, or where it gives none of the columns that are asked for, what does: Excel writes ; in half
    of the world."""
    first = text[: text.find("\n") + 1 or None].rstrip("\r\n")
    for sign in ",;\t|":
        try:
            names = next(csv.reader([first], strict=True, delimiter=sign), [])
        except csv.Error:  # a cell with a line break, or no quoting
            continue
        names = names if options.header else [str(i) for i in range(len(names))]
        asked = [options[k] for k in ("text", "text_b", "label") if options[k]]
        if set(asked) <= set(names) and (options.text or {"text", "sentence"} & set(names)):
            return sign
    return "," if "," in first else max(",;\t|", key=first.count)


def _parquet(path: Path, options: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(read_bytes(path))).read()
    except pyarrow.ArrowInvalid as e:
        raise UserError(f"{path} is not a parquet file: {e}") from e
    twice = {name: TWICE for name, n in Counter(table.column_names).items() if n > 1}
    number = 0
    for batch in table.to_batches():
        for row in batch.to_pylist():
            yield f"{path}:{(number := number + 1)}", row | twice if twice else row
