"""Devices and processes: a mesh of two axes, `data` and `shard`. Batches are split over both; where
parameters lie, `ptft.core.placement` says."""

import hashlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ptft.core.errors import UserError, joined

HEARTBEAT = 20  # seconds without a sign of life of a process, after which JAX ends the others


def start() -> None:
    """Joins the other processes of a multi-process run, when the environment names a coordinator. Once.

    `launch/local.sh` and `slurm.sbatch` set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; on
    Cloud TPU JAX_DISTRIBUTED=auto lets JAX find them itself.
    """
    if jax.distributed.is_initialized():
        return
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        number, count = launched()
        jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=HEARTBEAT)
    elif os.environ.get("JAX_DISTRIBUTED") == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)


def leave(code: int) -> None:
    """Ends this process at once if it is one of several: at an orderly end it would wait for the others, and
    they would wait for it."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launched() -> tuple[int, int]:
    """(number, count) of this process among those that a launcher has started, without joining them."""
    return int(os.environ.get("JAX_PROCESS_ID", 0)), int(os.environ.get("JAX_NUM_PROCESSES", 1))


def make(devices: int = 0, over: int = 1) -> Mesh:
    """A mesh over the first `devices` devices (0: all of them), of which each `over` (0: all of them) hold
    one copy of what is cut."""
    have = jax.devices()
    if devices > len(have):
        raise UserError(f"devices: asked for {devices}, this machine has {len(have)} ({have[0].platform})")
    if devices and devices < len(have) and jax.process_count() > 1:
        raise UserError(
            f"devices: {devices} of {len(have)} leaves out those of some process; expected 0 (all), as there "
            f"are {jax.process_count()} processes"
        )
    count = devices or len(have)
    if count % (over or count):
        raise UserError(
            f"shard_over: {over} does not divide {count} devices; expected one of "
            + ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        )
    return _over(have[:count], over or count)


def alone() -> Mesh:
    """A mesh of one device of this process: what every process can do by itself."""
    return _over(jax.local_devices()[:1], 1)


def _over(devices: Sequence[Any], over: int) -> Mesh:
    # neighbours hold one copy: they are on one host, or near
    return Mesh(np.asarray(devices).reshape(-1, over), ("data", "shard"), axis_types=(AxisType.Auto,) * 2)


def mine(batch: int, mesh: Mesh | None = None) -> slice:
    """The rows of a global batch that this process feeds; without a mesh, all processes take part."""
    feeding = list(range(jax.process_count()))
    if mesh is not None:
        feeding = sorted({device.process_index for device in mesh.devices.flat})
    share = batch // len(feeding)
    at = feeding.index(jax.process_index()) * share
    return slice(at, at + share)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(("data", "shard")))


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


def place(tree: Any, where: Any) -> Any:
    """The arrays of a tree on every device of a mesh, or as a tree of shardings says. Each process has all of
    their values, and those are the same."""
    if isinstance(where, Mesh):
        where = jax.tree.map(lambda _: replicated(where), tree)

    def one(x: Any, sharding: NamedSharding) -> Any:
        if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
            return jax.device_put(x, sharding)
        # device_put would send values from one process to another, which no CPU does
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.device_put(tree, where) if jax.process_count() == 1 else jax.tree.map(one, tree, where)


def to_host(x: Any) -> np.ndarray:
    """All values of an array, wherever they lie. All processes must call it."""
    if getattr(x, "is_fully_addressable", True) or x.is_fully_replicated:
        return np.asarray(jax.device_get(x))  # which, unlike asarray alone, does not keep the array alive
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def alike(values: dict[str, str]) -> None:
    """Raises UserError where the processes of a run were given different things: `{what: digest}`."""
    if jax.process_count() == 1:
        return
    own = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in values.values()]
    every = multihost_utils.process_allgather(np.asarray(own, np.uint32))
    if other := [what for what, column in zip(values, every.T, strict=True) if len({*column.tolist()}) > 1]:
        raise UserError(
            f"the {jax.process_count()} processes of this run have different {joined(other)}; expected "
            "the same command, files and code on every host"
        )


def wait(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(says: Sequence[bool], due: bool) -> tuple[bool, ...]:
    """What any process says, one by one: all must leave the loop, or save, at the same step.

    Several processes wait for each other to answer, so they ask only where that is `due`, which must be the
    same for all; elsewhere nothing is agreed.
    """
    if jax.process_count() == 1:
        return tuple(says)
    if not due:
        return (False,) * len(says)
    return tuple(multihost_utils.process_allgather(np.asarray(says)).any(0).tolist())
