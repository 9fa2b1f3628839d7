"""Plug-ins from a folder of one's own: the README's strategy and adapter, and a toy model, through every
verb."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flow
import pytest

ROOT = Path(__file__).parents[1]


def example() -> dict[str, str]:
    """The README's files by their path."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text[text.index("## Add your own") :].split("```python\n")[1].split("```")[0]
    parts = re.split(r"^# mine/(\S+):.*\n", code, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins") / "mine"
    shutil.copytree(ROOT / "tests" / "toy", folder)
    for name, code in example().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    return folder


def ptft(mine: Path, *args: object) -> str:
    # as users have it
    env = {
        **os.environ,
        "PTFT_PLUGINS": str(mine),
        "PYTHONPATH": str(ROOT),
        "JAX_NUMPY_RANK_PROMOTION": "allow",
    }
    done = subprocess.run(
        [sys.executable, "-m", "ptft", *map(str, args)], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def values(folder: Path, **changes: object) -> dict[str, object]:
    own = {
        "init_from": "",
        "model": {"name": "bag"},
        "devices": 1,
        "best": "last",
        "eval_every": "0",
        **changes,
    }
    return flow.finetuning(folder, Path(), **own)  # type: ignore[arg-type]


def test_a_toy_model_adapter_and_strategy_go_through_every_verb(mine, tmp_path):
    page = flow.page(tmp_path / "page.py", values(tmp_path))
    rows = json.loads(
        ptft(
            mine,
            "plan",
            "--config",
            page,
            "--freeze",
            "edges-1",
            "--freeze",
            "shift",
            "--probe",
            "0",
            "--json",
        )
    )["rows"]
    full, hidden = 2 * (16 * 16 + 16), 16
    # and the head
    assert [r["trainable"] for r in rows] == [full + 2 * hidden + 2, 2 * hidden + 2 * hidden + 2]

    one = flow.page(tmp_path / "one.py", values(tmp_path, freeze="shift+edges-1"))
    ptft(mine, "train", "--config", one, "--workdir", tmp_path / "run")
    ledger = json.loads((tmp_path / "run/freeze_ledger.json").read_text())
    moved = {r["name"] for r in ledger["rows"] if r["verdict"] == "moved"}
    assert ledger["holds"] and {"adapter/block_0/shift/bias", "backbone/block_1/kernel"} <= moved
    assert "backbone/embeddings/embedding" not in moved
    ptft(mine, "report", tmp_path / "run")

    strategies = [{"name": name, "freeze": name, "lr": 1e-2} for name in ("full", "edges-1", "shift")]
    bench = flow.page(
        tmp_path / "bench.py",
        values(tmp_path, bench={"strategies": strategies, "seeds": [0], "repeat": False}),
    )
    ptft(mine, "bench", "--config", bench, "--workdir", tmp_path / "bench")
    cells = [json.loads(file.read_text()) for file in (tmp_path / "bench/cells").glob("*.json")]
    done = {c["strategy"]: c for c in cells if c.get("test")}
    assert {"full", "edges-1", "shift"} <= set(done) and not any(c.get("error") for c in cells)

    plain = flow.page(tmp_path / "plain.py", values(tmp_path, freeze="edges-1"))
    ptft(mine, "train", "--config", plain, "--workdir", tmp_path / "plain")
    ptft(mine, "export", "--workdir", tmp_path / "plain", "--to", tmp_path / "out")
    ptft(mine, "import", tmp_path / "out", "--workdir", tmp_path / "back")
    texts = ["--text", "alpha beta good", "--text", "bad gamma", "--json"]
    there = [
        json.loads(line)
        for line in ptft(mine, "predict", "--workdir", tmp_path / "plain", *texts).splitlines()
    ]
    back = [
        json.loads(line)
        for line in ptft(mine, "predict", "--workdir", tmp_path / "back", *texts).splitlines()
    ]
    assert [r["label"] for r in there] == [r["label"] for r in back]
    for a, b in zip(there, back, strict=True):
        assert list(a["probabilities"].values()) == pytest.approx(list(b["probabilities"].values()), abs=1e-6)


def test_what_cannot_be_merged_says_so(mine, tmp_path):
    page = flow.page(tmp_path / "page.py", values(tmp_path, freeze="shift", train_for="1 steps"))
    ptft(mine, "train", "--config", page, "--workdir", tmp_path / "run")
    with pytest.raises(AssertionError, match="shift cannot be merged into the backbone's weights"):
        ptft(mine, "export", "--workdir", tmp_path / "run", "--to", tmp_path / "out", "--merge")


def test_the_example_is_short():
    assert sum(bool(line.strip()) for code in example().values() for line in code.splitlines()) <= 25
