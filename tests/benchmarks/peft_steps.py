"""The same freezes in ptft and in transformers + PEFT (torch): seconds a step and peak memory, each against
its own full.

    python tests/benchmarks/peft_steps.py OUT.json        # needs the [peers] extra

BERT of twelve layers without dropout, random weights, the same tokens; a step is forward, backward, clip and
AdamW. Every cell is a process of its own, with as many threads as there are cores. They take steps in turns,
in an order of the turn's own, while the others sleep. Memory is the largest resident size during the steps
less that of the process once the model is deleted: weights, gradients, optimizer, activations. What stays
behind, such as what tracing took and the compiled program, is a column of its own; the compiler itself is
left out, as programs come from a cache.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from freeze_steps import Taken, outline, rows, stepper, summary, take, turns

from ptft.core import config as configs
from ptft.core import record
from ptft.train import build, programs
from ptft.train.build import Run

STRATEGIES = ("full", "head", "top-2", "bitfit", "lora=8")
MIB = 2**20


def trained(name: str, strategy: str, layers: int) -> bool:
    """Whether a strategy trains transformers' parameter of this name."""
    top = tuple(f"bert.encoder.layer.{i}." for i in range(layers - 2, layers))
    chosen = {
        "full": True,
        "head": False,
        "top-2": name.startswith((*top, "bert.pooler.")),
        "bitfit": name.endswith("bias"),
    }
    return name.startswith("classifier.") or chosen[strategy]


def torch_model(run: Run, strategy: str) -> Any:
    import peft
    import torch
    import transformers

    s = run.net.backbone.dims  # type: ignore[attr-defined]
    config = transformers.BertConfig(
        vocab_size=s.vocab, hidden_size=s.hidden, num_hidden_layers=s.layers, num_attention_heads=s.heads,
        intermediate_size=s.ffn,
        max_position_embeddings=s.max_len, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).train()
    if strategy == "lora=8":
        chosen = ["query", "value"]
        return peft.get_peft_model(
            model,
            peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=8, lora_dropout=0.0, target_modules=chosen),
        )
    for name, p in model.named_parameters():
        p.requires_grad_(trained(name, strategy, s.layers))
    return model


