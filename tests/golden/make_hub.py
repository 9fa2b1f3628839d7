"""Small random checkpoints of every architecture, written by transformers, and what transformers computes
with them.

    python tests/golden/make_hub.py      # needs the [peers] extra; writes tests/golden/hub/NAME/

tests/test_hub.py compares ptft with the files; tests/test_peers.py makes others, from other seeds, and
compares live.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers as hf
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent / "hub"
T = 12
TEXTS = [
    "the cat sat on the mat",
    "a dog, a cat and 3 birds",
    "we like this book very much",
    "我非常喜欢这本书",
    "Ünïcode äccents",
] * 3
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32}
THREE = {"num_labels": 3}
BERT = {**SMALL, "vocab_size": 60}
ROBERTA = {**SMALL, "vocab_size": 300, "type_vocab_size": 1}
MODERN = {**SMALL, "num_hidden_layers": 3, "local_attention": 6, "vocab_size": 304}
MODERN |= {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert_bare": (hf.BertModel, hf.BertConfig, BERT),
    "bert_pretraining": (hf.BertForPreTraining, hf.BertConfig, BERT),
    "bert_masked": (hf.BertForMaskedLM, hf.BertConfig, {**BERT, "hidden_act": "gelu_new"}),
    "bert_classify": (hf.BertForSequenceClassification, hf.BertConfig, {**BERT, **THREE}),
    "bert_tags": (hf.BertForTokenClassification, hf.BertConfig, {**BERT, **THREE}),
    "roberta_masked": (hf.RobertaForMaskedLM, hf.RobertaConfig, {**ROBERTA, "layer_norm_eps": 1e-5}),
    "roberta_classify": (hf.RobertaForSequenceClassification, hf.RobertaConfig, {**ROBERTA, **THREE}),
    "roberta_tags": (hf.RobertaForTokenClassification, hf.RobertaConfig, {**ROBERTA, **THREE}),
    "xlm_roberta_masked": (hf.XLMRobertaForMaskedLM, hf.XLMRobertaConfig,
    {**SMALL, "vocab_size": 60, "type_vocab_size": 1}),
    "distilbert_masked": (hf.DistilBertForMaskedLM, hf.DistilBertConfig, {**DISTIL, "vocab_size": 60}),
    "distilbert_classify": (hf.DistilBertForSequenceClassification, hf.DistilBertConfig,
    {**DISTIL, **THREE, "vocab_size": 60}),
    "electra_discriminator": (hf.ElectraForPreTraining, hf.ElectraConfig, {**BERT, "embedding_size": 8}),
    "electra_generator": (hf.ElectraForMaskedLM, hf.ElectraConfig, {**BERT, "embedding_size": 8}),
    "electra_silu": (hf.ElectraForMaskedLM, hf.ElectraConfig,
    {**BERT, "embedding_size": 8, "hidden_act": "silu"}),
    "roberta_relu": (hf.RobertaForMaskedLM, hf.RobertaConfig,
    {**ROBERTA, "type_vocab_size": 2, "hidden_act": "relu"}),
    "two_classes": (hf.BertForSequenceClassification, hf.BertConfig, {**BERT, "num_labels": 2}),
    "electra_classify": (hf.ElectraForSequenceClassification, hf.ElectraConfig,
    {**BERT, **THREE, "embedding_size": 16}),
    "modernbert_masked": (hf.ModernBertForMaskedLM, hf.ModernBertConfig, MODERN),
    "modernbert_classify": (hf.ModernBertForSequenceClassification, hf.ModernBertConfig,
    {**MODERN, **THREE, "classifier_pooling": "mean"}),
}  # fmt: skip


def wordpiece(folder: Path) -> None:
    letters = sorted({c for text in TEXTS for c in text.lower() if not c.isspace()})
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "the", "cat", "##s", "##t"]
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in vocab[:60]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )


def byte_level(folder: Path, specials: list[str], kind: str, post: Any) -> None:
    """RoBERTa's and ModernBERT's kind: BPE over bytes."""
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=299, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    t.post_processor = post(t)
    finish(t, folder, kind, specials)


def sentencepiece(folder: Path) -> None:
    """XLM-R's kind: a unigram model over ▁words."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    t = tokenizers.Tokenizer(models.Unigram())
    t.normalizer = normalizers.NFKC()
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=59, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    t.train_from_iterator(TEXTS, trainer)
    t.post_processor = pair("<s>", "</s>", double=True)(t)
    finish(t, folder, "XLMRobertaTokenizer", specials)


def pair(cls: str, sep: str, double: bool) -> Any:
    middle = f"{sep} {sep}" if double else sep
    return lambda t: processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {middle} $B {sep}",
        special_tokens=[(s, t.token_to_id(s)) for s in (cls, sep)],
    )


def finish(t: tokenizers.Tokenizer, folder: Path, kind: str, specials: list[str]) -> None:
    t.save(str(folder / "tokenizer.json"))
    role = {
        "pad": "pad",
        "PAD": "pad",
        "unk": "unk",
        "UNK": "unk",
        "s": "cls",
        "CLS": "cls",
        "/s": "sep",
        "SEP": "sep",
        "mask": "mask",
        "MASK": "mask",
    }
    settings = {f"{role[s.strip('<>[]')]}_token": s for s in specials}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **settings}))


