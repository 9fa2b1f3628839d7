"""Batches by number: global batch k is a pure function of (seed, k).

It does not depend on the number of processes, on data workers or on where a run was resumed, so a resume needs the
step alone. `grain.MapDataset` gives the shuffled order: a new permutation each epoch, indexable in O(1).
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ptft.objectives import Rows

Batch = dict[str, np.ndarray]


def order(n: int, seed: int) -> Any:
    """An endless sequence of row numbers: each epoch holds every row once."""
    import grain.python as grain  # here: only who trains waits for it

    return grain.MapDataset.range(n).seed(seed).shuffle().repeat(None)


def subset(n: int, size: int, seed: int) -> np.ndarray:
    """`size` of `n` rows (0: all); a smaller subset of the same seed lies inside a larger one."""
    return np.sort(np.random.default_rng(seed).permutation(n)[: size or n])


def mine(batch: int) -> slice:
    """The rows of a global batch that this process feeds."""
    share = batch // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def train_batches(rows: Rows, index: np.ndarray, seed: int, batch: int, start: int, stop: int) -> Iterator[Batch]:
    """Batches `start` … `stop - 1` of the rows in `index`, this process's part, made ahead by a thread.

    Besides the rows' own arrays a batch holds `row` i32[B], the place in the global batch, which keys random choices,
    and `valid` f32[B] of ones.
    """
    import grain.python as grain

    numbers = order(len(index), seed)
    place = np.arange(batch, dtype=np.int32)[mine(batch)]

    def cut(k: int) -> Batch:
        chosen = index[np.asarray([numbers[int(k) * batch + int(i)] for i in place])]
        return {**rows.batch(chosen), "row": place, "valid": np.ones(len(place), np.float32)}

    dataset = grain.MapDataset.range(start, stop).map(cut)
    yield from dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


def eval_batches(rows: Rows, batch: int, limit: int = 0) -> Iterator[Batch]:
    """Every row once (or the first `limit`), in order; the last batch is filled up with rows of `valid` 0."""
    n = min(len(rows), limit or len(rows))
    for at in range(0, n, batch):
        row = np.arange(at, at + batch)[mine(batch)]
        yield {**rows.batch(np.minimum(row, n - 1)), "row": row.astype(np.int32), "valid": (row < n).astype(np.float32)}
