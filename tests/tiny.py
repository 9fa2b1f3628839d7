"""Small nets and batches that several test files share."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ptft import models, objectives
from ptft.core import config
from ptft.core.config import Config
from ptft.inputs.tokenizer import Tokenizer
from ptft.train import optim
from ptft.train.net import Net

WORDS = [f"w{i}" for i in range(60)]
PIECES = [f"##p{i}" for i in range(15)]
TOKENIZER = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES], lowercase=True)
LABELS = ("no", "maybe", "yes")
SIZES = {
    "bert": {"layers": 2, "hidden": 64, "max_len": 32},
    "modernbert": {
        "layers": 3,
        "hidden": 64,
        "heads": 4,
        "ffn": 48,
        "max_len": 32,
        "window": 6,
        "global_every": 2,
    },
    "lstm": {"embedding": 12, "hidden": 16},
}


def optimizer(**values: Any) -> Config:
    return config.resolve(values, optim.SPEC)


def objective(name: str, **values: Any) -> Any:
    values = {"name": name, "seq_len": 16, **values}
    return objectives.build(config.resolve(values, objectives.spec(values)), TOKENIZER, LABELS)


def net(model: str = "bert", task: str = "classify", dtype: str = "float32", **values: Any) -> Net:
    """A small net; `values` are keys of the model, `dropout` is that of the objective, too."""
    values = {"name": model, **SIZES[model], **values}
    backbone = models.build(
        config.resolve(values, models.spec(values)), TOKENIZER.vocab_size, jnp.dtype(dtype)
    )
    shared = {"dropout": values["dropout"]} if "dropout" in values and task == "classify" else {}
    made = objective(task, **shared)
    return Net(backbone, made.head(jnp.dtype(dtype), backbone.style), made)


def batch(net: Net, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """`n` random rows, as `Rows.batch` and the pipeline give them; rows differ in length."""
    rng = np.random.default_rng(seed)
    o = net.objective
    example = o.example(n)
    length = rng.integers(8, o.seq_len + 1, n).astype(np.int32)
    second = rng.integers(4, length - 2).astype(np.int32)
    at = np.arange(o.seq_len)[None]
    tokens = rng.integers(5, TOKENIZER.vocab_size, (n, o.seq_len))
    tokens = np.where((at == second[:, None] - 1) | (at == length[:, None] - 1), TOKENIZER.sep, tokens)
    tokens = np.where(at == 0, TOKENIZER.cls, np.where(at < length[:, None], tokens, TOKENIZER.pad))
    out = {"tokens": tokens.astype(example["tokens"].dtype), "length": length, "segment_b": second}
    if "label" in example:
        out["label"] = rng.integers(0, len(LABELS), n).astype(np.int32)
    else:
        quota = np.clip(np.round(length * o.mask_prob), 1, o.predictions).astype(np.int32)
        out |= {"num_masked": quota, "nsp_label": rng.integers(0, 2, n).astype(np.int32)}
        if o.whole_word:
            out["continues"] = TOKENIZER.continues[tokens]
    return {**out, "example_id": np.arange(n, dtype=np.int32), "weight": np.ones(n, np.float32)}


def params(net: Net, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights without compiling an initializer; LayerNorm scales around 1."""
    rng = np.random.default_rng(seed)
    return {
        n: (float(n.endswith("norm/scale")) + 0.1 * rng.standard_normal(s.shape)).astype(np.float32)
        for n, s in net.shapes().items()
    }
