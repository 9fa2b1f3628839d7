import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Required, TypedDict, get_args, get_type_hints, is_typeddict

import pytest

from ptft.bench import probe, results, tune
from ptft.bench.cell_result import BenchFile, Row
from ptft.core import stored
from ptft.core.errors import UserError
from ptft.train import run_files


class Inner(TypedDict):
    name: Annotated[str, re.compile("[a-z]+")]


class Outer(TypedDict, total=False):
    step: Required[int]
    rate: float | None
    inner: Sequence[Inner]
    free: Any
    scores: Mapping[str, float | None]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"step": 1}, ""),
        ({"step": 1, "rate": 2, "inner": [{"name": "a"}], "free": [{}], "scores": {"x": None}, "new": 1}, ""),
        ({}, "step is missing"),
        ({"stdp": 1}, "step is missing, and there is 'stdp'"),
        ({"step": 1, "rat": 1, "ratd": 1.0}, "rate is missing, and there is 'ratd'"),
        ({"step": "1"}, "step: expected a whole number, got '1'"),
        ({"step": True}, "step: expected a whole number, got True"),
        ({"step": 1.0}, "step: expected a whole number, got 1.0"),
        ({"step": 1, "rate": "x"}, "rate: expected a number, got 'x'"),
        ({"step": 1, "inner": {}}, "inner: expected a list, got {}"),
        (
            {"step": 1, "inner": [{"name": "a"}, {"nbme": "a"}]},
            "inner[1].name is missing, and there is 'nbme'",
        ),
        ({"step": 1, "inner": [{"name": "A"}]}, "inner[0].name: 'A' cannot stand there"),
        ({"step": 1, "scores": {"x": "0"}}, "scores.x: expected a number, got '0'"),
        ([], "the file: expected an object, got []"),
    ],
)
def test_what_a_file_lacks_is_said(values, says):
    assert stored.problem(values, Outer) == says


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "\xff", '{"step": 1', '{"step": 1, "digest": "0"}', '{"step": 1, "eigest": ""}'],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=rf"^{file} is damaged \(.*\); restore it$"):
        stored.read(file, Outer, "restore it")


def test_a_sealed_file_is_read_as_it_was(tmp_path):
    values = {"step": 1, "rate": 0.1 + 0.2, "scores": {"größe": float("nan"), "b": -0.0}, "free": [1e300, 3]}
    file = tmp_path / "a.json"
    results.write_json(file, values)
    assert stored.read(file, Outer, "") == {**values, "scores": {"größe": None, "b": -0.0}}


def keys(kind: Any) -> set[str]:
    """Of a TypedDict, and of those in it."""
    inner = get_type_hints(kind, include_extras=True) if is_typeddict(kind) else {}
    return set(inner).union(*(keys(one) for one in [*inner.values(), *get_args(kind)]))


@pytest.mark.parametrize("kind", [*run_files.KINDS.values(), Row, BenchFile, probe.Row, tune.TuneFile])
def test_a_changed_key_of_any_file_is_seen(kind):
    """One letter of it, wherever it stands."""

    def example(kind: Any) -> Any:
        if is_typeddict(kind):
            return {key: example(one) for key, one in get_type_hints(kind, include_extras=True).items()}
        origin, args = stored.get_origin(kind), get_args(kind)
        if origin is Annotated:
            return "frozen, the same" if "frozen" in args[1].pattern else "head/x"
        if origin in (Mapping, Sequence):
            return {"x": example(args[1])} if origin is Mapping else [example(args[0])]
        plain = {str: "x", int: 1, float: 0.5, bool: True, Any: 0}
        return example(args[0]) if args else plain[kind]

    whole = json.dumps(example(kind))
    assert stored.problem(json.loads(whole), kind) == "" and keys(kind)
    for key in keys(kind):
        at = whole.index(f'"{key}": ') + 1 + len(key) // 2
        changed = whole[:at] + ("q" if whole[at] != "q" else "p") + whole[at + 1 :]
        assert re.search(rf"\b{key} is missing, and there is '", stored.problem(json.loads(changed), kind))
