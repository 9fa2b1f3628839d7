"""The README and what it hands on to are true: their commands parse, their pages load, the tree is the
tree."""

import re
import shlex
from pathlib import Path

import pytest

from ptft.cli.main import parser
from ptft.core import pages
from ptft.freeze import adapters, strategies
from ptft.train import build, spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACES = ("README.md", "configs/README.md", "ptft/bench/README.md", ".readme/results.md")
DOCS = {place: (ROOT / place).read_text(encoding="utf-8") for place in PLACES}


def blocks(text: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", text, re.S)


def commands(text: str) -> list[list[str]]:
    """Those in blocks, and those in a sentence."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(ptft (?:train|plan|bench|report|eval|predict) [^`]*)`", text)
    return [words for line in [*lines, *inline] if (words := shlex.split(line, comments=True))]


COMMANDS = [command for text in DOCS.values() for command in commands(text)]


def test_the_first_block_is_the_two_commands():
    assert [shlex.split(line, comments=True) for line in blocks(README)[0].splitlines()] == [
        ["bash", "launch/quickstart.sh"],
        ["bash", "launch/test.sh"],
    ]
    assert (ROOT / "launch/quickstart.sh").is_file() and (ROOT / "launch/test.sh").is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "ptft"], ids=lambda c: " ".join(c)[:60])
def test_a_command_parses_and_its_page_loads(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    args, rest = parser().parse_known_args(command[1:])
    assert all(r.startswith("--config.") and "=" in r for r in rest), rest
    if hasattr(args, "config"):
        values = pages.load(args.config)
        pages.override(values, [r.removeprefix("--config.") for r in rest])


def test_the_strategies_are_those_that_exist():
    text = DOCS["configs/README.md"]
    table = text[text.index("| strategy | trains") :].split("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    strategies.load()
    assert set(strategies.TRAINS) <= set(named)
    assert all(any(kind in n for n in named) for kind in (*adapters.kinds(), "gradual", "lisa"))
    model = {"layers": 6, "hidden": 64, "max_len": 32}
    values = {
        "batch": 8,
        "model": model,
        "objective": {"name": "classify", "seq_len": 16},
        "data": {"vocab_size": 100, "dev": "files:x"},
    }
    for name in (n for n in named if not re.search("[A-Z]", n) and not n.startswith("[")):
        assert build.outline(spec.resolve({**values, "freeze": name})).phases, name


def test_the_tree_is_the_tree():
    """Each wing, and `configs` and `launch`, with the files in it."""
    block = README[README.index("## The tree") :].split("```")[1]
    listed: dict[str, set[str]] = {}
    for line in block.strip("\n").splitlines():
        name, _, about = line.partition("  ") if line[0] != " " else line[2:].partition("  ")
        if name.endswith("/"):
            folder = name.rstrip("/") if line[0] != " " else f"ptft/{name.rstrip('/')}"
            listed[folder] = set()
        elif not name:
            listed[folder] |= set(about.split())
    for folder, names in listed.items():
        files = {
            p.name.removesuffix(".py")
            for p in (ROOT / folder).iterdir()
            if p.is_file() and p.name != "__init__.py"
        }
        assert folder in ("ptft", "tests") or names == files, folder
    packages = {str(p.parent.relative_to(ROOT)) for p in (ROOT / "ptft").rglob("*/__init__.py")} - {"ptft"}
    assert packages == {f for f in listed if f.startswith("ptft/")}


@pytest.mark.parametrize("place", PLACES)
def test_what_it_points_to_exists(place):
    for target in re.findall(r"\]\(([^)#:]+)\)", DOCS[place]):
        assert ((ROOT / place).parent / target).exists(), target


def test_the_readme_is_a_page():
    assert len(README.encode()) < 12_000
