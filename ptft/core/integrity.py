"""Which steps of a run's folder can be trusted: a manifest beside each has the size and the SHA-256 of every
file of it.

Orbax restores a flipped bit without a word, so a step counts only once its manifest is written (after the
commit) and as long as every file still agrees with it. A step that does not is named and passed over for the
one before.
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ptft.core.errors import UserError, did_you_mean

RESUME, BEST = "checkpoints", "best"


def step_folder(workdir: Path, kind: str, step: int) -> Path:
    return Path(workdir).absolute() / kind / str(step)  # Orbax wants absolute paths


def manifest_file(workdir: Path, kind: str, step: int) -> Path:
    return Path(workdir) / "manifests" / f"{kind}-{step}.json"


def steps(workdir: Path, kind: str) -> list[int]:
    """The committed steps, newest first."""
    return sorted(
        (int(p.name) for p in (Path(workdir) / kind).glob("*") if p.name.isdecimal() and p.is_dir()),
        reverse=True,
    )


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _digest(path: Path) -> list[Any]:
    with path.open("rb") as f:
        return [path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest()]


def make_manifest(step: int, folder: Path) -> dict[str, Any]:
    """What the manifest of a step must hold, whose files are in `folder`."""
    return {"step": step, "files": {name: _digest(folder / name) for name in _files(folder)}}


def _damage(workdir: Path, kind: str, step: int) -> str | None:
    """The file that makes a step untrustworthy and why, or None when all agree with the manifest."""
    folder, manifest = step_folder(workdir, kind, step), manifest_file(workdir, kind, step)
    if not manifest.exists():
        return f"{manifest} is missing (the save was interrupted)"
    try:
        listed = json.loads(manifest.read_bytes())
        files, same_step = dict(listed["files"]), listed["step"] == step
    except (ValueError, KeyError, TypeError):
        return f"{manifest} is damaged"
    if not files or not same_step:
        return f"{manifest} is damaged"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing, which {manifest} lists"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes, {manifest} says {size}"
        if _digest(path)[1] != digest:
            return f"{path} was changed after it was written (its SHA-256 is not the one in {manifest})"
    return None


def newest(workdir: Path, kind: str, quiet: bool = False) -> int | None:
    """The newest intact step; each damaged one is reported, unless `quiet`, and skipped."""
    from ptft.core import record  # here, as it loads jax, and who only looks needs none

    for step in steps(workdir, kind):
        damage = _damage(workdir, kind, step)
        if damage is None:
            return step
        if quiet:
            continue
        record.note(
            f"WARNING: step {step} in {Path(workdir) / kind} cannot be trusted and is skipped: {damage}"
        )
    return None


def damages(workdir: Path, kind: str) -> str:
    """What is wrong with each step of a kind."""
    return "; ".join(why for step in steps(workdir, kind) if (why := _damage(workdir, kind, step)))


def tensors(workdir: Path) -> int | None:
    """How many parameters a run's newest step lists, which takes no time to read; None: it lists none."""
    for kind in (BEST, RESUME):
        for step in steps(workdir, kind)[:1]:
            listed = step_folder(workdir, kind, step) / "params" / "_METADATA"
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                return len(json.loads(listed.read_bytes())["tree_metadata"])
    return None


def trust(workdir: Path, kind: str, step: int) -> None:
    """Raises UserError unless a step is there and intact."""
    if step not in steps(workdir, kind):
        there = ", ".join(map(str, steps(workdir, kind))) or "none"
        raise UserError(f"there is no step {step} in {Path(workdir) / kind}; steps there: {there}")
    damage = _damage(workdir, kind, step)
    if damage is not None:
        raise UserError(f"step {step} in {Path(workdir) / kind} cannot be trusted: {damage}")


def remove(workdir: Path, kind: str, steps: set[int]) -> None:
    """Deletes steps with their manifests."""
    for step in steps:
        # first, so that half a folder is never trusted
        manifest_file(workdir, kind, step).unlink(missing_ok=True)
        shutil.rmtree(step_folder(workdir, kind, step), ignore_errors=True)


def clear_tmp(workdir: Path) -> None:
    """Removes what an interrupted save left behind; Orbax keeps it, and a full disk stays full. Of files that
    are written at once, too: only one process writes into this folder."""
    for path in (*Path(workdir).glob(".*.tmp"), *Path(workdir).glob("*/.*.tmp")):
        path.unlink(missing_ok=True)
    for kind in (RESUME, BEST):
        for pattern in ("*.orbax-checkpoint-tmp*", "*.new"):
            for path in (Path(workdir) / kind).glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


def nothing(workdir: Path) -> str:
    """What to say of a folder without a step to trust."""
    workdir = Path(workdir)
    if not workdir.is_dir():
        beside = [p.name for p in workdir.absolute().parent.glob("*") if p.is_dir()]
        return f"no folder {workdir}; {did_you_mean(workdir.name, beside)}"
    there = ", ".join(sorted(p.name for p in workdir.iterdir())) or "nothing"
    return (
        f"no usable checkpoint in {workdir}: expected a run's folder with {BEST}/ or {RESUME}/; it holds: "
        f"{there}"
    )
