"""Local files: `files:GLOB`, or a part of their records as in TFDS: `files:train.tsv[:90%]`, `files:train.tsv[90%:]`, `files:a.tsv[:500]`.

| format | what it reads |
|---|---|
| lines | one sentence a line, a blank line between documents |
| paragraphs | one paragraph a line, split into sentences; a blank line between documents |
| wiki | WikiExtractor's output, JSON lines or `<doc>` blocks; empty pages are left out and counted |
| tsv csv jsonl parquet | a record a row, columns named in the config; without `label`, a row is a document |
| folder | a folder of text files with a subfolder a class, as aclImdb; `unsup` is left out |
| conll | a word a line, its tag in the last column (tabs, or else spaces between them); a blank line between sentences |

A file may be gzipped (`.gz`); a new file starts a new document. A tsv file has no quoting: a quote is a character.
"""

import csv
import glob
import gzip
import html
import importlib.util
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ptft.config import Config
from ptft.data import Rows, Source, documents, labelled, sentences, tagged
from ptft.errors import UserError, did_you_mean

SUFFIXES = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "lines"}
SUFFIXES |= dict.fromkeys((".conll", ".iob", ".bio"), "conll")
WIKI = re.compile(rb'<doc |\{"id": ?"[^"]*", ?"(revid|url)":')
TAG = re.compile(r"</?[a-zA-Z]\w*[^<>]*>")
PART = re.compile(r"(.+)\[([^\[\]]*):([^\[\]]*)\]")
UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte that is not UTF-8
DIRTY = "expected UTF-8, got other bytes"


def open(rest: str, options: Config, labels: Sequence[str]) -> Source:
    """Reads the files that the pattern `rest` matches, sorted by name (`**` for any depth; a folder: all files below it).

    A part at its end, `[A:B]`, counts records (documents, examples, sentences) of all of them, or per cent, from 0.

    Raises:
      UserError: nothing matches; the format cannot be told; a column is missing; a row is broken ("file:line: why").
    """
    rows = Rows(options.on_bad_row)
    names = labels or [str(label) for label in options.labels]
    if (part := PART.fullmatch(rest)) and not os.path.exists(os.path.expanduser(rest)):
        rest = part[1]
    found = _match(rest)
    if options.format == "folder" or (options.format == "auto" and all(_has_classes(p) for p in found)):
        if part:
            raise UserError(f"{rest}: its records lie class by class, so that a part, [{part[2]}:{part[3]}], would lack some; leave it out")
        return labelled(_folders(found, rows), rows, names)
    files = [f for p in found for f in ([p] if p.is_file() else sorted(q for q in p.rglob("*") if q.is_file()))]
    formats = [_format(f, options.format) for f in files]
    if "conll" in formats:
        return _tagged(files, formats, options, rows, names, part)
    if not options.label:
        if options.text_b:
            raise UserError("data.text_b is set but data.label is not: pairs need labels")
        return documents(_cut((d for f, how in zip(files, formats, strict=True) for d in _documents(f, how, options, rows)), part), rows)
    if plain := next((f for f, how in zip(files, formats, strict=True) if how in ("lines", "paragraphs", "wiki")), None):
        raise UserError(f"{plain} is plain text and has no column {options.label!r}: leave data.label empty, or set data.format")
    return labelled(_cut((r for f, how in zip(files, formats, strict=True) for r in _labelled(f, how, options, rows)), part), rows, names)


