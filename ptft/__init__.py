"""ptft: pretrain a BERT-style encoder, finetune part of it, and measure which part was worth it."""

import time

__version__ = "0.1.0"
START_TIME = time.perf_counter()  # about the start of the process: `startup`
