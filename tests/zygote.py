"""Real processes of ptft without the seconds that their imports take.

The zygote, `python tests/zygote.py`, has imported what `ptft train` needs and started nothing. It forks a
process a command, which has its own signals and dies its own death. Forking is safe while there is one thread
and no backend of JAX, and that is asserted. Each process says which places of a run it enters and leaves, so
that a signal can be sent there.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parents[1]
PLACES = {
    "load": ("ptft.train.dataset", "load_data"),
    "start weights": ("ptft.train.weights", "start_params"),
    "compile": ("ptft.train.programs", "program"),
    "train": ("ptft.train.train", "fit"),
    "evaluate": ("ptft.train.train", "judged"),
    "save best": ("ptft.core.checkpoint", "save_best"),
    "save": ("ptft.core.checkpoint", "save"),
    "final scores": ("ptft.train.ending", "final_metrics"),
    "result": ("ptft.train.result", "of"),
}
START, END = "start", "end"  # before the first place, and after the last one
PATIENCE = 120  # seconds without a word


class Moment(NamedTuple):
    """When a process gets a signal: so many seconds after it has come to a place for the n-th time."""

    place: str
    nth: int
    delay: float
    number: signal.Signals


class Ended(NamedTuple):
    code: int  # below 0: a signal ended it
    sent: bool  # whether its moment came
    late: bool  # whether the result was there by then
    after: float  # seconds from then to its end
    seconds: dict[str, list[float]]  # that it was in each place, each time


class Zygote:
    """Runs commands, one at a time."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process
        self._rest = b""

    def run(self, argv: list[str], log: Path, moment: Moment | None = None) -> Ended:
        """One command to its end, whose last argument is its folder; `log` gets what it prints. Raises
        TimeoutError where it hangs, with its stacks in the log."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"argv": argv, "log": str(log)}).encode() + b"\n")
        self._process.stdin.flush()
        pid, sent, late, since, killed = 0, False, False, {START: time.monotonic()}, 0.0
        seconds: dict[str, list[float]] = defaultdict(list)
        while True:
            kind, _, value = self._line(pid).partition(" ")
            now = time.monotonic()
            if kind == "code":
                seconds[END].append(now - since.pop(END, now))
                return Ended(int(value), sent, late, now - killed, dict(seconds))
            if kind == "leave":
                seconds[value].append(now - since[value])
                since[END] = now
                continue
            pid, place = (int(value), START) if kind == "pid" else (pid, value)
            if kind == "enter" and START in since:
                seconds[START].append(now - since.pop(START))
            since.setdefault(START, now) if place == START else since.update({place: now})
            counts = len(seconds[place]) + 1
            if moment and not sent and (moment.place, moment.nth) == (place, counts):
                time.sleep(moment.delay)
                late = (Path(argv[-1]) / "result.json").exists()
                with contextlib.suppress(ProcessLookupError):  # it was faster
                    os.kill(pid, moment.number)
                sent, killed = True, time.monotonic()

    def _line(self, pid: int) -> str:
        assert self._process.stdout
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
                os.kill(pid, signal.SIGABRT)  # its stacks go to the log
                raise TimeoutError(f"process {pid} has not ended")
            more = os.read(self._process.stdout.fileno(), 4096)
            assert more, "the zygote is gone"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


@contextlib.contextmanager
def started(cache: Path) -> Iterator[Zygote]:
    """A zygote; compiled programs are kept in `cache`."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(cache)
    ) as process:
        try:
            yield Zygote(process)
        finally:
            process.kill()


def environment(cache: Path) -> dict[str, str]:
    """Of one device; programs are kept as ptft keeps them, which a kill does not harm."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_MAX_SIZE"}
    flags = env["XLA_FLAGS"].replace("device_count=4", "device_count=1")
    return env | {
        "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(cache), "OPENBLAS_NUM_THREADS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }  # fmt: skip


def serve(said: IO[bytes]) -> int:
    """Forks a process for each line of standard input, a command; the exit code, in that process."""
    for name in ("ptft.__main__", "ptft.cli.main", "ptft.planning.auto", "orbax.checkpoint", "grain.python"):
        importlib.import_module(name)
    from jax._src import xla_bridge

    gc.freeze()  # or every process would look through all of it at its end
    for line in sys.stdin:
        asked = json.loads(line)
        assert len(os.listdir("/proc/self/task")) == 1 and not xla_bridge._backends
        if (child := os.fork()) == 0:
            return command(asked["argv"], Path(asked["log"]), said)
        _, status = os.waitpid(child, 0)
        said.write(f"code {os.waitstatus_to_exitcode(status)}\n".encode())
    return 0


def command(argv: list[str], log: Path, said: IO[bytes]) -> int:
    """As `python -m ptft` runs it."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    faulthandler.enable()
    for place, (module, name) in PLACES.items():
        announce(sys.modules[module], name, place, said)
    said.write(f"pid {os.getpid()}\n".encode())
    return importlib.import_module("ptft.__main__").main(argv)


def announce(module: Any, name: str, place: str, said: IO[bytes]) -> None:
    """A function says when it begins and when it ends."""
    do = getattr(module, name)

    def announced(*args: Any, **kwargs: Any) -> Any:
        said.write(f"enter {place}\n".encode())
        try:
            return do(*args, **kwargs)
        finally:
            said.write(f"leave {place}\n".encode())

    setattr(module, name, announced)


if __name__ == "__main__":
    raise SystemExit(serve(os.fdopen(os.dup(1), "wb", buffering=0)))
