"""Local files: `files:GLOB`, or a part of their records as in TFDS: `files:train.tsv[:90%]`,
`files:train.tsv[90%:]`, `files:a.tsv[:500]`.

| format | what it reads |
|---|---|
| lines | one sentence a line, a blank line between documents |
| paragraphs | one paragraph a line, split into sentences; a blank line between documents |
| wiki | WikiExtractor's output, JSON lines or `<doc>` blocks; empty pages are left out and counted |
| tsv csv jsonl parquet | a record a row, columns named in the config; without `label`, a row is a document |
| folder | a folder of text files with a subfolder a class, as aclImdb; `unsup` is left out |
| conll | a word a line, its tag in the last column (by tabs, or spaces); a blank line ends a sentence |

A file may be gzipped (`.gz`); a new file starts a new document. A tsv file has no quoting: a quote is a
character. The columns of a csv file may also be parted by `;`, tabs or `|`. Of folders, what is hidden is
left out, and links are followed. In a conll file, `data.text` and `data.label` may give the numbers of other
columns; lines of comments (`#`) and a header are left out and counted.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptft.core.config import Config
from ptft.core.errors import UserError, shown
from ptft.data import BadRows, Source, documents, labelled, read, tagged
from ptft.data._conll import read_sentences
from ptft.data._paths import below, hidden, match, real
from ptft.data._reading import DIRTY, UNDECODED, first_bytes, read_lines, read_text
from ptft.data._sentences import sentences
from ptft.data._tables import read_columns
from ptft.data._wiki import WIKI, read_pages

SUFFIXES = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "lines",
}
SUFFIXES |= dict.fromkeys((".conll", ".conllu", ".iob", ".bio"), "conll")
PART = re.compile(r"(.+)\[([^\[\]]*):([^\[\]]*)\]")


def open(rest: str, options: Config, labels: Sequence[str]) -> Source:
    """Reads the files that the pattern `rest` matches, sorted by name (`**` for any depth; a folder: all
    files below it).

    A part at its end, `[A:B]`, counts records (documents, examples, sentences) of all of them, or per cent,
    from 0.

    Raises:
      UserError: nothing matches; the format cannot be told; a column is missing; a row is broken ("file:line:
        why").
    """
    rows = BadRows(options.on_bad_row)
    names = labels or [str(label) for label in options.labels]
    if (part := PART.fullmatch(rest)) and not os.path.exists(os.path.expanduser(rest)):
        rest = part[1]
    paths = match(rest)
    if options.format == "folder" or (options.format == "auto" and all(_has_classes(p) for p in paths)):
        if part:
            raise UserError(
                f"{rest}: its records lie class by class, so that a part, [{part[2]}:{part[3]}], would lack "
                "some; leave it out"
            )
        return labelled(_folders(paths, rows), rows, names)
    files = dict.fromkeys(f for p in paths for f in ([p] if p.is_file() else sorted(below(p))))
    formats = {f: _format(f, options.format) for f in files}
    if "conll" in formats.values():
        return tagged(_cut(_sentences_of(formats, options, rows), part), rows, names)
    if not options.label:
        if options.text_b:
            raise UserError("data.text_b is set but data.label is not: pairs need labels")
        texts = (d for f, how in formats.items() for d in _documents(f, how, options, rows))
        return documents(_cut(texts, part), rows)
    if plain := next((f for f, how in formats.items() if how in ("lines", "paragraphs", "wiki")), None):
        raise UserError(
            f"{plain} is plain text and has no column {options.label!r}: leave data.label empty, or set "
            "data.format"
        )
    examples = (r for f, how in formats.items() for r in _labelled(f, how, options, rows))
    return labelled(_cut(examples, part), rows, names)


def _cut(records: Iterable[Any], part: re.Match[str] | None) -> Iterable[Any]:
    """Those of a part; per cent are cut down to whole records, so that parts that meet share none."""
    if part is None:
        return records
    every, ends = list(read(records)), (part[2] or "0", part[3] or "100%")
    numbers = [
        int(x.rstrip("%")) * (len(every) if x.endswith("%") else 100) // 100
        for x in ends
        if re.fullmatch(r"\d+%?", x)
    ]
    if len(numbers) < 2 or not numbers[0] <= numbers[1] <= len(every):
        raise UserError(
            f"{part[0]}: expected [A:B], records or per cent from 0 up to all {len(every)}, such as [:90%] "
            "and [90%:] or [:500]"
        )
    return every[numbers[0] : numbers[1]]


def _format(path: Path, asked: str) -> str:
    if asked != "auto":
        return asked
    if WIKI.match(start := first_bytes(path)):
        return "wiki"
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    how = SUFFIXES.get(suffix.lower(), "jsonl" if start.startswith(b"{") else "")
    if not how:
        raise UserError(
            f"cannot tell the format of {path} from its name or its first bytes: set data.format to lines, "
            "paragraphs, tsv, …"
        )
    return how


def _documents(path: Path, how: str, options: Config, rows: BadRows) -> Iterator[tuple[str, list[str]]]:
    if how == "wiki":
        yield from read_pages(path, rows)
    elif how in ("lines", "paragraphs"):
        first, parts = 0, list[str]()
        for number, line in read_lines(path, rows):
            if line := line.strip():
                first = first if parts else number
                parts.extend([line] if how == "lines" else sentences(line))
            elif parts:
                yield f"{path}:{first}", parts
                parts = []
        yield f"{path}:{first}", parts
    else:
        for where, (text,) in read_columns(path, how, options, rows, ("text",)):
            yield where, sentences(text)


def _labelled(
    path: Path, how: str, options: Config, rows: BadRows
) -> Iterator[tuple[str, str, str | None, str]]:
    keys = ("text", "text_b", "label") if options.text_b else ("text", "label")
    for where, (text, *text_b, label) in read_columns(path, how, options, rows, keys):
        yield where, text, text_b[0] if text_b else None, label


def _sentences_of(
    formats: Mapping[Path, str], options: Config, rows: BadRows
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Tagged sentences; the columns of word and tag are checked before anything is read."""
    if plain := next((f for f, how in formats.items() if how != "conll"), None):
        tagged_file = next(f for f, how in formats.items() if how == "conll")
        raise UserError(
            f"{plain} has no tags and {tagged_file} does: give files of one format, or set data.format"
        )
    numbers = {
        k: re.fullmatch(r"\d{,3}" if k != "text_b" else "", options[k]) for k in ("text", "text_b", "label")
    }
    if given := next((k for k, number in numbers.items() if number is None), None):
        raise UserError(
            f"data.{given}={shown(options[given])}: tagged words have no names of columns: the first is the "
            "word and the last the tag, or those whose numbers, from 0, data.text and data.label give"
        )
    word, tag = int(options.text or 0), int(options.label or -1)
    return (s for f in formats for s in read_sentences(f, rows, word, tag))


def _classes(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.name != "unsup" and not hidden(p.name) and real(p).is_dir()
    )


def _texts(folder: Path) -> list[Path]:
    return sorted(
        real(p) for p in folder.iterdir() if not hidden(p.name) and p.name.endswith((".txt", ".txt.gz"))
    )


def _has_classes(path: Path) -> bool:
    return path.is_dir() and any(_texts(c) for c in _classes(path))


def _folders(folders: list[Path], rows: BadRows) -> Iterator[tuple[str, str, None, str]]:
    for folder in folders:
        if not _has_classes(folder):
            raise UserError(f"{folder}: expected a folder with a subfolder a class, each with .txt files")
        for cls in _classes(folder):
            for file in _texts(cls):
                text = read_text(file)
                if UNDECODED.search(text):
                    rows.bad(str(file), DIRTY)
                else:
                    yield str(file), text.strip(), None, cls.name
