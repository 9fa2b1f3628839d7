"""Compares freeze strategies on one task, from one pretrained run: strategies x learning rates x seeds.

    ptft bench --config configs/bench.py:task=sst2,init=runs/simplewiki,root=data --workdir runs/bench_sst2
    ptft bench --config configs/bench.py:task=,init=runs/simplewiki --workdir runs/mine \
        --config.data.text=text --config.data.label=label \
        --config.data.train=files:train.tsv --config.data.dev=files:dev.tsv --config.data.test=files:test.tsv
    ptft report runs/bench_sst2

Arguments: `task`, `init`, `root`, `seq_len` as in configs/finetune.py, and `train_size`, the number of
labelled examples (another subset for each seed; 1000 where nothing is said, of a table of your own all);
several: `--config.bench.sizes=[200,1000]`; longer: `--config.train_for='10 epochs'`. Of three learning rates
a strategy, dev chooses; without dev, one: `--config.bench.lr_factors=[1]`. The rows of reference (the most
frequent class, TF-IDF, frozen features, random weights) and a second copy of the baseline are added. Parts of
the encoder in which nothing is trainable run without dropout, as in evaluation, so that what lies below all
that is trainable is computed once; what is trainable keeps it, whatever the strategy.
`--config.frozen_dropout=True` gives it back to all of them. `--check` prints the schedule and runs nothing.
Cost: 10 strategies and the copy x 3 rates x 5 seeds; it says how long that takes before it starts. Result:
which parts were worth it.
"""

from ml_collections import ConfigDict

from ptft.core.pages import parse_arg
from ptft.data import tasks

# Each strategy has learning rates of its own, a third, once and three times this one: what moves less has to
# go further.
STRATEGIES = [
    {"name": "full", "freeze": "full", "lr": 3e-4},
    {"name": "freeze-embeddings", "freeze": "freeze-embeddings", "lr": 1e-3},
    {"name": "top-1", "freeze": "top-1", "lr": 1e-3},
    {"name": "bottom-1", "freeze": "bottom-1", "lr": 1e-3},
    {"name": "attention", "freeze": "attention", "lr": 1e-3},
    {"name": "ffn", "freeze": "ffn", "lr": 1e-3},
    {"name": "bitfit", "freeze": "bitfit", "lr": 3e-3},
    {"name": "layernorm", "freeze": "layernorm", "lr": 3e-3},
    {"name": "head", "freeze": "head", "lr": 3e-3},
    {"name": "full, random init", "freeze": "full", "lr": 3e-4, "init_weights": False},
]


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, task="sst2", init="", root="", seq_len=64, train_size=None)

    c = ConfigDict()
    c.batch = 32
    c.eval_batch = 256
    c.train_for = "5 epochs"
    c.warmup = "10%"
    c.eval_every = "1 epoch"
    c.save_every = "0"
    c.log_every = "1 epoch"
    c.init_from = a.init
    c.frozen_dropout = False  # what is frozen runs as in evaluation: it may be computed once

    c.objective = ConfigDict()
    c.objective.name = "classify"
    c.objective.seq_len = a.seq_len

    c.optim = ConfigDict()
    c.optim.lr = 3e-4

    c.data = tasks.data(a.task, a.root)
    c.data.train_size = (1000 if a.task else 0) if a.train_size is None else a.train_size
    c.data.dev_size = 1000

    c.bench = ConfigDict()
    c.bench.task = a.task
    c.bench.strategies = STRATEGIES
    c.bench.lr_factors = [0.33, 1, 3]
    c.bench.seeds = [0, 1, 2, 3, 4]
    return c
