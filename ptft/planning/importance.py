"""What data say of the pieces of a pretrained model: a number a piece, the higher the more there is to train.

  rgn          |gradient| / |weights| (Lee et al. 2022, arXiv 2210.11466, Auto-RGN)
  fisher       the trace of the empirical Fisher information (after Lodha et al. 2023, arXiv 2310.17041)
  snr          |mean gradient|^2 / its variance over examples (Lee et al. 2022, Auto-SNR; of a whole piece)
  variability  of what a block gives, within classes over between them: tr(S_w S_b^+) / classes (Xie et al.
               2022, arXiv 2210.10041), of the mean over tokens. Where the classes lie apart already there is
               less to learn. All pieces of a block share its number; the pooler has that of the last block
  depth        a control: the higher the better
  random       a control: drawn by the seed

All but the controls come from one pass over the first examples in the run's order, at the pretrained weights
and without dropout. A new head is fitted on them first, under a frozen backbone: the gradients of a random
head are those of noise (the head first, then the rest: Kumar et al. 2022, arXiv 2202.10054).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptft.core import config, mesh, progress, tree
from ptft.core.errors import UserError
from ptft.core.tree import Flat
from ptft.planning.pieces import Piece
from ptft.train import optim, pipeline, step, weights
from ptft.train.build import Run
from ptft.train.net import Net

NAMES = ("rgn", "fisher", "snr", "variability", "depth", "random")
EXAMPLES = 256
BATCH = 16  # gradients of everything are needed once: a few rows at a time
FIT = 50  # steps of the head alone
FIT_LR = 1e-3  # Adam's: enough to leave noise behind, too little to learn the sample by heart

Batch = dict[str, jax.Array]


def measure(run: Run, pieces: Sequence[Piece], score: str) -> list[float]:
    """The score of each piece.

    Args:
      run: one in which the head alone is trainable.
      pieces: from the input up.
    Raises:
      UserError: `variability` of examples that have no class, or a number that is not finite.
    """
    if score == "depth":
        return [float(1 + i) for i in range(len(pieces))]
    if score == "random":
        return np.random.default_rng(run.config.seed).random(len(pieces)).tolist()
    batches = sample(run)
    if score == "variability" and "label" not in batches[0]:
        raise UserError(
            f"score=variability is of classes, and {run.config.objective.name} has none; expected another, "
            "such as rgn"
        )
    params = weights.start_params(run, quiet=True)
    scores = (
        variability(run, pieces, params, batches)
        if score == "variability"
        else of_gradients(run, pieces, params, batches, score)
    )
    if not np.isfinite(scores).all():
        raise UserError(
            f"score={score} is not a finite number on this model and these data; expected weights that give "
            "finite losses"
        )
    return scores


def sample(run: Run) -> list[Batch]:
    """The first examples in the run's order, in batches of which the last is filled up with rows of `weight`
    0. Every device computes all of them: so few are not worth parting, and the number of devices shall decide
    nothing."""
    numbers = pipeline.order(len(run.used), run.config.seed)
    chosen = run.used[[numbers[i] for i in range(min(EXAMPLES, len(run.used)))]]
    batches = []
    for at in range(0, len(chosen), BATCH):
        place = np.arange(at, at + BATCH, dtype=np.int32)
        rows = run.data.train.batch(chosen[np.minimum(place, len(chosen) - 1)])
        batch = {**rows, "example_id": place, "weight": (place < len(chosen)).astype(np.float32)}
        batches.append(mesh.place(batch, run.mesh))
    return batches


def fitted(run: Run, params: Flat, batches: Sequence[Batch]) -> Flat:
    """The parameters with a new head fitted to the sample; a head that came with the weights stays."""
    if run.net.objective.reuse_head and run.config.init_from and run.config.init_weights:
        return params
    top = len(run.layout.blocks)
    short = run.net._replace(start=top)
    below = jax.jit(functools.partial(run.net.between, modules=run.layout.around(top)))
    cached = [{**batch, "hidden": below(params, batch)} for batch in batches]
    head, rest = tree.split(params, [n for n in params if n.startswith("head/")])
    tx = optim.build(
        config.resolve({"lr": FIT_LR, "decay": "constant"}, optim.SPEC),
        dict.fromkeys(head, optim.Group()),
        1,
        FIT,
    )
    state, update = step.init_train_state(head, tx), jax.jit(step.train_step(step.Recipe(short, tx)))
    for k in progress.each(range(FIT), "fitting a head to score with", "steps", FIT, watch=True):
        state, _ = update(state, rest, cached[k % len(cached)], np.uint32(run.config.seed), {})
    return {**rest, **state.params}


def of_gradients(
    run: Run, pieces: Sequence[Piece], params: Flat, batches: Sequence[Batch], score: str
) -> list[float]:
    net = run.net
    params = fitted(run, params, batches)
    head, body = tree.split(params, [n for n in params if n.startswith("head/")])

    def loss(body: Flat, head: Flat, batch: Batch) -> jax.Array:
        """The mean over a batch, times its rows: a mean over examples does not see how they are cut into
        batches."""
        sums = net.sums({**head, **body}, batch, jax.random.key(0))
        return (
            batch["weight"].sum()
            * jnp.stack([sums[n][0] / jnp.maximum(sums[n][1], 1) for n in net.objective.loss]).sum()
        )

    gradient, squares = jax.jit(jax.grad(loss)), jax.jit(net.squares)
    rows = float(sum(np.asarray(jax.device_get(batch["weight"].sum())) for batch in batches))
    total: Mapping[str, Any] | None = None
    square: Mapping[str, Any] | None = None
    for batch in progress.each(batches, f"scoring by {score}", "batches", len(batches), watch=True):
        new = gradient(body, head, batch)
        total = new if total is None else jax.tree.map(jnp.add, total, new)
        if score != "rgn":
            new = squares(params, batch)
            square = new if square is None else jax.tree.map(jnp.add, square, new)
    assert total is not None
    # float64 from here on: sums over millions of small squares
    lengths = {n: float(np.square(np.asarray(x, np.float64)).sum()) for n, x in jax.device_get(body).items()}
    means = {
        n: float(np.square(np.asarray(x, np.float64) / rows).sum()) for n, x in jax.device_get(total).items()
    }
    traces = {
        n: float(np.asarray(x, np.float64).sum() / rows) for n, x in jax.device_get(square or {}).items()
    }
    return [
        _of_piece(score, *(sum(of.get(n, 0.0) for n in p.leaves) for of in (lengths, means, traces)))
        for p in pieces
    ]


def _of_piece(score: str, length: float, mean: float, trace: float) -> float:
    """From squared norms of a piece: of its weights, of its mean gradient, and the mean of those of its
    examples' gradients."""
    if score == "fisher":
        return trace
    return (
        (mean / max(length, 1e-30)) ** 0.5
        if score == "rgn"
        else mean / max(trace - mean, 1e-30 + 1e-6 * mean)
    )


