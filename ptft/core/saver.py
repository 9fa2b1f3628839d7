"""Writes checkpoints beside the loop, which goes on as soon as the arrays are copied off the devices.

One step is in flight at a time. Several processes write at once, all of them, and the loop waits: Orbax then
waits for each process where it likes, and a thread of its own would do so amid the collectives of a step.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from ptft.core import record

LONG = 1.0  # seconds of waiting for an earlier step, of which is told


class Saved(NamedTuple):
    """A step that is on disk."""

    kind: str  # `integrity.RESUME` or `BEST`
    step: int
    stall: float  # the seconds for which the loop stood still
    seconds: float  # that writing took


class Saver:
    """Of a training loop: `ready`, `own`, `start`; then `check` now and then, and `wait` at the end.

    An error of a write is raised by whichever of `ready`, `check` and `wait` comes first.
    """

    def __init__(self) -> None:
        self._beside = jax.process_count() == 1
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved: list[Saved] = []
        self._step, self._start_time = -1, 0.0
        self._copied: int | None = None  # the step of `_copy`
        self._copy: Any = None

    def ready(self, step: int) -> None:
        """Waits until every earlier step is on disk."""
        self._start_time = time.perf_counter()
        if self._thread and self._step != step:
            earlier, writing = self._step, self._thread.is_alive()
            self.wait()
            waited = time.perf_counter() - self._start_time
            if writing and waited > LONG:
                record.say(f"waited {waited:.1f} s until step {earlier} was on disk, to save step {step}")
        self._step = step

    def own(self, tree: Any) -> Any:
        """A copy in the host's memory, complete when this returns: the next step takes that of the arrays.
        It is no view, as `np.asarray` is on a CPU, of what the step could then not take. The same tree for
        all that is saved of one step, and over the copy of the step before: new memory costs more than the
        copy."""
        if not self._beside:
            return tree
        if self._copied != self._step:
            now = jax.device_get(tree)
            same = jax.tree.map(np.shape, now) == jax.tree.map(np.shape, self._copy)
            self._copy = jax.tree.map(_over, now, self._copy) if same else jax.tree.map(np.array, now)
            self._copied = self._step
        return self._copy

    def start(self, kind: str, write: Callable[[], None]) -> None:
        """Writes, after whatever else of the same step is being written."""
        step, stall, before = self._step, time.perf_counter() - self._start_time, self._thread

        def work() -> None:
            if before:
                before.join()
            if self._error:  # of the same step
                return
            start_time = time.perf_counter()
            try:
                write()
            except BaseException as e:
                self._error = e
            else:
                seconds = time.perf_counter() - start_time
                self._saved.append(Saved(kind, step, stall if self._beside else stall + seconds, seconds))

        if self._beside:
            self._thread = threading.Thread(target=work, daemon=True, name="ptft.save")
            self._thread.start()
        else:
            work()
            self.check()

    def check(self) -> None:
        """Raises the error of a write that has failed."""
        if self._error:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Returns when all is on disk."""
        if self._thread:
            self._thread.join()
        self._thread = None
        self.check()

    def saved(self) -> list[Saved]:
        """What came on disk since this was asked last."""
        done, self._saved = self._saved, []
        return done


def _over(new: Any, old: np.ndarray) -> np.ndarray:
    np.copyto(old, new, casting="no")
    return old


@contextmanager
def saving() -> Iterator[Saver]:
    """What is being written is finished, unless the process is told to end at once."""
    saver = Saver()
    try:
        yield saver
    except Exception:
        try:
            saver.wait()
        except Exception as e:
            record.note(f"WARNING: a checkpoint was not saved, either: {e}")
        raise
    saver.wait()