def torch_stepper(run: Run, strategy: str) -> tuple[Callable[[], None], int]:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    model, batch, o = torch_model(run, strategy), rows(run), run.config.optim
    moving = [p for p in model.parameters() if p.requires_grad]
    tx = torch.optim.AdamW(
        moving, lr=o.lr, betas=(o.b1, o.b2), eps=o.eps, weight_decay=o.weight_decay, fused=True
    )
    tokens = torch.as_tensor(batch["tokens"].astype("int64"))
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.zeros_like(tokens),
    }
    labels = torch.as_tensor(batch["label"].astype("int64"))

    def step() -> None:
        torch.nn.functional.cross_entropy(model(**inputs).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(moving, o.clip)
        tx.step()
        tx.zero_grad()

    return step, sum(p.numel() for p in moving)


def status(key: str) -> int:
    """A size of this process, in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def resident() -> int:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("VmRSS")


def cell(run: Run, framework: str, strategy: str) -> None:
    """A process: says its trainable parameters, then on each line it reads takes steps and says their
    seconds; at the end, the bytes of the model in training and of what stays behind."""
    jax.devices()
    if framework == "torch":
        import peft  # noqa: F401
        import transformers  # noqa: F401
    before = resident()
    if framework == "torch":
        step, count = torch_stepper(run, strategy)
    else:
        one = build.refrozen(run, strategy)
        step, count = stepper(one, run.net.init(0)), one.plan.counts()[0]
    step()
    resident()
    Path("/proc/self/clear_refs").write_text("5")  # the largest size starts anew
    print(count, flush=True)
    for _ in sys.stdin:
        print(*take(step), flush=True)
    peak = status("VmHWM")
    del step
    gc.collect()
    left = resident()
    print(peak - left, left - before, flush=True)


def measure(
    args: argparse.Namespace, names: list[str]
) -> tuple[dict[str, int], list[dict[str, Taken]], dict[str, Any]]:
    """(trainable parameters, what a step took turn by turn, bytes of the model and of what stays) of every
    cell."""
    shape = [
        f"--{k}={getattr(args, k.replace('-', '_'))}"
        for k in ("layers", "hidden", "seq-len", "batch", "vocab")
    ]
    command = [sys.executable, __file__, str(args.out), *shape]
    cells = {
        n: subprocess.Popen(
            [*command, f"--cell={n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in names
    }

    def heard(name: str) -> str:
        if not (line := cells[name].stdout.readline()):  # type: ignore[union-attr]
            raise SystemExit(f"{name} ended early")
        return line

    def turn(name: str) -> Taken:
        print(file=cells[name].stdin, flush=True)
        return Taken(*map(float, heard(name).split()))

    counts = {n: int(heard(n)) for n in names}
    found = turns(names, args.turns, turn)
    for one in cells.values():
        one.stdin.close()  # type: ignore[union-attr]
    return counts, found, {n: tuple(map(int, heard(n).split())) for n in names}


def rows_of(
    found: list[dict[str, Taken]], counts: dict[str, int], memory: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """A row a cell; shares are of the framework's own full."""
    table = {}
    for name in counts:
        own = f"{name.partition(':')[0]}:full"
        (peak, left), full = memory[name], memory[own][0]
        sizes = {"peak_bytes": peak, "memory_share": peak / full, "left_bytes": left}
        table[name] = {"trainable": counts[name], **summary(found, name, own), **sizes}
    return table


def text(table: dict[str, dict[str, Any]]) -> str:
    """Side by side; shares are of the framework's own full."""
    part = (
        f" | {'trainable':>10} {'ms/step':>8} {'share':>6} {'(quartiles)':>15} {'CPU':>6} {'MiB':>6} "
        f"{'share':>6} {'stays':>6}"
    )
    lines = [
        f"{'':<8}" + "".join(f" | {f:<70}" for f in ("ptft", "torch + PEFT")),
        f"{'strategy':<8}" + 2 * part,
    ]
    for s in STRATEGIES:
        line = f"{s:<8}"
        for r in (table[f"ptft:{s}"], table[f"torch:{s}"]):
            low, middle, high = r["time_share"]
            spread = f"({low:.1%}-{high:.1%})"
            line += (
                f" | {r['trainable']:>10,} {1e3 * r['seconds']:>8.1f} {middle:>6.1%} {spread:>15} "
                f"{r['cpu_share'][1]:>6.1%}"
            )
            line += f" {r['peak_bytes'] / MIB:>6.0f} {r['memory_share']:>6.1%} {r['left_bytes'] / MIB:>6.0f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--cell", default="", help="used by the command itself")
    for name, default in (("layers", 12), ("hidden", 256), ("seq-len", 64), ("batch", 16), ("vocab", 8000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    run = outline(args)
    if args.cell:
        return cell(run, *args.cell.split(":"))
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        for s in STRATEGIES:
            programs.program(build.refrozen(run, s))
        counts, found, memory = measure(args, [f"{f}:{s}" for f in ("ptft", "torch") for s in STRATEGIES])
    table = rows_of(found, counts, memory)
    written = {
        "table": table,
        "turns": [{n: list(t) for n, t in turn.items()} for turn in found],
        "config": run.config.to_dict(),
        "config_hash": configs.digest(run.config),
        "versions": record.versions() | {n: version(n) for n in ("torch", "transformers", "peft")},
        "device": record.device() | {"cores": os.cpu_count(), "load": os.getloadavg()},
    }
    args.out.write_text(json.dumps(written, indent=1))
    print(text(table))


if __name__ == "__main__":
    main()
