"""The layout of design: what may import what, what lies at the top, how long the loop may be."""

import ast
import subprocess
from pathlib import Path

import pytest

from ptft import plugins
from ptft.errors import UserError

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors", "plugins", "cache", "tree", "record", "config", "compiled", "startup",
    "mesh", "added_tokens", "tokenizer", "data", "packing", "models", "objectives", "pipeline",
    "freeze", "adapters", "thin", "optim", "step", "cost", "ledger", "checkpoint", "hub_names", "hub", "tasks", "build", "plans",
    "signals", "auto", "prefix", "state", "train", "bench", "tune", "report", "exchange", "tables", "texts", "predict", "__main__",
]  # fmt: skip
TOP = {"pyproject.toml", "README.md", "LICENSE", "ptft", "configs", "tests", "launch"}
SOURCES = sorted((ROOT / "ptft").rglob("*.py"))


def files() -> list[Path]:
    """What is, or would be, in the repository."""
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_above_it(path):
    own = module(path)
    if not own:
        assert not imports(path)
        return
    assert own[0] in ORDER, f"{path} has no place in the order of imports"
    for other in imports(path):
        if other[0] != own[0]:
            assert ORDER.index(other[0]) < ORDER.index(own[0]), f"{'.'.join(own)} imports {'.'.join(other)}, which stands below it"
        elif len(own) == 1:
            raise AssertionError(f"the package {own[0]} imports its own {'.'.join(other)}")
        else:  # a sibling: not in a circle
            assert own not in imports(next(p for p in SOURCES if module(p) == other)), f"{own} and {other} import each other"


def test_the_import_check_sees_an_import():
    assert {("config",), ("errors",)} <= imports(ROOT / "ptft" / "build.py")
    assert ("models", "layers") in imports(ROOT / "ptft" / "objectives" / "classify.py")


def test_the_top_level_is_exactly_the_layout():
    assert {p.parts[0] for p in files() if not p.parts[0].startswith(".")} == TOP


def test_no_folder_is_deeper_than_five():
    assert max(len(p.parts) for p in files()) <= 5


def test_the_loop_stays_short_and_plain():
    source = (ROOT / "ptft" / "train.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    nodes = list(ast.walk(ast.parse(source)))
    classes = [n for n in nodes if isinstance(n, ast.ClassDef)]
    assert all([ast.unparse(b) for b in c.bases] == ["NamedTuple"] for c in classes), "a class in train.py"
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef)]
    assert max(n.end_lineno - n.lineno for n in functions) < 60, "a function that does not fit a screen"


@pytest.mark.parametrize("package", ["data", "models", "objectives"])
def test_every_plug_in_is_listed_by_its_name(package):
    there = {p.stem for p in (ROOT / "ptft" / package).glob("*.py") if not p.name.startswith("_") and p.stem != "layers"}
    assert set(plugins.names(package)) == there
    for name in there:
        assert plugins.get(package, name).__name__ == f"ptft.{package}.{name}"
    with pytest.raises(UserError) as e:
        plugins.get(package, "zzz")
    assert all(name in str(e.value) for name in there)


EXPORTS = {"data": ["open"], "models": ["SPEC", "build", "GROUPS"], "objectives": ["SPEC", "build"]}


@pytest.mark.parametrize("package", EXPORTS)
def test_every_plug_in_exports_what_its_folder_says(package):
    for name in plugins.names(package):
        assert all(hasattr(plugins.get(package, name), what) for what in EXPORTS[package]), name
