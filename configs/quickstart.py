"""The whole flow in a few minutes, without any download: pretrain, finetune in parts, compare, use.

    bash launch/quickstart.sh

Stage `pretrain`: a two-layer ModernBERT guesses masked words of the English documentation that this Python
environment carries. Stage `bench`: which word is missing in a sentence, the, of, to or is? Four strategies
and a random start, 200 labelled sentences, five seeds each; it is scored on sentences of modules that the
pretraining has not seen. Stage `use`: one of them, kept for `ptft predict`. Learning rates were chosen by
hand on seeds 10 to 12. Cost: six minutes on two CPU cores. Result: the README's first table.
"""

from ml_collections import ConfigDict

from ptft.core.pages import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, stage="pretrain", init="runs/quickstart/pretrain")
    return {"pretrain": pretrain, "bench": lambda: bench(a.init), "use": lambda: use(a.init)}[a.stage]()


def pretrain() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.batch = 32
    c.train_for = "800 steps"
    c.warmup = "10%"
    c.freeze = (("backbone/pooler/.*", "freeze"), (".*", "train"))  # nothing here reads the pooler
    c.eval_every = "400 steps"
    c.save_every = "400 steps"
    c.log_every = "100 steps"

    c.model = ConfigDict()
    # its rotary positions need a quarter of the steps that BERT's learned ones need to look at a neighbour
    c.model.name = "modernbert"
    c.model.layers = 2
    c.model.hidden = 128
    c.model.heads = 2
    c.model.ffn = 128
    c.model.max_len = 64
    # for a classifier on these weights: no objective here trains a pooler or reads [CLS]
    c.model.pooling = "mean"
    c.model.window = 8  # the second block sees four tokens to each side, the first one all
    c.model.global_theta = 1000.0
    c.model.local_theta = 1000.0

    c.objective = ConfigDict()
    c.objective.name = "mlm_nsp"
    c.objective.nsp = False
    c.objective.seq_len = 32
    c.objective.mask_prob = 0.3

    c.optim = ConfigDict()
    c.optim.lr = 2e-3

    c.data = ConfigDict()
    c.data.train = "corpus:documents@train"
    c.data.dev = "corpus:documents@dev"
    c.data.dev_size = 512
    c.data.vocab_size = 4000
    return c


def finetune(init: str) -> ConfigDict:
    c = ConfigDict()
    c.batch = 16
    c.eval_batch = 256
    c.train_for = "8 epochs"
    c.warmup = "10%"
    c.eval_every = "0"
    c.save_every = "0"
    c.log_every = "4 epochs"
    c.best = "last"
    c.init_from = init  # and the model is that of the run in there
    c.frozen_dropout = False  # what is frozen runs as in evaluation: it is computed once

    c.objective = ConfigDict()
    c.objective.name = "classify"
    c.objective.seq_len = 40
    c.objective.blank = "___"

    c.optim = ConfigDict()
    c.optim.lr = 1e-3

    c.data = ConfigDict()
    c.data.train = "corpus:blanks@train"
    c.data.test = "corpus:blanks@test"
    c.data.train_size = 200
    return c


def use(init: str) -> ConfigDict:
    c = finetune(init)
    c.freeze = "head"
    c.optim.lr = 3e-3
    return c


def bench(init: str) -> ConfigDict:
    c = finetune(init)
    c.bench = ConfigDict()
    c.bench.task = "which word is missing: the, of, to or is"
    c.bench.strategies = [
        {"name": "full", "freeze": "full", "lr": 5e-4},
        {"name": "top-1", "freeze": "top-1", "lr": 5e-4},
        {"name": "lora=8", "freeze": "lora=8", "lr": 2e-3},
        {"name": "head", "freeze": "head", "lr": 3e-3},
        {"name": "full, random init", "freeze": "full", "lr": 1e-3, "init_weights": False},
    ]
    c.bench.seeds = [0, 1, 2, 3, 4]
    c.bench.repeat = "head"  # the cheapest, for the A/A check
    return c
