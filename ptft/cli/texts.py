"""New texts to predict on: from the command line, line by line, from tables, or as words."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean
from ptft.data import BadRows, _conll, _reading, _tables, files

TABLES = ("tsv", "csv", "jsonl", "parquet")

Record = dict[str, Any]  # "text" (and "text_b"), or "words"; and "where"
Item = tuple[dict[str, Any], Record]  # the input's own columns, and what of them is asked


def columns(data: Config, text: Sequence[str], label: str = "") -> Config:
    """A run's `config.data` with the columns that a command names; numbers are of a table without a
    header."""
    if len(text) > 2:
        raise UserError(
            f"--text-column {' '.join(text)}: expected one column, or two for the texts of a pair"
        )
    if data.text_b and len(text) == 1:
        what = "expected two columns, --text-column given twice"
        raise UserError(f"this run classifies pairs: {what}, got {text[0]!r} alone")
    given = dict(zip(("text", "text_b"), text, strict=False)) | ({"label": label} if label else {})
    numbers = [v.isdecimal() for v in given.values()]
    if any(numbers) and not all(numbers):
        what = "expected names, or numbers from 0 (of a table without a header), not both"
        raise UserError(f"columns {', '.join(given.values())}: {what}")
    return data.replace(**given, **({"header": not any(numbers)} if given else {}))


def read_lines(lines: Iterable[bytes], where: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        try:
            yield f"{where}:{number}", line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{where}:{number}: {_reading.DIRTY}") from None


def of_texts(texts: Iterable[tuple[str, str]], pairs: str) -> Iterator[Item]:
    """Single texts, or pairs "text<TAB>text_b". `pairs`: "always"; "tab", where there is one; else it is a
    blank."""
    for where, text in texts:
        if pairs == "always" and "\t" not in text:
            what = "expected two texts with a tab between them"
            raise UserError(f"this run classifies pairs: {what}, got {text[:80]!r}")
        pair = pairs == "always" or (pairs == "tab" and text.count("\t") == 1)
        parts = dict(zip(("text", "text_b"), text.split("\t", 1) if pair else [text], strict=False))
        yield parts, {**parts, "where": where}


class _Stop(BadRows):
    """A row left out would be an answer that is missing."""

    def bad(self, where: str, why: str, must_stop: bool = False) -> None:
        raise UserError(f"{where}: {why}")


def of_table(path: Path, how: str, data: Config) -> Iterator[Item]:
    bad, names = _Stop("stop"), dict[str, str]()
    # new texts have no label to tell by what parts the columns; without names, two columns do
    if data.header:
        data = data.replace(label="")
    for where, row in _tables.read_rows(path, how, data, bad):
        if not names:
            names = {"text": data.text or next((n for n in ("text", "sentence") if n in row), "text")}
            names |= {"text_b": data.text_b} if data.text_b else {}
            for name in names.values():
                if name not in row:
                    near = did_you_mean(name, row)
                    raise UserError(f"{path} has no column {name!r}; name one with --text-column; {near}")
        texts = {key: row.get(name) for key, name in names.items()}
        for key, value in texts.items():
            if not isinstance(value, str):
                bad.bad(where, f"expected text in {names[key]!r}, got {str(value)[:40]!r}")
        yield row, {**texts, "where": where}


def of_words(path: Path, data: Config) -> Iterator[Item]:
    """A word a line, a blank line between sentences; comments are left out, and a tag behind a word, too."""
    bad = _Stop("stop")
    lines = [(n, "" if line.startswith("-DOCSTART-") else line) for n, line in _reading.read_lines(path, bad)]
    lines = [(n, line) for n, line in lines if line[:1] != "#" or len(line.split()) == 1]  # "#" is a word
    if {len(line.split()) for _, line in lines} - {0} != {1}:
        examples: Iterable[tuple[str, list[str], Any]] = _conll.read_sentences(
            path, bad, int(data.text or 0), int(data.label or -1)
        )
    else:
        groups = itertools.groupby(lines, key=lambda line: bool(line[1].strip()))
        sentences = [list(lines) for words, lines in groups if words]
        examples = ((f"{path}:{lines[0][0]}", [word.strip() for _, word in lines], ()) for lines in sentences)
    for where, words, _ in examples:
        yield {"words": words}, {"words": words, "where": where}


def is_tagged(path: Path, tags: Sequence[str]) -> bool:
    """Whether a file of another name holds a word and its tag a line, and not a sentence."""
    lines = (
        line.split()
        for _, line in _reading.read_lines(path, _Stop("stop"))
        if not line.startswith("-DOCSTART-")
    )
    first = next(filter(None, lines), [])
    return len(first) > 1 and first[-1] in tags


def read_file(path: Path, data: Config, named: bool, pairs: str, tags: Sequence[str] = ()) -> Iterator[Item]:
    """A file as its suffix says; one of another name is a table if the run's own files are, else a text a
    line.

    Args:
      named: whether the command named columns.
      pairs: see `of_texts`.
      tags: those of a run that tags words.
    """
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    how = files.SUFFIXES.get(suffix, "lines")
    if how == "lines":
        tagged = tags and path.is_file() and is_tagged(path, tags)  # a pipe is read only once
        how = "conll" if tagged else how
        how = data.format if data.format in TABLES else how
    if how in TABLES:
        yield from of_table(path, how, data)
    elif named:
        raise UserError(
            f"--text-column: {path} is read as one text a line; tables are .tsv, .csv, .jsonl, .parquet"
        )
    elif how == "conll":
        yield from of_words(path, data)
    else:
        with _reading.opened(path) as lines:
            yield from of_texts(read_lines(lines, str(path)), pairs)
