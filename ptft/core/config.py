"""Configs: what a key may be, the config as a value, its identity.

A config is a page of plain `ml_collections` in `configs/` (`ptft.core.pages`), forked and not inherited. What
a key may be is said once, next to the code that reads it, as a `Field` in a `SPEC`; `resolve` checks a whole
config against the specs, reports every problem at once, and fills in what the page left out. That a key of a
spec or of a shipped page is read at all is what tests/test_configs.py checks.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ptft.core.errors import UserError, did_you_mean, shown

# Keys that may change between two starts in the same workdir: they decide where and how often, not what is
# computed.
FREE = (
    "log_every",
    "save_every",
    "keep",
    "tensorboard",
    "devices",
    "parallel",
    "shard",
    "shard_over",
    "strict_cost",
    "cache_features",
)
# Old name -> today's, of keys in the files of runs, by what they say.
RENAMED = {
    "config": {"cache_prefix": "cache_features"},
    "auto": {"signal": "score"},  # auto.json
    "progress": {"waited": "evals_since_best", "begun": "phase_starts"},  # in a checkpoint
}


@dataclass(frozen=True)
class Field:
    """One key: its default, the types it may have, its range or choices."""

    default: Any
    kind: type | tuple[type, ...] = ()
    lo: float | None = None
    hi: float | None = None
    choices: tuple[Any, ...] | None = None
    # what is wrong with a value beyond type and range, or None
    check: Callable[[Any], str | None] | None = None
    doc: str = ""
    also: tuple[str, ...] = ()  # what other libraries call it

    def problem(self, name: str, value: Any) -> str | None:
        """Why `value` cannot be `name`, or None."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        kinds = kinds or (type(self.default),)
        numeric = float in kinds and isinstance(value, int) and not isinstance(value, bool)
        listy = tuple in kinds and isinstance(value, list)
        exact = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        if not (exact or numeric or listy):
            return f"{name}: expected {' or '.join(kind_name(k) for k in kinds)}, got {shown(value)}"
        if self.choices is not None and value not in self.choices:
            choices = list(map(str, self.choices))
            return (
                f"{name}: {shown(value)} is not one of {', '.join(choices)}; "
                f"{did_you_mean(str(value)[:60], choices)}"
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (
            math.isfinite(value)
            and (self.lo is None or value >= self.lo)
            and (self.hi is None or value <= self.hi)
        ):
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


def kind_name(kind: type) -> str:
    return KIND_NAMES.get(kind, kind.__name__)


Spec = Mapping[str, "Field | Spec | Callable[[Mapping[str, Any]], Spec]"]


class Config(Mapping[str, Any]):
    """A resolved config: `c.optim.lr`. It never changes: its lists are tuples, and its sections are configs,
    too.

    Two configs are equal where their JSON is, so that `1`, `1.0` and `True` differ, as they do in a run's
    folder. So a config, or a section of one, is the key of a cache.
    """

    __slots__ = ("_json", "_prefix", "_values")

    def __init__(self, values: Mapping[str, Any], prefix: str = ""):
        own = {k: _frozen(v, f"{prefix}{k}.") for k, v in values.items()}
        for name, value in (("_values", own), ("_prefix", prefix), ("_json", None)):
            object.__setattr__(self, name, value)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_") or key not in self._values:
            raise AttributeError(f"config has no key {'' if key.startswith('_') else self._prefix}{key}")
        return self[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(
            f"a config never changes; {self._prefix}{key}: take "
            f"config.replace(**{{'{self._prefix}{key}': …}})"
        )

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"a config never changes; {self._prefix}{key} stays")

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self):
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and to_json(self) == to_json(other)

    def __hash__(self) -> int:
        return hash(to_json(self))

    def __repr__(self) -> str:
        return repr(self.to_dict())

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy is made by the constructor, as nothing may be set
        return Config, (self.to_dict(), self._prefix)

    def to_dict(self) -> dict[str, Any]:
        """A plain nested dict, with lists: what JSON makes of it."""
        return {k: _plain(v) for k, v in self._values.items()}

    def replace(self, **changes: Any) -> "Config":
        """A copy with dotted keys changed: `c.replace(**{"optim.lr": 1e-3})`."""
        values = self.to_dict()
        for key, value in changes.items():
            set_key(values, key, value)
        return Config(values, self._prefix)

    def without(self, *keys: str) -> "Config":
        """A copy that lacks these keys: the key of a cache of what does not depend on them."""
        return Config({k: v for k, v in self._values.items() if k not in keys}, self._prefix)


