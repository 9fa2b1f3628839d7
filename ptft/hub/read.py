"""Checkpoints in Hugging Face's format, in and out: safetensors and JSON only, nothing in a file is ever
executed.

In: `config.json` becomes the keys of `config.model`; the headers of the weight files are checked against the
shapes of that model; only then are the weights read, one tensor at a time. Out: the same tables of names
backwards.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy

from ptft import models
from ptft.core import checkpoint, progress
from ptft.core.errors import UserError, short, table
from ptft.core.tree import Flat
from ptft.hub import config_json
from ptft.hub.folders import FLOATS, Folder
from ptft.hub.names import Place, places

# beside the parameters, or again
BUFFERS = re.compile(r".*(position_ids|token_type_ids|inv_freq)|.*decoder\.bias")


def must_be_whole(folder: Folder, new: Iterable[str]) -> None:
    """Refuses a classifier of texts without some of its parameters, `new`: transformers would draw them at
    random, and so the answers."""
    at = [places(folder.family, n, ("classify",))[0] for n in new]
    if at:
        raise UserError(
            config_json.incomplete(folder, "classify", [folder.family.prefix * p.inner + p.name for p in at])
        )


class Placed(NamedTuple):
    """A parameter of ours, the tensor that holds it, and the shape that this tensor must have."""

    name: str
    place: Place
    shape: tuple[int, ...]


def load_params(
    folder: Folder, want: Flat, *, skip: str = "head/.*", new_ok: str = "(head|backbone/pooler)/.*"
) -> tuple[Flat, checkpoint.Loaded]:
    """Parameters f32 from a checkpoint, by name; every name on both sides is accounted for, as
    `checkpoint.load_params` does.

    Nothing is read or allocated before all names, shapes and dtypes fit. An MLM head whose decoder is a
    matrix of its own is left out: here the decoder is the word table.

    Raises:
      UserError: a tensor is missing, has another shape or no floating dtype (path, have, want), or holds NaN
        or infinity.
    """
    placed, new, rows = [], [], []
    tied = (
        _whole_mlm(folder)
        if any(n.startswith("head/decoder") and not re.fullmatch(skip, n) for n in want)
        else True
    )
    for name, leaf in want.items():
        at = [p for p in places(folder.family, name) if p.name in folder.tensors]
        if re.fullmatch(skip, name) or not at or (not tied and name.startswith("head/")):
            new.append(name)
            if not re.fullmatch(f"{skip}|{new_ok}", name):
                rows.append(
                    (
                        places(folder.family, name)[0].name if places(folder.family, name) else name,
                        "missing",
                        f"for {name}",
                    )
                )
            continue
        shape = leaf.shape[::-1] if at[0].transposed else leaf.shape
        placed.append(Placed(name, at[0], (shape[0] * at[0].parts, *shape[1:])))
    for _, place, shape in placed:
        have = folder.tensors[place.name]
        if have.shape != shape or have.dtype not in FLOATS:
            rows.append((have.name, f"{have.dtype}{list(have.shape)}", f"{'/'.join(FLOATS)}{list(shape)}"))
    if rows:
        raise UserError(
            f"the weights of {folder.path} do not fit its config.json, or config.model over "
            f"it:\n{table(rows)}"
        )
    # on a CPU without a copy
    counted = progress.each(placed, f"loading {folder.path}", "tensors", len(placed))
    params = {name: jax.device_put(_read(folder, place)) for name, place, _ in counted}
    used = {place.name for _, place, _ in placed} | {folder.family.decoder if tied else ""}
    unused = [t.name for n, t in folder.tensors.items() if n not in used and not BUFFERS.fullmatch(n)]
    return params, checkpoint.Loaded(list(params), new, unused, 0)


def _read(folder: Folder, place: Place) -> np.ndarray:
    """One parameter, filled in slices of 8 MiB; the file is opened anew for each, since its pages count as
    memory while it is open."""
    tensor = folder.tensors[place.name]
    rows = tensor.shape[0] // place.parts
    shape = (rows, *tensor.shape[1:])
    out = _aligned(shape[::-1] if place.transposed else shape)
    target = out.T if place.transposed else out
    step = max(1, 2**21 // max(math.prod(shape[1:]), 1))
    for at in range(0, rows, step):
        end = min(at + step, rows)
        with safetensors.safe_open(tensor.file, "numpy") as f:
            part = f.get_slice(tensor.name)[place.part * rows + at : place.part * rows + end]
        if not np.isfinite(part).all():
            raise UserError(
                f"{tensor.file}: {short(tensor.name)} holds NaN or infinity; fetch the file again"
            )
        target[at:end] = part
    return out


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty f32 array at a multiple of 64 bytes, which jax on a CPU takes as it is."""
    n = 4 * math.prod(shape)
    raw: np.ndarray = np.empty(n + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n].view(np.float32).reshape(shape)


def _whole_mlm(folder: Folder) -> bool:
    """Whether the file has an MLM head, all of it, that fits: in ModernBERT's classifiers two of its tensors
    are there, too."""
    names = [f"head/{n}" for n in ("transform/kernel", "norm/scale", "decoder/bias")]
    return all(places(folder.family, n, ("mlm",))[0].name in folder.tensors for n in names) and _tied(folder)


def _tied(folder: Folder) -> bool:
    """Whether the MLM decoder, if the file holds one, is the word table; compared a thousand rows at a
    time."""
    word = places(folder.family, models.anatomy(folder.family.model).table)[0].name
    own, table = (folder.tensors.get(n) for n in (folder.family.decoder, word))
    if own is None or table is None:
        return folder.config.get("tie_word_embeddings", True) is not False
    if (
        own.shape != table.shape
        or len(own.shape) != 2
        or own.dtype not in FLOATS
        or table.dtype not in FLOATS
    ):
        return False
    with safetensors.safe_open(own.file, "numpy") as a, safetensors.safe_open(table.file, "numpy") as b:
        x, y = a.get_slice(own.name), b.get_slice(table.name)
        # a slice beyond the end is an error
        ends = [(i, min(i + 1000, own.shape[0])) for i in range(0, own.shape[0], 1000)]
        return all(np.array_equal(x[i:j], y[i:j]) for i, j in ends)
