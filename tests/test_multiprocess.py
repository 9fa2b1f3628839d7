"""Two processes that act as two hosts: how they stop, and when they wait for each other."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import flow

from ptft.core import checkpoint
from ptft.train import train

ROOT = Path(__file__).parents[1]
# Trains; process 1 gets a signal before step 4. Says how it ended, after which step, and the steps with an
# all-gather.
CHILD = """
import json, os, sys
from ptft.core import mesh
mesh.start()
import jax, flow
from ptft.train import pipeline, spec, train
asked, now = [], [0]
gather, batches = mesh.multihost_utils.process_allgather, pipeline.train_batches
def counted(*args, **kwargs):
    asked.append(now[0])
    return gather(*args, **kwargs)
def numbered(*args):
    for now[0], batch in enumerate(batches(*args), 1):
        if now[0] == 4 and jax.process_index() == 1:
            flow.sigterm()
        yield batch
mesh.multihost_utils.process_allgather, pipeline.train_batches = counted, numbered
code = 0
try:
    train.run(spec.resolve(json.loads(sys.argv[1])), flow.Path(sys.argv[2]), quiet=True)
except SystemExit as e:
    code = e.code
print(json.dumps([code, now[0], sorted({k for k in asked if k})]))  # 0: weights are placed; at a save, many
"""


def test_a_signal_to_one_stops_all_at_a_line_of_the_log(tmp_path):
    values = flow.pretraining(
        tmp_path, train_for="12 steps", log_every="3 steps", eval_every="0", save_every="0"
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    command = [sys.executable, "-c", CHILD, json.dumps(values), str(tmp_path / "run")]
    both = [
        subprocess.Popen(
            command,
            env={**env, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], [err[-2000:] for _, err in ended]
    assert [json.loads(out.splitlines()[-1]) for out, _ in ended] == [[train.PREEMPTED, 6, [3, 6]]] * 2
    assert checkpoint.newest(tmp_path / "run") == 6
