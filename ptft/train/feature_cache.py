"""The feature cache: what the frozen blocks at the bottom return, computed once and kept for every example.

Where the bottom of the backbone is frozen and runs without dropout (`frozen_dropout=False`), its output for
an example is the same in every epoch. It is computed once, with batches of the training's own shape, and
training starts at the first trainable block: the numbers are those of the run that computes everything anew
(the idea: AutoFreeze, Liu et al. 2021, arXiv 2102.01386; Embedding Recycling, Saad-Falcon et al. 2022, arXiv
2207.04993). Padding is not kept.
"""

import functools
import hashlib
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ptft import models
from ptft.core import mesh, progress, record
from ptft.core.tree import Flat
from ptft.freeze import ledger
from ptft.objectives import Rows
from ptft.train import contract, pipeline, programs
from ptft.train.build import Run
from ptft.train.net import Constants, Net

SHARE = 0.25  # of what is free, in a device's memory, the host's or on the disk
# stores a process keeps, one a split and depth: a benchmark comes back to the same examples with every
# strategy of a depth
KEPT = 16


@dataclass
class Store:
    """Hidden states of some rows of a split, one after the other."""

    start: np.ndarray  # i64[n + 1], where the real tokens of a row begin
    flat: np.ndarray  # f[N, D], in memory or on the disk; what was not computed takes no space
    have: np.ndarray  # bool[n]
    place: str  # "memory" or "disk"
    folder: Any = None  # removed with the store


@dataclass
class Cached:
    """Rows whose batches hold the hidden states (`hidden` f[B, T, D]), or say where in `constants` they begin
    (`cache_offset` i32[B])."""

    rows: Rows
    store: Store
    constants: Constants = field(default_factory=dict)
    at: np.ndarray | None = None  # i32[n]
    notes: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def label(self) -> np.ndarray | None:
        return getattr(self.rows, "label", None)

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        made = self.rows.batch(index)
        if self.at is not None:
            return {**made, "cache_offset": self.at[index]}
        s = self.store
        hidden = np.zeros((*made["tokens"].shape, s.flat.shape[1]), s.flat.dtype)
        for row, i in enumerate(index):
            hidden[row, : s.start[i + 1] - s.start[i]] = s.flat[s.start[i] : s.start[i + 1]]
        return {**made, "hidden": hidden}


def entry(run: Run, phase: int) -> int:
    """The number of the lowest trainable block; of all blocks, where only what lies above them is trainable;
    0: the stem is."""
    layout = run.layout
    levels = [layout.level(n) for n in run.phases[phase].plan.trainable if not n.startswith("head/")]
    return max(min((x for x in levels if x is not None), default=1 + len(layout.blocks)) - 1, 0)


class Use(NamedTuple):
    """Who trains on a feature cache."""

    phase: int = 0
    start: int = 0  # the step at which the phase begins
    # Several runs do, on different rows at a time: the states stay on the host, and test has some, too.
    many: bool = False


def why_not(run: Run, use: Use) -> str:
    """What keeps a phase from using the feature cache; "" if nothing does."""
    block, c = entry(run, use.phase), run.config
    ends = [p.start for p in run.phases[use.phase + 1 :] if p.start is not None]
    uses = (min([*ends, run.durations.total]) - use.start) * c.batch
    if c.cache_features == "off":
        return "cache_features is off"
    if block == 0:
        return "no frozen block lies below the trainable ones"
    if models.dims(run.net.backbone) is None:
        return "the backbone has no dims"
    if longer := [a.kind() for a in run.net.added if a.tokens]:
        return f"a {longer[0]} makes rows longer than their texts"
    if run.net.objective.stochastic:
        return f"{c.objective.name} draws other inputs every time"
    below = {name.split("/")[1] for name in run.layout.below(block)}
    if c.model.get("dropout", 0) and not below <= programs.no_dropout(run, use.phase):
        return "the frozen blocks have dropout; frozen_dropout=False takes it away"
    if jax.process_count() > 1:
        return "there are several processes"
    if uses < 1.2 * len(run.used) and not use.many:
        return "each example is seen about once"
    return ""


def shorten(run: Run, use: Use, params: Flat, quiet: bool = True) -> Run:
    """The run as a phase trains it: from the first trainable block on, on rows that carry what lies below; or
    as it is, where that does not pay or is not possible.

    Args:
      params: all parameters, as a step computes with them.
    """
    block = entry(run, use.phase)
    if why := why_not(run, use):
        if not quiet and block and not run.config.frozen_dropout and run.config.cache_features != "off":
            record.say(
                f"feature cache: off, the frozen blocks at the bottom are computed in every step: {why}"
            )
        return run
    below, splits, stores = _Below(run, block, params), _splits(run, use.many), dict[str, Store]()
    digest = below.digest()
    for split, (rows, used) in splits.items():
        store = _store(f"{digest} {split}", run, rows, used)
        if store is None:
            record.say("feature cache: off, neither memory nor disk has room for the hidden states")
            return run
        below.fill(store, rows, used)
        stores[split] = store
    # All splits lie in one place: the same model reads them.
    need = sum(
        int(np.diff(stores[split].start)[used].sum()) * stores[split].flat[:1].nbytes
        for split, (_, used) in splits.items()
    )
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    near = not use.many and need < SHARE * limit
    cached = {
        s: (_resident(run, rows, used, stores[s]) if near else Cached(rows, stores[s], notes=rows.notes))
        for s, (rows, used) in splits.items()
    }
    if not quiet:
        where = "in memory" if cached["train"].store.place == "memory" else "on the disk"
        where = "on the device" if near else where
        record.say(
            f"feature cache: what lies below block {block} is computed once an example and kept {where} "
            f"({need / 2**20:,.0f} MiB)"
        )
    test = cached.get("test", run.data.test)
    data = run.data._replace(train=cached["train"], dev=cached.get("dev"), test=test)
    return run._replace(net=run.net._replace(start=block, resident=near), data=data)


