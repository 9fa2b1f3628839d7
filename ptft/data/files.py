"""Local files: `files:GLOB`, or a part of their records as in TFDS: `files:train.tsv[:90%]`, `files:train.tsv[90%:]`, `files:a.tsv[:500]`.

| format | what it reads |
|---|---|
| lines | one sentence a line, a blank line between documents |
| paragraphs | one paragraph a line, split into sentences; a blank line between documents |
| wiki | WikiExtractor's output, JSON lines or `<doc>` blocks; empty pages are left out and counted |
| tsv csv jsonl parquet | a record a row, columns named in the config; without `label`, a row is a document |
| folder | a folder of text files with a subfolder a class, as aclImdb; `unsup` is left out |
| conll | a word a line, its tag in the last column (tabs, or else spaces between them); a blank line between sentences |

A file may be gzipped (`.gz`); a new file starts a new document. A tsv file has no quoting: a quote is a character. The columns
of a csv file may also be parted by `;`, tabs or `|`. Of folders, what is hidden is left out, and links are followed. In a conll
file, `data.text` and `data.label` may give the numbers of other columns; lines of comments (`#`) and a header are left out and counted.
"""

import contextlib
import csv
import functools
import glob
import gzip
import html
import importlib.util
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean, listed, nearest, short, shown
from ptft.data import BadRows, Source, documents, labelled, sentences, tagged

SUFFIXES = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "lines"}
SUFFIXES |= dict.fromkeys((".conll", ".conllu", ".iob", ".bio"), "conll")
WIKI = re.compile(rb'<doc |\{"id": ?"[^"]*", ?"(revid|url)":')
TAG = re.compile(r"</?[a-zA-Z]\w*[^<>]*>")
HEADER = re.compile(r"((ner|pos|iob|bio|chunk|entity|slot)[ _-]?)?(tag|label)s?|ner|[ux]?pos|iob2?|bio|entity", re.IGNORECASE)
MULTIWORD = re.compile(r"\d+[-.]\d+")  # CoNLL-U's number of words that have lines of their own, or that are not written
PART = re.compile(r"(.+)\[([^\[\]]*):([^\[\]]*)\]")
UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte that is not UTF-8
DIRTY = "expected UTF-8, got other bytes"
UNBALANCED = (
    "a quote opens there that is not closed, or not doubled inside of its cell; as the lines that it takes along may be good rows, "
    "data.on_bad_row='skip' does not leave them out"
)


class Twice:
    """In the place of a value whose column is there twice."""

    def __repr__(self) -> str:
        return "it twice"


TWICE = Twice()


def open(rest: str, options: Config, labels: Sequence[str]) -> Source:
    """Reads the files that the pattern `rest` matches, sorted by name (`**` for any depth; a folder: all files below it).

    A part at its end, `[A:B]`, counts records (documents, examples, sentences) of all of them, or per cent, from 0.

    Raises:
      UserError: nothing matches; the format cannot be told; a column is missing; a row is broken ("file:line: why").
    """
    rows = BadRows(options.on_bad_row)
    names = labels or [str(label) for label in options.labels]
    if (part := PART.fullmatch(rest)) and not os.path.exists(os.path.expanduser(rest)):
        rest = part[1]
    found = _match(rest)
    if options.format == "folder" or (options.format == "auto" and all(_has_classes(p) for p in found)):
        if part:
            raise UserError(f"{rest}: its records lie class by class, so that a part, [{part[2]}:{part[3]}], would lack some; leave it out")
        return labelled(_folders(found, rows), rows, names)
    files = list(dict.fromkeys(f for p in found for f in ([p] if p.is_file() else sorted(_below(p)))))
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
    if os.path.lexists(pattern):
        return [_real(Path(pattern))]
    if found := sorted({Path(p) for p in _glob(pattern) if Path(p).name != "__MACOSX"}):
        return list(map(_real, found))
    folder = Path(pattern).parent
    while not folder.is_dir():
        folder = folder.parent
    beside = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    raise UserError(f"no file matches {pattern}; in {folder} {did_you_mean(Path(pattern).name, beside)}")


def _glob(pattern: str) -> Iterator[str]:
    """As glob.glob, but that `**` ends where links lead round in a circle."""
    start, *rest = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    if not rest:
        yield from glob.glob(pattern)
        return
    for top in glob.glob(start) if start else ["."]:
        for folder, _ in _walk(Path(top)):
            inside = _glob(os.path.join(glob.escape(str(folder)), rest[0] or "*"))
            yield from inside if rest[0] else (p for p in inside if not os.path.isdir(p))


def _hidden(name: str) -> bool:
    """What systems and editors leave in folders: .DS_Store, ._x, .ipynb_checkpoints, and __MACOSX of a zip file."""
    return name.startswith(".") or name == "__MACOSX"


