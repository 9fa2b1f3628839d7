"""Splits English or Chinese text into sentences."""

import re

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
