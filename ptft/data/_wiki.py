"""The pages that WikiExtractor writes, as JSON lines or as `<doc>` blocks."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from ptft.core.errors import listed
from ptft.data import BadRows
from ptft.data._reading import first_bytes, read_lines
from ptft.data._sentences import sentences
from ptft.data._tables import json_rows

WIKI = re.compile(rb'<doc |\{"id": ?"[^"]*", ?"(revid|url)":')
TAG = re.compile(r"</?[a-zA-Z]\w*[^<>]*>")


def read_pages(path: Path, rows: BadRows) -> Iterator[tuple[str, list[str]]]:
    """WikiExtractor: (where, sentences); the title, where it is repeated as the first line, is left out."""
    blocks = first_bytes(path).startswith(b"<doc ")
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
    for number, row in json_rows(path, rows):
        if isinstance(text := row.get("text"), str):
            yield number, "", [text]
        else:
            rows.bad(f"{path}:{number}", f"expected a page with 'text', got {listed(row)}")


def _doc_blocks(path: Path, rows: BadRows) -> Iterator[tuple[int, str, list[str]]]:
    opened, title, lines = 0, "", list[str]()
    for number, line in read_lines(path, rows):
        if line.startswith("<doc "):
            if opened:
                rows.bad(f"{path}:{opened}", f"<doc> is not closed before the next one, line {number}")
            match = re.search(r'title="(.*)">', line)
            opened, title, lines = number, html.unescape(match[1]) if match else "", []
        elif line.startswith("</doc>"):
            yield opened, title, lines
            opened = 0
        elif opened:
            lines.append(line)
        elif line.strip():
            rows.bad(f"{path}:{number}", "expected <doc …>, got text outside of a <doc> block")
    if opened:
        rows.bad(f"{path}:{opened}", "<doc> is not closed: the file ends in it")