def _frozen(value: Any, prefix: str) -> Any:
    if isinstance(value, Mapping):
        return Config(value, prefix)
    return tuple(_frozen(v, prefix) for v in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def renamed(stored: Any, kind: str = "config") -> Any:
    """What a run's file holds, under today's names (`RENAMED[kind]`)."""
    if isinstance(stored, list):
        return [renamed(value, kind) for value in stored]
    if not isinstance(stored, dict):
        return stored
    new = {RENAMED[kind].get(key, key): renamed(value, kind) for key, value in stored.items()}
    if str(new.get("freeze", "")).startswith("auto("):
        new["freeze"] = new["freeze"].replace("signal=", "score=")
    return new


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


def resolve(values: Mapping[str, Any], spec: Spec) -> Config:
    """Checks `values` against `spec` and fills in defaults.

    Raises:
      UserError: all problems at once: unknown keys with the nearest names, wrong types, values out of range.
    """
    problems: list[str] = []
    unknown: dict[str, Spec] = {}
    filled = _resolve(values, spec, "", problems, unknown)
    known = leaves(filled)
    others = {other: key for key, field in leaves(spec).items() for other in getattr(field, "also", ())}
    for name, beside in unknown.items():
        key = name.rpartition(".")[2]
        elsewhere = [k for k in known if k.rpartition(".")[2] == key and k != name]  # "lr" is optim.lr
        hint = did_you_mean(name, elsewhere) if elsewhere else did_you_mean(key, beside)
        hint = f"expected {others[key]}" if key in others else hint
        hint = f"it is called {RENAMED['config'][key]} now" if key in RENAMED["config"] else hint
        problems.append(f"unknown key {name}; {hint}")
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"the config has {count}:\n  " + "\n  ".join(problems))
    return Config(filled)


def _resolve(
    values: Mapping[str, Any], spec: Spec, prefix: str, problems: list[str], unknown: dict[str, Spec]
) -> dict[str, Any]:
    unknown.update({prefix + key: spec for key in values if key not in spec})
    out: dict[str, Any] = {}
    for key, field in spec.items():
        name = prefix + key
        if isinstance(field, Field):
            value = values.get(key, field.default)
            problem = field.problem(name, value) if key in values else None
            if problem:
                problems.append(problem)
            out[key] = value
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


def to_json(values: Mapping[str, Any]) -> str:
    """Canonical JSON of a config; a `Config` keeps its own."""
    if not isinstance(values, Config):
        return json.dumps(values, sort_keys=True, ensure_ascii=False)
    if values._json is None:
        object.__setattr__(values, "_json", json.dumps(values.to_dict(), sort_keys=True, ensure_ascii=False))
    return values._json


def digest(values: Mapping[str, Any]) -> str:
    """12 hex digits that name what a config computes: the `FREE` keys do not count."""
    plain = values.to_dict() if isinstance(values, Config) else dict(values)
    return hashlib.sha256(to_json({k: v for k, v in plain.items() if k not in FREE}).encode()).hexdigest()[
        :12
    ]


def difference(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """Lines "key: have -> want" for every key, but the `FREE` ones, in which two resolved configs differ."""
    a, b = leaves(have), leaves(want)
    keys = [k for k in {**a, **b} if k.split(".")[0] not in FREE and a.get(k) != b.get(k)]
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in keys]
