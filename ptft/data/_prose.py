"""From a docstring to the paragraphs in it that are prose: rst, NumPy and Google style."""

import inspect
import re

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
    blocks = _Reader(inspect.cleandoc(doc).split("\n")).read()
    return [p for block in blocks if len(block.split()) >= FEWEST and is_prose(p := plain(block))]


class _Reader:
    """Joins the lines of each paragraph, in rst, NumPy and Google style, and leaves out what is not a
    paragraph."""

    def __init__(self, lines: list[str]):
        self.lines, self.at = lines, 0  # the next line
        self.blocks: list[str] = []
        self.paragraph: list[str] = []
        self.indent = 0  # of the paragraph
        self.section = ""
        self.drop = -1  # leave out everything that is indented by more than this

    def read(self) -> list[str]:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            text, indent = line.strip(), len(line) - len(line.lstrip())
            if not text:
                self._flush()
            elif not self._dropped(indent) and not self._code(text) and not self._heading(line, text, indent):
                if self.section in _DROPPED:
                    continue
                if text.startswith(".."):  # a directive, a footnote, a comment, a target
                    self._directive(text, indent)
                else:
                    self._text(text, indent)
        self._flush()
        return self.blocks

    @property
    def _after(self) -> str:
        return self.lines[self.at] if self.at < len(self.lines) else ""

    def _flush(self) -> None:
        if self.paragraph:
            self.blocks.append(" ".join(self.paragraph))
            self.paragraph.clear()

    def _dropped(self, indent: int) -> bool:
        if self.drop >= 0 and indent > self.drop:
            return True
        self.drop = -1
        return False

    def _code(self, text: str) -> bool:
        """Skips a doctest and its output, up to the next blank line, or a fenced block."""
        if text.startswith((">>>", "... ", "In [")):
            self._flush()
            while self._after.strip():
                self.at += 1
            return True
        if text.startswith(("```", "~~~")):
            self._flush()
            while self.at < len(self.lines) and not self._after.strip().startswith(text[:3]):
                self.at += 1
            self.at += 1
            return True
        return False

    def _heading(self, line: str, text: str, indent: int) -> bool:
        """Whether a line begins a section, or underlines its title."""
        if _UNDERLINE.fullmatch(line):
            self._flush()
            return True
        google = _GOOGLE.fullmatch(text) if not self.paragraph or indent < self.indent else None
        if _UNDERLINE.fullmatch(self._after) and len(text) < 60 and not self.paragraph:
            self.section = text.lower().rstrip(":")
            self.at += 1
            return True
        name = google[1].lower() if google else ""
        if name in _ENTRIES | _DROPPED or name.startswith(("example", "note", "usage")):
            self._flush()
            self.section = name if name in _ENTRIES else ""
            self.drop = indent if name in _DROPPED else -1
            return True
        return False

    def _directive(self, text: str, indent: int) -> None:
        self._flush()
        directive = _DIRECTIVE.match(text)
        if not directive or directive[1] not in _PROSE_DIRECTIVES:
            self.drop = indent
            return
        rest = directive[2]
        if directive[1].startswith(("version", "deprecated")):
            rest = re.sub(r"^v?\d[\w.]*\s*", "", rest)
        if rest:
            self.paragraph.append(rest)
            self.indent = indent

    def _text(self, text: str, indent: int) -> None:
        # NumPy style: the line of a name and its type
        if self.section in _ENTRIES and indent == 0 and self._after.startswith(" ") and self._after.strip():
            self._flush()
            return
        entry = _ENTRY.match(text) if self.section in _ENTRIES and indent > 0 else _FIELD.match(text)
        mark = _BULLET.match(text) or entry
        first_is_out = indent > self.indent and len(self.paragraph) == 1
        if mark or (self.paragraph and indent != self.indent and not first_is_out):
            self._flush()
        if len(self.paragraph) < 2:
            self.indent = indent
        self.paragraph.append(text[mark.end() if mark else 0 :])
        if text.endswith("::"):  # an indented literal block follows
            self.paragraph[-1] = self.paragraph[-1][:-1]
            self._flush()
            self.drop = indent


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
