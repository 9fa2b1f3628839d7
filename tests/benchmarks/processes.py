"""One run in 1, 2 and 4 processes of a device each, with parameters whole and cut: losses, seconds a step,
and the memory of a process while it steps, side by side.

    python tests/benchmarks/processes.py OUT.json --steps 12 --layers 6

On one machine the processes share its cores, so their seconds say nothing of as many machines.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ptft.core import record

# Trains as `ptft train` does; says what it held after each step, and how long each took.
CHILD = """
import json, os, sys, time
from pathlib import Path
from ptft.core import mesh
mesh.start()
import jax
from ptft.core import compiled
from ptft.train import spec, stage, train
compiled.start()
seconds, held, step = [], [], stage.Stage.step
def timed(self, batch, seed):
    start_time = time.perf_counter()
    out = step(self, batch, seed)
    jax.block_until_ready(out[1])
    seconds.append(time.perf_counter() - start_time)
    held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return out
stage.Stage.step = timed
result = train.run(spec.resolve(json.loads(sys.argv[1])), Path(sys.argv[2]), quiet=True)
print("RESULT " + json.dumps({"seconds": seconds, "held": held, "dev": result["dev"]}), flush=True)
mesh.wait("done")
mesh.leave(0)
"""


def config(args: argparse.Namespace, data: Path, shard: str) -> dict[str, Any]:
    return {
        "batch": 16, "train_for": f"{args.steps} steps", "log_every": f"{args.steps} steps",
        "eval_every": "0", "save_every": "0", "cache_features": "off", "shard": shard, "best": "last",
        "model": {"layers": args.layers, "hidden": 768, "max_len": 64, "dropout": 0.1},
        "objective": {"name": "mlm_nsp", "seq_len": 32},
        "optim": {"lr": 1e-4},
        "data": {"train": f"files:{data}/train.txt", "dev": f"files:{data}/dev.txt", "vocab_size": 4000},
    }  # fmt: skip


def documents(path: Path, lines: int, seed: int) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(3000)]
    text = [" ".join(rng.choices(words, k=12)) + "\n" * (1 + (i % 6 == 5)) for i in range(lines)]
    path.write_text("\n".join(text))


def run(count: int, values: dict[str, Any], workdir: Path) -> list[dict[str, Any]]:
    """What each of so many processes says."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(values), str(workdir)],
            env={**env, "JAX_PROCESS_ID": str(i)} if count > 1 else env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    outs = [process.communicate()[0] for process in started]
    said = [line.removeprefix("RESULT ") for out in outs for line in out.splitlines() if "RESULT" in line]
    assert len(said) == count, outs
    return [json.loads(line) for line in said]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        documents(home / "train.txt", 3000, 0)
        documents(home / "dev.txt", 200, 1)
        for count in (1, 2, 4):
            for shard in ("none", "all"):
                values = config(args, home, shard)
                said = run(count, values, home / f"{count}-{shard}")
                step = [s for one in said for s in one["seconds"][2:]]
                rows.append(
                    {
                        "processes": count,
                        "shard": shard,
                        "dev_loss": said[0]["dev"]["loss"],
                        "seconds_per_step": statistics.median(step),
                        "quartiles": statistics.quantiles(step, n=4),
                        "mebibytes_of_a_process": max(x for one in said for x in one["held"]) / 2**20,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    args.out.write_text(
        json.dumps({"device": record.device(), "versions": record.versions(), "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
