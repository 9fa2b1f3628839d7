"""Finetunes part of a pretrained run on a named task.

    ptft train --config configs/finetune.py:task=sst2,init=runs/simplewiki,freeze=top-1,root=data \
        --workdir runs/sst2

Arguments: `task`, one of ptft/data/tasks.py, or empty for a table of your own in config.data; `init`, the
folder of a pretraining run, a folder in Hugging Face's format, or hf:ORG/NAME; `freeze`, a strategy; `root`,
a folder that holds the task's files in the layout of ptft/data/tasks.py: empty reads TFDS instead, where GLUE
needs the [tf] extra once, to prepare it; `seq_len`; `epochs`. Cost: seconds a thousand examples for the tiny
sizes on two CPU cores. Result: see the README's table of real runs.
"""

from ml_collections import ConfigDict

from ptft.core.pages import parse_arg
from ptft.data import tasks
from ptft.hub import folders


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, task="sst2", init="", freeze="full", root="", seq_len=64, epochs=3)

    c = ConfigDict()
    c.seed = 0
    c.batch = 32
    c.train_for = f"{a.epochs} epochs"
    c.warmup = "10%"
    c.eval_every = "1 epoch"
    c.save_every = "1 epoch"
    c.log_every = "100 steps"
    c.best = "matthews" if a.task == "cola" else ""  # the objective's own
    c.init_from = a.init
    c.freeze = a.freeze

    c.model = ConfigDict()  # name and size are those of the run in init
    c.model.dropout = 0.1

    c.objective = ConfigDict()
    c.objective.name = "classify"
    c.objective.seq_len = a.seq_len

    c.optim = ConfigDict()
    # The fewer parameters move, the further each has to go; weights that were pretrained for days want
    # smaller steps.
    full, part = (5e-5, 5e-4) if folders.is_imported(a.init) else (5e-4, 1e-3)
    c.optim.lr = full if a.freeze.startswith(("full", "freeze-embeddings")) else part

    c.data = tasks.data(a.task, a.root)
    return c
