"""What a finetuning makes a backbone forget: the loss of its pretraining on held-out text, under the head
that it was pretrained with.

The measure is that of PEFT's method comparison, the loss of the old task, with a head that finetuning tools
throw away. An order of strategies is not to be expected: full finetuning does not always forget most.
"""

import functools
from pathlib import Path

from ptft import data
from ptft.core import checkpoint, mesh
from ptft.core.errors import UserError
from ptft.core.tree import Flat
from ptft.hub import folders
from ptft.objectives import Rows
from ptft.train import dataset, evaluate, weights
from ptft.train.build import Run
from ptft.train.net import Net

ROWS = 512  # of the held-out text, masked in the same places every time


def measure(run: Run, params: Flat) -> dict[str, float] | None:
    """Masked-language-model loss on the pretraining's own held-out text before and after, in nats a masked
    token.

    Args:
      run: a finetuning run; params: all of its parameters, as a step computes with them.
    Returns:
      {"before": loss, "after": loss}, equal to the bit where the backbone is; None where the run did not
      start on a pretrained run of ptft's with a held-out split that is still there, or has another backbone.
      What is frozen in fewer bits is so before, too.
    """
    start = run.config.init_from if run.config.init_weights else ""
    kept = _kept(start) if start and not folders.is_folder(start) else None
    if kept is None:
        return None
    net, head, rows, before = kept
    mine = {n: x for n, x in params.items() if not n.startswith("head/")}
    with_added = net._replace(added=run.net.added)
    if {n: x.shape for n, x in mine.items()} != {
        n: x.shape for n, x in with_added.shapes().items() if not n.startswith("head/")
    }:
        return None
    if run.config.frozen_dtype != "float32":
        own = {
            n: x for n, x in mine.items() if n not in set(run.plan.trainable) and not n.startswith("adapter/")
        }
        before = _loss(
            net, {**checkpoint.load_params(Path(start), net.shapes(), skip="", new_ok="")[0], **own}, rows
        )
    return {"before": before, "after": _loss(with_added, {**mine, **head}, rows)}


@functools.lru_cache(maxsize=4)
def _kept(start: str) -> tuple[Net, Flat, Rows, float] | None:
    """The pretraining's net, its head, its held-out rows, and their loss."""
    folder = Path(start)
    config, tokenizer, net = weights.run_net(folder)
    if config.objective.name != "mlm_nsp" or not config.data.dev or weights.in_parts(folder):
        return None
    try:
        source = data.load(config.data.dev, config.data, ())
    except UserError:  # a run may outlive its text
        return None
    rows = dataset.rows(net.objective, source, tokenizer, config.data.dev)
    params, _ = checkpoint.load_params(folder, net.shapes(), skip="", new_ok="")
    head = {n: x for n, x in params.items() if n.startswith("head/")}
    return net, head, rows, _loss(net, params, rows)


def _loss(net: Net, params: Flat, rows: Rows) -> float:
    grid = mesh.make()
    params = mesh.place(params, grid)
    return evaluate.evaluate(net, params, evaluate.Split(rows, 64, grid, ROWS))["mlm_loss"]
