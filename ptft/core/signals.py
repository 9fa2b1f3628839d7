"""How a command is asked to stop: SIGTERM, as schedulers send it, and SIGINT, as Ctrl-C does.

Where there is something to save, `preemption` hands the signal to the code that saves. Everywhere else
`guard` ends the command: with 75 after SIGTERM, so that a scheduler starts it again, with 130 after Ctrl-C.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PREEMPTED = 75  # exit code: stopped from outside, and saved, or with nothing to save
CODES = {signal.SIGTERM: PREEMPTED, signal.SIGINT: 130}
ECHO = 2.0  # seconds
LATE = 5.0  # seconds, after which an end that something has swallowed, or that one call delays, is forced

_saving = 0  # how many `preemption` the program is in
_swallowed: list[int] = []  # signals of this guard that have not ended it, or not yet


class Stopped(SystemExit):
    """A signal where there is nothing to save."""

    @property
    def status(self) -> int:
        return int(str(self.code))


@contextmanager
def guard() -> Iterator[None]:
    """Around a whole command, its imports too: a signal ends it, even inside one long call such as compiling,
    and even where the exception that ends it is swallowed.

    Raises:
      Stopped: with 75 or 130.
    """

    def handler(number: int, frame: Any) -> None:
        print(
            f"\nptft: stopped by {signal.Signals(number).name}; run the same command again", file=sys.stderr
        )
        _swallowed.append(number)
        raise Stopped(CODES[signal.Signals(number)])

    ours, waked = socket.socketpair()
    waked.setblocking(False)
    try:
        before = {s: signal.signal(s, handler) for s in CODES}
        fd = signal.set_wakeup_fd(waked.fileno(), warn_on_full_buffer=False)
    except ValueError:  # not in the main thread: the caller handles signals
        yield
        return
    over = threading.Event()
    threading.Thread(target=_force, args=(ours, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _swallowed.clear()
        signal.set_wakeup_fd(fd)
        for number, old in before.items():
            signal.signal(number, old)
        waked.close()


def swallowed() -> int:
    """The exit code of a signal that came in this guard and whose `Stopped` has not arrived: a library made
    another error of it, or nothing. 0: there was none."""
    return CODES[signal.Signals(_swallowed[0])] if _swallowed else 0


def _force(wakeups: socket.socket, over: threading.Event) -> None:
    """Ends the process where a signal outside of `preemption` has not, until the guard is over."""
    while numbers := wakeups.recv(1):
        number = signal.Signals(numbers[0])
        # where it was swallowed and something saves since, that stops it
        if number in CODES and not _saving and not over.wait(LATE) and not _saving:
            os._exit(CODES[number])
    wakeups.close()


@contextmanager
def preemption() -> Iterator[list[int]]:
    """A list that SIGTERM or SIGINT fills; another signal ends the process at once, unless it is the first
    one's echo: a scheduler signals every process, and a parent its child.

    One that came before, and whose end of the command a library has swallowed, is in the list already."""
    global _saving
    caught: list[int] = _swallowed[:1]
    first = time.monotonic()

    def handler(number: int, frame: Any) -> None:
        nonlocal first
        if caught and time.monotonic() - first > ECHO:
            raise KeyboardInterrupt
        if not caught:
            first = time.monotonic()
            caught.append(number)

    _saving += 1
    try:
        old = {s: signal.signal(s, handler) for s in CODES}
    except ValueError:  # not in the main thread: the caller handles signals
        old = {}
    try:
        yield caught
    finally:
        for number, before in old.items():
            signal.signal(number, before)
        _saving -= 1


def child(argv: Sequence[str], **streams: Any) -> tuple[int, bool]:
    """Runs a process to its end -> (exit code, whether this one was asked to stop, which it hands on)."""
    with preemption() as caught:
        # A session of its own: Ctrl-C reaches it once, from here, and not twice.
        process = subprocess.Popen(argv, start_new_session=True, **streams)
        told = False
        while process.poll() is None:
            if caught and not told:
                process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(0.05)
    return process.returncode, bool(caught)
