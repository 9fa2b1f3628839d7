"""Configs: loading, overriding, checking, hashing.

A config is a page of plain `ml_collections` in `configs/`, forked and not inherited. What a key may be is
said once, next to the code that reads it, as a `Field` in a `SPEC`; `resolve` checks a whole config against
the specs, reports every problem at once, and fills in what the page left out. The resolved config records
which keys were read, so that a test finds a key of a shipped page that nothing reads.
"""

import ast
import hashlib
import importlib.abc
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ptft.core.errors import UserError, did_you_mean, shown
from ptft.core.record import say

# Keys that may change between two starts in the same workdir: they decide where and how often, not what is computed.
FREE = ("log_every", "save_every", "keep", "tensorboard", "devices", "parallel", "strict_cost", "cache_features")
# Old name -> today's, of keys in the files of runs.
RENAMED = {
    "cache_prefix": "cache_features",  # config
    "signal": "score",  # auto.json
    "waited": "evals_since_best",  # progress in a checkpoint
    "begun": "phase_starts",
}


@dataclass(frozen=True)
class Field:
    """One key: its default, the types it may have, its range or choices."""

    default: Any
    kind: type | tuple[type, ...] = ()
    lo: float | None = None
    hi: float | None = None
    choices: tuple[Any, ...] | None = None
    check: Callable[[Any], str | None] | None = None  # what is wrong with a value beyond type and range, or None
    doc: str = ""

    def problem(self, name: str, value: Any) -> str | None:
        """Why `value` cannot be `name`, or None."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        kinds = kinds or (type(self.default),)
        numeric = float in kinds and isinstance(value, int) and not isinstance(value, bool)
        listy = tuple in kinds and isinstance(value, list)
        exact = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        if not (exact or numeric or listy):
            return f"{name}: expected {' or '.join(_kind_name(k) for k in kinds)}, got {shown(value)}"
        if self.choices is not None and value not in self.choices:
            choices = list(map(str, self.choices))
            return f"{name}: {shown(value)} is not one of {', '.join(choices)}; {did_you_mean(str(value)[:60], choices)}"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (math.isfinite(value) and (self.lo is None or value >= self.lo) and (self.hi is None or value <= self.hi)):
            return f"{name}: {shown(value)} is out of range; expected {self._range()}"
        why = self.check(value) if self.check else None
        return why and f"{name}: {why}"

    def _range(self) -> str:
        if self.lo is not None and self.hi is not None:
            return f"{self.lo} … {self.hi}"
        if self.lo is not None:
            return f">= {self.lo}"
        return f"<= {self.hi}" if self.hi is not None else "a finite number"


KIND_NAMES = {str: "text", int: "a whole number", float: "a number", tuple: "a list", bool: "True or False"}


def _kind_name(kind: type) -> str:
    return KIND_NAMES.get(kind, kind.__name__)


Spec = Mapping[str, "Field | Spec | Callable[[Mapping[str, Any]], Spec]"]


class Config(Mapping[str, Any]):
    """A resolved, read-only config: `c.optim.lr`. It remembers which keys were read."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "", read: set[str] | None = None):
        self._read: set[str] = set() if read is None else read
        self._prefix = prefix
        self._values = {k: Config(v, f"{prefix}{k}.", self._read) if isinstance(v, Mapping) else v for k, v in values.items()}

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key not in self._values:
            raise AttributeError(f"config has no key {self._prefix}{key}")
        return self[key]

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if not isinstance(value, Config):
            self._read.add(self._prefix + key)
        return value

    def __iter__(self):
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def to_dict(self) -> dict[str, Any]:
        """A plain nested dict; does not count as reading."""
        return {k: v.to_dict() if isinstance(v, Config) else v for k, v in self._values.items()}

    def replace(self, **changes: Any) -> "Config":
        """A copy with dotted keys changed: `c.replace(**{"optim.lr": 1e-3})`."""
        values = self.to_dict()
        for key, value in changes.items():
            set_key(values, key, value)
        return Config(values)

    def unread(self) -> list[str]:
        """Dotted names of the keys that nobody has read yet."""
        return [k for k in leaves(self.to_dict()) if k not in self._read]


