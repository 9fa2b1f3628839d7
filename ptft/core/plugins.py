"""Plug-in folders: a file in `models/`, `objectives/`, `freeze/adapters/` … is a feature, reached by its
name.

With PTFT_PLUGINS=FOLDER, files of FOLDER/models, FOLDER/freeze/adapters … count as if they lay in ptft's own
folders. What is wrong with them is a mistake of their author, and said as one.
"""

import functools
import hashlib
import importlib
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ptft.core.errors import UserError, did_you_mean, joined, listed

# Folder -> what each of its files exports.
EXPORTS = {
    "data": ("open",),
    "models": ("SPEC", "build", "ANATOMY"),
    "objectives": ("SPEC", "build"),
    "freeze.strategies": (),
    "freeze.adapters": ("Kind",),
}
SHARED = {"models": ("layers",), "data": ("tasks",)}  # files that are no plug-ins, besides those with a _


def names(package: str) -> list[str]:
    """The plug-ins of `ptft.PACKAGE`."""
    return list(_names(package, _own()))


def get(package: str, name: str) -> ModuleType:
    """The module `ptft/PACKAGE/NAME.py`; a missing one lists those that exist.

    Raises:
      UserError: there is none, or one of PTFT_PLUGINS that cannot be imported or lacks an export.
    """
    if name not in names(package):
        hint = "" if _own() else "; if it is a file of your own, PTFT_PLUGINS=FOLDER says where"
        raise UserError(
            f"there is no {package.replace('.', '/')}/{name}.py; {did_you_mean(name, names(package))}{hint}"
        )
    own = Path(_own(), *package.split("."), f"{name}.py") if _own() else None
    if own is None or not own.is_file():
        return importlib.import_module(f"ptft.{package}.{name}")
    try:
        module = importlib.import_module(f"ptft.{package}.{name}")
    except UserError:
        raise
    except Exception as e:
        line = f":{e.lineno}" if isinstance(e, SyntaxError) else ""
        raise UserError(f"{own}{line} cannot be imported: {type(e).__name__}: {e}") from e
    if lost := [what for what in EXPORTS.get(package, ()) if not hasattr(module, what)]:
        raise UserError(
            f"{own} has no {' and no '.join(lost)}; ptft/{package.replace('.', '/')}/__init__.py says what "
            "for"
        )
    return module


def used() -> dict[str, str]:
    """The files of PTFT_PLUGINS that count, such as models/mine.py -> their SHA-256."""
    own = _own()
    paths = {p.replace(".", "/"): Path(own, *p.split(".")) for p in EXPORTS if own}
    files = {f"{folder}/{file.name}": file for folder, path in paths.items() for file in path.glob("*.py")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in sorted(files.items())}


def check(needed: Mapping[str, str]) -> list[str]:
    """Files of a run's `used` that are others now.

    Raises:
      UserError: one is missing.
    """
    now = used()
    if lost := [name for name in needed if name not in now]:
        raise UserError(
            f"the run was made with {joined(lost)} of its author's own; PTFT_PLUGINS=FOLDER says where "
            "they are"
        )
    return [name for name, digest in needed.items() if now[name] != digest]


def _own() -> str:
    """The folder of PTFT_PLUGINS, or "". Raises UserError if it is none, or has no folder of plug-ins."""
    own = os.environ.get("PTFT_PLUGINS", "")
    if own:
        _check(own)
    return own


@functools.cache
def _check(own: str) -> None:
    if not Path(own).is_dir():
        raise UserError(f"PTFT_PLUGINS={own} is no folder; expected one with models/, freeze/adapters/ …")
    folders = [package.replace(".", "/") for package in EXPORTS]
    if not any(Path(own, folder).is_dir() for folder in folders):
        there = listed(sorted(p.name for p in Path(own).iterdir()))
        raise UserError(f"PTFT_PLUGINS={own} holds {there}; expected one or more of {', '.join(folders)}")


@functools.cache
def _names(package: str, own: str) -> tuple[str, ...]:
    path = importlib.import_module(f"ptft.{package}").__path__

    def inside(folders: list[str]) -> list[str]:
        modules = [m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")]
        return sorted(n for n in modules if n not in SHARED.get(package, ()))

    ours = inside(list(path))
    if not own:
        return tuple(ours)
    folder = str(Path(own, *package.split(".")).absolute())
    mine = inside([folder])
    if twice := sorted(set(ours) & set(mine)):
        raise UserError(f"{folder}/{twice[0]}.py has the name of a file of ptft's own; give it another")
    path.append(folder)
    return tuple(sorted([*ours, *mine]))
