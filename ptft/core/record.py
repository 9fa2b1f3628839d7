"""What a run says and writes: metric sums, `metrics.jsonl`, TensorBoard, progress, JSON files, versions.

Metrics travel as `{name: (sum, weight)}`, are added up over devices, steps and batches, and divided once, so
that a mean over a short last batch or over masked tokens is the mean over all of them.
"""

import importlib
import importlib.metadata
import itertools
import json
import math
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import ptft
from ptft.core import writing
from ptft.core.errors import UserError, install

Sums = dict[str, tuple[Any, Any]]

FOLDERS = {"run.json": "a run", "bench.json": "a benchmark (ptft bench)", "tune.json": "a search (ptft tune)"}
COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))

_console = Console()  # without a file of its own it follows sys.stdout


def is_lead() -> bool:
    """True in the one process that prints and writes files. Safe before `jax.distributed.initialize`."""
    # jax.process_index() would start the backend, after which a multi-host start is refused.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(text: str) -> None:
    """Prints one line (or a block) for the user, above the progress bar if there is one; never wrapped, no
    markup."""
    if is_lead():
        _console.print(text, soft_wrap=True, markup=False, highlight=False)


def note(text: str) -> None:
    """Prints one line to standard error: what is said beside the output of a command whose output is data."""
    if is_lead():
        print(text, file=sys.stderr)


def screen() -> Console | None:
    """Where a progress bar may be drawn, below what is said; None: there is no terminal."""
    return _console if is_lead() and _console.is_terminal else None


def add(a: Sums | None, b: Sums) -> Sums:
    """Adds two dicts of (sum, weight); a name that only one of them has is kept. Does not wait for the
    device."""
    if a is None:
        return dict(b)
    both = {name: (a[name][0] + s, a[name][1] + w) if name in a else (s, w) for name, (s, w) in b.items()}
    return {**a, **both}


def divide(s: Sums) -> dict[str, Any]:
    """sum / weight, in float64 on the host: a float, or an array where the sum is one. A weight of 0 gives
    nan."""
    out: dict[str, Any] = {}
    for name, (total, weight) in jax.device_get(s).items():
        total, weight = np.asarray(total, np.float64), float(weight)
        mean = total / weight if weight else np.full_like(total, np.nan)
        out[name] = mean if mean.ndim else float(mean)
    return out


def plain(value: Any) -> Any:
    """The JSON form of a value: arrays as lists, NaN and infinity as None (JSON has neither)."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def claim(workdir: Path, file: str) -> None:
    """Raises UserError where a folder is not what `file` (of FOLDERS) says that it is to be, but another
    thing already."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; expected a folder, new or of {FOLDERS[file]}")
    for other, what in FOLDERS.items():
        if other != file and (workdir / other).exists():
            raise UserError(f"{workdir} holds {what}, not {FOLDERS[file]}; choose another --workdir")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` at once or not at all; NaN and infinity become null. Only the lead process
    writes."""
    if is_lead():
        text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
        writing.write_text(path, text + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, ptft and the libraries that decide numbers; "absent" for one that is not
    installed."""
    names = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "tokenizers",
        "tensorflow-datasets",
        "numpy",
    )
    by_name = {"python": platform.python_version(), "ptft": ptft.__version__}
    for name in names:
        try:
            by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            by_name[name] = "absent"
    return by_name


def device() -> dict[str, Any]:
    """What the run runs on: platform, kind, number of devices and of processes."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def _keep_until(path: Path, step: int) -> None:
    """Cuts a metrics file back to the lines up to `step`.

    Half a line at the end, as a killed writer leaves it, goes whatever its step. Where other lines cannot be
    read, the file as it was is kept beside it, and that is said.
    """
    *lines, last = path.read_bytes().split(b"\n")
    steps = [_step_of(line) for line in lines]
    if unreadable := steps.count(None):
        names = (path.with_name(f"{path.stem}.damaged{i or ''}{path.suffix}") for i in itertools.count())
        copy = next(name for name in names if not name.exists())
        with writing.at_once(copy) as part:
            shutil.copyfile(path, part)
        say(
            f"WARNING: {path}: {unreadable} of {len(lines)} lines cannot be read (the first is line "
            f"{steps.index(None) + 1}) and are left out; the file as it was is kept as {copy}"
        )
    both = zip([*lines, last], [*steps, _step_of(last)], strict=True)
    # step 0 is a fresh start: nothing stays
    kept = [line + b"\n" for line, k in both if k is not None and 0 < step >= k]
    with writing.at_once(path) as part:
        part.write_bytes(b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """None: the line cannot be read."""
    try:
        step, split = (json.loads(line)[key] for key in ("step", "split"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int and isinstance(split, str) else None


class Log:
    """`metrics.jsonl` in the workdir, TensorBoard beside it, and a plain line or a progress bar for the user.

    A resumed run continues the file as if it had never stopped: lines after `resume_step` are cut first.

    Args:
      workdir: the run's folder, or None to write no file.
      resume_step: the step of the checkpoint that the run continues from; 0 starts the file anew.
      tensorboard: also write TensorBoard events under `workdir/tensorboard`.
      total_steps: the length of the run, for "step 10/100" and the bar; 0 when unknown.
      quiet: print nothing (the files are written all the same).
    Raises:
      UserError: TensorBoard is asked for and tensorboardX is not installed.
    """

    def __init__(
        self,
        workdir: Path | None,
        *,
        resume_step: int = 0,
        tensorboard: bool = False,
        total_steps: int = 0,
        quiet: bool = False,
    ):
        self._file: TextIO | None = None
        self._board: Any = None
        self._bar: Progress | None = None
        self._total = total_steps
        self._quiet = quiet or not is_lead()
        if workdir is not None and is_lead():
            workdir.mkdir(parents=True, exist_ok=True)
            if tensorboard:
                self._board = _summary_writer(workdir / "tensorboard", resume_step)
            path = workdir / "metrics.jsonl"
            if path.exists():
                _keep_until(path, resume_step)
            self._file = path.open("a", encoding="utf-8")
        if not self._quiet and total_steps and _console.is_terminal:
            self._bar = Progress(*COLUMNS, console=_console)
            self._task = self._bar.add_task("", total=total_steps, completed=resume_step)
            self._bar.start()

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Records the metrics of one split ("train", "dev" or "test") at one step; on disk when it
        returns."""
        recorded = plain(values)
        if self._file is not None:
            self._file.write(
                json.dumps({"step": step, "split": split, **recorded}, ensure_ascii=False, allow_nan=False)
                + "\n"
            )
            self._file.flush()
        if self._board is not None:
            for name, value in recorded.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{split}/{name}", value, step)
        if self._quiet:
            return
        numbers = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in recorded.items()
            if not isinstance(v, list | dict)
        )
        if self._bar is not None and split == "train":
            self._bar.update(self._task, completed=step, description=numbers)
        else:
            say(f"step {step}{f'/{self._total}' if self._total else ''}  {split:5}  {numbers}")

    def close(self) -> None:
        """Ends the bar and closes the files. Twice does no harm."""
        if self._bar is not None:
            self._bar.stop()
        for stream in (self._file, self._board):
            if stream is not None:
                stream.close()
        self._bar = self._file = self._board = None


def _summary_writer(folder: Path, resume_step: int) -> Any:
    try:
        writer = importlib.import_module("tensorboardX").SummaryWriter
    except ImportError:
        raise UserError(
            f"tensorboard=True needs tensorboardX, which is not installed; {install('tensorboard')}"
        ) from None
    # Events after the resumed step belong to the part that is trained again.
    return writer(str(folder), purge_step=resume_step + 1)