def variability(run: Run, pieces: Sequence[Piece], params: Flat, batches: Sequence[Batch]) -> list[float]:
    depth = len(run.layout.blocks)
    label = np.concatenate(
        [jax.device_get(b["label"])[np.asarray(jax.device_get(b["weight"])) > 0] for b in batches]
    )
    spreads = []
    for block in progress.each(range(depth + 1), "scoring by variability", "blocks", depth + 1, watch=True):
        vectors = jax.jit(functools.partial(_mean_state, run.net, run.layout.around(block)))
        states = [
            np.asarray(vectors(params, b), np.float64)[np.asarray(jax.device_get(b["weight"])) > 0]
            for b in batches
        ]
        spreads.append(within_over_between(np.concatenate(states), label))
    return [spreads[min(p.block + 1, depth)] for p in pieces]


def _mean_state(net: Net, modules: tuple[str, str], params: Flat, batch: Batch) -> jax.Array:
    hidden = net.between(params, batch, modules)
    mask = (jnp.arange(hidden.shape[1])[None] < batch["length"][:, None])[..., None].astype(hidden.dtype)
    return (hidden * mask).sum(1) / jnp.maximum(mask.sum(1), 1)


def within_over_between(x: np.ndarray, label: np.ndarray) -> float:
    """tr(S_w S_b^+) / C of vectors f64[N, D] of C classes i[N]: 0 where each class is one point."""
    classes = np.unique(label)
    centers = np.stack([x[label == c].mean(0) for c in classes])
    off = centers - centers.mean(0)
    inside = x - centers[np.searchsorted(classes, label)]
    # S_b^+ = V diag(C / s^2) V^T from off = U diag(s) V^T, of rank C - 1 at most: no D x D matrix is
    # inverted.
    _, s, v = np.linalg.svd(off, full_matrices=False)
    keep = s > 1e-9 * max(s.max(), 1e-30)
    spread = np.square(inside @ v[keep].T).mean(0)
    return float((spread * len(classes) / np.square(s[keep])).sum() / len(classes))
