"""Sources of text: `load("KIND:REST", options)`; a file `ptft/data/KIND.py` is a kind.

Each kind exports `open(rest, options, labels) -> Source` and usually ends in `documents`, `labelled` or
`tagged`, which check, count and fingerprint what it read.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptft.core import plugins, progress
from ptft.core.config import Config, Field, Spec
from ptft.core.errors import UserError, listed, shown
from ptft.data import _labels

FORMATS = ("auto", "lines", "paragraphs", "tsv", "csv", "jsonl", "parquet", "wiki", "folder", "conll")

SPEC: Spec = {
    "format": Field(
        "auto", choices=FORMATS, doc="how files are laid out; auto looks at the suffix and the first bytes"
    ),
    "text": Field(
        "",
        doc=(
            "column of the text: a name, or a number from 0 where there is no header; empty: 'text' or "
            "'sentence'"
        ),
    ),
    "text_b": Field("", doc="column of the second text of a pair"),
    "label": Field("", doc="column of the label; empty: every text is an unlabelled document"),
    "labels": Field((), tuple, doc="the label values in the order of their ids; empty: sorted"),
    "header": Field(True, doc="whether the first line of a tsv or csv file names the columns"),
    "on_bad_row": Field(
        "stop", choices=("stop", "skip"), doc="a broken row stops, or is left out and counted"
    ),
}

SKIP = " (data.on_bad_row='skip' leaves such rows out and counts them)"


@dataclass(frozen=True)
class Source:
    """What a kind of source yields.

    `records` are documents `{"sentences": list[str]}`, examples `{"text": str, "label": int}` (pairs have
    "text_b" too) or tagged sentences `{"words": list[str], "tags": list[int]}`, each with "where": the file
    and line (or the TFDS record) it came from.
    """

    records: Sequence[Mapping[str, Any]]
    labels: tuple[str, ...]  # label names, index = id; () for documents
    fingerprint: str  # sha256 of the content, wherever it lies
    # a Counter: "records", and where they are not zero "empty_text", "skipped_rows", "empty_documents" …
    notes: Mapping[str, int]
    doubts: tuple[str, ...] = ()  # what is allowed, and seldom meant


def load(where: str, options: Config, labels: Sequence[str] = ()) -> Source:
    """Opens "KIND:REST", such as `files:/data/train.tsv` or `tfds:imdb_reviews@train`.

    `options` is the resolved `config.data`; `labels` are the training split's, for the other splits.

    Raises:
      UserError: no such kind; and whatever the kind finds wrong with its input.
    """
    kind, colon, rest = where.partition(":")
    if not colon or not rest:
        raise UserError(
            f"data {where!r}: expected KIND:WHERE with a KIND of {', '.join(plugins.names('data'))}"
        )
    source: Source = plugins.get("data", kind).open(rest, options, labels)
    if not source.records:
        counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in source.notes.items())
        raise UserError(f"data {where!r} is empty: {counts}")
    return source


class BadRows:
    """Decides what a broken row does, and counts."""

    def __init__(self, on_bad_row: str):
        self.skip = on_bad_row == "skip"
        self.notes: Counter[str] = Counter(records=0)

    def bad(self, where: str, why: str, must_stop: bool = False) -> None:
        """Stops with a message, or counts a skipped row. `must_stop`: more than the row would be lost."""
        if must_stop:
            raise UserError(f"{where}: {why}")
        if not self.skip:
            raise UserError(f"{where}: {why}{SKIP}")
        self.notes["skipped_rows"] += 1


def read(records: Iterable[Any]) -> Iterator[Any]:
    """The records as they come, whose first field is where they came from; says how far that is."""
    with progress.doing("reading", "records") as advance:
        for one in records:
            advance(place=one[0])
            yield one


def documents(texts: Iterable[tuple[str, list[str]]], rows: BadRows) -> Source:
    """A source from (where, sentences); documents without a sentence are left out and counted."""
    records, digest = [], hashlib.sha256(b"documents")
    for where, parts in read(texts):
        if not parts:
            rows.notes["empty_documents"] += 1
            continue
        try:
            digest.update(("\n".join(parts) + "\n\n").encode())
        except UnicodeEncodeError:
            rows.bad(where, "the text is not valid Unicode")
            continue
        records.append({"sentences": parts, "where": where})
    rows.notes["records"] = len(records)
    return Source(records, (), digest.hexdigest(), rows.notes)


def labelled(
    texts: Iterable[tuple[str, str, str | None, str]], rows: BadRows, labels: Sequence[str]
) -> Source:
    """A source from (where, text, text_b or None, label); `labels` empty: the distinct ones, sorted."""
    examples = list(read(texts))
    spelled = {label: _labels.whole(label) for label in {e[3] for e in examples}}
    names = _labels.names_of(
        {name for name in spelled.values() if name.strip()}, [_labels.whole(str(label)) for label in labels]
    )
    if not labels:
        _labels.refuse_numbers([(e[0], spelled[e[3]]) for e in examples], names)
    ids = {name: i for i, name in enumerate(names)}
    records, digest = [], hashlib.sha256("\n".join(names).encode())
    for where, text, text_b, raw in examples:
        if (label := spelled[raw]) not in ids:
            what = f"label {shown(label)} is unknown" if label.strip() else "the label is empty"
            rows.bad(where, f"{what}; expected one of {listed(names)}")
            continue
        try:
            digest.update(f"\n\n{ids[label]}\n{text}\n{text_b}".encode())
        except UnicodeEncodeError:
            rows.bad(where, "the text is not valid Unicode")
            continue
        if not text.strip():
            rows.notes["empty_text"] += 1
        pair = {} if text_b is None else {"text_b": text_b}
        records.append({"text": text, **pair, "label": ids[label], "where": where})
    rows.notes["records"] = len(records)
    return Source(records, names, digest.hexdigest(), rows.notes, () if labels else _labels.alike(names))


def tagged(texts: Iterable[tuple[str, list[str], list[str]]], rows: BadRows, labels: Sequence[str]) -> Source:
    """A source from (where, words, their tags); `labels` empty: the distinct tags, sorted."""
    sentences = list(read(texts))
    names = _labels.names_of({tag for _, _, tags in sentences for tag in tags}, labels)
    ids = {name: i for i, name in enumerate(names)}
    records, digest = [], hashlib.sha256("\n".join(["tagged", *names]).encode())
    for where, words, tags in sentences:
        if unknown := [(w, t) for w, t in zip(words, tags, strict=True) if t not in ids]:
            word, tag = map(shown, unknown[0])
            rows.bad(where, f"tag {tag} of {word} is unknown; expected one of {listed(names)}")
            continue
        try:
            digest.update(
                "".join(["\n", *(f"\n{ids[t]} {w}" for w, t in zip(words, tags, strict=True))]).encode()
            )
        except UnicodeEncodeError:
            rows.bad(where, "the text is not valid Unicode")
            continue
        records.append({"words": words, "tags": [ids[t] for t in tags], "where": where})
    rows.notes["records"] = len(records)
    doubts = () if labels else (*_labels.odd_tags(sentences, names), *_labels.alike(names))
    return Source(records, names, digest.hexdigest(), rows.notes, doubts)
