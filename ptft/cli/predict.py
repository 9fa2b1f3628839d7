"""What a finished run says of new texts: texts, lines or tables in; lines, JSON or a table out.

The objective decides how it is asked (`ask`), what is computed (`outputs`) and what is printed (`answer`,
`line`).
"""

import contextlib
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ptft.cli import tables, texts
from ptft.core import checkpoint, mesh, progress, record
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean
from ptft.core.tree import Flat
from ptft.data import _tables
from ptft.objectives import ArrayRows, Rows
from ptft.train import build, evaluate, spec, weights
from ptft.train.evaluate import Split
from ptft.train.net import Net

HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, as broken JSON has it, is no text
CHUNK = 256  # records read, asked and written at a time
PAUSE = 10.0  # seconds between two lines of progress


def load_run(workdir: Path) -> tuple[Config, build.Tokenizer, Net, Flat, list[str]]:
    """A run from its folder alone: the JSON config, the tokenizer, the best (or newest) parameters, the
    labels."""
    with progress.doing(f"loading {workdir}", watch=True):
        return _load_run(workdir)


def _load_run(workdir: Path) -> tuple[Config, build.Tokenizer, Net, Flat, list[str]]:
    config, tokenizer, net = weights.run_net(workdir)
    run = spec.read_run(workdir, "run.json")
    if (run.get("imported") or {}).get("head") is False:
        raise UserError(f"{workdir} is an encoder without a head; finetune it first, with init={workdir}")
    # An imported checkpoint may lack the pooler, where its head does not read it.
    computed, _ = weights.computed_params(workdir, config, net)
    new_ok = "" if net.objective.reads_pooled else "backbone/pooler/.*"
    params, what = checkpoint.choose(computed, net.shapes(), f"{workdir}", skip="", new_ok=new_ok)
    params |= net.init(0, tuple(what.new)) if what.new else {}
    return config, tokenizer, net, params, run["labels"]


def outputs(net: Net, params: Flat, rows: Rows, size: int) -> list[dict[str, Any]]:
    """Each row's arrays with what the net makes of them. Rows of like length go together, so that short ones
    are not padded to the longest; there are few lengths, so that few programs are compiled."""
    batch, grid = rows.batch(np.arange(len(rows))), mesh.alone()
    order, out = np.argsort(batch["length"], kind="stable"), [dict[str, Any]()] * len(rows)
    by_width: dict[int, list[int]] = {}
    for at in range(0, len(order), size):
        index = order[at : at + size]
        width = 1 << max(5, int(batch["length"][index].max() - 1).bit_length())
        by_width.setdefault(width, []).extend(index.tolist())
    for width, numbers in by_width.items():
        part = {k: x[numbers] for k, x in batch.items()}
        cut = ArrayRows({**part, "tokens": part["tokens"][:, :width]}, {})
        made = evaluate.outputs(net, params, Split(cut, size, grid))
        for x in made.values():
            if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
                raise UserError("the weights make no numbers of these texts: their training diverged")
        for i, row in enumerate(numbers):
            out[row] = {k: x[i] for k, x in {**part, **made}.items()}
    return out


class Request(NamedTuple):
    """What the command line asks for."""

    text: Sequence[str] | None = None
    file: Path | None = None  # without either, texts are on standard input
    text_column: Sequence[str] = ()
    to: Path | None = None  # a table instead of standard output
    as_json: bool = False


