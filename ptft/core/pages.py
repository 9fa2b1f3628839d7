"""Pages: a config as its author writes it, a Python file with `get_config(arg)`, and what the command line
changes in it."""

import ast
import importlib.abc
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ptft.core.config import Field, Spec, kind_name, set_key
from ptft.core.errors import UserError, did_you_mean
from ptft.core.record import say


def parse_arg(arg: str, **defaults: Any) -> Any:
    """The `:arg` of a config, `"size=mini,corpus=zhwiki"`, as attributes.

    Values take the type of their default; the first bare word is the first key.
    """
    out = ConfigDict(defaults)
    items: list[str] = []
    for item in filter(None, (arg or "").split(",")):
        # A comma inside a value such as freeze=layers=0,2 or freeze=lora=8,ffn,alpha=16 separates no
        # arguments.
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
    if (
        like is not None
        and not isinstance(value, type(like))
        and not (isinstance(like, float) and isinstance(value, int))
    ):
        raise UserError(f"{name}: expected {kind_name(type(like))}, got {text!r}")
    return value


def load(path_and_arg: str) -> dict[str, Any]:
    """Runs `get_config(arg)` of `path.py:arg` (a config is code: run only your own) -> nested dict."""
    path, _, arg = path_and_arg.partition(":")
    file = Path(path)
    if not file.is_file():
        pages = {
            str(p): None for folder in (file.parent, Path("configs")) for p in sorted(folder.glob("*.py"))
        }
        same = [page for page in pages if Path(page).name == file.name]
        near = f"did you mean {same[0]!r}?" if same else did_you_mean(path, pages)
        raise UserError(f"config file {path} does not exist; {near}")
    spec = importlib.util.spec_from_file_location(f"ptft_config_{file.stem}", file)
    if spec is None or not isinstance(spec.loader, importlib.abc.SourceLoader):
        raise UserError(f"{path} is not a Python file; a config is a page such as configs/pretrain.py")
    module = importlib.util.module_from_spec(spec)
    # From the source: Python's compiled file goes by the second and the size, so that a page that was changed
    # at once would be the old one.
    try:
        exec(spec.loader.source_to_code(file.read_bytes(), path), module.__dict__)
    except ImportError as e:  # of a page that was forked from an older one
        raise UserError(f"{path}: {e}; compare its imports with those of configs/finetune.py") from None
    except SyntaxError as e:
        raise UserError(f"{path}:{e.lineno}: {e.msg}; a config is a page of Python") from None
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no get_config()")
    out = module.get_config(arg)
    if not isinstance(out, Mapping | ConfigDict):
        raise UserError(
            f"{path}: get_config() returned {type(out).__name__}; expected a ConfigDict or a dict"
        )
    return out.to_dict() if isinstance(out, ConfigDict) else dict(out)


def literal(text: str) -> Any:
    """A Python literal, true, false or none, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def override(values: dict[str, Any], items: list[str], spec: Spec | None = None) -> None:
    """Applies `key=value` items in place; values are Python literals or bare text. `resolve` checks them.

    What is text in `spec` stays text: --config.data.text=0 is a column. A page's dev and test go with its
    train.
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
        _leave_out(
            values["data"], own, [s for s in ("dev", "test") if own.get(s) and f"data.{s}" not in given]
        )


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