def _real(path: Path) -> Path:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there: restore it, or delete the link")
    return path


def _walk(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The folders from `top` on and the files of each, links followed; what is hidden is left out."""
    for folder, inside, files in os.walk(str(top), followlinks=True):
        above = {os.path.realpath(p) for p in (Path(folder), *Path(os.path.abspath(folder)).parents)}
        inside[:] = sorted(d for d in inside if not _hidden(d) and os.path.realpath(os.path.join(folder, d)) not in above)
        yield Path(folder), [Path(folder, f) for f in files if not _hidden(f)]


def _below(top: Path) -> Iterator[Path]:
    return (f for _, files in _walk(top) for f in map(_real, files) if f.is_file())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file's bytes, those of a .gz file unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
            yield f
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{path} cannot be read: {e}") from e


def _start(path: Path) -> bytes:
    with _opened(path) as f:
        return f.read(200).removeprefix(b"\xef\xbb\xbf").lstrip()


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
    with _opened(path) as f:
        return f.read()


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8-sig", errors="surrogateescape")


def _lines(path: Path, rows: BadRows, header: bool = False) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end); only \\n ends a line. A broken header always stops."""
    text = _text(path)
    dirty = UNDECODED.search(text) is not None
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if dirty and UNDECODED.search(line):
            rows.bad(f"{path}:{number}", DIRTY, header and number == 1)
        else:
            yield number, line.removesuffix("\r")


def _documents(path: Path, how: str, options: Config, rows: BadRows) -> Iterator[tuple[str, list[str]]]:
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


def _labelled(path: Path, how: str, options: Config, rows: BadRows) -> Iterator[tuple[str, str, str | None, str]]:
    keys = ("text", "text_b", "label") if options.text_b else ("text", "label")
    for where, (text, *text_b, label) in _columns(path, how, options, rows, keys):
        yield where, text, text_b[0] if text_b else None, label


def _tagged(
    files: Sequence[Path], formats: Sequence[str], options: Config, rows: BadRows, names: Sequence[str], part: re.Match[str] | None
) -> Source:
    if plain := next((f for f, how in zip(files, formats, strict=True) if how != "conll"), None):
        raise UserError(f"{plain} has no tags and {files[formats.index('conll')]} does: give files of one format, or set data.format")
    numbers = {k: re.fullmatch(r"\d{,3}" if k != "text_b" else "", options[k]) for k in ("text", "text_b", "label")}
    if given := next((k for k, number in numbers.items() if number is None), None):
        raise UserError(
            f"data.{given}={shown(options[given])}: tagged words have no names of columns: the first is the word and the last the tag, "
            "or those whose numbers, from 0, data.text and data.label give"
        )
    word, tag = int(options.text or 0), int(options.label or -1)
    return tagged(_cut((s for f in files for s in _conll(f, rows, word, tag)), part), rows, names)


def _conll(path: Path, rows: BadRows, word: int, tag: int) -> Iterator[tuple[str, list[str], list[str]]]:
    """(where, words, tags) of each sentence; one with a broken line is left out whole."""
    lines = _text(path).split("\n")
    usual = functools.cache(lambda: Counter((len(c), c[-1]) for line in lines if line[:1] != "#" and (c := _split(line))))
    sentence, broken, counted, width = list[tuple[int, list[str]]](), False, 0, 0
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence and not broken:
                yield f"{path}:{sentence[0][0]}", [c[word] for _, c in sentence], [c[tag] for _, c in sentence]
            ids = [c[0] for _, c in sentence if not MULTIWORD.fullmatch(c[0])]
            in_order = counted >= 0 and ids == [str(i) for i in range(1, len(ids) + 1)]
            counted = max(counted, len(ids)) if in_order else -1
            sentence, broken = [], False
            continue
        columns = _split(line)
        if line.startswith("#") and not sentence and not _is_word(columns, usual()):
            rows.notes["comment_lines"] += 1
        elif not width and HEADER.fullmatch(columns[-1]) and usual()[len(columns), columns[-1]] == 1:
            rows.notes["header_lines"] += 1
        elif word and MULTIWORD.fullmatch(columns[0]):
            rows.notes["multiword_lines"] += 1
        elif why := _no_word(line, columns, len(sentence[0][1]) if sentence else 0, word, tag):
            if not broken:
                rows.bad(f"{path}:{number}", why)
            broken = True
        else:
            sentence.append((number, columns))
            width = len(columns)
    if counted > 1 and (word == 0 or (tag == -1 and width == 10)):
        raise UserError(
            f"{path}: its first column counts the words of a sentence; data.text=1 says that words are in the second, "
            "and data.label where the tag is, such as 3 for the parts of speech of CoNLL-U"
        )


def _split(line: str) -> list[str]:
    line = line.strip(" \r")
    return [c.strip(" ") for c in re.split("\t" if "\t" in line else " +", line)] if line else []


def _is_word(columns: list[str], usual: Mapping[tuple[int, str], int]) -> bool:
    """Whether a line that begins with # is a word's, such as "#rain O", and no comment, such as "# id 7"."""
    if len(columns) not in {width for width, _ in usual}:
        return False
    return (len(columns), columns[-1]) in usual or re.fullmatch("O|[A-Z]-.+", columns[-1]) is not None


def _no_word(line: str, columns: list[str], width: int, word: int, tag: int) -> str:
    """Why a line is not that of a word and its tag, in a sentence of `width` columns (0: it is the first); or ""."""
    if UNDECODED.search(line):
        return DIRTY
    if len(columns) <= max(word, tag, 1) or not (columns[word] and columns[tag]):
        return f"expected a word and its tag, with a tab or a space between them, got {shown(line)}"
    if width not in (0, len(columns)) and "\t" not in line:  # "New York B-LOC"
        return f"expected {width} columns, as in the line before, got {len(columns)}: {shown(line)}"
    if " " in columns[tag]:
        several = f"expected a word and its tag, got several tags, {shown(columns[tag])}"
        return f"{several}: a line holds one word, and a blank line ends a sentence"
    return ""


def _pages(path: Path, rows: BadRows) -> Iterator[tuple[str, list[str]]]:
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


def _json_pages(path: Path, rows: BadRows) -> Iterator[tuple[int, str, list[str]]]:
    for number, row in _json_rows(path, rows):
        if isinstance(text := row.get("text"), str):
            yield number, "", [text]
        else:
            rows.bad(f"{path}:{number}", f"expected a page with 'text', got {listed(row)}")


def _doc_blocks(path: Path, rows: BadRows) -> Iterator[tuple[int, str, list[str]]]:
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else made | {k: TWICE for k, n in Counter(k for k, _ in pairs).items() if n > 1}


def _json_rows(path: Path, rows: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    decode = json.JSONDecoder(object_pairs_hook=_object).decode
    for number, line in _lines(path, rows):
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


def _columns(path: Path, how: str, options: Config, rows: BadRows, keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(where, the text of each of the columns that the config gives for `keys`)."""
    names: list[str] = []
    for where, row in _rows(path, how, options, rows):
        if not names:  # a column that the first row lacks is a mistake in the config; later it is a broken row
            names = [options[k] or next((n for n in ("text", "sentence") if n in row), "text") for k in keys]
            for key, name in zip(keys, names, strict=True):
                if name not in row:
                    hint = _hint(name, how, options, row)
                    raise UserError(f"{path} has no column {shown(name)} (data.{key}); it has {listed(row)}{hint}")
                if row[name] is TWICE:
                    raise UserError(f"{path} has the column {shown(name)} (data.{key}) twice: rename the one that is not meant")
        values = [row.get(n) for n in names]
        found = zip(keys, names, values, strict=True)
        problem = next((f"expected text in {shown(n)}, got {shown(v)}" for k, n, v in found if not _fits(k, v)), None)
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
    return "; data.header=False if its first line is a row" if options.header and how in ("tsv", "csv") else ""


def _fits(key: str, value: Any) -> bool:
    is_nothing = value is None or value is TWICE or value != value  # a table of numbers has NaN where it has none
    return isinstance(value, str) or (key == "label" and not is_nothing and not isinstance(value, dict | list))


def _rows(path: Path, how: str, options: Config, rows: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    if how == "jsonl":
        yield from ((f"{path}:{number}", row) for number, row in _json_rows(path, rows))
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
    for number, line in _lines(path, rows, options.header):
        yield number, line.split("\t")


def _csv(path: Path, rows: BadRows, options: Config) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # a field may be a whole document
    text, header = _text(path), options.header
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
    """The comma, or where it gives none of the columns that are asked for, what does: Excel writes ; in half of the world."""
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
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(_bytes(path))).read()
    except pyarrow.ArrowInvalid as e:
        raise UserError(f"{path} is not a parquet file: {e}") from e
    twice = {name: TWICE for name, n in Counter(table.column_names).items() if n > 1}
    number = 0
    for batch in table.to_batches():
        for row in batch.to_pylist():
            yield f"{path}:{(number := number + 1)}", row | twice if twice else row


def _classes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name != "unsup" and not _hidden(p.name) and _real(p).is_dir())


def _texts(folder: Path) -> list[Path]:
    return sorted(_real(p) for p in folder.iterdir() if not _hidden(p.name) and p.name.endswith((".txt", ".txt.gz")))


def _has_classes(path: Path) -> bool:
    return path.is_dir() and any(_texts(c) for c in _classes(path))


def _folders(folders: list[Path], rows: BadRows) -> Iterator[tuple[str, str, None, str]]:
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
