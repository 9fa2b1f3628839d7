"""The strategies that published tables compare, from weights that exist, with few labels: which of their
shapes show here?

    ptft bench --config configs/published.py:task=sst2,init=minilm,root=data --workdir runs/published_sst2
    ptft bench --config configs/published.py:task=mrpc,init=minilm,root=data --workdir runs/published_mrpc
    ptft report runs/published_sst2 runs/published_mrpc

`minilm` is a folder in Hugging Face's format or a pretrained run; `task=` and config.data take a table of
your own, as in configs/bench.py. What is frozen runs without dropout. The tables: top layers of BERT on GLUE
(Lee, Tang & Lin 2019, arXiv 1911.03090), frozen layers x 50 to 1,000 examples (RoBERTa-base on SST-2), BitFit
(Ben Zaken et al. 2021, arXiv 2106.10199), LoRA (Hu et al. 2021, arXiv 2106.09685), gradual unfreezing (Howard
& Ruder 2018, arXiv 1801.06146, table 7), LayerNorm (Zhao et al. 2023, arXiv 2312.11420). Their models are
larger and their data more, so numbers do not carry over; `ptft.bench.expectations` states what should, and
the report says where it holds. Cost: 12 strategies, random weights and the A/A check x 3 rates x 5 seeds x 2
sizes a task; it says how long before it starts. Result: which of the shapes show.
"""

from ml_collections import ConfigDict

from ptft.core.pages import parse_arg
from ptft.data import tasks

# The middle of the three rates that each tries, for weights pretrained for days and some 10 to 150 steps.
RATES = {
    "full": 2e-4, "freeze-embeddings": 2e-4, "top-4": 2e-4, "top-3": 3e-4, "top-2": 4e-4, "top-1": 8e-4,
    "head": 1.5e-2, "bottom-2": 6e-4,
    "bitfit": 4e-3, "layernorm": 4e-3, "lora=8": 4e-3, "gradual": 4e-4,
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, task="sst2", init="", root="", seq_len=64, epochs=6)

    c = ConfigDict()
    c.batch = 16
    c.eval_batch = 64
    c.train_for = f"{a.epochs} epochs"
    c.warmup = "10%"
    c.eval_every = "0"
    c.save_every = "0"
    c.log_every = "1 epoch"
    c.best = "last"
    c.init_from = a.init
    c.frozen_dropout = False  # what is frozen runs as in evaluation: it is computed once

    c.objective = ConfigDict()
    c.objective.name = "classify"
    c.objective.seq_len = a.seq_len

    c.data = tasks.data(a.task, a.root)
    c.data.dev_size = 400

    c.bench = ConfigDict()
    c.bench.task = a.task
    c.bench.strategies = [{"name": name, "freeze": name, "lr": lr} for name, lr in RATES.items()]
    c.bench.lr_factors = [0.33, 1, 3]
    c.bench.seeds = [0, 1, 2, 3, 4]
    c.bench.sizes = [100, 400]
    return c
