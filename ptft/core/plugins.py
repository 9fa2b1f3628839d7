"""Plug-in folders: a file in `models/`, `objectives/`, `freeze/adapters/` … is a feature, reached by its
name.

With PTFT_PLUGINS=FOLDER, files of FOLDER/models, FOLDER/freeze/adapters … count as if they lay in ptft's own
folders.
"""

import functools
import importlib
import os
import pkgutil
from pathlib import Path
from types import ModuleType

from ptft.core.errors import UserError, did_you_mean

SHARED = ("layers", "tasks")


def names(package: str) -> list[str]:
    """The plug-ins of `ptft.PACKAGE`: its modules, but for those that plug-ins share: `SHARED`, or starting
    with `_`."""
    return list(_names(package, os.environ.get("PTFT_PLUGINS", "")))


@functools.cache
def _names(package: str, own: str) -> tuple[str, ...]:
    path = importlib.import_module(f"ptft.{package}").__path__
    if own:
        path.append(str(Path(own, *package.split(".")).absolute()))
    return tuple(
        sorted(
            m.name for m in pkgutil.iter_modules(path) if m.name not in SHARED and not m.name.startswith("_")
        )
    )


def get(package: str, name: str) -> ModuleType:
    """The module `ptft/PACKAGE/NAME.py`; a missing one lists those that exist."""
    if name not in names(package):
        raise UserError(
            f"there is no {package.replace('.', '/')}/{name}.py; {did_you_mean(name, names(package))}"
        )
    return importlib.import_module(f"ptft.{package}.{name}")
