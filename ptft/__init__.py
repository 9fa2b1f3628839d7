"""ptft: pretrain a BERT-style encoder, finetune part of it, and measure which part was worth it."""

__version__ = "0.1.0"
