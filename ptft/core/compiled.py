"""Compiled programs: kept on disk, so that no process compiles what another one has, and counted.

jax does it (its persistent compilation cache): it knows all that a program depends on, such as its code,
jaxlib, XLA's flags, the devices and what a CPU can do. Here is where the files lie, `compiled` in ptft's
cache, and how they are written. What the environment says to jax of its cache holds: another
JAX_COMPILATION_CACHE_DIR, or JAX_ENABLE_COMPILATION_CACHE=0.
"""

import contextlib
import os
import time
import warnings
from pathlib import Path
from typing import Any

import jax
from jax import monitoring

from ptft.core import cache, record
from ptft.core.errors import UserError

LIMIT = 2**30  # bytes, of ptft's own folder
DIR, SIZE, SECONDS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


def start() -> None:
    """Before a command compiles: its programs are kept, and counted from here on."""
    seen.reset()
    if jax.distributed.is_initialized() and jax.default_backend() == "cpu":
        # There (jaxlib 0.10) a step from the cache waits for ever in its collectives, if parameters are cut.
        jax.config.update("jax_enable_compilation_cache", False)
    if SECONDS.upper() not in os.environ:
        jax.config.update(SECONDS, 0.0)  # the smallest takes 0.1 s to compile and 0.03 s to read
    if (folder := chosen()) is None:
        return
    jax.config.update(DIR, str(folder.path))
    with contextlib.suppress(ImportError):  # where it has moved, jax writes in its own way
        from jax._src import compilation_cache

        compilation_cache.get_file_cache = lambda path: (folder, path)  # type: ignore
    # A damaged entry, or one that this CPU refuses, is compiled again, and written again.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")


def chosen() -> "Folder | None":
    """Where programs are kept, as the environment has it; None: jax does it in its own way, or nobody."""
    named, size = os.environ.get(DIR.upper()), os.environ.get(SIZE.upper())
    if named is not None and (size or not named or "://" in named):
        return None
    if named:
        return Folder(Path(named), None)
    try:
        return Folder(cache.folder() / "compiled", int(size or LIMIT))
    except UserError as e:  # a user without a home
        record.note(f"WARNING: compiled programs are not kept: {e}")
        return None


class Folder:
    """A cache for jax: a file an entry, with the names and the contents that jax gives them.

    Not jax's own class: in jax 0.10, when a process is killed as it writes, half an entry stays for ever, and
    where there is a limit nothing is written any more. Here a file is there whole or not at all, so that
    there is nothing to lock, either.

    Args:
      limit: bytes; beyond, what was not used for longest is removed. None: nothing ever is.
    """

    def __init__(self, path: Path, limit: int | None):
        self.path, self._limit, self._told = path, limit, False

    def get(self, key: str) -> bytes | None:
        file = self.path / f"{key}-cache"
        try:
            value = file.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # it may be another's folder
            os.utime(file)
        return value

    def put(self, key: str, value: bytes) -> None:
        file = self.path / f"{key}-cache"
        own = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
            own.write_bytes(value)
            os.replace(own, file)
        except OSError as e:
            with contextlib.suppress(OSError):
                own.unlink()
            if not self._told:
                record.note(
                    f"WARNING: compiled programs are not kept in {self.path}: {e.strerror}; PTFT_CACHE=DIR "
                    "names another folder"
                )
            self._told = True
        if self._limit is not None and self._limit >= 0:
            self._remove_old(self._limit)

    def _remove_old(self, limit: int) -> None:
        files = []
        for file in self.path.glob("*-cache*"):  # what a killed process left half written among them
            with contextlib.suppress(OSError):  # another process removed it
                files.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        size = sum(n for _, n, _ in files)
        for _, n, file in sorted(files):
            if size <= limit:
                return
            with contextlib.suppress(OSError):
                file.unlink()
            size -= n


class Seen:
    """What jax says that it has compiled, or read, since `reset`."""

    def __init__(self) -> None:
        self.reset()
        monitoring.register_event_listener(self._event)
        monitoring.register_event_duration_secs_listener(self._duration)

    def reset(self) -> None:
        self.programs = self.read = 0
        self.seconds = 0.0  # of compiling
        # in which something was traced, lowered, compiled or read; none lies in another
        self._spans: list[tuple[float, float]] = []

    def _event(self, event: str, **_: Any) -> None:
        self.read += event == "/jax/compilation_cache/cache_hits"

    def _duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":  # of a program that was read, too
            self.programs += 1
            self.seconds += duration_secs
        elif event == "/jax/compilation_cache/cache_retrieval_time_sec":
            self.seconds -= duration_secs
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            while self._spans and self._spans[-1][0] >= now - duration_secs:
                self._spans.pop()
            self._spans.append((now - duration_secs, now))

    @property
    def busy(self) -> float:
        """Seconds in which all else waited for a program."""
        return sum(end - start_time for start_time, end in self._spans)

    def __str__(self) -> str:
        compiled = self.programs - self.read
        return f"{self.read} from the cache, {compiled} compiled" + (
            f" in {self.seconds:.1f} s" if compiled else ""
        )


seen = Seen()
