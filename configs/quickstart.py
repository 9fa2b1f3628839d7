"""The whole flow in a few minutes, without any download: pretrain, finetune in parts, compare.

    bash launch/quickstart.sh

Stage `pretrain`: a tiny BERT on the English documentation that this Python environment carries. Stage `bench`: which
library does a paragraph come from? Four strategies and a random start, 200 labels, five seeds each.
Cost: under 6 minutes on two CPU cores. Result: the README's first table.
"""

from ml_collections import ConfigDict

from ptft.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, stage="pretrain", init="runs/quickstart/pretrain")
    return pretrain() if a.stage == "pretrain" else bench(a.init)


def pretrain() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.batch = 64
    c.train_for = "2000 steps"
    c.warmup = "10%"
    c.eval_every = "1000 steps"
    c.save_every = "1000 steps"
    c.log_every = "100 steps"

    c.model = ConfigDict()
    c.model.name = "bert"
    c.model.size = "tiny"
    c.model.max_len = 64
    c.model.dropout = 0.0

    c.objective = ConfigDict()
    c.objective.name = "mlm_nsp"
    c.objective.seq_len = 64
    c.objective.mask_prob = 0.3  # twice BERT's share: more to learn from each of few sentences

    c.optim = ConfigDict()
    c.optim.lr = 1e-3

    c.data = ConfigDict()
    c.data.train = "corpus:documents@train"
    c.data.dev = "corpus:documents@dev"
    c.data.dev_size = 1024
    c.data.vocab_size = 8000
    return c


def bench(init: str) -> ConfigDict:
    c = ConfigDict()
    c.batch = 16
    c.eval_batch = 256
    c.train_for = "15 epochs"
    c.warmup = "10%"
    c.eval_every = "0"
    c.save_every = "0"
    c.log_every = "5 epochs"
    c.best = "last"
    c.init_from = init

    c.model = ConfigDict()  # name and size are those of the run in init
    c.model.dropout = 0.1

    c.objective = ConfigDict()
    c.objective.name = "classify"
    c.objective.seq_len = 48

    c.optim = ConfigDict()
    c.optim.lr = 1e-3

    c.data = ConfigDict()
    c.data.train = "corpus:libraries@train"
    c.data.test = "corpus:libraries@test"
    c.data.train_size = 200

    c.bench = ConfigDict()
    c.bench.task = "which library is this paragraph about"
    c.bench.strategies = [
        {"name": "full", "freeze": "full", "lr": 5e-4},
        {"name": "top-1", "freeze": "top-1", "lr": 2e-3},
        {"name": "bitfit", "freeze": "bitfit", "lr": 1e-2},
        {"name": "head", "freeze": "head", "lr": 3e-2},
        {"name": "full, random init", "freeze": "full", "lr": 1e-3, "init_weights": False},
    ]
    c.bench.seeds = [0, 1, 2, 3, 4]
    c.bench.repeat = "head"  # the cheapest, for the A/A check
    return c
