"""Who works in a folder: two runs in one would write over each other, and of a benchmark no two processes may
run the same cell.

    WORKDIR/lock    a process holds byte 0 of it locked, and says there who it is; of a benchmark, the byte at
                    the number of its cell

Such a lock ends with its process, however that ends, and counts on network file systems, too. Of one process
it keeps nothing apart.
"""

import fcntl
import os
import socket
import struct
import sys
import time
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

    def write(self, who: str) -> None:
        """Says in the file who holds it."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, who.encode(), 0)


@contextmanager
def of(workdir: Path) -> Iterator[Locks]:
    """All that is still held is given back at the end."""
    workdir.mkdir(parents=True, exist_ok=True)
    fd = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield Locks(fd)
    finally:
        os.close(fd)


def holder(workdir: Path) -> str | None:
    """Who works in the folder; None: nobody. Nothing is locked to find out, or a run that starts at that
    moment would be refused."""
    try:
        fd = os.open(workdir / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        who = os.read(fd, 1000).decode(errors="replace")
        if sys.platform != "linux":  # elsewhere the record has other fields; a killed process leaves its name
            return who or None
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # any byte
        kind, *_, pid = struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    except OSError:  # the file system keeps no locks
        return who or None
    finally:
        os.close(fd)
    return None if kind == fcntl.F_UNLCK else who or f"process {pid}"


@contextmanager
def only(workdir: Path) -> Iterator[None]:
    """This process alone works in the folder. Of several processes of a run, the lead asks for all.

    Raises:
      UserError: another one does.
    """
    from ptft.core import record  # here, as it loads jax, and `holder` needs none

    if not record.is_lead():
        yield
        return
    with of(workdir) as locks:
        try:
            taken = locks.take("0")
        except UserError as e:
            record.note(f"WARNING: {e}; nothing keeps another run out of {workdir}")
            taken = True
        if not taken:
            who = (workdir / "lock").read_text(encoding="utf-8", errors="replace") or "another process"
            raise UserError(
                f"{workdir} is in use by {who}; wait for it to end, stop it, or choose another --workdir"
            )
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        locks.write(f"process {os.getpid()} on {socket.gethostname()}, since {started}")
        try:
            yield
        finally:
            locks.write("")
