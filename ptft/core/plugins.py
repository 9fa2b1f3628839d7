"""Plug-in folders: a file in `data/`, `models/` or `objectives/` is a feature, reached by its name."""

import importlib
import pkgutil
from types import ModuleType

from ptft.core.errors import UserError, did_you_mean

SHARED = ("layers", "tasks")


def names(package: str) -> list[str]:
    """The plug-ins of `ptft.PACKAGE`: its modules, but for those that plug-ins share: `SHARED`, or starting with `_`."""
    path = importlib.import_module(f"ptft.{package}").__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if m.name not in SHARED and not m.name.startswith("_"))


def get(package: str, name: str) -> ModuleType:
    """The module `ptft/PACKAGE/NAME.py`; a missing one lists those that exist."""
    if name not in names(package):
        raise UserError(f"there is no {package}/{name}.py; {did_you_mean(name, names(package))}")
    return importlib.import_module(f"ptft.{package}.{name}")
