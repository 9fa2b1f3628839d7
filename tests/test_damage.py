"""Any file of a run or of a benchmark, damaged anyhow: it is said, or what is read is the same.

In this process, so that thousands of tries take minutes: `bash launch/test.sh --faults`.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flow
import jax
import numpy as np
import pytest
import test_bench

from ptft.bench import results
from ptft.core import checkpoint, integrity
from ptft.core.errors import UserError
from ptft.report import figures
from ptft.train import build, description, spec, state, train

MODEL = {"layers": 1, "hidden": 64, "max_len": 32, "dropout": 0.1}
HARMS = ("flip",) * 6 + ("cut", "cut", "delete", "empty")


class Read(NamedTuple):
    """What a command made of a folder, and what it said of it."""

    made: Any  # None: it was refused
    said: str


Reader = Callable[[], Read]


def harm(file: Path, rng: random.Random) -> str:
    """Damages a file; how."""
    whole, how = file.read_bytes(), rng.choice(HARMS)
    if how == "delete" or not whole:
        file.unlink()
        return "deleted"
    at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
    flipped = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    file.write_bytes({"flip": flipped, "cut": whole[:at], "empty": b""}[how])
    return f"{how} at {at}: {whole[max(at - 20, 0) : at + 5]!r}, bit {bit}"


def silent(
    root: Path, files: list[Path], readers: dict[str, Reader], many: int, gone: Mapping[str, str] = {}
) -> list[str]:
    """Damages each file in turn, so many times in all; those that a reader took for whole, and made something
    else of. `gone`: what a page says where a file, or one of a folder, is not there."""
    clean = {name: read() for name, read in readers.items()}
    assert all(read.made is not None for read in clean.values()), clean
    rng, wrong = random.Random(0), []
    for i in range(many):
        file = files[i % len(files)]
        whole, how = file.read_bytes(), harm(file, rng)
        for name, read in readers.items():
            got = read()
            said = (file.name if file.parent == root else str(file.parent)) in got.said
            said |= got.made is None and str(root) in got.said
            if how == "deleted" and (text := gone.get(file.name) or gone.get(file.parent.name)):
                said |= text in str(got.made)
            if got.made != clean[name].made and not said:
                wrong.append(f"{name}: {file} {how}: {got.said[-300:]!r}")
        file.write_bytes(whole)
    assert {name: read() for name, read in readers.items()} == clean
    return wrong


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("damage")
    values = flow.finetuning(folder, Path(), init_from="", model=MODEL, freeze="full")
    flow.run(values, folder / "run")
    return folder, values


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "png", lambda panels: b"")
    monkeypatch.setattr(figures, "svg", lambda panel: "")


def verb(capsys: pytest.CaptureFixture[str], *args: object, to: Path | None = None) -> Read:
    shutil.rmtree(to or "nothing", ignore_errors=True)
    capsys.readouterr()
    code = flow.ptft(*args)
    out, err = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in err
    return Read(None if code else (out, flow.listing(to) if to else {}), err)


def resumer(run: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Reader:
    """A run that goes on from the newest step that can be trusted, which must be to the bit what it was."""
    built = build.build(spec.resolve(values))
    header = description.header(built)

    def at(step: int) -> list[bytes]:
        got = state.resume(built, run, step, header)
        return [np.asarray(x).tobytes() for x in jax.tree.leaves((got.train_state, got.frozen, got.progress))]

    whole = {step: at(step) for step in integrity.steps(run, integrity.RESUME)}

    def read() -> Read:
        capsys.readouterr()
        try:
            if (step := checkpoint.newest(run)) is None:
                return Read(None, capsys.readouterr().err)
            same = at(step) == whole[step]
        except UserError as e:
            return Read(None, str(e))
        err = capsys.readouterr().err
        return Read((step, same), err if same else "")  # nothing excuses other numbers

    return read


def finisher(run: Path, values: dict[str, Any]) -> Reader:
    """The result of a finished run; without the file, it is computed again."""
    config, whole = spec.resolve(values), train.finished(spec.resolve(values), run)

    def read() -> Read:
        try:
            return Read(whole if (got := train.finished(config, run)) is None else got, "")
        except UserError as e:
            return Read(None, str(e))

    return read


def everything(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file())


@pytest.mark.promise("R7")
@pytest.mark.faults
@pytest.mark.parametrize("which", [("checkpoints",), ("best", "manifests")], ids=lambda which: which[0])
def test_no_damage_of_a_step_is_silent(home, tmp_path, capsys, tries, which):
    folder, values = home
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    readers = {"resume": resumer(run, values, capsys)}
    if "best" in which:  # which no one predicts without
        readers["predict"] = lambda: verb(capsys, "predict", "--workdir", run, "--text", "good", "--json")
    files = [p for name in which for p in everything(run / name)]
    wrong = silent(run, files, readers, 400)
    tries(400, len(wrong))
    assert not wrong, "\n".join(wrong)


@pytest.mark.promise("R7")
@pytest.mark.faults
def test_no_damage_of_what_a_run_says_of_itself_is_silent(home, tmp_path, capsys, tries, undrawn):
    folder, values = home
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    readers = {
        "train": finisher(run, values),
        "predict": lambda: verb(capsys, "predict", "--workdir", run, "--text", "good alpha", "--json"),
        "report": lambda: verb(capsys, "report", run, "--to", tmp_path / "out", to=tmp_path / "out"),
    }
    files = [*run.glob("*.json"), *everything(run / "tokenizer")]
    wrong = silent(run, files, readers, 450, {"result.json": "Not finished"})
    tries(450, len(wrong))
    assert not wrong, "\n".join(wrong)


@pytest.mark.promise("R7")
@pytest.mark.faults
def test_no_damage_of_a_benchmark_is_silent(tmp_path, capsys, tries, undrawn):
    folder = tmp_path / "bench"
    test_bench.bench(folder, test_bench.Train(), test_bench.config(seeds=[0]))
    results.write_json(folder / "bench.json", test_bench.json.loads((folder / "bench.json").read_text()))
    readers = {
        "report": lambda: verb(capsys, "report", folder, "--to", tmp_path / "out", to=tmp_path / "out")
    }
    gone = {
        "cells": "1 of 2 cells have not run yet",
        "bench.json": "| head ",
    }  # whose numbers are in the cells
    files = [folder / "bench.json", *sorted((folder / "cells").glob("*.json"))]
    wrong = silent(folder, files, readers, 300, gone)
    tries(300, len(wrong))
    assert not wrong, "\n".join(wrong)
