"""The bytes, the text and the lines of a file, gzipped or not; a line that is not UTF-8 is a broken row."""

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from ptft.core.errors import UserError
from ptft.data import BadRows

UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte that is not UTF-8
DIRTY = "expected UTF-8, got other bytes"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file's bytes, those of a .gz file unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
            yield f
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{path} cannot be read: {e}") from e


def first_bytes(path: Path) -> bytes:
    """Enough of them to tell a format, from the first that is no white space."""
    with opened(path) as f:
        return f.read(200).removeprefix(b"\xef\xbb\xbf").lstrip()


def read_bytes(path: Path) -> bytes:
    with opened(path) as f:
        return f.read()


def read_text(path: Path) -> str:
    """The whole text; bytes that are not UTF-8 become what `UNDECODED` finds."""
    return read_bytes(path).decode("utf-8-sig", errors="surrogateescape")


def read_lines(path: Path, rows: BadRows, header: bool = False) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end); only \\n ends a line. A broken header always stops."""
    text = read_text(path)
    dirty = UNDECODED.search(text) is not None
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if dirty and UNDECODED.search(line):
            rows.bad(f"{path}:{number}", DIRTY, header and number == 1)
        else:
            yield number, line.removesuffix("\r")
