"""`ptft plan --devices 1,8,64`: what one device holds and computes of a step, by the number of devices."""

from collections.abc import Sequence
from typing import Any

import jax

from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.planning import plans
from ptft.train import build

HEAD = ["strategy", "devices", "batch", "params", "grads", "optimizer", "temporary", "peak"]


def counts(text: str) -> list[int]:
    """ "1,8,64" -> [1, 8, 64]. Raises UserError."""
    try:
        numbers = [int(x) for x in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise UserError(f"--devices {text}: expected numbers above 0, such as 1,8,64")
    return numbers


def pretend(devices: int) -> None:
    """So many devices for this process, on its CPU; only before it has used any."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def on(config: Config, devices: int) -> Config:
    """The config on so many devices. A batch that they do not divide grows to the next that they do."""
    parts = devices * config.accumulate
    batch = -(-config.batch // parts) * parts
    return config.replace(devices=devices, batch=batch, shard_over=min(config.shard_over, devices))


def rows(config: Config, strategies: Sequence[Any], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """One row a strategy and number of devices, from the step compiled for them."""
    runs = [build.outline(on(config, n).replace(freeze=s)) for s in strategies for n in numbers]
    costed = plans.costs(runs, probe=0)
    return [
        {**row, "devices": run.mesh.size, "batch": run.config.batch}
        for run, row in zip(runs, costed, strict=True)
    ]


def text(costed: Sequence[dict[str, Any]]) -> str:
    """The rows as a table for people; all bytes are those of one device."""
    kinds = ("parameters", "gradients", "optimizer", "temporary", "peak")
    lines = [
        [str(r["freeze"]), f"{r['devices']:,}", f"{r['batch']:,}", *(plans.mebibytes(r, k) for k in kinds)]
        for r in costed
    ]
    return plans.aligned([HEAD, *lines])
