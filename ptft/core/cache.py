"""Where ptft keeps what it can make again: prepared data, compiled programs."""

import os
from pathlib import Path

from ptft.core.errors import UserError


def folder() -> Path:
    """$PTFT_CACHE, else ptft in $XDG_CACHE_HOME or ~/.cache.

    Raises:
      UserError: `~` is nowhere, as where a container's user has no name.
    """
    asked = Path(os.environ.get("PTFT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ptft"))
    try:
        return asked.expanduser()
    except RuntimeError as e:
        why = "this user has no home folder; PTFT_CACHE=DIR names another folder for the cache"
        raise UserError(f"{asked}: {why}") from e