def renamed(stored: Any) -> Any:
    """What a run's file holds, under today's names."""
    if isinstance(stored, list):
        return [renamed(value) for value in stored]
    if not isinstance(stored, dict):
        return stored
    found = {RENAMED.get(key, key): renamed(value) for key, value in stored.items()}
    if str(found.get("freeze", "")).startswith("auto("):
        found["freeze"] = found["freeze"].replace("signal=", "score=")
    return found


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> `{"a.b": value}`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out.update(leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return out


def set_key(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets `values["a"]["b"]` for "a.b"."""
    *parents, last = dotted.split(".")
    for key in parents:
        values = values.setdefault(key, {})
    values[last] = value


def parse_arg(arg: str, **defaults: Any) -> Any:
    """The `:arg` of a config, `"size=mini,corpus=zhwiki"`, as attributes.

    Values take the type of their default; the first bare word is the first key.
    """
    out = ConfigDict(defaults)
    items: list[str] = []
    for item in filter(None, (arg or "").split(",")):
        # A comma inside a value such as freeze=layers=0,2 or freeze=lora=8,ffn,alpha=16 separates no arguments.
        if items and items[-1].count("=") >= 2 and item.partition("=")[0] not in defaults:
            items[-1] += "," + item
        else:
            items.append(item)
    for i, item in enumerate(items):
        key, eq, text = item.partition("=")
        if not eq and i == 0:
            key, text = next(iter(defaults)), item
        if key not in defaults:
            raise UserError(f"config argument {item!r}: no {key!r}; {did_you_mean(key, defaults)}")
        out[key] = _typed(f"config argument {key}", text, defaults[key])
    return out


def _typed(name: str, text: str, like: Any) -> Any:
    if isinstance(like, str):
        return text
    value = literal(text)
    if like is not None and not isinstance(value, type(like)) and not (isinstance(like, float) and isinstance(value, int)):
        raise UserError(f"{name}: expected {_kind_name(type(like))}, got {text!r}")
    return value


def load(path_and_arg: str) -> dict[str, Any]:
    """Runs `get_config(arg)` of `path.py:arg` (a config is code: run only your own) -> nested dict."""
    path, _, arg = path_and_arg.partition(":")
    file = Path(path)
    if not file.is_file():
        here = sorted(str(p) for p in (file.parent if file.parent.is_dir() else Path("configs")).glob("*.py"))
        raise UserError(f"config file {path} does not exist; {did_you_mean(path, here)}")
    spec = importlib.util.spec_from_file_location(f"ptft_config_{file.stem}", file)
    if spec is None or not isinstance(spec.loader, importlib.abc.SourceLoader):
        raise UserError(f"{path} is not a Python file; a config is a page such as configs/pretrain.py")
    module = importlib.util.module_from_spec(spec)
    # From the source: Python's compiled file goes by the second and the size, so that a page that was changed at once would be the old one.
    exec(spec.loader.source_to_code(file.read_bytes(), path), module.__dict__)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no get_config()")
    out = module.get_config(arg)
    return out.to_dict() if isinstance(out, ConfigDict) else out


def literal(text: str) -> Any:
    """A Python literal, true, false or none, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def override(values: dict[str, Any], items: list[str], spec: Spec | None = None) -> None:
    """Applies `key=value` items in place; values are Python literals or bare text. `resolve` checks them.

    What is text in `spec` stays text: --config.data.text=0 is a column. A page's dev and test go with its train.
    """
    own = dict(values["data"]) if isinstance(values.get("data"), Mapping) else {}
    for item in items:
        key, eq, text = item.partition("=")
        if not eq:
            raise UserError(f"--config.{item}: expected --config.KEY=VALUE")
        value = literal(text)
        node: Any = values
        for part in key.split(".")[:-1]:
            node = node.get(part, {}) if isinstance(node, Mapping) else node
            if not isinstance(node, Mapping):
                raise UserError(f"--config.{key}: {part!r} is a value, not a section")
        was_text = isinstance(node.get(key.split(".")[-1]), str) and not isinstance(value, list | tuple)
        if not isinstance(value, str) and (was_text or _is_text(spec or {}, key)):
            value = text
        set_key(values, key, value)
    given = {i.partition("=")[0] for i in items}
    if own.get("train") and "data.train" in given:
        _leave_out(values["data"], own, [s for s in ("dev", "test") if own.get(s) and f"data.{s}" not in given])


def _leave_out(data: dict[str, Any], own: Mapping[str, Any], splits: list[str]) -> None:
    """Empties these splits where the training data that was asked for is not of the page's own."""
    if not data["train"] or _corpus(data["train"]) == _corpus(own["train"]):
        return
    for split in splits:
        data[split] = ""
        why = f"{own[split]} is of the page's own data, not of {data['train']}"
        so = "; the last step counts" if split == "dev" else ""
        say(f"data.{split}: left out, as {why}{so} (--config.data.{split}=… gives one)")


def _is_text(spec: Any, key: str) -> bool:
    for part in key.split("."):
        spec = spec.get(part) if isinstance(spec, Mapping) else None
    return isinstance(spec, Field) and (spec.kind or type(spec.default)) in (str, (str,))


def _corpus(where: Any) -> str:
    """A source without its split and its part: `files:a.tsv[:90%]` and `files:a.tsv` are of one."""
    return re.sub(r"(@[^@/]*)?(\[[^\[\]]*\])?$", "", str(where))


def resolve(values: Mapping[str, Any], spec: Spec) -> Config:
    """Checks `values` against `spec` and fills in defaults.

    Raises:
      UserError: all problems at once: unknown keys with the nearest names, wrong types, values out of range.
    """
    problems: list[str] = []
    unknown: dict[str, Spec] = {}
    filled = _resolve(values, spec, "", problems, unknown)
    known = leaves(filled)
    for name, beside in unknown.items():
        key = name.rpartition(".")[2]
        elsewhere = [k for k in known if k.rpartition(".")[2] == key and k != name]  # "lr" is optim.lr
        hint = did_you_mean(name, elsewhere) if elsewhere else did_you_mean(key, beside)
        hint = f"it is called {RENAMED[key]} now" if key in RENAMED else hint
        problems.append(f"unknown key {name}; {hint}")
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"the config has {count}:\n  " + "\n  ".join(problems))
    return Config(filled)


def _resolve(values: Mapping[str, Any], spec: Spec, prefix: str, problems: list[str], unknown: dict[str, Spec]) -> dict[str, Any]:
    unknown.update({prefix + key: spec for key in values if key not in spec})
    out: dict[str, Any] = {}
    for key, field in spec.items():
        name = prefix + key
        if isinstance(field, Field):
            value = values.get(key, field.default)
            problem = field.problem(name, value) if key in values else None
            if problem:
                problems.append(problem)
            out[key] = _as_lists(value)
            continue
        section = values.get(key, {})
        if not isinstance(section, Mapping):
            problems.append(f"{name}: expected a section of keys, got {section!r}")
            continue
        if callable(field) and not isinstance(section.get("name", ""), str):
            problems.append(f"{name}.name: expected text, got {section['name']!r}")
            continue
        try:
            inner = field(section) if callable(field) else field
        except UserError as e:
            problems.append(f"{name}.name: {e}")
            continue
        out[key] = _resolve(section, inner, name + ".", problems, unknown)
    return out


def _as_lists(value: Any) -> Any:
    """Tuples, however deep, as the lists that JSON makes of them, so that a stored config equals the one it was."""
    return [_as_lists(v) for v in value] if isinstance(value, list | tuple) else value


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|examples?|%)?\s*")


