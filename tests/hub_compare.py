"""What ptft computes from a checkpoint, in transformers' names and layout, beside what transformers
computed."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptft.core import tree
from ptft.hub import config_json, folders, read, write
from ptft.inputs import tokenizer_files
from ptft.train import build, spec
from ptft.train.net import Net


def net(folder: Path, **model: Any) -> tuple[Net, folders.Folder]:
    """The net of a checkpoint, with the head that its file has, or a new one."""
    opened = folders.open_folder(folder)
    labels = config_json.labels(opened)
    keys = config_json.model_keys(opened)
    nsp = "cls.seq_relationship.weight" in opened.tensors
    objective = (
        {"name": config_json.task(opened)}
        if labels
        else {"name": "mlm_nsp", "nsp": nsp, "max_predictions": 3}
    )
    config = spec.resolve({"model": {**keys, **model}, "objective": {**objective, "seq_len": 12}})
    return build.net(config, tokenizer_files.load(folder), labels), opened


def loss(net: Net, params: dict[str, Any], batch: dict[str, Any]) -> tuple[jax.Array, Any]:
    predictions = net.predict(params, batch)
    sums = net.objective.sums(predictions, batch)
    return jnp.stack([sums[n][0] / sums[n][1] for n in net.objective.loss]).sum(), predictions


def computed(folder: Path, batch: dict[str, np.ndarray], **model: Any) -> dict[str, np.ndarray]:
    """Hidden states, pooled output, logits, loss and gradients, named as the script that makes the files
    names them."""
    made, opened = net(folder, **model)
    family = opened.family
    params, _ = read.load_params(opened, made.shapes(), skip="nothing")
    fresh = made.init(0)
    params = {n: params.get(n, fresh[n]) for n in fresh}
    inside = {"params": tree.unflatten(params)["backbone"]}
    batch = {{"next": "nsp_label", "valid": "weight"}.get(k, k): jnp.asarray(v) for k, v in batch.items()}
    out, state = jax.jit(
        lambda b: made.backbone.apply(inside, b, capture_intermediates=True, mutable=["intermediates"])
    )(batch)
    blocks = tree.flatten(state["intermediates"])
    found = {f"hidden_{i + 1}": blocks[f"block_{i}/__call__"][0] for i in range(made.backbone.dims.layers)}
    found |= {"hidden_0": blocks["embeddings/__call__"][0], "hidden": out["hidden"], "pooled": out["pooled"]}
    if opened.kind == "modernbert":  # transformers shows the last block's output after the final norm
        found[f"hidden_{made.backbone.dims.layers}"] = out["hidden"]
    found = {k: np.asarray(v) for k, v in found.items()}
    if "label" not in batch:
        return found
    (value, predictions), grads = jax.jit(jax.value_and_grad(lambda p: loss(made, p, batch), has_aux=True))(
        params
    )
    found |= {"loss": value, **(predictions if isinstance(predictions, dict) else {"logits": predictions})}
    named, _ = write.outside(family, grads, write.head_of(params), nsp="head/nsp/kernel" in params)
    return {k: np.asarray(v) for k, v in {**found, **{f"grad {n}": g for n, g in named.items()}}.items()}


def differences(folder: Path, want: dict[str, np.ndarray], **model: Any) -> dict[str, float]:
    """Largest difference of every tensor, relative to its scale (the largest value), at real tokens only.

    Some gradients are zero but for rounding (a key's bias shifts all scores alike): the scale of a gradient
    is at least a thousandth of the largest one.
    """
    batch = {k.removeprefix("in "): v for k, v in want.items() if k.startswith("in ")}
    have = computed(folder, batch, **model)
    out = {}
    floor = 1e-3 * max((np.abs(x).max() for n, x in want.items() if n.startswith("grad ")), default=0)
    for name, theirs in want.items():
        if name.startswith("in ") or name not in have:
            continue
        ours = have[name]
        if name.startswith("hidden") or (name == "logits" and ours.ndim == 3):
            ours, theirs = ours[batch["mask"]], theirs[batch["mask"]]
        if name == "mlm":
            rows = np.arange(len(theirs))[:, None]
            at = batch["masked"] > 0
            ours, theirs = ours[at], theirs[rows, batch["position"]][at]
        out[name] = float(
            np.abs(ours - theirs).max()
            / max(np.abs(theirs).max(), floor if name.startswith("grad ") else 1e-6)
        )
    return out