def run(workdir: Path, request: Request) -> None:
    """Asks a run, and writes what it says to standard output, or to a table; all else goes to standard error.

    Raises:
      UserError: what cannot be read or asked, with its line; a table is then not written.
    """
    check(request)
    text, file, text_column, to, as_json = request
    with contextlib.redirect_stdout(sys.stderr):
        config, tokenizer, net, params, labels = load_run(workdir)
    params, names = jax.device_put(params), list(config.data.names) or labels
    # No file of a checkpoint says whether it was trained on pairs.
    imported = "from" in (spec.read_run(workdir, "run.json").get("imported") or {})
    pairs = "tab" if imported or config.objective.get("nsp", False) else ""
    pairs = "always" if config.data.text_b else pairs
    tags = labels if config.objective.name == "tag" else ()
    items = read(text, file, texts.columns(config.data, text_column), bool(text_column), pairs, tags)
    size, notes, progress = 0, Counter[str](), Progress()
    with tables.writer(to) if to and record.is_lead() else contextlib.nullcontext() as write:
        while chunk := list(itertools.islice(items, CHUNK)):
            rows = ask(net, [one for _, one in chunk], tokenizer, workdir)
            notes.update(rows.notes)
            size = size or min(config.eval_batch or config.batch, len(chunk))
            for (own, one), row in zip(chunk, outputs(net, params, rows, size), strict=True):
                answer = net.objective.answer(one, row, names, tokenizer)
                if write:
                    write(beside(own, answer, one["where"]))
                elif as_json:
                    print(tables.to_json({**{k: v for k, v in one.items() if k != "where"}, **answer}))
                else:
                    print(net.objective.line(one, answer))
            progress(len(chunk))
        if to and not progress.done:
            raise UserError(f"{file or 'standard input'} has no rows; --to {to} is not written")
    for note, what in NOTES.items():
        if n := notes[note]:
            aside(what.format(n=n, seq_len=config.objective.seq_len))
    if to:
        aside(f"{to}: {progress.done:,} rows")


NOTES = {
    "truncated": "cut texts longer than {seq_len} tokens: {n}",
    "truncated_words": "words beyond that, which have no tag: {n}",
    "without_blanks": (
        "sentences of one long word: {n}; words are what blanks separate, as in the training data"
    ),
}


def aside(text: str) -> None:
    """Beside the results, which may be piped."""
    print(f"ptft predict: {text}", file=sys.stderr)


def check(request: Request) -> None:
    """What is wrong with the command itself, before anything is loaded."""
    text, file, text_column, to, as_json = request
    if text is not None and file:
        raise UserError("--text and --file were both given; expected one of them, or texts on standard input")
    if file and (file.is_dir() or not file.exists()):
        beside = [p.name for p in file.parent.glob("*") if p.is_file()]
        raise UserError(f"--file {file} is no file; {did_you_mean(file.name, beside)}")
    if text_column and not file:
        raise UserError("--text-column names a column of --file, which is missing")
    if to and to.suffix not in tables.SUFFIXES:
        raise UserError(f"--to {to}: expected a name that ends in {', '.join(tables.SUFFIXES)}")
    if to and as_json:
        raise UserError("--json is for standard output, --to for a file; expected one of them")
    if to and file and to.resolve() == file.resolve():
        raise UserError(f"--to {to} is --file itself, which would be overwritten; expected another name")


def read(text: Sequence[str] | None, file: Path | None, data: Config, *how: Any) -> Iterator[texts.Item]:
    """From --text, --file or standard input; `how`: as `texts.read_file` has it."""
    _, pairs, _ = how
    if text is not None:
        return texts.of_texts((("--text", t) for t in text), pairs)
    if file is None:
        return texts.of_texts(texts.read_lines(sys.stdin.buffer, "standard input"), pairs)
    return texts.read_file(file, data, *how)


def ask(net: Net, records: Sequence[texts.Record], tokenizer: build.Tokenizer, workdir: Path) -> Rows:
    if broken := next((r for r in records if HALF.search("".join(map(str, r.values())))), None):
        raise UserError(f"{broken['where']}: the text is not valid Unicode")
    try:
        return net.objective.ask(records, tokenizer)
    except KeyError as e:
        have = ", ".join(k for k in records[0] if k != "where")
        raise UserError(
            f"{records[0]['where']}: {workdir} reads {e} of every record; here there is {have}"
        ) from None


def beside(own: dict[str, Any], answer: dict[str, Any], where: str) -> dict[str, Any]:
    """The input's columns and the answer's: a label that was there is not what was predicted."""
    if unknown := [k for k, v in own.items() if v is _tables.TWICE]:
        raise UserError(f"{where}: there is a column {unknown[0]!r} twice; rename one, or leave it out")
    predicted = {f"predicted_{k}": v for k, v in answer.items()}
    if twice := [k for k in predicted if k in own]:
        raise UserError(f"{where}: there is a column {twice[0]!r} already; rename it, or leave it out")
    return {**own, **predicted}


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
