"""The README is true: its commands parse, its pages load, its tree is the tree."""

import re
import shlex
from pathlib import Path

import pytest

from ptft.cli.main import parser
from ptft.core import config as configs
from ptft.freeze import language
from ptft.train import build, spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES] + [
    shlex.split(c) for c in re.findall(r"`(ptft (?:train|plan|bench|report|eval|predict) [^`]*)`", README)
]


def test_the_first_block_is_the_two_commands():
    assert [shlex.split(line, comments=True) for line in BLOCKS[0].splitlines()] == [
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
        values = configs.load(args.config)
        configs.override(values, [r.removeprefix("--config.") for r in rest])


def test_the_strategies_are_those_that_exist():
    table = README[README.index("| strategy | trains") :].split("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert set(language.NAMES) <= set(named) and all(any(kind in n for n in named) for kind in (*language.ADDED, "gradual", "lisa"))
    model = {"layers": 6, "hidden": 64, "max_len": 32}
    values = {"batch": 8, "model": model, "objective": {"name": "classify", "seq_len": 16}, "data": {"vocab_size": 100, "dev": "files:x"}}
    for name in (n for n in named if not re.search("[A-Z]", n) and not n.startswith("[")):
        assert build.outline(spec.resolve({**values, "freeze": name})).phases, name


def test_the_tree_is_the_tree():
    block = README[README.index("## The tree") :].split("```")[1]
    stack: list[str] = []
    listed = set()
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        stack = [*stack[:depth], name.rstrip("/")]
        listed.add("/".join(stack))
        assert (ROOT / "/".join(stack)).exists(), line
    for folder in ("ptft", "configs", "launch"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.name != "__init__.py" and not file.name.startswith("_prose"):
                assert file.relative_to(ROOT).as_posix() in listed, f"the README's tree lacks {file}"


def test_what_it_points_to_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
