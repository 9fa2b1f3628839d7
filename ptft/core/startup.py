"""What the time from the start of a command to its first training step went to; said once, after the step."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

import ptft
from ptft.core import compiled, record

_process: float | None = ptft.START_TIME  # taken by the first command of the process
_begun: float | None = None  # None: said, or not asked for
_spent: dict[str, float] = {}


def imported() -> None:
    """A command that will train has imported what it needs."""
    global _process, _begun
    now = time.perf_counter()
    _begun, _process = now if _process is None else _process, None
    _spent.clear()
    _spent["imports"] = now - _begun


def elapsed() -> float:
    """Seconds since the command began, where its first step is still to come; else 0."""
    return 0.0 if _begun is None else time.perf_counter() - _begun


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """What is done here is a part of its own; nothing in it is compiled."""
    start_time = time.perf_counter()
    yield
    _spent[name] = _spent.get(name, 0.0) + time.perf_counter() - start_time


def stepped(sums: Any) -> None:
    """Says it, where these are the results of the command's first step."""
    global _begun
    if _begun is None:
        return
    jax.block_until_ready(sums)
    total = time.perf_counter() - _begun
    _begun = None
    parts = {**_spent, f"tracing and compiling ({compiled.seen})": compiled.seen.busy}
    parts["the rest"] = max(0.0, total - sum(parts.values()))
    record.say(
        f"first step after {total:.1f} s: "
        + ", ".join(f"{seconds:.1f} s {name}" for name, seconds in parts.items())
    )
