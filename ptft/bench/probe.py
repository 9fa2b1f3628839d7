"""What a step of a config costs, measured once a benchmark, in a process of its own: nothing else has warmed it or fills its memory.

    WORKDIR/probes/HASH.json     FLOPs, seconds a step, bytes; the hash is of all that a step depends on

The file is what a benchmark with a budget of FLOPs or seconds goes by: measured again, seconds would differ a little, the steps
that they buy with them, and so the names of the cells.
"""

import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ptft import auto, plans, record
from ptft import config as configs
from ptft.bench import identity, results
from ptft.config import Config
from ptft.errors import UserError

STEPS = 10
KEY = {"flops": "flops", "seconds": "seconds_per_step"}


def spend(budget: str, workdir: Path) -> Callable[[Config], tuple[int, float]]:
    """For `protocol.cells`: the steps that a config trains for, and what a step costs in the budget's unit."""

    @functools.cache
    def by_text(text: str) -> tuple[int, float]:
        config = Config(json.loads(text))
        cost = measure(config, workdir)[KEY[budget]]
        if not cost:
            raise UserError(f"bench.budget: the {budget} of freeze={config.freeze!r} are not known on this model; expected budget='steps'")
        return auto.unchosen(config).durations.total, cost

    return lambda config: by_text(configs.to_json(config))


def measure(config: Config, workdir: Path) -> dict[str, Any]:
    """The cost of a step (`plans.row`), from `workdir/probes` or measured now."""
    if (found := known(config, workdir)) is None:
        if why := _failed.get(str(_file(config, workdir))):
            raise UserError(why)
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "ptft.bench.probe"], input=configs.to_json(config), capture_output=True, text=True)
        if done.returncode:
            why = f"the cost of freeze={config.freeze!r} could not be measured: {(done.stderr.strip() or '?').splitlines()[-1]}"
            _failed[str(_file(config, workdir))] = why
            raise UserError(why)
        row = json.loads(done.stdout.splitlines()[-1])
        row["overhead_seconds"] = time.perf_counter() - begun - (STEPS + 1) * (row["seconds_per_step"] or 0)  # to start and to compile
        _first(_file(config, workdir), row)
        found = known(config, workdir)
    assert found is not None
    return found


_failed: dict[str, str] = {}  # file -> why; of this process, so that cells of one strategy do not try one after the other


def known(config: Config, workdir: Path) -> dict[str, Any] | None:
    """What was measured before, if it was."""
    file = _file(config, workdir)
    return results.read_json(file) if file.exists() else None


def _file(config: Config, workdir: Path) -> Path:
    return workdir / "probes" / f"{name(config)}.json"


def name(config: Config) -> str:
    """Learning rate, seed, number of examples, first weights and what is evaluated on decide nothing of what a step costs."""
    data = {"data.train_size": 0, "data.dev": "", "data.dev_size": 0, "data.test": ""}
    same = config.replace(seed=0, init_weights=True, **{"optim.lr": 1.0}, **data)
    return identity.of(same, identity.content(same), "train")


def peaks() -> dict[str, int | None]:
    """The most memory that this process has held, in bytes: of the machine, and of its device where that keeps count."""
    unit = 1 if sys.platform == "darwin" else 1024
    on_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak_device": on_device}


def _first(file: Path, row: Mapping[str, Any]) -> None:
    """Of several shards that measure the same, all go by whose file is there first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    own = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    own.write_text(json.dumps(record.plain(row)), encoding="utf-8")
    try:
        os.link(own, file)
    except FileExistsError:
        pass
    finally:
        own.unlink()


def main() -> None:
    """The child: a resolved config on standard input, the row on standard output."""
    config = Config(json.loads(sys.stdin.read()))
    run = auto.built(config)  # what auto(…) chooses for the page's seed stands for what it chooses for any
    row = plans.row(run, run.phases[0].strategy if auto.ask(config.freeze) else config.freeze, STEPS)
    print(json.dumps({**record.plain(row), **peaks(), "versions": record.versions(), "device": record.device()}))


if __name__ == "__main__":
    main()
