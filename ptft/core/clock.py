"""The clock of one start of a run: it writes what `times` reads."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from ptft.core import compiled, record, times, writing


class Clock:
    """At each moment one of `times.PARTS` goes on; compiling is told from it, wherever it happens.

    Args:
      before: seconds of this start that have passed already.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._seconds = dict.fromkeys(times.PARTS, 0.0) | {"start": before}
        self._part, self._since, self._compiled = "start", time.perf_counter(), compiled.seen.busy
        self._file: Path | None = None
        self._line: dict[str, Any] = {}

    def turn(self, part: str) -> None:
        """What follows belongs to another part."""
        now, busy = time.perf_counter(), compiled.seen.busy
        spent = now - self._since
        compiling = min(max(busy - self._compiled, 0.0), spent)
        self._seconds[self._part] += spent - compiling
        self._seconds["compile"] += compiling
        self._part, self._since, self._compiled = part, now, busy

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Something long, which the file says as it begins."""
        before = self._part
        self.turn(part)
        self.write()
        try:
            yield
        finally:
            self.turn(before)

    def open(self, workdir: Path, step: int, total: int) -> None:
        """From here on there is a file; `step` steps of `total` are done."""
        starts = [line["start"] for line in times.read(workdir)]
        self._line = {"start": max(starts, default=0) + 1, "from": step, "step": step, "of": total}
        if not record.is_lead():
            return
        self._file = workdir / times.FILE
        with writing.room_for(self._file), self._file.open("a+b") as f:
            if f.tell():
                f.seek(-1, 2)
                if f.read() != b"\n":  # a killed writer left half a line
                    f.write(b"\n")
        self.write()

    def write(self, step: int | None = None, **more: Any) -> None:
        """A line, on disk when it returns."""
        self.turn(self._part)
        if step is not None:
            self._line["step"] = step
        if self._file is None:
            return
        peak = peak_bytes()
        line = {
            **self._line,
            "at": time.time(),
            "doing": self._part,
            "seconds": {part: round(s, 4) for part, s in self._seconds.items()},
            **({} if peak is None else {"peak_bytes": peak}),
            **more,
        }
        with writing.room_for(self._file), self._file.open("a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")


def peak_bytes() -> int | None:
    """The most that any device of this process has held; None: none says it, as no CPU does."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((int(s["peak_bytes_in_use"]) for s in stats if "peak_bytes_in_use" in s), default=None)
