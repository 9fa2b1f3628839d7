"""Which files a pattern or a folder stands for: what is hidden is left out, and links are followed."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ptft.core.errors import UserError, did_you_mean


def match(pattern: str) -> list[Path]:
    """The files and folders of that name, or that a glob pattern matches, sorted; UserError if there is
    none."""
    pattern = os.path.expanduser(pattern)
    if os.path.lexists(pattern):
        return [real(Path(pattern))]
    if paths := sorted({Path(p) for p in _glob(pattern) if Path(p).name != "__MACOSX"}):
        return list(map(real, paths))
    folder = Path(pattern).parent
    while not folder.is_dir():
        folder = folder.parent
    beside = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    raise UserError(f"no file matches {pattern}; in {folder} {did_you_mean(Path(pattern).name, beside)}")


def _glob(pattern: str) -> Iterator[str]:
    """As glob.glob, but that `**` ends where links lead round in a circle."""
    start, *rest = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    if not rest:
        yield from glob.glob(pattern)
        return
    for top in glob.glob(start) if start else ["."]:
        for folder, _ in _walk(Path(top)):
            inside = _glob(os.path.join(glob.escape(str(folder)), rest[0] or "*"))
            yield from inside if rest[0] else (p for p in inside if not os.path.isdir(p))


def hidden(name: str) -> bool:
    """What systems and editors leave in folders: .DS_Store, ._x, .ipynb_checkpoints, and __MACOSX of a zip
    file."""
    return name.startswith(".") or name == "__MACOSX"


def real(path: Path) -> Path:
    """The path itself; UserError where it is a link to nothing."""
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link to {os.readlink(path)}, which is not there: restore it, or delete the link"
        )
    return path


def _walk(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The folders from `top` on and the files of each, links followed; what is hidden is left out."""
    for folder, inside, files in os.walk(str(top), followlinks=True):
        above = {os.path.realpath(p) for p in (Path(folder), *Path(os.path.abspath(folder)).parents)}
        inside[:] = sorted(
            d for d in inside if not hidden(d) and os.path.realpath(os.path.join(folder, d)) not in above
        )
        yield Path(folder), [Path(folder, f) for f in files if not hidden(f)]


def below(top: Path) -> Iterator[Path]:
    """All files of a folder and of the folders in it."""
    return (f for _, files in _walk(top) for f in map(real, files) if f.is_file())
