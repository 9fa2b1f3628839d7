"""From a docstring to the paragraphs in it that are prose: rst, NumPy and Google style."""

import inspect
import re
from collections.abc import Iterator

FEWEST = 4  # words of a sentence; taking markup out adds none
_UNDERLINE = re.compile(r"\s*([-=~^\"'*#+_`.])\1{2,}\s*")
_ENTRIES = {
    "parameters", "other parameters", "returns", "yields", "receives", "raises", "warns", "attributes",
    "methods", "keys", "args", "arguments", "keyword args", "keyword arguments", "kwargs", "return", "fields",
    "params", "properties",
}  # fmt: skip
_DROPPED = {"see also", "references", "reference", "citation", "citations", "signature", "bibliography"}
_GOOGLE = re.compile(r"([A-Z][A-Za-z ]{2,20}):\s*")
# "name (type): description"
_ENTRY = re.compile(r"\*{0,2}[\w.\[\]]+(?:, ?\*{0,2}\w+)*(?: ?\([^)]*\))?\s*:\s+")
_FIELD = re.compile(r":(?:param|arg|returns?|raises?|keyword|type|rtype|ivar|var)\b[^:]*:\s*")
_DIRECTIVE = re.compile(r"\.\.\s+([\w-]+)::\s*(.*)")
_PROSE_DIRECTIVES = {
    "note",
    "warning",
    "tip",
    "important",
    "caution",
    "hint",
    "versionchanged",
    "versionadded",
    "deprecated",
}
_BULLET = re.compile(r"(?:[-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")


def prose(doc: str) -> list[str]:
    """The paragraphs of a docstring that are prose, as plain words: no code, tables, signatures, references
    or markup."""
    blocks = _blocks(inspect.cleandoc(doc).split("\n"))
    return [p for block in blocks if len(block.split()) >= FEWEST and is_prose(p := plain(block))]


def _blocks(lines: list[str]) -> Iterator[str]:
    """Joins the lines of each paragraph, in rst, NumPy and Google style, and leaves out what is not a
    paragraph."""
    section = ""
    drop = -1  # leave out everything that is indented by more than this
    paragraph: list[str] = []
    indent = 0

    def flush() -> Iterator[str]:
        if paragraph:
            yield " ".join(paragraph)
            paragraph.clear()

    i = 0
    while i < len(lines):
        line, i = lines[i], i + 1
        text = line.strip()
        here = len(line) - len(line.lstrip())
        after = lines[i] if i < len(lines) else ""
        if not text:
            yield from flush()
            continue
        if drop >= 0:
            if here > drop:
                continue
            drop = -1
        if text.startswith((">>>", "... ", "In [")):  # a doctest and its output, up to the next blank line
            yield from flush()
            while i < len(lines) and lines[i].strip():
                i += 1
            continue
        if text.startswith(("```", "~~~")):
            yield from flush()
            while i < len(lines) and not lines[i].strip().startswith(text[:3]):
                i += 1
            i += 1
            continue
        if _UNDERLINE.fullmatch(line):
            yield from flush()
            continue
        google = _GOOGLE.fullmatch(text) if not paragraph or here < indent else None
        if _UNDERLINE.fullmatch(after) and len(text) < 60 and not paragraph:
            section, i = text.lower().rstrip(":"), i + 1
            continue
        if google and (
            google[1].lower() in _ENTRIES | _DROPPED
            or google[1].lower().startswith(("example", "note", "usage"))
        ):
            yield from flush()
            section = google[1].lower()
            drop = here if section in _DROPPED else -1
            section = section if section in _ENTRIES else ""
            continue
        if section in _DROPPED:
            continue
        directive = _DIRECTIVE.match(text)
        if text.startswith(".."):  # a directive, a footnote, a comment, a target
            yield from flush()
            if directive and directive[1] in _PROSE_DIRECTIVES:
                rest = directive[2]
                if directive[1].startswith(("version", "deprecated")):
                    rest = re.sub(r"^v?\d[\w.]*\s*", "", rest)
                if rest:
                    paragraph.append(rest)
                    indent = here
            else:
                drop = here
            continue
        # NumPy style: the line of a name and its type
        if section in _ENTRIES and here == 0 and after.startswith(" ") and after.strip():
            yield from flush()
            continue
        bullet = _BULLET.match(text)
        entry = _ENTRY.match(text) if section in _ENTRIES and here > 0 else _FIELD.match(text)
        if bullet or entry or (paragraph and here != indent and not (here > indent and len(paragraph) == 1)):
            yield from flush()
        start = (bullet or entry).end() if bullet or entry else 0  # type: ignore[union-attr]
        if not paragraph or len(paragraph) == 1:
            indent = here
        paragraph.append(text[start:])
        if text.endswith("::"):  # an indented literal block follows
            paragraph[-1] = paragraph[-1][:-1]
            yield from flush()
            drop = here
    yield from flush()


