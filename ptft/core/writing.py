"""Files that are there whole or not at all, and what is said where a disk is full."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptft.core.errors import UserError

# Why there is no room: on the disk, by a quota, in one file; and how libraries in C++ and Rust say it.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_TEXT = {code: rf"os error {code}\b|{errno.errorcode[code]}\b|{os.strerror(code)}" for code in FULL}


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Where what is written inside finds no room on the disk, says so of `path`.

    Raises:
      UserError: the disk is full, or a quota or the limit of a file's size is reached.
    """
    try:
        yield
    except Exception as e:
        if not (code := _full(e)):
            raise
        folder = next(p for p in path.absolute().parents if p.is_dir())
        free = f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free in {folder}"
        raise UserError(
            f"{path} cannot be written: {os.strerror(code).lower()} ({free}); free some space, and run the "
            "same command again"
        ) from e


def _full(e: BaseException | None) -> int:
    """The code of an error that says that there is no room; 0 of any other."""
    if isinstance(e, UserError):  # whose text may quote anything
        return _full(e.__cause__)
    if e is None or isinstance(e, OSError):
        code = e.errno if e else None
        return code if code in FULL else 0
    # tokenizers, safetensors and tensorstore have the code in the text
    return next((code for code, text in _IN_TEXT.items() if re.search(text, str(e))), 0)


@contextmanager
def at_once(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when all is written; a failure leaves `path` as
    it was, and nothing beside it.

    Raises:
      UserError: there is no room for it.
    """
    # several processes may write the same file: the shards of a benchmark
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def folder_at_once(folder: Path) -> Iterator[Path]:
    """`at_once` of a folder, that is new or empty."""
    own, part = folder.resolve(), beside(folder)  # it may be a link to an empty folder
    with room_for(folder):
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            yield part
            if own.exists():
                own.rmdir()
            part.rename(own)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def beside(folder: Path) -> Path:
    """Where `folder_at_once` writes."""
    whole = folder.resolve()
    return whole.with_name(f".{whole.name}.part")


def write_text(path: Path, text: str) -> None:
    """At once or not at all; lines end as they do in `text`."""
    with at_once(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
