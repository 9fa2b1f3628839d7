"""Sources of text: `load("KIND:REST", options)`; a file `ptft/data/KIND.py` is a kind.

Each kind exports `open(rest, options, labels) -> Source` and usually ends in `documents`, `labelled` or
`tagged`, which check, count and fingerprint what it read.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptft.core import plugins
from ptft.core.config import Config, Field, Spec
from ptft.core.errors import UserError, listed, shown

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


def documents(found: Iterable[tuple[str, list[str]]], rows: BadRows) -> Source:
    """A source from (where, sentences); documents without a sentence are left out and counted."""
    records, digest = [], hashlib.sha256(b"documents")
    for where, parts in found:
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
    found: Iterable[tuple[str, str, str | None, str]], rows: BadRows, labels: Sequence[str]
) -> Source:
    """A source from (where, text, text_b or None, label); `labels` empty: the distinct ones, sorted."""
    examples = list(found)
    spelled = {label: _whole(label) for label in {e[3] for e in examples}}
    names = _names(
        {name for name in spelled.values() if name.strip()}, [_whole(str(label)) for label in labels]
    )
    if not labels:
        _refuse_numbers([(e[0], spelled[e[3]]) for e in examples], names)
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
    return Source(records, names, digest.hexdigest(), rows.notes, () if labels else _alike(names))


def tagged(found: Iterable[tuple[str, list[str], list[str]]], rows: BadRows, labels: Sequence[str]) -> Source:
    """A source from (where, words, their tags); `labels` empty: the distinct tags, sorted."""
    sentences = list(found)
    names = _names({tag for _, _, tags in sentences for tag in tags}, labels)
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
    doubts = () if labels else (*_odd_tags(sentences, names), *_alike(names))
    return Source(records, names, digest.hexdigest(), rows.notes, doubts)


def _names(found: set[str], labels: Sequence[str]) -> tuple[str, ...]:
    """The label names in the order of their ids: those that are given, or those that were found, sorted."""
    names = tuple(map(str, labels)) or tuple(sorted(found, key=_label_order))
    if len(set(names)) < len(names):
        raise UserError(f"data.labels has a label twice: {listed(names)}")
    return names


def _whole(label: str) -> str:
    """A whole number is one label however it is stored: 1, "1", 1.0, "1.00"."""
    number = re.fullmatch(r"([-+]?[0-9]{1,99})\.0*", label)
    return str(int(number[1])) if number else label


def _label_order(label: str) -> tuple[bool, int, str]:
    number = re.fullmatch(r"-?[0-9]{1,99}", label)  # "10" after "9"
    return not number, int(label) if number else 0, label


_NUMBER = re.compile(r"[$€£]?[-+]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)(e[-+]?[0-9]+)?%?", re.IGNORECASE)


def _refuse_numbers(examples: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Refuses labels, of (where, label), that stand for none or measure something."""
    every = json.dumps(names, ensure_ascii=False)
    way = f"data.labels='{every}'" if len(every) < 200 else "data.labels='[\"…\", …]'"
    if odd := next((n for n in names if re.fullmatch(r"-[0-9]+", n)), ""):
        why = f"label {shown(odd)} is negative: no label? If it is a class, {way} says which there are"
    elif odd := _measured(names, len(examples)):
        why = (
            f"label {shown(odd)} is a number, one of {len(names):,} different ones in {len(examples):,} "
            f"rows: ptft learns classes, and has no regression yet; if these are classes, {way} lists them"
        )
    if odd:
        raise UserError(f"{next(where for where, label in examples if label == odd)}: {why}")


def _measured(names: Sequence[str], rows: int) -> str:
    """A label that measures: numbers with a fraction, or many whole ones, few of each, that do not count from
    0 or 1."""
    numbers = [n for n in names if _NUMBER.fullmatch(n)]
    if not numbers or len(numbers) < 0.9 * len(names):
        return ""
    if broken := next((n for n in numbers if not n.isdecimal()), ""):
        return broken
    ids = [int(n[:99]) for n in numbers]
    counted = min(ids) in (0, 1) and max(ids) < 2 * len(ids)
    return numbers[0] if len(ids) > 20 and rows < 10 * len(ids) and not counted else ""


