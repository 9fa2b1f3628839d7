"""How Hugging Face's `model_type`s name what ptft has: tables that `hub` reads in both directions.

A module's name is enough, the last word follows from ours: kernel [in, out] is `weight` [out, in], embedding and scale
are `weight`, bias is `bias`. `{}` is the number of a block; `X[1/3]` is the second third of X's rows.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Names = Mapping[str, str]
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


class Family(NamedTuple):
    """One `model_type`."""

    stem: str  # of its classes in transformers
    prefix: str  # before the encoder's names, in a model with a head
    body: Names
    mlm: Names
    classify: Names
    decoder: str  # the copy of the word table that the MLM head may hold
    keys: Names  # config.model -> config.json
    dropout: str = "classifier_dropout"  # key in config.json
    model: str = "bert"  # config.model.name
    fixed: Mapping[str, Any] = {}  # keys of config.model that its config.json does not hold, because they never differ
    tag: Mapping[str, str] = {"head/tagger": "classifier"}


class Place(NamedTuple):
    """Where a parameter lies: part `part` of `parts` of the rows of a tensor, transposed or not."""

    name: str
    inner: bool  # of the encoder: in a model with a head the family's prefix stands before the name
    part: int
    parts: int
    transposed: bool


_BERT = {
    "backbone/embeddings/word": "embeddings.word_embeddings",
    "backbone/embeddings/position": "embeddings.position_embeddings",
    "backbone/embeddings/type": "embeddings.token_type_embeddings",
    "backbone/embeddings/norm": "embeddings.LayerNorm",
    "backbone/block_{}/attention/query": "encoder.layer.{}.attention.self.query",
    "backbone/block_{}/attention/key": "encoder.layer.{}.attention.self.key",
    "backbone/block_{}/attention/value": "encoder.layer.{}.attention.self.value",
    "backbone/block_{}/attention/out": "encoder.layer.{}.attention.output.dense",
    "backbone/block_{}/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "backbone/block_{}/ffn/up": "encoder.layer.{}.intermediate.dense",
    "backbone/block_{}/ffn/down": "encoder.layer.{}.output.dense",
    "backbone/block_{}/ffn_norm": "encoder.layer.{}.output.LayerNorm",
    "backbone/pooler": "pooler.dense",
}
_DISTILBERT = {
    "backbone/embeddings/word": "embeddings.word_embeddings",
    "backbone/embeddings/position": "embeddings.position_embeddings",
    "backbone/embeddings/norm": "embeddings.LayerNorm",
    "backbone/block_{}/attention/query": "transformer.layer.{}.attention.q_lin",
    "backbone/block_{}/attention/key": "transformer.layer.{}.attention.k_lin",
    "backbone/block_{}/attention/value": "transformer.layer.{}.attention.v_lin",
    "backbone/block_{}/attention/out": "transformer.layer.{}.attention.out_lin",
    "backbone/block_{}/attention_norm": "transformer.layer.{}.sa_layer_norm",
    "backbone/block_{}/ffn/up": "transformer.layer.{}.ffn.lin1",
    "backbone/block_{}/ffn/down": "transformer.layer.{}.ffn.lin2",
    "backbone/block_{}/ffn_norm": "transformer.layer.{}.output_layer_norm",
}
_MODERNBERT = {
    "backbone/embeddings/word": "embeddings.tok_embeddings",
    "backbone/embeddings/norm": "embeddings.norm",
    "backbone/block_{}/attention_norm": "layers.{}.attn_norm",
    "backbone/block_{}/attention/query": "layers.{}.attn.Wqkv[0/3]",
    "backbone/block_{}/attention/key": "layers.{}.attn.Wqkv[1/3]",
    "backbone/block_{}/attention/value": "layers.{}.attn.Wqkv[2/3]",
    "backbone/block_{}/attention/out": "layers.{}.attn.Wo",
    "backbone/block_{}/ffn_norm": "layers.{}.mlp_norm",
    "backbone/block_{}/ffn/up": "layers.{}.mlp.Wi[0/2]",
    "backbone/block_{}/ffn/gate": "layers.{}.mlp.Wi[1/2]",
    "backbone/block_{}/ffn/down": "layers.{}.mlp.Wo",
    "backbone/final_norm": "final_norm",
}
_BERT_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
    "max_len": "max_position_embeddings",
    "types": "type_vocab_size",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
_DISTILBERT_KEYS = {
    "layers": "n_layers",
    "hidden": "dim",
    "heads": "n_heads",
    "ffn": "hidden_dim",
    "vocab": "vocab_size",
    "max_len": "max_position_embeddings",
    "activation": "activation",
    "dropout": "dropout",
}
_TWO_LAYERS = {"backbone/pooler": "classifier.dense", "head/classifier": "classifier.out_proj"}
_ROBERTA = Family(
    stem="Roberta",
    prefix="roberta.",
    body=_BERT,
    mlm={"head/transform": "lm_head.dense", "head/norm": "lm_head.layer_norm", "head/decoder": "lm_head"},
    classify=_TWO_LAYERS,
    decoder="lm_head.decoder.weight",
    keys=_BERT_KEYS,
)
FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        stem="Bert",
        prefix="bert.",
        body=_BERT,
        mlm={
            "head/transform": "cls.predictions.transform.dense",
            "head/norm": "cls.predictions.transform.LayerNorm",
            "head/decoder": "cls.predictions",
            "head/nsp": "cls.seq_relationship",
        },
        classify={"head/classifier": "classifier"},
        decoder="cls.predictions.decoder.weight",
        keys=_BERT_KEYS,
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA._replace(stem="XLMRoberta"),
    "distilbert": Family(
        stem="DistilBert",
        prefix="distilbert.",
        body=_DISTILBERT,
        mlm={"head/transform": "vocab_transform", "head/norm": "vocab_layer_norm", "head/decoder": "vocab_projector"},
        classify={"backbone/pooler": "pre_classifier", "head/classifier": "classifier"},
        decoder="vocab_projector.weight",
        keys=_DISTILBERT_KEYS,
        dropout="seq_classif_dropout",
        fixed={"types": 0, "pooler": "relu", "epsilon": 1e-12},
    ),
    "electra": Family(
        stem="Electra",
        prefix="electra.",
        body={k: v for k, v in _BERT.items() if k != "backbone/pooler"} | {"backbone/embeddings/project": "embeddings_project"},
        mlm={
            "head/transform": "generator_predictions.dense",
            "head/norm": "generator_predictions.LayerNorm",
            "head/decoder": "generator_lm_head",
        },
        classify=_TWO_LAYERS,
        decoder="generator_lm_head.weight",
        keys={**_BERT_KEYS, "embedding": "embedding_size"},
        fixed={"pooler": "gelu"},
    ),
    "modernbert": Family(
        stem="ModernBert",
        prefix="model.",
        body=_MODERNBERT,
        mlm={"head/transform": "head.dense", "head/norm": "head.norm", "head/decoder": "decoder"},
        # A classifier starts from the MLM's transform: in files both have the same name.
        classify={"backbone/pooler/dense": "head.dense", "backbone/pooler/norm": "head.norm", "head/classifier": "classifier"},
        decoder="decoder.weight",
        keys={
            "layers": "num_hidden_layers",
            "hidden": "hidden_size",
            "heads": "num_attention_heads",
            "ffn": "intermediate_size",
            "vocab": "vocab_size",
            "max_len": "max_position_embeddings",
            "window": "local_attention",
            "global_every": "global_attn_every_n_layers",
            "global_theta": "global_rope_theta",
            "local_theta": "local_rope_theta",
            "activation": "hidden_activation",
            "epsilon": "norm_eps",
            "pooling": "classifier_pooling",
            "dropout": "mlp_dropout",
        },
        model="modernbert",
        tag={},  # theirs has the classifier's two layers before it
    ),
}

# What a config.json that is silent means (transformers' configuration classes).
DEFAULTS: Mapping[str, Any] = {
    "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "type_vocab_size": 2,
    "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "embedding_size": 128,
    "local_attention": 128, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
    "hidden_activation": "gelu", "norm_eps": 1e-5, "classifier_pooling": "cls", "mlp_dropout": 0.0,
    "n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072, "activation": "gelu", "dropout": 0.1, "vocab_size": 30522,
}  # fmt: skip
SILENT: Mapping[str, Mapping[str, Any]] = {
    "roberta": {"vocab_size": 50265},
    "electra": {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "modernbert": {
        "vocab_size": 50368, "num_hidden_layers": 22, "intermediate_size": 1152, "max_position_embeddings": 8192,
    },
}  # fmt: skip
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}


def places(family: Family, name: str, heads: tuple[str, ...] = ("classify", "mlm", "tag")) -> list[Place]:
    """Where a parameter may lie in a file, the likeliest first; none if the family has no such thing.

    Args:
      name: `backbone/block_3/attention/query/kernel`.
      heads: the kinds of heads, "classify", "mlm" or "tag", that the file may have.
    """
    module, leaf = name.rsplit("/", 1)
    number = re.search(r"block_(\d+)", module)
    key = re.sub(r"block_\d+", "block_{}", module)
    tables = [*(getattr(family, kind) for kind in heads), family.body]
    found = []
    for table in [t for t in tables if key in t]:
        path, part, parts = re.fullmatch(r"([^\[]+)(?:\[(\d)/(\d)\])?", table[key]).groups()  # type: ignore[union-attr]
        path = path.format(number[1] if number else "")
        found.append(Place(f"{path}.{LEAVES[leaf]}", table is family.body, int(part or 0), int(parts or 1), leaf == "kernel"))
    return found
