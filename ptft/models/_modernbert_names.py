"""The names of ModernBERT at Hugging Face; `ptft.models.Family` says how to read them."""

from collections.abc import Mapping

from ptft.models import Family

_NAMES = {
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
FAMILIES: Mapping[str, Family] = {
    "modernbert": Family(
        stem="ModernBert",
        prefix="model.",
        body=_NAMES,
        mlm={"head/transform": "head.dense", "head/norm": "head.norm", "head/decoder": "decoder"},
        # A classifier starts from the MLM's transform: in files both have the same name.
        classify={
            "backbone/pooler/dense": "head.dense",
            "backbone/pooler/norm": "head.norm",
            "head/classifier": "classifier",
        },
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
        # What a config.json that is silent means (transformers' configuration class).
        silent={
            "vocab_size": 50368,
            "num_hidden_layers": 22,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "max_position_embeddings": 8192,
            "local_attention": 128,
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0,
            "hidden_activation": "gelu",
            "norm_eps": 1e-5,
            "classifier_pooling": "cls",
            "mlp_dropout": 0.0,
        },
        also={
            "attention_dropout": "dropout",
            "embedding_dropout": "dropout",
            "classifier_activation": "activation",
        },
        roles={"cls_token_id": "cls", "sep_token_id": "sep", "bos_token_id": "cls", "eos_token_id": "sep"},
        model="modernbert",
        tag={},  # theirs has the classifier's two layers before it
    ),
}
