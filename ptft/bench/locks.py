"""Which cells a process has taken, so that two that were started on one folder do not run the same.

    WORKDIR/lock    empty; a process that has taken a cell holds the byte at the cell's number locked

Such a lock ends with its process, however that ends, and counts on network file systems, too. Of one process
it keeps nothing apart.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptft.core.errors import UserError


class Locks:
    def __init__(self, fd: int):
        self._fd = fd

    def take(self, cell: str) -> bool:
        """Whether the cell (12 hex digits) is this process's now."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(cell, 16))
        except (BlockingIOError, PermissionError):  # which of them, systems do not agree on
            return False
        except OSError as e:
            raise UserError(
                f"the file system of --workdir keeps no locks ({e.strerror}); expected one that does, such "
                "as a local disk"
            ) from e
        return True

    def give_back(self, cell: str) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, int(cell, 16))


@contextmanager
def of(workdir: Path) -> Iterator[Locks]:
    """All that is still held is given back at the end."""
    workdir.mkdir(parents=True, exist_ok=True)
    fd = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield Locks(fd)
    finally:
        os.close(fd)
