"""Where ptft keeps what it can make again: prepared data, compiled programs."""

import os
from pathlib import Path


def folder() -> Path:
    """$PTFT_CACHE, else ptft in $XDG_CACHE_HOME or ~/.cache.

    Raises:
      RuntimeError: `~` is nowhere, as where a container's user has no name.
    """
    return Path(os.environ.get("PTFT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ptft")).expanduser()
