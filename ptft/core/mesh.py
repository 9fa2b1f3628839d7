"""Devices and processes: one mesh axis, `data`; batches split over it, parameters on every device; how a run
is asked to stop."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ptft.core.errors import UserError

ECHO = 2.0  # seconds


def start() -> None:
    """Joins the other processes of a multi-process run, when the environment names a coordinator.

    `launch/local.sh` and `slurm.sbatch` set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; on
    Cloud TPU JAX_DISTRIBUTED=auto lets JAX find them itself.
    """
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        jax.distributed.initialize(
            address, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        )
    elif os.environ.get("JAX_DISTRIBUTED") == "auto":
        jax.distributed.initialize()


def make(devices: int = 0) -> Mesh:
    """A mesh over the first `devices` devices (0: all of them)."""
    have = jax.devices()
    if devices > len(have):
        raise UserError(f"devices: asked for {devices}, this machine has {len(have)} ({have[0].platform})")
    chosen = np.asarray(have[: devices or len(have)])
    return Mesh(chosen, ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """The global batch must fall into equal parts: devices x accumulation steps."""
    parts = mesh.size * accumulate
    if batch % parts:
        near = [n for n in (batch // parts * parts, (batch // parts + 1) * parts) if n]
        what = f"{mesh.size} devices" + (f" x {accumulate} accumulation steps" if accumulate > 1 else "")
        raise UserError(
            f"batch: {batch} is not divisible by {what}; the nearest sizes are {' and '.join(map(str, near))}"
        )


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows -> global arrays, split by rows over the mesh."""
    sharding = by_rows(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def agreed(stop: bool, due: bool) -> bool:
    """Whether any process was asked to stop: all must leave the loop at the same step.

    Several processes wait for each other to answer, so they ask only where that is `due`, which must be the
    same for all.
    """
    if jax.process_count() == 1:
        return stop
    return due and bool(multihost_utils.process_allgather(np.asarray(stop)).any())


@contextmanager
def preemption() -> Iterator[list[int]]:
    """A list that SIGTERM or SIGINT fills; another signal ends the process at once, unless it is the first
    one's echo: a scheduler signals every process, and a parent its child."""
    caught: list[int] = []
    first = 0.0

    def handler(number: int, frame: Any) -> None:
        nonlocal first
        if caught and time.monotonic() - first > ECHO:
            raise KeyboardInterrupt
        if not caught:
            first = time.monotonic()
            caught.append(number)

    try:
        old = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: the caller handles signals
        old = {}
    try:
        yield caught
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def child(argv: Sequence[str], **streams: Any) -> tuple[int, bool]:
    """Runs a process to its end -> (exit code, whether this one was asked to stop, which it hands on)."""
    with preemption() as caught:
        # A session of its own: Ctrl-C reaches it once, from here, and not twice.
        process = subprocess.Popen(argv, start_new_session=True, **streams)
        told = False
        while process.poll() is None:
            if caught and not told:
                process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(0.05)
    return process.returncode, bool(caught)
