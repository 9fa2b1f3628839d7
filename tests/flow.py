"""Tiny data, configs and runs that the flow tests share."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ptft.cli.main import main
from ptft.core import checkpoint, integrity
from ptft.core import config as configs
from ptft.train import pipeline, spec, train

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "good", "bad"]
TAGS = {"alpha": "B-PER", "beta": "I-PER", "gamma": "B-LOC", "delta": "I-LOC"}


def sentence(rng: random.Random, words: int = 6) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def documents(path: Path, n: int = 24, seed: int = 0) -> Path:
    """One sentence a line, a blank line between documents."""
    rng = random.Random(seed)
    path.write_text(
        "\n\n".join(
            "\n".join(sentence(rng, rng.randint(3, 8)) for _ in range(rng.randint(2, 5))) for _ in range(n)
        )
        + "\n"
    )
    return path


def table(path: Path, n: int = 20, seed: int = 0, header: str = "sentence\tlabel") -> Path:
    """A tsv file with two labels, 0 and 1, and as many texts as the header says."""
    rng = random.Random(seed)
    texts = header.count("\t")
    rows = ["\t".join([*(sentence(rng) for _ in range(texts)), str(i % 2)]) for i in range(n)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with dotted keys changed."""
    for key, value in changes.items():
        configs.set_key(values, key, value)
    return values


def pretraining(folder: Path, **changes: Any) -> dict[str, Any]:
    """Eight steps of an epoch of about six; lines, evaluations and checkpoints fall on different steps."""
    values: dict[str, Any] = {
        "batch": 8, "train_for": "8 steps", "log_every": "2 steps", "eval_every": "3 steps",
        "save_every": "4 steps", "warmup": "2 steps",
        "model": {"layers": 1, "hidden": 64, "max_len": 32, "dropout": 0.1},
        "objective": {"name": "mlm_nsp", "seq_len": 16},
        "optim": {"lr": 1e-3, "bias_correction": False},
        "data": {"train": f"files:{folder}/docs.txt", "dev": f"files:{folder}/docs_dev.txt",
        "vocab_size": 120},
    }  # fmt: skip
    if not (folder / "docs.txt").exists():
        documents(folder / "docs.txt")
        documents(folder / "docs_dev.txt", n=6, seed=1)
    return changed(values, changes)


def finetuning(folder: Path, init: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "batch": 8, "train_for": "8 steps", "log_every": "2 steps", "eval_every": "3 steps",
        "save_every": "4 steps",
        "init_from": str(init), "freeze": "top-1",
        "objective": {"name": "classify", "seq_len": 16},
        "optim": {"lr": 1e-3},
        "data": {split: f"files:{folder}/{split}.tsv" for split in ("train", "dev",
        "test")} | {"label": "label"},
    }  # fmt: skip
    if not (folder / "train.tsv").exists():
        for seed, (name, n) in enumerate({"train": 20, "dev": 10, "test": 11}.items()):
            table(folder / f"{name}.tsv", n, seed)
    return changed(values, changes)


def tagged(path: Path, n: int, seed: int) -> Path:
    """Some words are names, the others are none."""
    rng = random.Random(seed)
    texts = [rng.choices(WORDS[:8], k=rng.randint(3, 9)) for _ in range(n)]
    path.write_text(
        "\n".join("".join(f"{word}\t{TAGS.get(word, 'O')}\n" for word in words) for words in texts)
    )
    return path


def tagging(folder: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "batch": 16, "train_for": "20 steps", "log_every": "2 steps", "eval_every": "10 steps",
        "save_every": "0",
        "model": {"layers": 1, "hidden": 64, "max_len": 16, "dropout": 0.0},
        "objective": {"name": "tag", "seq_len": 12},
        "optim": {"lr": 3e-3},
        "data": {split: f"files:{folder}/{split}.conll" for split in ("train", "dev")} | {"vocab_size": 100},
    }  # fmt: skip
    if not (folder / "train.conll").exists():
        tagged(folder / "train.conll", 64, 0)
        tagged(folder / "dev.conll", 21, 1)
    return changed(values, changes)


def run(values: dict[str, Any], workdir: Path) -> dict[str, Any]:
    return train.run(spec.resolve(values), workdir, quiet=True)


def pretrained(folder: Path) -> Path:
    """A finished pretraining run in `folder/pre`."""
    run(pretraining(folder), folder / "pre")
    return folder / "pre"


def page(path: Path, values: dict[str, Any]) -> str:
    """The values as a config file."""
    path.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config(arg=''):\n    return "
        f"ConfigDict({values!r})\n"
    )
    return str(path)


def ptft(*args: Any) -> int:
    """The command line, in this process."""
    return main([str(a) for a in args])


def flipped(file: Path, many: int) -> Iterator[bool]:
    """The file with one of its bits flipped, at that many places; gives whether its values are as many and of
    the same types as before. Afterwards it is as it was."""
    whole, rng = file.read_bytes(), random.Random(file.name)
    for _ in range(many):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        yield _types(damaged) == _types(whole)
    file.write_bytes(whole)


def _types(text: bytes) -> Any:
    """Of the values in a JSON text, whatever their keys."""

    def of(value: Any) -> Any:
        return [of(x) for x in value] if isinstance(value, list) else type(value)

    try:
        return of(json.loads(text, object_pairs_hook=lambda pairs: [x for _, x in pairs]))
    except ValueError:
        return None


def at_batch(monkeypatch: pytest.MonkeyPatch, k: int, action: Callable[[], Any]) -> None:
    """Does something just before step `k`."""
    original = pipeline.train_batches

    def batches(rows: Any, used: np.ndarray, seed: int, batch: int, start: int, stop: int) -> Iterator[Any]:
        for number, made in enumerate(original(rows, used, seed, batch, start, stop), start + 1):
            if number == k:
                action()
            yield made

    monkeypatch.setattr(pipeline, "train_batches", batches)


def on_disk() -> None:
    """Waits for what is being saved beside the loop."""
    for thread in threading.enumerate():
        if thread.name == "ptft.save":
            thread.join()


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def state(workdir: Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint, parameters and optimizer, byte by byte."""
    folder = integrity.step_folder(workdir, "checkpoints", step)
    out = {}
    for item in ("params", "opt"):
        stored = checkpoint._stored(folder, item)
        want = {n: checkpoint._abstract(jax.ShapeDtypeStruct(x.shape, x.dtype)) for n, x in stored.items()}
        out |= {
            f"{item} {name}": np.asarray(x).tobytes()
            for name, x in checkpoint._read(folder, item, want).items()
        }
    return out


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return (
        {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        if folder.exists()
        else {}
    )