def _alike(names: Sequence[str]) -> tuple[str, ...]:
    """Says which labels are spelled so that one class may have become two."""
    groups: dict[str, list[str]] = {}
    for name in names:
        seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        groups.setdefault(" ".join(seen.split()).casefold(), []).append(name)
    twice = [g for g in groups.values() if len(g) > 1]
    blank = [n for n in names if n != n.strip() and not any(n in g for g in twice)]
    said = [
        f"labels {listed(g)} differ in capitals, blanks or what does not show, and are as many classes"
        for g in twice
    ]
    said += [f"label {shown(n)} has a blank at its end" for n in blank[:20]]
    return tuple(
        f"{s}: a slip? ptft merges none; mend the file, or data.labels says which labels there are"
        for s in said[:20]
    )


_TYPED = re.compile(r"[A-Z]-.+")  # as in IOB, BIOES, BMES, BILOU


def _odd_tags(sentences: Sequence[tuple[str, list[str], list[str]]], names: Sequence[str]) -> tuple[str, ...]:
    """Says which tags are not built as the others are, and which are as rare as a slip, with the first
    sentence."""
    counts = Counter(tag for _, _, tags in sentences for tag in tags)
    typed = sum(_TYPED.fullmatch(n) is not None for n in names)
    odd = [n for n in names if n != "O" and not _TYPED.fullmatch(n)]
    why = dict.fromkeys(odd if len(odd) <= typed else [], "is neither O nor of a kind, as B-X is")
    rare = [n for n in names if counts[n] < 3 and 10 * counts[n] * len(names) < counts.total()]
    why |= {n: f"stands only {counts[n]} of {counts.total():,} times" for n in rare if n not in why}
    said = []
    for tag in list(why)[:20]:
        where, words, tags = next(s for s in sentences if tag in s[2])
        what = f"{where}: tag {shown(tag)} of {shown(words[tags.index(tag)])}"
        said.append(f"{what} {why[tag]}: a slip? data.labels says which tags there are")
    return tuple(said)


# A candidate: 。！？ with the closing quotes, or . ! ? followed by a space and something that can start a
# sentence.
_END = re.compile(
    r"[。！？]+[」』”’）】》\"]*\s*"
    r"|(?<=[\u3400-\u9fff])[!?]+[」』”’）】》\"]*\s*"
    r"|[.!?]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*([^\Wa-z_]\w*))"
)
_LAST_WORD = re.compile(r"[\w.]+$")
_SHORT = re.compile(r"[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]{1,2}")  # an initial, or U.S, e.g, Ph.D
_ABBREVIATIONS = {
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "gen", "col", "lt", "sgt", "capt", "cmdr", "adm",
    "rev", "hon", "gov", "sen",
    "rep", "pres", "messrs", "vs", "etc", "inc", "ltd", "co", "corp", "bros", "no", "nos", "vol", "vols",
    "fig", "figs", "eq",
    "eqs", "sec", "ch", "pp", "ed", "eds", "est", "al", "ca", "cf", "viz", "approx", "dept", "univ", "assn",
    "ave", "blvd", "mt",
    "ft", "ref", "refs", "resp", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov",
    "dec",
}  # fmt: skip
_STARTERS = {
    "The", "This", "That", "These", "Those", "It", "Its", "He", "His", "She", "Her", "They", "Their", "We",
    "Our", "You", "Your",
    "There", "Here", "When", "While", "If", "In", "On", "At", "As", "For", "From", "By", "With", "After",
    "Before", "Since",
    "However", "But", "And", "Or", "Also", "An", "Some", "Many", "Most", "Other", "Another", "One", "During",
    "Although", "Because",
    "So", "Then", "Thus", "What",
}  # fmt: skip


def sentences(text: str) -> list[str]:
    """Splits English or Chinese text into sentences; a line break always ends one.

    A full stop after an abbreviation or an initial ends a sentence only before a word that usually starts one
    ("the U.S. The …").
    """
    out = []
    for line in text.split("\n"):
        start = 0
        for end in _END.finditer(line):
            starter = end[1]
            if starter and line[end.start()] == ".":
                word = _LAST_WORD.search(line, max(start, end.start() - 20), end.start())
                short = word and (_SHORT.fullmatch(word[0]) or word[0].lower() in _ABBREVIATIONS)
                if short and starter not in _STARTERS:
                    continue
            if piece := line[start : end.end()].strip():
                out.append(piece)
            start = end.end()
        if piece := line[start:].strip():
            out.append(piece)
    return out