def steps(name: str, text: str | int, *, batch: int, examples: int, total: int | None = None) -> int:
    """A duration in steps: "1000", "500 steps", "3 epochs", "20000 examples", or "10%" of `total`.

    `batch` is the global batch size and `examples` the number of training examples an epoch.
    """
    if why := (duration if total is None else share)(text):
        raise UserError(f"{name}: {why}")
    found = _DURATION.fullmatch(str(text))
    assert found
    number, unit = float(found[1]), (found[2] or "steps").rstrip("s")
    if unit == "%":
        return round((total or 0) * number / 100)
    if unit == "epoch":
        return math.ceil(number * examples / batch)
    return math.ceil(number / batch) if unit == "example" else int(number)


def duration(text: str | int) -> str | None:
    """Why `text` is not a duration, or None: the `check` of a `Field`."""
    found = _DURATION.fullmatch(str(text))
    if not found or found[2] == "%":
        return f"expected a duration such as '500 steps', '3 epochs' or '20000 examples', got {text!r}"
    if not (found[2] or "steps").startswith(("epoch", "example")) and "." in found[1]:
        return f"{text!r} is not a whole number of steps"
    return None


def share(text: str | int) -> str | None:
    """The same for a duration that may also be a share of the run, such as '10%'."""
    found = _DURATION.fullmatch(str(text))
    if found and found[2] == "%":
        return None if float(found[1]) <= 100 else f"{text!r} is more than the whole"
    why = duration(text)
    return why and why.replace("'500 steps'", "'10%', '500 steps'")


def to_json(values: Mapping[str, Any]) -> str:
    """Canonical JSON of a resolved config."""
    return json.dumps(values.to_dict() if isinstance(values, Config) else values, sort_keys=True, ensure_ascii=False)


def digest(values: Mapping[str, Any]) -> str:
    """12 hex digits that name what a config computes: the `FREE` keys do not count."""
    plain = values.to_dict() if isinstance(values, Config) else dict(values)
    return hashlib.sha256(to_json({k: v for k, v in plain.items() if k not in FREE}).encode()).hexdigest()[:12]


def difference(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """Lines "key: have -> want" for every key, but the `FREE` ones, in which two resolved configs differ."""
    a, b = leaves(have), leaves(want)
    keys = [k for k in {**a, **b} if k.split(".")[0] not in FREE and a.get(k) != b.get(k)]
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in keys]
