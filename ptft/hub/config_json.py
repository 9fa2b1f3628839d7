"""What a checkpoint's folder says of itself, in config.json and the files beside it: keys of `config.model`,
labels, pooling, cuts."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptft.core.errors import UserError, joined, short, shown, table
from ptft.hub.folders import Folder
from ptft.hub.names import ACTIVATIONS, places
from ptft.inputs.hf_json import as_written, read_object

# Keys of a config.json that must say this or nothing.
ONLY = {
    "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
    "norm_bias": False, "attention_bias": False,
    "mlp_bias": False, "classifier_bias": False, "decoder_bias": True, "rope_type": "default",
    "rope_scaling": None,
}  # fmt: skip
# Kinds of heads: a parameter that tells, and the class in transformers.
HEADS = {
    "classify": ("head/classifier/kernel", "ForSequenceClassification"),
    "tag": ("head/tagger/kernel", "ForTokenClassification"),
    "mlm": ("head/decoder/bias", "ForMaskedLM"),
}


def model_keys(folder: Folder) -> dict[str, Any]:
    """`config.json` -> the keys of `config.model`."""
    with as_written(folder.path / "config.json"):
        return _model_keys(folder)


def _model_keys(folder: Folder) -> dict[str, Any]:
    c, family = _old_words(folder), folder.family
    for key, ok in ONLY.items():
        if c.get(key, ok) not in (ok, None):
            raise UserError(f"{folder.path}/config.json: {key} is {shown(c[key])}; ptft has {ok!r} only")
    if c.get("quantization_config"):
        raise UserError(f"{folder.path} is quantized; expected float32, float16 or bfloat16 weights")
    keys = {ours: c.get(theirs, family.silent[theirs]) for ours, theirs in family.keys.items()}
    for ours, theirs in family.keys.items():
        value = keys[ours]
        if ours not in ("activation", "pooling") and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31
        ):
            raise UserError(
                f"{folder.path}/config.json: {theirs} is {shown(value)}; expected a number from 0 to 2**31"
            )
    # Before a model of so many layers is traced.
    before = next(spec.partition("{}")[0] for spec in family.body.values() if "{}" in spec)
    blocks = {int(m[1]) + 1 for n in folder.tensors if (m := re.match(re.escape(before) + r"(\d+)\.", n))}
    if max(blocks, default=0) != keys["layers"]:
        row = (f"{before}*", f"{max(blocks, default=0)} layers", f"{keys['layers']} layers")
        raise UserError(
            f"the weights of {folder.path} do not fit its config.json, or config.model over "
            f"it:\n{table([row])}"
        )
    keys |= {"name": family.model, **family.fixed}
    if "activation" in keys:
        act = keys["activation"]
        if act not in ACTIVATIONS or c.get("classifier_activation", act) != act:
            raise UserError(
                f"{folder.path}/config.json: the activation {shown(act)} (everywhere) is not one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        keys["activation"] = ACTIVATIONS[act]
    if family.shifted:
        keys["offset"] = c.get("pad_token_id", 1) + 1  # positions begin after that of padding
        keys["max_len"] -= keys["offset"]
    if keys.get("embedding") == keys["hidden"]:
        keys["embedding"] = 0
    pooling = folder.path / "1_Pooling" / "config.json"  # a sentence encoder
    if pooling.is_file():
        keys["pooling"] = _pooling(pooling)
    return keys


def _pooling(file: Path) -> str:
    """How a sentence encoder pools, in the words of sentence-transformers, older and newer."""
    said = read_object(file)
    modes = [
        k.removeprefix("pooling_mode_").partition("_")[0]
        for k, on in said.items()
        if k.startswith("pooling_mode_") and on is True
    ]
    mode = str(said.get("pooling_mode", " and ".join(modes)))
    if mode not in ("mean", "cls"):
        raise UserError(f"{file}: pooling by {short(mode, 60) or 'nothing'}; ptft has mean and cls")
    modules = file.parent.parent / "modules.json"
    if other := [
        m for m in _modules(modules) if m.rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize")
    ]:
        raise UserError(
            f"{modules}: {short(', '.join(other))} after the encoder; ptft has Transformer, Pooling and, "
            "without any effect here, Normalize"
        )
    return {"mean": "mean", "cls": "first"}[mode]


def _modules(file: Path) -> list[str]:
    """The kinds of modules that a sentence encoder's modules.json lists; none if there is no such file."""
    with as_written(file):
        return (
            [str(m["type"]) for m in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []
        )


def sentence(folder: Folder) -> dict[str, Any]:
    """What a sentence encoder does besides pooling, to be handed on: whether it normalizes, and where it cuts
    texts."""
    settings = folder.path / "sentence_bert_config.json"
    normalizes = any(m.endswith("Normalize") for m in _modules(folder.path / "modules.json"))
    return {
        "normalize": normalizes,
        "max_seq_length": read_object(settings).get("max_seq_length") if settings.is_file() else None,
    }


def cuts(folder: Folder, most: int) -> dict[str, Any]:
    """Where and at which end a classifier's texts are cut, as its tokenizer_config.json says; after `most`
    tokens at the latest."""
    file = folder.path / "tokenizer_config.json"
    said = read_object(file) if file.is_file() else {}
    length = said.get("model_max_length")
    seq_len = int(min(most, length)) if isinstance(length, int | float) and length >= 3 else most
    return {"seq_len": seq_len, "truncate": "tail" if said.get("truncation_side") == "left" else "head"}


def _old_words(folder: Folder) -> dict[str, Any]:
    """The config.json with ModernBERT's newer words, a list of layer types and a table of rotary bases, put
    back into the older ones."""
    c = dict(folder.config)
    for kind, key in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
        rope = (c.get("rope_parameters") or {}).get(kind)
        if rope:
            c[key] = rope["rope_theta"]
            c["rope_type"] = (
                c.get("rope_type", "default")
                if rope.get("rope_type", "default") == "default"
                else rope["rope_type"]
            )
    if kinds := c.get("layer_types"):
        every = kinds[1:].index("full_attention") + 1 if "full_attention" in kinds[1:] else len(kinds)
        if kinds != [("sliding_attention", "full_attention")[i % every == 0] for i in range(len(kinds))]:
            raise UserError(
                f"{folder.path}/config.json: layer_types {shown(kinds, 200)} repeat in no period; ptft has "
                "every n-th layer global"
            )
        c["global_attn_every_n_layers"] = every
    return c


def task(folder: Folder) -> str:
    """What a classifier learned, as the `architectures` say: "classify" (texts) or "tag" (words); "" if the
    file is none of ours."""
    with as_written(folder.path / "config.json"):
        names = list(map(str, folder.config.get("architectures") or ()))
    return next(
        (
            t
            for t in ("classify", "tag")
            if getattr(folder.family, t) and any(n.endswith(HEADS[t][1]) for n in names)
        ),
        "",
    )


def labels(folder: Folder) -> list[str]:
    """The class names of a classifier, in the order of their ids; [] if the file is no classifier of ours."""
    kind = task(folder)
    if not kind or folder.config.get("problem_type") not in (None, "single_label_classification"):
        return []
    at = [p.name for p in places(folder.family, HEADS[kind][0], (kind,))]
    shape = next((folder.tensors[n].shape for n in at if n in folder.tensors), None)
    if shape is None:
        raise UserError(incomplete(folder, kind, at[:1]))
    rows, given = (*shape, 0)[0], folder.config.get("id2label")
    with as_written(folder.path / "config.json"):
        # transformers leaves out the names where there are two classes of the names LABEL_0 and LABEL_1.
        said = {
            int(i): str(n) for i, n in (given or {i: f"LABEL_{i}" for i in range(min(rows, 2**16))}).items()
        }
    if rows == 1:  # a regression
        return []
    if sorted(said) != list(range(len(said))) or len(said) != rows:
        raise UserError(
            f"{folder.path}/config.json: id2label has the ids {shown(sorted(said))}, the classifier {rows} "
            f"rows; expected 0 … {rows - 1}: write the names of the classes that it was trained with, in "
            "their order"
        )
    if twice := [n for n, times in Counter(said.values()).items() if times > 1]:
        raise UserError(
            f"{folder.path}/config.json: id2label calls two classes {shown(twice[0])}; expected {rows} names"
        )
    return [said[i] for i in range(rows)]


def incomplete(folder: Folder, kind: str, lost: Iterable[str]) -> str:
    stem = folder.family.stem
    return (
        f"{folder.path} is a {stem}{HEADS[kind][1]} by its config.json, but holds no {joined(lost)}, so "
        "nothing can be predicted with it; "
        f'fetch or save it again, or write "architectures": ["{stem}Model"] there to import the encoder alone'
    )
