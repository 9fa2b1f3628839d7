"""The classic IMDb classifier: embedding 100, LSTM 128, vocabulary 10,000, the last 100 tokens, Adam.

    ptft train --config configs/imdb_lstm.py --workdir runs/imdb_lstm  # through TFDS
    ptft train --config configs/imdb_lstm.py:root=data/aclImdb --workdir runs/imdb_lstm  # or local files

No pretraining: the baseline that a pretrained encoder has to beat, and the proof that a backbone is one file.
Cost and result: see the README's table of real runs.
"""

from ml_collections import ConfigDict

from ptft.core.pages import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, root="")

    c = ConfigDict()
    c.seed = 0
    c.batch = 32
    c.eval_batch = 250
    c.train_for = "4 epochs"
    c.warmup = "0 steps"
    c.eval_every = "1 epoch"
    c.save_every = "1 epoch"
    c.log_every = "100 steps"

    c.model = ConfigDict()
    c.model.name = "lstm"
    c.model.pooling = "mean"

    c.objective = ConfigDict()
    c.objective.name = "classify"
    c.objective.seq_len = 100
    c.objective.truncate = "tail"  # a review's verdict stands at its end

    c.optim = ConfigDict()
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.0

    c.data = ConfigDict()
    c.data.vocab_size = 10_000
    if a.root:
        c.data.train, c.data.dev, c.data.test = (
            f"files:{a.root}/{split}" for split in ("train", "val", "test")
        )
    else:
        c.data.train, c.data.dev, c.data.test = (
            "tfds:imdb_reviews@train[:90%]",
            "tfds:imdb_reviews@train[90%:]",
            "tfds:imdb_reviews@test",
        )
        c.data.label = "label"
    return c
