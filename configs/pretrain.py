"""Pretrains BERT on raw text: masked words and next sentences (Devlin et al. 2018, the recipe of
google-research/bert).

    ptft train --config configs/pretrain.py:size=tiny,corpus=simplewiki,root=data --workdir runs/simplewiki

Arguments: `size` tiny … large; `init`, a run or a checkpoint to go on from, heads and size included; `corpus`
embedded, simplewiki or zhwiki (WikiExtractor output in `root`/NAME/AA), or any source through
--config.data.train and --config.data.dev. The default, tiny on the embedded corpus, needs no files. Cost and
result of the command above: see the README's table of real runs (about half an hour of two CPU cores).
"""

from ml_collections import ConfigDict

from ptft.core.errors import UserError, did_you_mean
from ptft.core.pages import parse_arg

CORPORA = {
    "embedded": ("corpus:documents@train", "corpus:documents@dev"),
    "simplewiki": ("files:{root}/simplewiki/AA/wiki_?[0-8]", "files:{root}/simplewiki/AA/wiki_99"),
    "zhwiki": ("files:{root}/zhwiki/AA/wiki_?[0-8]", "files:{root}/zhwiki/AA/wiki_39"),
}


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, size="tiny", corpus="embedded", root="data", seq_len=128, init="")
    if a.corpus not in CORPORA:
        raise UserError(f"no corpus {a.corpus!r}; {did_you_mean(a.corpus, CORPORA)}")
    train, dev = CORPORA[a.corpus]

    c = ConfigDict()
    c.seed = 0
    c.batch = 4096 // a.seq_len
    c.train_for = "9000 steps"
    c.warmup = "5%"
    c.eval_every = "1000 steps"
    c.save_every = "1000 steps"
    c.log_every = "100 steps"

    c.init_from = a.init
    c.model = ConfigDict()
    if not a.init:  # else all but the dropout is as it was there
        c.model.name = "bert"
        c.model.size = a.size
        c.model.max_len = 128
    c.model.dropout = 0.0  # a budget of minutes sees each sentence about twice: there is nothing to overfit

    c.objective = ConfigDict()
    c.objective.name = "mlm_nsp"
    c.objective.seq_len = a.seq_len

    c.optim = ConfigDict()
    c.optim.name = "adamw"
    c.optim.lr = 1e-4 if a.init else 2e-3  # for small batches and two layers; larger sizes want 1e-4 … 5e-4
    c.optim.bias_correction = False

    c.data = ConfigDict()
    c.data.train = train.format(root=a.root)
    c.data.dev = dev.format(root=a.root)
    c.data.dev_size = 2048
    c.data.vocab_size = 8000
    return c
