"""The docstrings of the Python environment: its source files, read as text, and the prose in each."""

import ast
import importlib.util
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptft.data._prose import prose

# What is read, and the distribution that it comes from, whose version says what is in it.
PACKAGES = {
    "stdlib": "", "numpy": "numpy", "scipy": "scipy", "jax": "jax", "flax": "flax", "optax": "optax",
    "matplotlib": "matplotlib",
    "mpl_toolkits": "matplotlib", "orbax": "orbax-checkpoint", "tensorflow_datasets": "tensorflow-datasets",
    "grain": "grain",
}  # fmt: skip
SKIP = {
    "tests",
    "test",
    "testing",
    "site-packages",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "__pycache__",
    "_vendor",
    "vendor",
}


@dataclass(frozen=True)
class Module:
    """A source file: its path from the folder that its library lies in, and its prose."""

    path: str
    paragraphs: tuple[str, ...]


def harvest() -> list[Module]:
    """All modules with prose, in a fixed order; a paragraph that occurs again in any module is left out
    there."""
    seen: set[str] = set()
    texts: set[str] = set()  # whole docstrings that are said again, which are many
    out = []
    for root, file in _files():
        kept = []
        new = [text for text in dict.fromkeys(_docs(file)) if text not in texts]
        texts.update(new)
        for paragraph in (p for text in new for p in prose(text)):
            if (key := re.sub(r"[^a-z]+", " ", paragraph.lower())) not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            out.append(Module(file.relative_to(root.parent).as_posix(), tuple(kept)))
    return out


def _files() -> Iterator[tuple[Path, Path]]:
    """(folder of a library, source file in it)."""
    roots: list[Path] = []
    for name in PACKAGES:
        spec = None if name == "stdlib" else importlib.util.find_spec(name)
        roots += map(Path, (spec and spec.submodule_search_locations) or ())
        if name == "stdlib":
            roots.append(Path(sysconfig.get_path("stdlib")))
    for root in roots:
        files = []
        for folder, below, names in os.walk(root):
            below[:] = [name for name in below if name not in SKIP]
            files += [Path(folder, name) for name in names if name.endswith(".py") and "test" not in name]
        yield from ((root, file) for file in sorted(files))


# Comments and strings, so that no quote within one of them is taken for the beginning of another.
_STRING = re.compile(
    r"""\#[^\n]*|(?P<long>\"{3}(?:[^"\\]+|\\.|"(?!""))*\"{3}|'{3}(?:[^'\\]+|\\.|'(?!''))*'{3})"""
    r"""|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""",
    re.DOTALL,
)
_PREFIX = re.compile(r"(?P<alone>\n[ \t]*)?(?P<letters>[rRbBuUfF]{0,2})$")


def _docs(file: Path) -> list[str]:
    """The strings in triple quotes that begin a line: docstrings, and what numpy and scipy give to
    `add_newdoc`. In `pydoc_data`, where the language reference is, all of them. (Parsing the files would take
    five times as long.)"""
    source = "\n" + file.read_text(encoding="utf-8", errors="ignore")
    strings = _STRING.finditer(source) if '"""' in source or "'''" in source else ()
    everything = file.parent.name == "pydoc_data"
    texts = []
    for m in strings:
        before = _PREFIX.search(source, source.rfind("\n", 0, m.start()), m.start()) if m["long"] else None
        if before and (everything or before["alone"]):
            texts.append(_value(before["letters"] + m[0]))
    return [text for text in texts if text]


def _value(literal: str) -> str:
    """What a string in a source file says; "" if it is none by itself."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about other people's invalid escapes
            value = ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        return ""
    return value if isinstance(value, str) else ""
