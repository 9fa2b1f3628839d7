"""A run's weights as a folder in Hugging Face's format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.core.tree import Flat
from ptft.hub.config_json import HEADS
from ptft.hub.names import places
from ptft.inputs.tokenizer import Tokenizer
from ptft.models import Family, families


class Model(NamedTuple):
    """What a run has learned, as it is to go out."""

    config: Config  # of the run
    dims: Any  # of the backbone, whose fields are the keys of `config.model` with nothing left open
    params: Flat  # `backbone/**` and the head, if there is one
    tokenizer: Tokenizer
    labels: Sequence[str]  # of a classifier, for people
    dtype: str = "float32"  # or "float16", "bfloat16"
    # what `sentence` said of the checkpoint that the run was imported from; {} if there was none
    told: Mapping[str, Any] = MappingProxyType({})


def write(to: Path, model: Model) -> list[str]:
    """Writes `model.safetensors`, `config.json` and the tokenizer into the folder `to`; returns the names
    left out.

    Raises:
      UserError: transformers has no such model.
    """
    config, params = model.config, model.params
    kind, family = _family(model)
    head = head_of(params)
    nsp = head == "mlm" and "head/nsp/kernel" in params and "head/nsp" in family.mlm
    what = HEADS[head][1] if head else "Model"
    stem = family.stem + ("ForPreTraining" if nsp else what)
    _check_head(model, family, head, stem)
    _check_dims(family, model.dims, "nsp" if nsp else head, model.tokenizer)
    tensors, left = outside(family, params, head, nsp)
    if lost := [n for n in left if not n.startswith(("backbone/pooler/", "head/nsp/"))]:
        raise UserError(
            f"model.family={kind!r} has no place for {', '.join(lost[:5])}; expected another family, of "
            f"{', '.join(families())}"
        )
    to.mkdir(parents=True, exist_ok=True)
    cast = {n: x.astype(model.dtype) for n, x in tensors.items()}
    safetensors.numpy.save_file(cast, to / "model.safetensors", metadata={"format": "pt"})
    said = {"architectures": [stem], "model_type": kind, "dtype": model.dtype}
    values = _outside_keys(family, model.dims, model.tokenizer) | _head_keys(model, family, head)
    _write_json(to / "config.json", {**said, **values})
    types = ["token_type_ids"] if getattr(model.dims, "types", 0) > 1 and "roberta" not in kind else []
    # texts are cut as the run cuts them
    side = "left" if config.objective.get("truncate") == "tail" else "right"
    more = {"model_max_length": config.objective.seq_len, "truncation_side": side}
    model.tokenizer.save(to, model_input_names=["input_ids", *types, "attention_mask"], **more)
    if not head and getattr(model.dims, "pooling", "cls") != "cls":
        _write_pooling(to, model.dims, model.told)
    return left


def _family(model: Model) -> tuple[str, Family]:
    kind, known = getattr(model.dims, "family", model.config.model.name), families()
    if kind not in known:
        raise UserError(
            f"transformers has no model like {model.config.model.name!r}; there is {', '.join(known)}"
        )
    return kind, known[kind]


def _check_head(model: Model, family: Family, head: str, stem: str) -> None:
    """Refuses a head that transformers has no class for."""
    if head and not getattr(family, head):
        having = ", ".join(k for k, f in families().items() if getattr(f, head))
        raise UserError(
            f"transformers' {stem} has layers before its classifier that a run of {head!r} lacks; to export "
            f"one, train a model of another kind: {having}"
        )
    if blank := model.config.objective.get("blank"):
        raise UserError(
            f"transformers' classifiers read the pooled output, this run reads its blank, {blank!r}: there "
            "is no class for it"
        )


def head_of(params: Mapping[str, Any]) -> str:
    """The kind of head among parameters: one of `HEADS`, or "" for the encoder alone."""
    return next((kind for kind, (name, _) in HEADS.items() if name in params), "")


def outside(
    family: Family, params: Mapping[str, Any], head: str, nsp: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters under the names and in the layout of a file, and the names of those that have no place
    there.

    Args:
      head: one of `HEADS`, or "" for the encoder alone.
      nsp: whether an "mlm" head has next-sentence prediction too, and so the encoder a pooler.
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    left = []
    for name, x in params.items():
        at = places(family, name, (head,) if head else ())
        unread = head == "tag" or (head == "mlm" and not nsp)
        if not at or (unread and name.startswith("backbone/pooler/")):
            left.append(name)
            continue
        full = family.prefix * (at[0].inner and head != "") + at[0].name
        parts.setdefault(full, {})[at[0].part] = np.asarray(x).T if at[0].transposed else np.asarray(x)
    return {
        n: np.ascontiguousarray(np.concatenate([p[i] for i in sorted(p)])) for n, p in parts.items()
    }, left


def _check_dims(family: Family, dims: Any, head: str, tokenizer: Tokenizer) -> None:
    """Refuses what a config.json of this family cannot say."""
    wanted = {"pooler": "tanh", "offset": tokenizer.pad + 1 if family.shifted else 0, **family.fixed}
    if "types" in family.keys and dims.types == 0:
        wanted["types"] = 2
    if "embedding" in family.keys and dims.embedding == dims.hidden:
        wanted["embedding"] = 0
    if head in ("classify", "nsp") and "pooling" not in family.keys:
        wanted["pooling"] = "cls"
    for key, value in wanted.items():
        if getattr(dims, key, value) != value:
            raise UserError(
                f"transformers' {family.stem} knows model.{key}={value!r} only, this run has "
                f"{getattr(dims, key)!r}: train with --config.model.{key}={value} to export it"
            )


def _outside_keys(family: Family, dims: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    values = {theirs: getattr(dims, ours) for ours, theirs in family.keys.items()}
    if family.shifted:
        values["max_position_embeddings"] += dims.offset
    if values.get("embedding_size") == 0:
        values["embedding_size"] = dims.hidden
    values |= {theirs: getattr(dims, ours) for theirs, ours in family.also.items()}
    values |= {"pad_token_id": tokenizer.pad, "tie_word_embeddings": True}
    return values | {theirs: getattr(tokenizer, role) for theirs, role in family.roles.items()}


def _head_keys(model: Model, family: Family, head: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if head in ("classify", "tag"):
        values["id2label"] = {str(i): n for i, n in enumerate(model.labels)}
        values["label2id"] = {n: i for i, n in enumerate(model.labels)}
        values[family.dropout] = model.config.objective.dropout
    if head == "classify":
        values["problem_type"] = "single_label_classification"
    return values


def _write_pooling(to: Path, dims: Any, told: Mapping[str, Any]) -> None:
    """What makes the folder a sentence encoder for sentence-transformers."""
    kinds = {
        "": "Transformer",
        "1_Pooling": "Pooling",
        **({"2_Normalize": "Normalize"} if told.get("normalize") else {}),
    }
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"}
        for i, (p, k) in enumerate(kinds.items())
    ]
    (to / "1_Pooling").mkdir(exist_ok=True)
    mode = {
        f"pooling_mode_{m}": m == {"mean": "mean_tokens", "first": "cls_token"}[dims.pooling]
        for m in ("mean_tokens", "cls_token")
    }
    _write_json(to / "modules.json", modules)
    _write_json(
        to / "sentence_bert_config.json",
        {"max_seq_length": told.get("max_seq_length") or dims.max_len, "do_lower_case": False},
    )
    _write_json(to / "1_Pooling" / "config.json", {"word_embedding_dimension": dims.hidden, **mode})


def _write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
