"""JSON files that ptft writes and reads again: what each holds is said as a type, and checked as it is read.

So a file in which a key is missing or a value is of another kind is named, and no KeyError far from there. A
sealed file also has a digest of what it holds, and so one in which any byte was changed is named, too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from ptft.core import config as configs
from ptft.core import record
from ptft.core.errors import UserError, shown

Object = Mapping[str, Any]
DIGEST = "digest"  # the key of a sealed file
SAID = {**configs.KIND_NAMES, float: "a number", Mapping: "an object", Sequence: "a list"}


def read(file: Path, kind: Any, cure: str, renames: str = "config") -> Any:
    """What a JSON file holds, under today's names.

    Args:
      kind: what it must hold (see `problem`).
      cure: what to do about a damaged file; "restore it".
      renames: which of `config.RENAMED` its old names are of.
    Raises:
      UserError: it is damaged.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is damaged (not JSON: {e}); {cure}") from None
    has = isinstance(values, dict) and any(key == DIGEST or _is_slip(key, DIGEST) for key in values)
    if has and values.pop(DIGEST, None) != _digest(values):
        why = "its digest is not that of what it holds: it was changed after it was written"
        raise UserError(f"{file} is damaged ({why}); {cure}")
    values = configs.renamed(values, renames)
    if why := problem(values, kind):
        raise UserError(f"{file} is damaged ({why}); {cure}")
    return values


def sealed(values: Object) -> dict[str, Any]:
    """What a file is to hold, with its digest."""
    plain = record.plain(values)
    return {**plain, DIGEST: _digest(plain)}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def problem(value: Any, kind: Any, at: str = "") -> str:
    """Why a value that JSON holds is not of a kind, and where in it; "" if it is.

    Args:
      kind: `str`, `int`, `float` (or a whole number), `bool`, `None`, `Any`, `A | B`, a TypedDict,
        `Mapping[str, kind]`, `Sequence[kind]`, or `Annotated[str, re.compile(pattern)]`.
    """
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin in (Required, NotRequired):
        return problem(value, args[0], at)
    if origin in (Union, UnionType):
        problems = [problem(value, one, at) for one in args]
        return "" if "" in problems else problems[0]
    if is_typeddict(kind):
        return _of_keys(value, kind, at) if isinstance(value, dict) else _wrong(value, Mapping, at)
    if origin is Annotated:
        fits = not isinstance(value, str) or args[1].fullmatch(value)
        return problem(value, args[0], at) if fits else f"{_place(at)}: {shown(value)} cannot stand there"
    if not _is(value, origin):
        return _wrong(value, origin, at)
    inner: Mapping[Any, Any] = {}
    if origin is Mapping:
        inner = {f"{at}.{key}": x for key, x in value.items()}
    elif origin is Sequence:
        inner = {f"{at}[{i}]": x for i, x in enumerate(value)}
    return next(filter(None, (problem(x, args[-1], where) for where, x in inner.items())), "")


def _is(value: Any, kind: Any) -> bool:
    plain = {Mapping: dict, Sequence: list, None: type(None)}.get(kind, kind)
    return kind is Any or type(value) is plain or (kind is float and type(value) is int)


def _wrong(value: Any, kind: Any, at: str) -> str:
    return f"{_place(at)}: expected {SAID.get(kind, 'null')}, got {shown(value)}"


def _place(at: str, key: str = "") -> str:
    return f"{at}.{key}".strip(".") or "the file"


def _of_keys(value: Object, kind: Any, at: str) -> str:
    """`problem` of an object with these keys. Others may be there, but not one that is almost one that is
    not."""
    kinds = get_type_hints(kind, include_extras=True)
    absent = [key for key in kinds if key not in value]
    for key in absent:
        if near := next((k for k in value if k not in kinds and _is_slip(k, key)), None):
            return f"{_place(at, key)} is missing, and there is {shown(near)}"
        if key in kind.__required_keys__:
            return f"{_place(at, key)} is missing"
    problems = (problem(value[key], its, f"{at}.{key}") for key, its in kinds.items() if key in value)
    return next(filter(None, problems), "")


def _is_slip(a: str, b: str) -> bool:
    """Whether they differ in one character, as after a flipped bit."""
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