_MARKUP = [
    (re.compile(r":math:`([^`\\]{1,12})`"), r"\1"),
    (re.compile(r":math:`[^`]*`|\$[^$]*\$"), ""),
    (re.compile(r":[\w:+-]+:`([^`<]+?)\s*<[^`>]*>`"), r"\1"),  # :ref:`title <target>`
    (re.compile(r":[\w:+-]+:`~(?:[^`]*\.)?([^`.]+)`"), r"\1"),  # :func:`~a.b.c` shows c
    (re.compile(r":[\w:+-]+:`[.!]?([^`]*)`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),  # `title <url>`_
    (re.compile(r"\[([^\]]+)\]\([^)\s]*\)"), r"\1"),  # [title](url)
    (re.compile(r"\s*\[[\w*#-]{1,12}\]_"), ""),  # a footnote mark
    (re.compile(r"``([^`]*)``"), r"\1"),
    (re.compile(r"`~(?:[^`]*\.)?([^`.]+)`"), r"\1"),  # `~.Axes.plot` shows plot
    (re.compile(r"`[.!]?([^`]*)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"(?<!\w)\|([A-Za-z][\w ]*)\|(?!\w)"), r"\1"),
    (re.compile(r"<?https?://\S+?>?(?=[.,;)]?(?:\s|$))"), ""),
    (re.compile(r"(?<!\w)_\(([^)]+)\)"), r"\1"),
    (re.compile(r"%\(\w+\)[sd]"), ""),
    (re.compile(r"\\ ?(?=[a-z]+\b)"), ""),  # `Path`\s
    (re.compile(r"\(\s*\)(?=\s|$)"), ""),
]
_MARKED = re.compile(r"[`*|$\\_%\[]|https?://|\(\s*\)")  # each of them needs one of these
_SPACE = re.compile(r"\s+([.,;:)])(?=\s|$)")


def plain(text: str) -> str:
    """Takes rst and Markdown markup out of a paragraph."""
    if _MARKED.search(text):
        for pattern, to in _MARKUP:
            text = pattern.sub(to, text)
    return " ".join(_SPACE.sub(r"\1", text).split())


_WORD = re.compile(r"[(\"'“]?[A-Za-z][a-z]*(?:['’-][A-Za-z]?[a-z]*)*[)\"'”]?[.,;:?!]?[)\"'”]?")
_COMMON = {
    "a", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "each", "for", "from",
    "has", "have", "if", "in",
    "into", "is", "it", "its", "may", "must", "not", "of", "on", "only", "or", "should", "so", "than", "that",
    "the", "their",
    "then", "there", "these", "they", "this", "to", "used", "using", "was", "when", "where", "which", "will",
    "with", "would", "you",
}  # fmt: skip


def is_prose(text: str) -> bool:
    """Whether a paragraph reads as English sentences: enough plain and common words, little else."""
    words = text.split()
    if len(words) < FEWEST or not (text[0].isalnum() or text[0] in "\"'(") or text[-1] not in ".!?:)\"'":
        return False
    if sum(w.strip("().,;:\"'").lower() in _COMMON for w in words) < 0.15 * len(words):
        return False
    good = sum(_WORD.fullmatch(w) is not None for w in words)
    return good >= 0.75 * len(words) and not re.search(r"[=<>{}|\\]{2}|\w\(.*=.*\)", text)
