"""Ends a process of several that hangs, with a stack of every thread on standard error.

A process that dies is noticed by JAX (`mesh.HEARTBEAT`). One that is alive and stuck, in its data or in a
collective, is not: the others would wait for it for ever. So each process ends itself where its loop has not
come around in time, and JAX then ends the others.
"""

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

LEAST = 100  # seconds without a step, after which a loop hangs
TIMES = 20  # or so many times the longest step so far
LONG = 1800  # seconds for what is no step: compiling, evaluating, saving


class Watchdog:
    """Of a training loop; of a single process it does nothing."""

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._longest, self._last = 0.0, time.monotonic()

    def step(self) -> None:
        """A step begins."""
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        self._arm(self._limit())

    def waits(self) -> None:
        """For the steps of all: later than one of the others that hangs, whose stack is to be seen."""
        self._arm(3 * self._limit())

    def pause(self) -> None:
        """What is no step begins: compiling, evaluating, saving."""
        self._arm(LONG)

    def resume(self) -> None:
        self._last = time.monotonic()

    def _limit(self) -> float:
        return max(LEAST, TIMES * self._longest)

    def _arm(self, seconds: float) -> None:
        if self._several:  # to the process's own standard error, whatever sys.stderr is
            faulthandler.dump_traceback_later(seconds, exit=True, file=2)


@contextmanager
def watching() -> Iterator[Watchdog]:
    try:
        yield Watchdog()
    finally:
        faulthandler.cancel_dump_traceback_later()