def _splits(run: Run, many: bool) -> dict[str, tuple[Rows, np.ndarray]]:
    """The rows of each split that has hidden states, and the numbers of those that are used."""
    train, dev, test = run.data.train, run.data.dev, run.data.test
    splits = {"train": (train, run.used)}
    if dev is not None:
        size, labels = run.config.data.dev_size, getattr(dev, "label", None)
        splits["dev"] = (dev, pipeline.looked_at(len(dev), size, labels))
    if many and test is not None:
        splits["test"] = (test, np.arange(len(test)))
    return splits


def constants(rows: Any) -> Constants:
    """What a step needs besides parameters to read batches of these rows."""
    return rows.constants if isinstance(rows, Cached) else {}


class _Below(NamedTuple):
    """What computes the hidden states: all that lies below a block."""

    run: Run
    block: int
    params: Flat

    def digest(self) -> str:
        """Of everything that decides the hidden states, but the split and the row."""
        run, c, below = self.run, self.run.config, self.run.layout.below(self.block)
        mine = {n: x for n, x in self.params.items() if n in below}
        leaves = {f"{n} {i}": x for n, tree in mine.items() for i, x in enumerate(jax.tree.leaves(tree))}
        said = [
            run.net.added,
            c.model.to_dict(),
            c.objective.to_dict(),
            c.data.to_dict() | {"train_size": 0, "dev_size": 0},
        ]
        said += [c.dtype, c.batch, run.mesh.size, self.block]
        said += [run.data.fingerprint, run.data.tokenizer.fingerprint, ledger.digest_of(leaves)]
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def fill(self, store: Store, rows: Rows, used: np.ndarray) -> None:
        """Computes what the store lacks of these rows, in batches of the training's shape: other shapes may
        round otherwise."""
        missing, size = used[~store.have[used]], self.run.config.batch
        with progress.doing("filling the feature cache", "rows", len(missing), watch=True) as advance:
            for at in range(0, len(missing), size):
                part = missing[at : at + size]
                self._fill(store, rows, part)
                advance(len(part))

    def _fill(self, store: Store, rows: Rows, part: np.ndarray) -> None:
        """One batch of `fill`."""
        index = np.concatenate([part, np.repeat(part[-1:], self.run.config.batch - len(part))])
        batch = {
            **rows.batch(index),
            "example_id": np.arange(len(index), dtype=np.int32),
            "weight": np.ones(len(index), np.float32),
        }
        compiled = _compiled(self.run.net, self.run.layout.around(self.block))
        hidden = np.asarray(compiled(self.params, mesh.put(batch, self.run.mesh)))
        for row, i in enumerate(part):
            begin, end = store.start[i : i + 2]
            store.flat[begin:end] = hidden[row, : end - begin]
        store.have[part] = True


@functools.lru_cache(maxsize=16)
def _compiled(net: Net, modules: tuple[str, str]) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(net.between, modules=modules))


_stores: OrderedDict[str, Store] = OrderedDict()


def _store(key: str, run: Run, rows: Rows, used: np.ndarray) -> Store | None:
    """The process's store of this key, new if there is none with room for these rows; None if there is no
    room for it."""
    dims = run.net.backbone.dims
    token = dims.hidden * np.dtype(dims.dtype).itemsize
    if old := _stores.get(key):
        missing = int(np.diff(old.start)[used[~old.have[used]]].sum()) * token
        if missing <= SHARE * (
            free_memory() if old.folder is None else shutil.disk_usage(old.folder.name).free
        ):
            _stores.move_to_end(key)
            return old
        del _stores[key], old
    lengths = np.concatenate(
        [rows.batch(part)["length"] for part in np.array_split(np.arange(len(rows)), -(-len(rows) // 4096))]
    )
    start = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    need = int(lengths[used].sum()) * token
    size = (int(start[-1]), dims.hidden)
    while len(_stores) >= KEPT:
        _stores.popitem(last=False)
    if need <= SHARE * free_memory():
        made = Store(start, np.empty(size, dims.dtype), np.zeros(len(rows), bool), "memory")
    else:
        folder = tempfile.TemporaryDirectory(prefix="ptft-features-")
        if need > SHARE * shutil.disk_usage(folder.name).free:
            folder.cleanup()
            return None
        # a sparse file
        flat = np.memmap(Path(folder.name) / "hidden", np.dtype(dims.dtype), "w+", shape=size)
        made = Store(start, flat, np.zeros(len(rows), bool), "disk", folder)
    _stores[key] = made
    return made


def free_memory() -> int:
    """Bytes of the host's memory that can still be had; half of all where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return (contract.memory() or 0) // 2


def _resident(run: Run, rows: Rows, used: np.ndarray, store: Store) -> Cached:
    """The states in an accelerator's own memory; a CPU's is the host's."""
    size = np.diff(store.start)[used]
    at = np.zeros(len(rows), np.int32)
    at[used] = np.concatenate([[0], np.cumsum(size)[:-1]])
    flat = np.concatenate([store.flat[store.start[i] : store.start[i + 1]] for i in used])
    placed = mesh.place(flat, run.mesh)
    return Cached(rows, store, {"hidden": placed}, at, rows.notes)