def tokenizer(name: str, folder: Path) -> None:
    if name.startswith("roberta"):
        byte_level(
            folder,
            ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            "RobertaTokenizer",
            pair("<s>", "</s>", double=True),
        )
    elif name.startswith("xlm"):
        sentencepiece(folder)
    elif name.startswith("modern"):
        byte_level(
            folder,
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            "PreTrainedTokenizerFast",
            pair("[CLS]", "[SEP]", double=False),
        )
    else:
        wordpiece(folder)


def make(name: str, seed: int) -> Any:
    """A random model far from its initial weights, biases and norms too."""
    cls, config, values = CASES[name]
    torch.manual_seed(seed)
    model = cls(config(**values)).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(0.2 * torch.randn_like(p) + float("norm" in n.lower() and n.endswith("weight")))
    return model


def inputs(name: str, vocab: int, pad: int, types: bool, seed: int) -> dict[str, np.ndarray]:
    """Rows of full length, of 7, of 3 and of 1 token; masked positions; labels."""
    rng = np.random.default_rng(seed)
    length = np.array([T, 7, 3, 1])
    mask = np.arange(T) < length[:, None]
    tokens = np.where(mask, rng.integers(5, vocab, (4, T)), pad)
    second = np.array([5, 4, 3, 1])
    position = np.array([[1, 4, 9], [2, 6, 0], [1, 0, 0], [0, 0, 0]])
    masked = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]], np.float32)
    tags = (
        {"tags": np.where(mask, rng.integers(0, 3, (4, T)), -1).astype(np.int32)}
        if name.endswith("tags")
        else {}
    )
    return tags | {
        "tokens": tokens.astype(np.int32), "mask": mask,
        "types": ((np.arange(T) >= second[:, None]) & mask & types).astype(np.int32),
        "position": position.astype(np.int32), "target": rng.integers(5, vocab, (4, 3)).astype(np.int32),
        "masked": masked,
        "next": np.array([0, 1, 1, 0], np.int32), "label": np.array([2, 0, 1, 1], np.int32),
        "valid": np.ones(4, np.float32),
    }  # fmt: skip


def has_types(c: Any) -> bool:
    """Whether the second text has a type of its own: RoBERTa's tokenizers give it none, even where the model
    has a row for it."""
    return getattr(c, "type_vocab_size", 0) > 1 and "roberta" not in c.model_type


def expected(model: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states, pooled output, logits, loss and every gradient, by transformers."""
    t = {k: torch.as_tensor(np.asarray(v, np.int64)) for k, v in batch.items()}
    words = {"input_ids": t["tokens"], "attention_mask": t["mask"]}
    if has_types(model.config):
        words["token_type_ids"] = t["types"]
    kind = type(model).__name__
    labels = torch.full_like(t["tokens"], -100)
    for row in range(4):
        for at, target, on in zip(t["position"][row], t["target"][row], t["masked"][row], strict=True):
            labels[row, at] = target if on else labels[row, at]
    more = (
        {"labels": t["label"]} if "Classification" in kind else {"labels": labels} if "Masked" in kind else {}
    )
    if "Token" in kind:
        more = {"labels": torch.where(t["tags"] < 0, -100, t["tags"])}
    if kind == "BertForPreTraining":
        more = {"labels": labels, "next_sentence_label": t["next"]}
    out = model(**words, **more, output_hidden_states=True)
    found = {f"hidden_{i}": h for i, h in enumerate(out.hidden_states)}
    found["hidden"] = model.base_model(**words).last_hidden_state
    if getattr(model.base_model, "pooler", None) is not None:
        found["pooled"] = model.base_model(**words).pooler_output
    if "Classification" in kind:
        found["logits"] = out.logits
    if kind == "BertForPreTraining":
        found |= {"mlm": out.prediction_logits, "nsp": out.seq_relationship_logits}
    if "Masked" in kind:
        found["mlm"] = out.logits
    if more:
        found["loss"] = out.loss
        out.loss.backward()
        # a decoder goes by that name
        tied = {id(p): n for n, p in model.named_parameters(remove_duplicate=False) if "embeddings" in n}
        found |= {
            f"grad {tied.get(id(p), n)}": p.grad for n, p in model.named_parameters() if p.grad is not None
        }
    return {n: x.detach().numpy().astype(np.float32) for n, x in found.items()}


def write(name: str, folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = make(name, seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer(name, folder)
    cut = hf.AutoTokenizer.from_pretrained(folder)
    ids = {"single": cut(TEXTS[:5]).input_ids, "pair": cut(TEXTS[:4], TEXTS[1:5]).input_ids}
    if name.endswith("tags"):
        split = hf.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
        cut = split([t.split() for t in TEXTS[:5]], is_split_into_words=True)
        ids |= {"split": cut.input_ids, "word_ids": [cut.word_ids(i) for i in range(5)]}
    (folder / "ids.json").write_text(
        json.dumps({"texts": TEXTS[:5], **ids}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    c = model.config
    batch = inputs(name, min(c.vocab_size, 55), c.pad_token_id, has_types(c), seed)
    batch["label"] %= max(c.num_labels, 2)
    np.savez_compressed(
        folder / "expected.npz", **{f"in {k}": v for k, v in batch.items()}, **expected(model, batch)
    )


if __name__ == "__main__":
    hf.logging.disable_progress_bar()
    for case in sys.argv[1:] or CASES:
        write(case, HERE / case, seed=0)
        print(case, sum(f.stat().st_size for f in (HERE / case).iterdir()) // 1000, "kB")
