"""Tagged words: a word a line, its tag in another column, a blank line between sentences."""

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ptft.core.errors import UserError, shown
from ptft.data import BadRows
from ptft.data._reading import DIRTY, UNDECODED, read_text

HEADER = re.compile(
    r"((ner|pos|iob|bio|chunk|entity|slot)[ _-]?)?(tag|label)s?|ner|[ux]?pos|iob2?|bio|entity", re.IGNORECASE
)
# CoNLL-U's number of words that have lines of their own, or that are not written
MULTIWORD = re.compile(r"\d+[-.]\d+")


def read_sentences(
    path: Path, rows: BadRows, word: int, tag: int
) -> Iterator[tuple[str, list[str], list[str]]]:
    """(where, words, tags) of each sentence; one with a broken line is left out whole."""
    lines = read_text(path).split("\n")
    usual = functools.cache(
        lambda: Counter((len(c), c[-1]) for line in lines if line[:1] != "#" and (c := _split(line)))
    )
    sentence, broken, counted, width = list[tuple[int, list[str]]](), False, 0, 0
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence and not broken:
                yield (
                    f"{path}:{sentence[0][0]}",
                    [c[word] for _, c in sentence],
                    [c[tag] for _, c in sentence],
                )
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
            f"{path}: its first column counts the words of a sentence; data.text=1 says that words are in "
            "the second, and data.label where the tag is, such as 3 for the parts of speech of CoNLL-U"
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
    """Why a line is not that of a word and its tag, in a sentence of `width` columns (0: it is the first); or
    ""."""
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
