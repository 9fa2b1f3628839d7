"""Plug-ins from a folder of one's own: the README's strategy and adapter, and a toy model, through every
verb."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flow
import pytest
import tiny

from ptft import models
from ptft.core import plugins
from ptft.core.errors import UserError
from ptft.freeze import adapters, language, resolve, strategies
from ptft.models import bert

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
    env = {
        **os.environ,
        "PTFT_PLUGINS": str(mine),
        "PYTHONPATH": str(ROOT),
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

    entries = [{"name": name, "freeze": name, "lr": 1e-2} for name in ("full", "edges-1", "shift", "head")]
    bench = flow.page(
        tmp_path / "bench.py",
        values(tmp_path, bench={"strategies": entries, "seeds": [0], "repeat": False}),
    )
    ptft(mine, "bench", "--config", bench, "--workdir", tmp_path / "bench")
    cells = [json.loads(file.read_text()) for file in (tmp_path / "bench/cells").glob("*.json")]
    done = {c["strategy"]: c for c in cells if c.get("test")}
    assert {"full", "edges-1", "shift", "head"} <= set(done) and not any(c.get("error") for c in cells)

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


def test_what_cannot_be_merged_says_so_and_a_run_knows_its_plug_ins(mine, tmp_path):
    page = flow.page(tmp_path / "page.py", values(tmp_path, freeze="shift", train_for="1 steps"))
    run = ("--workdir", tmp_path / "run")
    ptft(mine, "train", "--config", page, *run)
    with pytest.raises(AssertionError, match="shift cannot be merged into the backbone's weights"):
        ptft(mine, "export", *run, "--to", tmp_path / "out", "--merge")
    other = shutil.copytree(mine, tmp_path / "other")
    (other / "models" / "bag.py").unlink()
    with pytest.raises(AssertionError, match=r"was made with models/bag\.py of its author's own; PTFT"):
        ptft(other, "predict", *run, "--text", "good")


def test_a_plug_in_that_changed_is_known(own, tmp_path):
    own(STRATEGY, HEADER)
    before = plugins.used()
    assert plugins.check(before) == [] and list(before) == [STRATEGY]
    own(STRATEGY, HEADER + "# more\n")
    assert plugins.check(before) == [STRATEGY]
    (tmp_path / STRATEGY).unlink()
    with pytest.raises(UserError, match=f"the run was made with {STRATEGY} of its author's own"):
        plugins.check(before)


def test_a_model_that_gives_too_little_is_told_what_is_read(monkeypatch):
    whole = bert.Bert.__call__
    monkeypatch.setattr(
        bert.Bert, "__call__", lambda self, *a, **k: {"hidden": whole(self, *a, **k)["hidden"]}
    )
    with pytest.raises(UserError, match="the objective reads 'pooled' of the model, which gives hidden"):
        tiny.net().create(0)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a file of one's own, in this process; what it has changed is put back."""
    folders = [importlib.import_module(f"ptft.{package}") for package in plugins.EXPORTS]
    paths, before = [list(f.__path__) for f in folders], set(sys.modules)
    tables = [(table, dict(table)) for table in (strategies.TRAINS, strategies.RATES, strategies.CHANGES)]
    monkeypatch.setenv("PTFT_PLUGINS", str(tmp_path))

    def forget():
        for f in (plugins._names, plugins._check, adapters._kinds, language._of_text):
            f.cache_clear()

    def write(name, code):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
        forget()

    yield write
    for folder, path in zip(folders, paths, strict=True):
        folder.__path__[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    for table, old in tables:
        table.clear()
        table.update(old)
    forget()


HEADER = "from ptft.freeze.strategies import changes, rates, trains\n\n\n"
STRATEGY, KIND = "freeze/strategies/mine.py", "freeze/adapters/mine.py"
MISTAKES = {
    (STRATEGY, "def ("): r"mine.py:1 cannot be imported: SyntaxError",
    (STRATEGY, "import nosuch"): r"mine.py cannot be imported: ModuleNotFoundError: No module named",
    (KIND, "x = 1"): r"mine.py has no Kind; ptft/freeze/adapters/__init__.py says what for",
    (KIND, "class Kind: pass"): r"adapters/mine.py: its Kind has no grammar and no order",
    ("freeze/adapters/lora.py", "x = 1"): r"lora.py has the name of a file of ptft's own; give it another",
    ("freeze/adapters/top.py", "class Kind: grammar, order = 'top', 9"): r"'top' is a strategy and a kind",
    (STRATEGY, HEADER + "@trains('top-K')\ndef f(model, k): ..."): r"'top-K' is registered by ptft\.freeze",
    (STRATEGY, HEADER + "@trains('mine')\ndef f(model): return {'nix'}"): r"mine returns nix; expected a set",
    (STRATEGY, HEADER + "@trains('mine')\ndef f(model): ..."): r"mine returns NoneType; expected a set",
    (STRATEGY, HEADER + "@changes('mine')\ndef f(*_): return []"): r"mine gives no phase",
    (
        STRATEGY,
        HEADER + "@trains('mine-DEPTH')\ndef f(model, k): ...",
    ): r"DEPTH is no word of a grammar; there is K",
    (
        KIND,
        "class Kind: grammar, order = 'other', 9",
    ): r"its grammar is 'other'; expected one that begins with",
    ("wrong/mine.py", ""): r"holds 'wrong'; expected one or more of data, models, objectives",
}


@pytest.mark.parametrize(("file", "says"), MISTAKES.items())
def test_a_mistake_in_a_plug_in_is_said_with_its_file(own, file, says):
    own(*file)
    with pytest.raises(UserError, match=says):
        flow_phases("mine")


def flow_phases(strategy):
    shapes, anatomy = tiny.net().shapes(), models.anatomy("bert")
    return resolve.phases(language.parse(strategy), anatomy, shapes, strategies.Span(10, int, 0))


def test_rates_that_ascend_are_refused(own):
    own(
        "freeze/strategies/mine.py",
        HEADER + "@rates('down')\ndef f(model): return dict.fromkeys(model.params, -1.0)",
    )
    with pytest.raises(UserError, match="the learning-rate factor -1; expected one above 0"):
        flow_phases("full@down")


def test_a_folder_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setenv("PTFT_PLUGINS", "/no/such/folder")
    with pytest.raises(UserError, match="PTFT_PLUGINS=/no/such/folder is no folder"):
        plugins.names("models")


def test_the_example_is_short():
    assert sum(bool(line.strip()) for code in example().values() for line in code.splitlines()) <= 25
