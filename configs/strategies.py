"""Every kind of strategy once, each at a learning rate of its own: does it train at all, and what does it
cost?

    ptft bench --config configs/strategies.py:task=sst2,init=minilm,root=data --workdir runs/strategies
    ptft report runs/strategies

`minilm` is a folder in Hugging Face's format; the arguments are those of configs/bench.py. One seed: this is
a check, and no comparison. What is frozen runs without dropout. Cost: about a minute a strategy with MiniLM's
six layers on two CPU cores. Result: every one of them is above the floor.
"""

from ml_collections import ConfigDict

from ptft.core.pages import parse_arg
from ptft.data import tasks

# For weights pretrained for days. What moves less has to go further.
RATES = {
    "full": 1e-4, "freeze-embeddings": 1e-4, "full@decay=0.8": 2e-4, "full@ulmfit": 3e-4,
    "full!attention": 1e-4,
    "top-2": 3e-4, "bottom-2": 3e-4, "layers=1,3-4": 3e-4, "every-3": 3e-4, "random=0.1,0": 3e-4,
    "embeddings": 1e-3,
    "attention": 3e-4, "ffn": 3e-4, "layernorm": 5e-3, "bitfit": 3e-3, "bitfit=query,up": 5e-3,
    "top-2&bitfit": 5e-3, "head": 2e-2,
    "lora=8": 2e-3, "lora=8,attention,ffn,alpha=16,rs": 5e-4, "lora=8,dora": 2e-3, "lora=8@plus=16": 5e-4,
    "lora=8+bitfit": 2e-3,
    "houlsby=32": 1e-3, "pfeiffer=32": 1e-3, "ia3": 1e-2, "prompt=16": 1e-2, "prefix=16": 1e-2,
    "fish=0.005": 1e-3,
    "gradual": 3e-4, "gradual@ulmfit": 5e-4, "head; 30%: top-2; 60%: full": 2e-4, "lisa=2,20 steps": 2e-4,
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, task="sst2", init="", root="", seq_len=32, train_size=None)

    c = ConfigDict()
    c.batch = 32
    c.eval_batch = 128
    c.train_for = "2 epochs"
    c.warmup = "10%"
    c.eval_every = "0"
    c.save_every = "0"
    c.log_every = "1 epoch"
    c.best = "last"
    c.init_from = a.init
    c.frozen_dropout = False  # what is frozen runs as in evaluation: it may be computed once

    c.objective = ConfigDict()
    c.objective.name = "classify"
    c.objective.seq_len = a.seq_len

    c.data = tasks.data(a.task, a.root)
    c.data.dev = ""
    c.data.train_size = (2000 if a.task else 0) if a.train_size is None else a.train_size

    c.bench = ConfigDict()
    c.bench.task = a.task
    c.bench.strategies = [{"name": name, "freeze": name, "lr": lr} for name, lr in RATES.items()]
    c.bench.seeds = [0]
    c.bench.repeat = False
    c.bench.random_init = False
    return c
