"""The names of BERT and its relatives at Hugging Face; `ptft.models.Family` says how to read them."""

from collections.abc import Mapping

from ptft.models import Family

_NAMES = {
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
_DISTILBERT_NAMES = {
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
_KEYS = {
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
# What a config.json that is silent means (transformers' configuration classes).
_SILENT = {
    "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
    "type_vocab_size": 2,
    "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1,
    "vocab_size": 30522,
}  # fmt: skip
_DISTILBERT_SILENT = {
    "n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072, "max_position_embeddings": 512,
    "activation": "gelu", "dropout": 0.1,
    "vocab_size": 30522,
}  # fmt: skip
_ELECTRA_SILENT = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "embedding_size": 128,
}
_EDGES = {"bos_token_id": "cls", "eos_token_id": "sep"}
_ATTENTION = {"attention_probs_dropout_prob": "dropout"}
_TWO_LAYERS = {"backbone/pooler": "classifier.dense", "head/classifier": "classifier.out_proj"}
_ROBERTA = Family(
    stem="Roberta",
    prefix="roberta.",
    body=_NAMES,
    mlm={"head/transform": "lm_head.dense", "head/norm": "lm_head.layer_norm", "head/decoder": "lm_head"},
    classify=_TWO_LAYERS,
    decoder="lm_head.decoder.weight",
    keys=_KEYS,
    silent={**_SILENT, "vocab_size": 50265},
    also=_ATTENTION,
    roles=_EDGES,
    fixed={"family": "roberta"},
    shifted=True,
)
FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        stem="Bert",
        prefix="bert.",
        body=_NAMES,
        mlm={
            "head/transform": "cls.predictions.transform.dense",
            "head/norm": "cls.predictions.transform.LayerNorm",
            "head/decoder": "cls.predictions",
            "head/nsp": "cls.seq_relationship",
        },
        classify={"head/classifier": "classifier"},
        decoder="cls.predictions.decoder.weight",
        keys=_KEYS,
        silent=_SILENT,
        also=_ATTENTION,
        fixed={"family": "bert"},
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA._replace(stem="XLMRoberta", silent=_SILENT, fixed={"family": "xlm-roberta"}),
    "distilbert": Family(
        stem="DistilBert",
        prefix="distilbert.",
        body=_DISTILBERT_NAMES,
        mlm={
            "head/transform": "vocab_transform",
            "head/norm": "vocab_layer_norm",
            "head/decoder": "vocab_projector",
        },
        classify={"backbone/pooler": "pre_classifier", "head/classifier": "classifier"},
        decoder="vocab_projector.weight",
        keys=_DISTILBERT_KEYS,
        silent=_DISTILBERT_SILENT,
        dropout="seq_classif_dropout",
        also={"attention_dropout": "dropout"},
        fixed={"family": "distilbert", "types": 0, "pooler": "relu", "epsilon": 1e-12},
    ),
    "electra": Family(
        stem="Electra",
        prefix="electra.",
        body={k: v for k, v in _NAMES.items() if k != "backbone/pooler"}
        | {"backbone/embeddings/project": "embeddings_project"},
        mlm={
            "head/transform": "generator_predictions.dense",
            "head/norm": "generator_predictions.LayerNorm",
            "head/decoder": "generator_lm_head",
        },
        classify=_TWO_LAYERS,
        decoder="generator_lm_head.weight",
        keys={**_KEYS, "embedding": "embedding_size"},
        silent={**_SILENT, **_ELECTRA_SILENT},
        also=_ATTENTION,
        fixed={"family": "electra", "pooler": "gelu"},
    ),
}
