"""Added parameters beside PEFT's, live: the same numbers in both give the same outputs.

Runs where the [peers] extra is installed, as test_peers.py.
"""

import os
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptft import models
from ptft.core import tree
from ptft.freeze import adapters, language, resolve
from ptft.hub import config_json, folders, read
from ptft.inputs import tokenizer_files
from ptft.train import build, spec

if not os.environ.get("PTFT_PEERS"):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("default")  # theirs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    import torch
    import transformers
    from test_peers import make_hub

SITES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "down": "output.dense",
}
BODY = make_hub.HERE / "bert_bare"


def ours(strategy):
    """Hidden states of the strategy, everything that it adds random, and those numbers by site."""
    folder = folders.open_folder(BODY)
    config = spec.resolve(
        {"model": config_json.model_keys(folder), "objective": {"name": "tag", "seq_len": 12}}
    )
    plain = build.net(config, tokenizer_files.load(BODY), ["a", "b"])
    net = plain._replace(
        added=resolve.added(language.parse(strategy), models.anatomy("bert"), plain.shapes())
    )
    loaded, _ = read.load_params(folder, plain.shapes(), skip="head/.*", new_ok="(head|backbone/pooler)/.*")
    rng = np.random.default_rng(0)
    fresh = adapters.fill(net.added, {**loaded, **adapters.init(net.added, jax.random.key(0))})
    added = {
        n: x + jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
        for n, x in fresh.items()
        if n.startswith("adapter/")
    }
    batch = {k: jnp.asarray(v) for k, v in make_hub.inputs("bert_bare", 60, 0, True, 5).items()}
    with adapters.attach(net.added, added):
        found = jax.jit(lambda p: net.backbone.apply({"params": tree.unflatten(p)["backbone"]}, batch))(
            loaded
        )
    return (
        np.asarray(found["hidden"]),
        batch,
        {n.removeprefix("adapter/"): np.asarray(x) for n, x in added.items()},
    )


def theirs(settings, batch, put):
    model = peft.get_peft_model(transformers.BertModel.from_pretrained(BODY).eval(), settings).eval()
    with torch.no_grad():
        put(dict(model.named_parameters()))
        t = {k: torch.as_tensor(np.asarray(v).astype(np.int64)) for k, v in batch.items()}
        out = model(input_ids=t["tokens"], attention_mask=t["mask"], token_type_ids=t["types"])
    return out.last_hidden_state.numpy()


def fill(parameter, value):
    assert parameter.shape == value.shape
    parameter.copy_(torch.as_tensor(np.array(value)))


def compare(found, wanted, batch):
    real = np.asarray(batch["mask"])
    np.testing.assert_allclose(found[real], wanted[real], atol=2e-5)


def by_site(added):
    """((block, module), {name: array}) of every site."""
    out = {}
    for n, x in added.items():
        block, module, name = re.fullmatch(r"block_(\d+)/\w+/(\w+)/\w+/(\w+)", n).groups()
        out.setdefault((block, module), {})[name] = x
    return out.items()


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("lora=3,query,value,down,alpha=5", {"lora_alpha": 5}),
        ("lora=3,query,value,down,alpha=5,rs", {"lora_alpha": 5, "use_rslora": True}),
        ("lora=3,query,value,down,alpha=5,dora", {"lora_alpha": 5, "use_dora": True}),
    ],
)
def test_lora(strategy, settings):
    hidden, batch, added = ours(strategy)
    targets = r".*\.(self\.(query|value)|layer\.\d+\.output\.dense)"

    def put(named):
        for (block, module), p in by_site(added):
            at = f"base_model.model.encoder.layer.{block}.{SITES[module]}.lora_"
            fill(named[f"{at}A.default.weight"], p["a"].T)
            fill(named[f"{at}B.default.weight"], p["b"].T)
            if "magnitude" in p:
                fill(named[f"{at}magnitude_vector.default.weight"], p["magnitude"])
        assert sum("lora_A" in n for n in named) == len(by_site(added))

    compare(hidden, theirs(peft.LoraConfig(r=3, target_modules=targets, **settings), batch, put), batch)


def test_ia3():
    hidden, batch, added = ours("ia3")
    inside = r".*layer\.\d+\.output\.dense"
    settings = peft.IA3Config(target_modules=rf".*\.self\.(key|value)|{inside}", feedforward_modules=inside)

    def put(named):
        for (block, module), p in by_site(added):
            parameter = named[f"base_model.model.encoder.layer.{block}.{SITES[module]}.ia3_l.default"]
            fill(parameter, p["factor"].reshape(parameter.shape))
        assert sum("ia3_l" in n for n in named) == len(by_site(added))

    compare(hidden, theirs(settings, batch, put), batch)


def test_a_prefix():
    """The cache that PEFT makes of its prefix, handed to transformers. PEFT also moves all positions by the
    prefix's length (what the cache holds counts as text); here positions stay, as the prefix has none."""
    hidden, batch, added = ours("prefix=3")
    model = peft.get_peft_model(
        transformers.BertModel.from_pretrained(BODY).eval(),
        peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3),
    ).eval()
    layers = sorted({n.split("/")[0] for n in added})
    vectors = [added[f"{block}/attention/{m}/prefix/vectors"] for block in layers for m in ("key", "value")]
    t = {k: torch.as_tensor(np.asarray(v).astype(np.int64)) for k, v in batch.items()}
    rows, length = t["tokens"].shape
    with torch.no_grad():
        fill(model.prompt_encoder["default"].embedding.weight, np.concatenate(vectors, 1))
        out = model.get_base_model()(
            input_ids=t["tokens"],
            attention_mask=torch.cat([torch.ones(rows, 3, dtype=torch.int64), t["mask"]], 1),
            token_type_ids=t["types"],
            position_ids=torch.arange(length)[None],
            past_key_values=model.get_prompt(rows),
        )
    compare(hidden, out.last_hidden_state.numpy(), batch)