def _cut(records: Iterable[Any], part: re.Match[str] | None) -> Iterable[Any]:
    """Those of a part; per cent are cut down to whole records, so that parts that meet share none."""
    if part is None:
        return records
    found, ends = list(records), (part[2] or "0", part[3] or "100%")
    numbers = [int(x.rstrip("%")) * (len(found) if x.endswith("%") else 100) // 100 for x in ends if re.fullmatch(r"\d+%?", x)]
    if len(numbers) < 2 or not numbers[0] <= numbers[1] <= len(found):
        raise UserError(
            f"{part[0]}: expected [A:B], records or per cent from 0 up to all {len(found)}, such as [:90%] and [90%:] or [:500]"
        )
    return found[numbers[0] : numbers[1]]


def _match(pattern: str) -> list[Path]:
    pattern = os.path.expanduser(pattern)
    if found := [Path(pattern)] if os.path.exists(pattern) else sorted(map(Path, glob.glob(pattern, recursive=True))):
        return found
    folder = Path(pattern).parent
    while not folder.is_dir():
        folder = folder.parent
    beside = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    raise UserError(f"no file matches {pattern}; in {folder} {did_you_mean(Path(pattern).name, beside)}")


def _start(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
            return f.read(200).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{path} cannot be read: {e}") from e


def _format(path: Path, asked: str) -> str:
    if asked != "auto":
        return asked
    if WIKI.match(start := _start(path)):
        return "wiki"
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    how = SUFFIXES.get(suffix.lower(), "jsonl" if start.startswith(b"{") else "")
    if not how:
        raise UserError(f"cannot tell the format of {path} from its name or its first bytes: set data.format to lines, paragraphs, tsv, …")
    return how


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{path} cannot be read: {e}") from e


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8-sig", errors="surrogateescape")


def _lines(path: Path, rows: Rows) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end); only \\n ends a line."""
    text = _text(path)
    dirty = UNDECODED.search(text) is not None
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if dirty and UNDECODED.search(line):
            rows.bad(f"{path}:{number}", DIRTY)
        else:
            yield number, line.removesuffix("\r")


def _documents(path: Path, how: str, options: Config, rows: Rows) -> Iterator[tuple[str, list[str]]]:
    if how == "wiki":
        yield from _pages(path, rows)
    elif how in ("lines", "paragraphs"):
        first, parts = 0, list[str]()
        for number, line in _lines(path, rows):
            if line := line.strip():
                first = first if parts else number
                parts.extend([line] if how == "lines" else sentences(line))
            elif parts:
                yield f"{path}:{first}", parts
                parts = []
        yield f"{path}:{first}", parts
    else:
        for where, (text,) in _columns(path, how, options, rows, ("text",)):
            yield where, sentences(text)


def _labelled(path: Path, how: str, options: Config, rows: Rows) -> Iterator[tuple[str, str, str | None, str]]:
    keys = ("text", "text_b", "label") if options.text_b else ("text", "label")
    for where, (text, *text_b, label) in _columns(path, how, options, rows, keys):
        yield where, text, text_b[0] if text_b else None, label


def _tagged(
    files: Sequence[Path], formats: Sequence[str], options: Config, rows: Rows, names: Sequence[str], part: re.Match[str] | None
) -> Source:
    if plain := next((f for f, how in zip(files, formats, strict=True) if how != "conll"), None):
        raise UserError(f"{plain} has no tags and {files[formats.index('conll')]} does: give files of one format, or set data.format")
    if given := next((k for k in ("text", "text_b", "label") if options[k]), None):
        raise UserError(f"data.{given}={options[given]!r}: tagged words have no names of columns, the last one is the tag; leave it empty")
    return tagged(_cut((s for f in files for s in _conll(f, rows)), part), rows, names)


def _conll(path: Path, rows: Rows) -> Iterator[tuple[str, list[str], list[str]]]:
    """(where, words, tags) of each sentence; one with a broken line is left out whole."""
    first, words, tags, broken = 0, list[str](), list[str](), False
    for number, line in enumerate([*_text(path).split("\n"), ""], 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words and not broken:
                yield f"{path}:{first}", words, tags
            words, tags, broken = [], [], False
            continue
        columns = [c.strip(" ") for c in re.split("\t" if "\t" in line else " +", line.strip(" \r"))]
        if UNDECODED.search(line) or len(columns) < 2 or not (columns[0] and columns[-1]):
            if not broken:
                want = "a word and its tag, with a tab or a space between them"
                rows.bad(f"{path}:{number}", DIRTY if UNDECODED.search(line) else f"expected {want}, got {line[:40]!r}")
            broken = True
        else:
            first = first if words else number
            words.append(columns[0])
            tags.append(columns[-1])


def _pages(path: Path, rows: Rows) -> Iterator[tuple[str, list[str]]]:
    """WikiExtractor: (where, sentences); the title, where it is repeated as the first line, is left out."""
    blocks = _start(path).startswith(b"<doc ")
    for number, title, lines in _doc_blocks(path, rows) if blocks else _json_pages(path, rows):
        text = _markup("\n".join(lines)).strip()
        if blocks and text.startswith(title) and text[len(title) :].lstrip(" ")[:1] in ("", "\n"):
            text = text[len(title) :]
        yield f"{path}:{number}", sentences(text)


def _markup(text: str) -> str:
    if "&" in text:
        text = html.unescape(text)
    return TAG.sub(" ", text) if "<" in text else text


def _json_pages(path: Path, rows: Rows) -> Iterator[tuple[int, str, list[str]]]:
    for number, row in _json_rows(path, rows):
        if isinstance(text := row.get("text"), str):
            yield number, "", [text]
        else:
            rows.bad(f"{path}:{number}", f"expected a page with 'text', got {', '.join(map(repr, row))}")


def _doc_blocks(path: Path, rows: Rows) -> Iterator[tuple[int, str, list[str]]]:
    opened, title, lines = 0, "", list[str]()
    for number, line in _lines(path, rows):
        if line.startswith("<doc "):
            if opened:
                rows.bad(f"{path}:{opened}", f"<doc> is not closed before the next one, line {number}")
            found = re.search(r'title="(.*)">', line)
            opened, title, lines = number, html.unescape(found[1]) if found else "", []
        elif line.startswith("</doc>"):
            yield opened, title, lines
            opened = 0
        elif opened:
            lines.append(line)
        elif line.strip():
            rows.bad(f"{path}:{number}", "expected <doc …>, got text outside of a <doc> block")
    if opened:
        rows.bad(f"{path}:{opened}", "<doc> is not closed: the file ends in it")


def _json_rows(path: Path, rows: Rows) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, rows):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            rows.bad(f"{path}:{number}", f"expected one JSON object a line: {e.msg} at character {e.pos + 1}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            rows.bad(f"{path}:{number}", f"expected a JSON object, got {line[:40]!r}")


def _columns(path: Path, how: str, options: Config, rows: Rows, keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(where, the text of each of the columns that the config gives for `keys`)."""
    names: list[str] = []
    for where, row in _rows(path, how, options, rows):
        if not names:  # a column that the first row lacks is a mistake in the config; later it is a broken row
            names = [options[k] or next((n for n in ("text", "sentence") if n in row), "text") for k in keys]
            for key, name in zip(keys, names, strict=True):
                if name not in row:
                    hint = "; data.header=False if its first line is a row" if options.header and how in ("tsv", "csv") else ""
                    raise UserError(f"{path} has no column {name!r} (data.{key}); it has {', '.join(map(repr, row))}{hint}")
        values = [row.get(n) for n in names]
        problem = next((f"expected text in {n!r}, got {v!r}" for k, n, v in zip(keys, names, values, strict=True) if not _fits(k, v)), None)
        if problem:
            rows.bad(where, problem)
        else:
            yield where, list(map(str, values))


def _fits(key: str, value: Any) -> bool:
    is_nothing = value is None or value != value  # a table of numbers has NaN where it has none
    return isinstance(value, str) or (key == "label" and not is_nothing and not isinstance(value, dict | list))


def _rows(path: Path, how: str, options: Config, rows: Rows) -> Iterator[tuple[str, dict[str, Any]]]:
    if how == "jsonl":
        yield from ((f"{path}:{number}", row) for number, row in _json_rows(path, rows))
    elif how == "parquet":
        yield from _parquet(path, options)
    else:
        names: list[str] = []
        for number, values in _tsv(path, rows) if how == "tsv" else _csv(path, rows):
            header = not names and options.header
            names = names or (values if header else [str(i) for i in range(len(values))])
            if len(values) != len(names):
                rows.bad(f"{path}:{number}", f"expected {len(names)} columns, got {len(values)}")
            elif not header:
                yield f"{path}:{number}", dict(zip(names, values, strict=True))


def _tsv(path: Path, rows: Rows) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(path, rows):
        yield number, line.split("\t")


def _csv(path: Path, rows: Rows) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # a field may be a whole document
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            rows.bad(f"{path}:{number}", f"expected a row of comma-separated values: {e}; is a quote unbalanced?")
            continue
        if any(UNDECODED.search(v) for v in values):
            rows.bad(f"{path}:{number}", DIRTY)
        elif values:
            yield number, values


def _parquet(path: Path, options: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(_bytes(path)))
    except pyarrow.ArrowInvalid as e:
        raise UserError(f"{path} is not a parquet file: {e}") from e
    number = 0
    for batch in table.to_batches():
        for row in batch.to_pylist():
            yield f"{path}:{(number := number + 1)}", row


def _classes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "unsup" and not p.name.startswith("."))


def _texts(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith((".txt", ".txt.gz")))


def _has_classes(path: Path) -> bool:
    return path.is_dir() and any(_texts(c) for c in _classes(path))


def _folders(folders: list[Path], rows: Rows) -> Iterator[tuple[str, str, None, str]]:
    for folder in folders:
        if not _has_classes(folder):
            raise UserError(f"{folder}: expected a folder with a subfolder a class, each with .txt files")
        for cls in _classes(folder):
            for file in _texts(cls):
                text = _text(file)
                if UNDECODED.search(text):
                    rows.bad(str(file), DIRTY)
                else:
                    yield str(file), text.strip(), None, cls.name
