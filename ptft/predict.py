"""What a finished run says of new texts, whatever it has learned: texts, lines or tables in, lines, JSON or a table out.

The objective decides how it is asked (`ask`), what the device computes (`outputs`) and what is printed (`answer`, `line`).
"""

import contextlib
import functools
import gzip
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ptft import build, checkpoint, tables, thin
from ptft.config import Config
from ptft.data import Rows as BadRows
from ptft.data import files
from ptft.errors import UserError, did_you_mean
from ptft.objectives import Rows
from ptft.step import Net
from ptft.tree import Flat

TABLES = ("tsv", "csv", "jsonl", "parquet")
HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, as broken JSON has it, is no text
CHUNK = 256  # records read, asked and written at a time
PAUSE = 10.0  # seconds between two lines of progress

Record = dict[str, Any]  # "text" (and "text_b"), or "words"; and "where"
Item = tuple[dict[str, Any], Record]  # the input's own columns, and what of them is asked
Loaded = tuple[Config, build.Tokenizer, Net, Flat, list[str]]


def load_run(workdir: Path) -> Loaded:
    """A trained run from its folder alone: the JSON config, the tokenizer, the best (or newest) parameters, the labels."""
    config, tokenizer, net = build.run_net(workdir)
    run = build.read_run(workdir, "run.json")
    if (run.get("imported") or {}).get("head") is False:
        raise UserError(f"{workdir} is an encoder without a head; finetune it first, with init={workdir}")
    # An imported checkpoint may lack the pooler, where its head does not read it.
    reads = config.objective.name == "classify" or config.objective.get("nsp", False)
    stored, loaded = build.run_params(workdir, config, net)
    computed = thin.computed(stored, loaded.meta.get("thin", ()), config.frozen_dtype)
    params, what = checkpoint.choose(computed, net.shapes(), f"{workdir}", skip="", new_ok="" if reads else "backbone/pooler/.*")
    return config, tokenizer, net, {**params, **(net.init(0, tuple(what.new)) if what.new else {})}, run["labels"]


def columns(data: Config, text: Sequence[str], label: str = "") -> Config:
    """A run's `config.data` with the columns that a command names; numbers count those of a table without a header."""
    if len(text) > 2:
        raise UserError(f"--text-column {' '.join(text)}: expected one column, or two for the texts of a pair")
    given = {k: v for k, v in zip(("text", "text_b", "label"), (*text, *[""] * (2 - len(text)), label), strict=True) if v}
    numbers = [v.isdecimal() for v in given.values()]
    if any(numbers) and not all(numbers):
        raise UserError(f"columns {', '.join(given.values())}: expected names, or numbers from 0 (of a table without a header), not both")
    return data.replace(**given, **({"header": False} if any(numbers) else {}))


# ------------------------------------------------------------------------------------------------ what is asked


