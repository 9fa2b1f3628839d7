"""Batches by number: global batch k is a pure function of (seed, k).

It does not depend on the number of processes, on data workers or on where a run was resumed, so a resume
needs the step alone. `grain.MapDataset` gives the shuffled order: a new permutation each epoch, indexable in
O(1).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ptft.core import mesh
from ptft.objectives import Rows

Batch = dict[str, np.ndarray]


def order(n: int, seed: int) -> Any:
    """An endless sequence of row numbers: each epoch holds every row once."""
    import grain.python as grain  # here: only who trains waits for it

    return grain.MapDataset.range(n).seed(seed).shuffle().repeat(None)


def subset(n: int, size: int, seed: int) -> np.ndarray:
    """`size` of `n` rows (0: all); a smaller subset of the same seed lies inside a larger one."""
    return np.sort(np.random.default_rng(seed).permutation(n)[: size or n])


def looked_at(n: int, size: int, labels: np.ndarray | None = None) -> np.ndarray:
    """The `size` of `n` rows (0: all) that an evaluation looks at, the same for every run, in their order.

    Each label has its share of them, and one at least while there is room: data often lie class by class.
    """
    if not 0 < size < n:
        return np.arange(n)
    drawn = np.random.default_rng(0).permutation(n)
    if labels is None:
        return np.sort(drawn[:size])
    of = np.asarray(labels)[drawn]
    by_label = np.argsort(of, kind="stable")
    _, first, count = np.unique(of[by_label], return_index=True, return_counts=True)
    rank = np.arange(n) - np.repeat(first, count)  # the place among the rows of its label
    turn = (rank + 0.5 * (rank > 0)) / np.repeat(count, count)
    return np.sort(drawn[by_label[np.lexsort((by_label, turn))[:size]]])


def train_batches(
    rows: Rows, index: np.ndarray, seed: int, batch: int, start: int, stop: int
) -> Iterator[Batch]:
    """Batches `start` … `stop - 1` of the rows in `index`, this process's part, made ahead by a thread.

    Besides the rows' own arrays a batch holds `example_id` i32[B], the place in the global batch, which keys
    random choices, and `weight` f32[B] of ones.
    """
    import grain.python as grain

    numbers = order(len(index), seed)
    place = np.arange(batch, dtype=np.int32)[mesh.mine(batch)]

    def cut(k: int) -> Batch:
        chosen = index[np.asarray([numbers[int(k) * batch + int(i)] for i in place])]
        return {**rows.batch(chosen), "example_id": place, "weight": np.ones(len(place), np.float32)}

    dataset = grain.MapDataset.range(start, stop).map(cut)
    yield from dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


def eval_batches(rows: Rows, batch: int, limit: int = 0, grid: Mesh | None = None) -> Iterator[Batch]:
    """Every row once (or `limit` of them, `looked_at`), in order; the last batch is filled up with rows of
    `weight` 0. This process's part of each, on this mesh."""
    index = looked_at(len(rows), limit, getattr(rows, "label", None))
    for at in range(0, len(index), batch):
        row = np.arange(at, at + batch)[mesh.mine(batch, grid)]
        filled = index[np.minimum(row, len(index) - 1)]
        yield {
            **rows.batch(filled),
            "example_id": row.astype(np.int32),
            "weight": (row < len(index)).astype(np.float32),
        }
