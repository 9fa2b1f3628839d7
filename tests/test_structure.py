"""The layout of design: what may import what, what lies at the top, how long the loop may be."""

import ast
import subprocess
from pathlib import Path

import pytest

from ptft.core import plugins
from ptft.core.errors import UserError

ROOT = Path(__file__).parents[1]
# From the ground up. A wing imports from the wings below it; a file from those that stand before it in its
# own wing. A plug-in that is not named here imports nothing of its wing but what is named.
WINGS = {
    "core": [
        "signals", "watchdog", "errors", "plugins", "cache", "tree", "writing", "record", "progress",
        "config", "stored", "duration", "pages", "compiled", "startup", "times", "clock", "locks", "mesh",
        "placement",
        "integrity", "checkpoint", "saver",
    ],
    "data": [
        "_sentences", "_labels", "", "tasks", "_prose", "_docstrings", "_blanks", "_paths", "_reading",
        "_tables", "_conll", "_wiki", "tfds",
    ],
    "inputs": ["hf_json", "added_tokens", "tokenizer", "tokenizer_files", "train_tokenizer"],
    "models": ["", "layers", "_bert_names", "_modernbert_names"],
    "hub": ["names", "folders", "config_json", "read", "write"],
    "objectives": ["", "_documents", "_mlm_head"],
    "freeze": ["layout", "strategies", "adapters", "adapters._bottleneck", "language", "resolve", "quantize",
    "ledger"],
    "train": [
        "pipeline", "optim", "net", "step", "cost", "run_files", "spec", "dataset", "build", "programs",
        "weights", "description", "contract", "state",
        "feature_cache", "stage", "evaluate", "schedule", "result", "ending", "train",
    ],
    "planning": ["pieces", "importance", "plans", "scaling", "knapsack", "auto"],
    "bench": [
        "stats", "ranking", "identity", "section", "problems", "protocol", "cell_result", "results",
        "features", "baselines", "forgetting", "vmapped", "vectorized", "probe", "cell", "running",
        "schedule", "runner", "search_space", "study", "tune", "setting", "expectations",
    ],
    "report": [
        "figures", "panels", "cost_panels", "format", "markdown", "ledger_page", "comparison", "statements",
        "bench_tables", "choice", "command", "advice", "bench_csv", "run_page", "bench_page", "files",
    ],
    "cli": ["tables", "texts", "predict", "exchange", "status", "training", "benchmark", "using", "main"],
    "__main__": [""],
}  # fmt: skip
# folder -> files that are no plug-ins
PLUGINS = {
    "data": ["tasks"],
    "models": ["layers"],
    "objectives": [],
    "freeze.strategies": [],
    "freeze.adapters": [],
}
TOP = {"pyproject.toml", "README.md", "LICENSE", "ptft", "configs", "tests", "launch"}
SOURCES = sorted((ROOT / "ptft").rglob("*.py"))


def files() -> list[Path]:
    """What is, or would be, in the repository."""
    out = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [Path(line) for line in out.splitlines() if (ROOT / line).exists()]


def module(path: Path) -> tuple[str, ...]:
    """ptft/data/files.py -> ("data", "files"); a package is its `__init__`."""
    parts = path.relative_to(ROOT / "ptft").with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module(p) for p in SOURCES}


def imports(path: Path) -> set[tuple[str, ...]]:
    """The modules of ptft that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        for parts in (tuple(n.split(".")) for n in names):
            if parts[0] == "ptft":
                inner = parts[1:]
                while inner and inner not in MODULES:  # a name inside of a module
                    inner = inner[:-1]
                found.add(inner)
    return found - {()}


def wing_and_floor(own: tuple[str, ...]) -> tuple[int, float]:
    """Where a module stands: its wing, and its place in the wing."""
    wing, name = own[0], ".".join(own[1:])
    assert wing in WINGS, f"{wing} has no place in the order of wings"
    if name not in WINGS[wing]:
        folder = ".".join(own[:-1])
        assert folder in PLUGINS or not name, f"{'.'.join(own)} has no place in its wing"
        # A plug-in stands above what its folder holds for it, and below what comes after the folder.
        above = [
            i
            for i, n in enumerate(WINGS[wing])
            if (f"{wing}.{n}." if n else f"{wing}.").startswith(f"{folder}.")
        ]
        return list(WINGS).index(wing), (
            max(above) + 0.5 if wing != folder else len(WINGS[wing])
        ) if name else -1
    return list(WINGS).index(wing), WINGS[wing].index(name)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_below_it(path):
    own = module(path)
    if not own:
        assert not imports(path)
        return
    for other in imports(path):
        assert wing_and_floor(other) < wing_and_floor(own), (
            f"{'.'.join(own)} imports {'.'.join(other)}, which stands above it"
        )


def test_every_wing_and_file_of_the_order_exists():
    assert {m[0] for m in MODULES if m} == set(WINGS)
    named = {(wing, *filter(None, name.split("."))) for wing, names in WINGS.items() for name in names}
    assert named <= MODULES


def test_the_import_check_sees_an_import():
    assert {("core", "config"), ("core", "errors")} <= imports(ROOT / "ptft" / "train" / "build.py")
    assert ("models", "layers") in imports(ROOT / "ptft" / "objectives" / "classify.py")


def test_the_top_level_is_exactly_the_layout():
    assert {p.parts[0] for p in files() if not p.parts[0].startswith(".")} == TOP


def test_no_folder_is_deeper_than_five():
    assert max(len(p.parts) for p in files()) <= 5


def test_the_loop_stays_short_and_plain():
    source = (ROOT / "ptft" / "train" / "train.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    nodes = list(ast.walk(ast.parse(source)))
    classes = [n for n in nodes if isinstance(n, ast.ClassDef)]
    assert all([ast.unparse(b) for b in c.bases] == ["NamedTuple"] for c in classes), "a class in train.py"
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef)]
    assert max(n.end_lineno - n.lineno for n in functions) < 60, "a function that does not fit a screen"


@pytest.mark.parametrize("package", PLUGINS)
def test_every_plug_in_is_listed_by_its_name(package):
    folder = ROOT / "ptft" / package.replace(".", "/")
    there = {
        p.stem for p in folder.glob("*.py") if not p.name.startswith("_") and p.stem not in PLUGINS[package]
    }
    assert set(plugins.names(package)) == there
    for name in there:
        assert plugins.get(package, name).__name__ == f"ptft.{package}.{name}"
    with pytest.raises(UserError) as e:
        plugins.get(package, "zzz")
    assert all(name in str(e.value) for name in there)


EXPORTS = {
    "data": ["open"], "models": ["SPEC", "build", "ANATOMY"], "objectives": ["SPEC", "build"],
    "freeze.adapters": ["Kind"],
}  # fmt: skip


@pytest.mark.parametrize("package", plugins.EXPORTS)
def test_every_plug_in_exports_what_its_folder_says(package):
    for name in plugins.names(package):
        assert all(hasattr(plugins.get(package, name), what) for what in plugins.EXPORTS[package]), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_conditional_expression_lies_in_another(path):
    found = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.IfExp)]
    assert not [
        n.lineno for n in found if any(isinstance(part, ast.IfExp) for part in (n.body, n.orelse, n.test))
    ]