def read_lines(lines: Iterable[bytes], where: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        try:
            yield f"{where}:{number}", line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{where}:{number}: {files.DIRTY}") from None


def of_texts(texts: Iterable[tuple[str, str]], pairs: str) -> Iterator[Item]:
    """Single texts, or pairs "text<TAB>text_b". `pairs`: "always"; "tab", where there is exactly one; else a tab is a blank."""
    for where, text in texts:
        if pairs == "always" and "\t" not in text:
            raise UserError(f"this run classifies pairs: expected two texts with a tab between them, got {text[:80]!r}")
        pair = pairs == "always" or (pairs == "tab" and text.count("\t") == 1)
        parts = dict(zip(("text", "text_b"), text.split("\t", 1) if pair else [text], strict=False))
        yield parts, {**parts, "where": where}


class _Stop(BadRows):
    """A row left out would be an answer that is missing."""

    def bad(self, where: str, why: str) -> None:
        raise UserError(f"{where}: {why}")


def of_table(path: Path, how: str, data: Config) -> Iterator[Item]:
    bad, names = _Stop("stop"), dict[str, str]()
    for where, row in files._rows(path, how, data, bad):
        if not names:
            names = {"text": data.text or next((n for n in ("text", "sentence") if n in row), "text")}
            names |= {"text_b": data.text_b} if data.text_b else {}
            for name in names.values():
                if name not in row:
                    raise UserError(f"{path} has no column {name!r}, which --text-column names; {did_you_mean(name, row)}")
        texts = {key: row.get(name) for key, name in names.items()}
        for key, value in texts.items():
            if not isinstance(value, str):
                bad.bad(where, f"expected text in {names[key]!r}, got {str(value)[:40]!r}")
        yield row, {**texts, "where": where}


def of_words(path: Path) -> Iterator[Item]:
    """A word a line, a blank line between sentences; a tag behind a word does not count."""
    bad = _Stop("stop")
    if any(len(line.split()) > 1 for _, line in files._lines(path, bad)):
        found: Iterable[tuple[str, list[str], Any]] = files._conll(path, bad)
    else:
        groups = itertools.groupby(files._lines(path, bad), key=lambda line: bool(line[1].strip()))
        sentences = [list(lines) for words, lines in groups if words]
        found = ((f"{path}:{lines[0][0]}", [word.strip() for _, word in lines], ()) for lines in sentences)
    for where, words, _ in found:
        yield {}, {"words": words, "where": where}


def read_file(path: Path, data: Config, named: bool, pairs: str) -> Iterator[Item]:
    """A file as its suffix says, or else as `data.format` does; without either, a text a line."""
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    how = files.SUFFIXES.get(suffix, "lines")
    how = data.format if how == "lines" and data.format in (*TABLES, "conll") else how
    if how in TABLES:
        yield from of_table(path, how, data)
    elif named:
        raise UserError(f"--text-column: {path} is read as one text a line; a table's name ends in .tsv, .csv, .jsonl or .parquet")
    elif how == "conll":
        yield from of_words(path)
    else:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            yield from of_texts(read_lines(lines, str(path)), pairs)


def read(text: Sequence[str] | None, file: Path | None, data: Config, named: bool, pairs: str) -> Iterator[Item]:
    """From --text, --file or standard input."""
    if text is not None:
        return of_texts((("--text", t) for t in text), pairs)
    if file is None:
        return of_texts(read_lines(sys.stdin.buffer, "standard input"), pairs)
    return read_file(file, data, named, pairs)


# ------------------------------------------------------------------------------------------------ what is computed


@functools.lru_cache(maxsize=1)
def _step(net: Net) -> Callable[..., dict[str, jax.Array]]:
    def outputs(params: Flat, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        inputs = net.objective.prepare(batch, jax.random.split(jax.random.key(0), len(batch["length"])))
        return net.objective.outputs(net.predict(params, inputs), inputs)

    return jax.jit(outputs)


def outputs(net: Net, params: Flat, rows: Rows, size: int) -> list[dict[str, Any]]:
    """Each row's arrays with what the net makes of them. Rows of like length go together, so that the short ones are not
    padded to the longest; of lengths there are few, so that few programs are compiled."""
    batch = rows.batch(np.arange(len(rows)))
    order, found = np.argsort(batch["length"], kind="stable"), [dict[str, Any]()] * len(rows)
    for at in range(0, len(order), size):
        index = order[at : at + size]
        part = {k: x[np.resize(index, size)] for k, x in batch.items()}
        width = 1 << max(5, int(part["length"].max() - 1).bit_length())
        made = jax.device_get(_step(net)(params, {**part, "tokens": part["tokens"][:, :width]}))
        for i, row in enumerate(index):
            found[row] = {k: x[i] for k, x in {**part, **made}.items()}
    return found


# ------------------------------------------------------------------------------------------------ what is said


def run(
    workdir: Path,
    text: Sequence[str] | None = None,
    file: Path | None = None,
    text_column: Sequence[str] = (),
    to: Path | None = None,
    as_json: bool = False,
) -> None:
    """Asks a run, and writes what it says to standard output, or to a table; all else that is said goes to standard error.

    Raises:
      UserError: what cannot be read or asked, with its line; a table is then not written.
    """
    check(text, file, text_column, to, as_json)
    with contextlib.redirect_stdout(sys.stderr):
        config, tokenizer, net, params, labels = load_run(workdir)
    params, names = jax.device_put(params), list(config.data.names) or labels
    imported = "from" in (build.read_run(workdir, "run.json").get("imported") or {})  # nobody said whether it reads pairs
    pairs = "always" if config.data.text_b else "tab" if imported or config.objective.get("nsp", False) else ""
    items = read(text, file, columns(config.data, text_column), bool(text_column), pairs)
    size, notes, progress = 0, Counter[str](), Progress()
    with tables.writer(to) if to else contextlib.nullcontext() as write:
        while chunk := list(itertools.islice(items, CHUNK)):
            rows = ask(net, [one for _, one in chunk], tokenizer, workdir)
            notes.update(rows.notes)
            size = size or min(config.eval_batch or config.batch, len(chunk))
            for (own, one), row in zip(chunk, outputs(net, params, rows, size), strict=True):
                answer = net.objective.answer(one, row, names, tokenizer)
                if write:
                    write(beside(own, answer, one["where"]))
                elif as_json:
                    print(tables.to_json({**{k: one[k] for k in ("text", "text_b") if k in one}, **answer}))
                else:
                    print(net.objective.line(one, answer))
            progress(len(chunk))
    for note, what in NOTES.items():
        if n := notes[note]:
            aside(what.format(n=n, seq_len=config.objective.seq_len))
    if to:
        aside(f"{to}: {progress.done:,} rows")


NOTES = {
    "truncated": "cut texts longer than {seq_len} tokens: {n}",
    "truncated_words": "words beyond that, which have no tag: {n}",
    "without_blanks": "sentences of one long word: {n}; words are what blanks separate, as in the training data",
}


def aside(text: str) -> None:
    """Beside the results, which may be piped."""
    print(f"ptft predict: {text}", file=sys.stderr)


def check(text: Sequence[str] | None, file: Path | None, text_column: Sequence[str], to: Path | None, as_json: bool) -> None:
    """What is wrong with the command itself, before anything is loaded."""
    if text is not None and file:
        raise UserError("--text and --file were both given; expected one of them, or neither and texts on standard input")
    if file and not file.is_file():
        beside = [p.name for p in file.parent.glob("*") if p.is_file()]
        raise UserError(f"--file {file} is no file; {did_you_mean(file.name, beside)}")
    if text_column and not file:
        raise UserError("--text-column names a column of --file, which is missing")
    if to and to.suffix not in tables.SUFFIXES:
        raise UserError(f"--to {to}: expected a name that ends in {', '.join(tables.SUFFIXES)}")
    if to and as_json:
        raise UserError("--json is for standard output, --to for a file; expected one of them")


def ask(net: Net, records: Sequence[Record], tokenizer: build.Tokenizer, workdir: Path) -> Rows:
    if broken := next((r for r in records if HALF.search("".join(map(str, r.values())))), None):
        raise UserError(f"{broken['where']}: the text is not valid Unicode")
    try:
        return net.objective.ask(records, tokenizer)
    except KeyError as e:
        raise UserError(f"{records[0]['where']}: {workdir} reads {e} of every record; this one has {', '.join(records[0])}") from None


def beside(own: dict[str, Any], answer: dict[str, Any], where: str) -> dict[str, Any]:
    """The input's columns and the answer's: a label that was there is not what was predicted."""
    found = {f"predicted_{k}": v for k, v in answer.items()}
    if twice := [k for k in found if k in own]:
        raise UserError(f"{where}: there is a column {twice[0]!r} already; rename it, or leave it out")
    return {**own, **found}


class Progress:
    """A line on standard error every ten seconds, once the first texts are done."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, more: int) -> None:
        now = time.monotonic()
        if not self.done:  # compiling is not the texts' time
            self.first, self.began = more, now
            self.said = now
        self.done += more
        if now - self.said >= PAUSE:
            self.said = now
            aside(f"{self.done:,} texts, {(self.done - self.first) / (now - self.began):.0f} a second")
