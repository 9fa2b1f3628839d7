"""The names of labels: which there are, in which order, and which are seldom meant."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from ptft.core.errors import UserError, listed, shown


def names_of(seen: set[str], labels: Sequence[str]) -> tuple[str, ...]:
    """The label names in the order of their ids: those that are given, or those that occur, sorted."""
    names = tuple(map(str, labels)) or tuple(sorted(seen, key=_label_order))
    if len(set(names)) < len(names):
        raise UserError(f"data.labels has a label twice: {listed(names)}")
    return names


def whole(label: str) -> str:
    """A whole number is one label however it is stored: 1, "1", 1.0, "1.00"."""
    number = re.fullmatch(r"([-+]?[0-9]{1,99})\.0*", label)
    return str(int(number[1])) if number else label


def _label_order(label: str) -> tuple[bool, int, str]:
    number = re.fullmatch(r"-?[0-9]{1,99}", label)  # "10" after "9"
    return not number, int(label) if number else 0, label


_NUMBER = re.compile(r"[$€£]?[-+]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)(e[-+]?[0-9]+)?%?", re.IGNORECASE)


def refuse_numbers(examples: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
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


def alike(names: Sequence[str]) -> tuple[str, ...]:
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


def odd_tags(sentences: Sequence[tuple[str, list[str], list[str]]], names: Sequence[str]) -> tuple[str, ...]:
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
