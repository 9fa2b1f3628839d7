"""What a pretrained encoder gives for a text as it is, for a classifier that is no network
(`ptft.bench.baselines`).

Views of the last layer, without dropout: the mean over tokens, the first token, and the blank where there is
one. Of a pair, the mean is that of each text, with their distance and their product (Conneau et al. 2017,
arXiv 1705.02364).
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptft.core import tree
from ptft.core.config import Config
from ptft.models.layers import masked_mean
from ptft.objectives.classify import at_blank
from ptft.train import build, weights


def of(config: Config, index: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """View -> split -> f32[n, D], of the rows of each split in `index`; cells of other seeds and sizes share
    what is computed."""
    same = config.replace(seed=0, freeze="head", **{"data.train_size": 0, "optim.lr": 0.0})
    encoder = _encoder(same)
    encoded = {split: encoder.encode(split, its) for split, its in index.items()}
    return {view: {split: its[view] for split, its in encoded.items()} for view in encoded["train"]}


@functools.lru_cache(maxsize=2)
def _encoder(config: Config) -> "Encoder":
    return Encoder(build.build(config))


class Encoder:
    def __init__(self, run: build.Run):
        self.run, self.known = run, dict[tuple[str, str], np.ndarray]()  # (split, view) -> f32[N, D]
        self.have = {
            s: np.zeros(len(rows), bool)
            for s in ("train", "dev", "test")
            if (rows := getattr(run.data, s)) is not None
        }
        self.backbone = tree.unflatten(weights.initial(run.config, run.net))["backbone"]
        one = run.data.train.batch(np.zeros(1, np.int64))
        self.forward = jax.jit(
            functools.partial(_forward, run.net, pair=bool(one["segment_b"][0] < one["length"][0]))
        )

    def encode(self, split: str, index: np.ndarray) -> dict[str, np.ndarray]:
        rows, have = getattr(self.run.data, split), self.have[split]
        missing, size = index[~have[index]], self.run.config.eval_batch or self.run.config.batch
        for at in range(0, len(missing), size):
            part = missing[at : at + size]
            whole = np.concatenate([part, np.repeat(part[-1:], size - len(part))])
            for view, x in self.forward(self.backbone, rows.batch(whole)).items():
                empty = np.zeros((len(rows), x.shape[1]), np.float32)
                self.known.setdefault((split, view), empty)[part] = x[: len(part)]
            have[part] = True
        return {view: x[index] for (of, view), x in self.known.items() if of == split}


def _forward(net: Any, backbone: Any, batch: Mapping[str, jax.Array], pair: bool) -> dict[str, jax.Array]:
    inputs = net.objective.prepare(batch, jax.random.split(jax.random.key(0), len(batch["length"])))
    hidden = net.backbone.apply({"params": backbone}, inputs)["hidden"].astype(jnp.float32)
    mean = masked_mean(hidden, inputs["mask"])
    if pair:
        second = jnp.arange(hidden.shape[1])[None] >= batch["segment_b"][:, None]
        a, b = (masked_mean(hidden, inputs["mask"] & part) for part in (~second, second))
        mean = jnp.concatenate([a, b, jnp.abs(a - b), a * b], 1)
    views = {"mean": mean, "first token": hidden[:, 0]}
    mask = net.objective.mask
    return views if mask is None else {**views, "blank": at_blank(hidden, inputs["tokens"], mask)}
