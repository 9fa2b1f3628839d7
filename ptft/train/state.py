"""Where a run is: its trainable and its frozen parameters, and how far it has come. How it starts, is
saved, resumes and enters a phase."""

import functools
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ptft.core import checkpoint, integrity, mesh, record, tree
from ptft.core import config as configs
from ptft.core.clock import Clock
from ptft.core.errors import UserError
from ptft.core.saver import Saver
from ptft.core.tree import Flat
from ptft.freeze import quantize
from ptft.train import optim, programs, step, weights
from ptft.train.build import Run


class Progress(NamedTuple):
    """What a resume must know besides parameters and optimizer state."""

    best: float | None = None
    best_step: int = 0
    evals_since_best: int = 0  # evaluations since the best, or since the phase began
    # in the loop, over all starts: steps, evaluations and saves, without loading and compiling
    seconds: float = 0.0
    window: Any = None  # {name: [sum, weight]} since the last line of the log, where a signal cut it short
    phase_starts: Sequence[int] = (0,)  # the steps at which the phases so far began
    flops: Sequence[float | None] = ()  # of a step in each of them

    @property
    def phase(self) -> int:
        return len(self.phase_starts) - 1

    def at_cost(self, flops: float | None) -> "Progress":
        """With the FLOPs of a step in this phase; phases of no step, which were skipped, cost nothing."""
        known = self.flops[: self.phase]
        return self._replace(flops=[*known, *[0.0] * (self.phase - len(known)), flops])

    def mean_flops(self, steps: int) -> float | None:
        """FLOPs of a step, on average over the phases so far; None: those of some are not known."""
        lengths = [b - a for a, b in pairwise([*self.phase_starts, steps])]
        known = [n * f for n, f in zip(lengths, self.flops, strict=True) if f is not None]
        return sum(known) / max(steps, 1) if len(known) == len(lengths) else None


class RunState(NamedTuple):
    train_state: step.TrainState
    frozen: Flat  # the original weights; on the host where quantized ones are on the devices
    frozen_on_device: Flat  # the same as the devices keep them
    progress: Progress

    @property
    def params(self) -> Flat:
        """All parameters, as a step computes with them."""
        return {**self.frozen_on_device, **self.train_state.params}


def stored(run: Run, state: RunState) -> Flat:
    """What a checkpoint holds of the parameters: all, or what may differ from the base."""
    whole = {**state.frozen, **state.train_state.params}
    return {n: whole[n] for n in (weights.changing(run) if run.config.checkpoint == "delta" else whole)}


def meta(run: Run, state: RunState, header: dict[str, Any]) -> dict[str, Any]:
    """What is saved beside a step's arrays."""
    quantized = [] if run.config.frozen_dtype == "float32" else list(state.frozen)
    return {**header, "progress": state.progress._asdict(), "thin": quantized}


@jax.jit
def _is_finite(params: Flat) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


def must_be_finite(state: RunState, k: int) -> None:
    """Raises UserError where an update has left a parameter that is no finite number."""
    if not bool(_is_finite(state.train_state.params)):
        raise UserError(
            f"after step {k} some parameter is not a finite number: the run diverged; lower optim.lr or "
            "optim.clip. Earlier checkpoints stay"
        )


class Journal(NamedTuple):
    """Where a run is written down."""

    workdir: Path
    header: dict[str, Any]  # of what it is; stands beside every checkpoint
    log: record.Log
    quiet: bool  # towards people
    saver: Saver
    clock: Clock

    def told(self, k: int) -> None:
        """Writes down what the steps so far have cost, and what has come on disk. Raises the error of a
        save."""
        self.saver.check()
        saved = [one._asdict() for one in self.saver.saved()]
        self.clock.write(k, **({"saved": saved} if saved else {}))

    def wait(self, k: int) -> None:
        """Returns when all that was saved is on disk. Raises the error of a save."""
        with self.clock.during("save"):
            self.saver.wait()
        self.told(k)

    def save(self, run: Run, state: RunState, k: int) -> None:
        """Begins a checkpoint of step `k`, to resume from; `saver` knows when it is on disk. Raises UserError
        as `must_be_finite`, or of an earlier save."""
        with self.clock.during("save"):
            own = self._own(state, k)
            params, opt, said = stored(run, own), own.train_state.opt, meta(run, own, self.header)
            self.saver.start(
                integrity.RESUME,
                lambda: checkpoint.save(self.workdir, k, params, opt, said, keep=run.config.keep),
            )

    def save_best(self, run: Run, state: RunState, k: int) -> None:
        """The same of the parameters of step `k`, the best so far."""
        with self.clock.during("save"):
            own = self._own(state, k)
            params, said = stored(run, own), meta(run, own, self.header)

            def write() -> None:
                there = k in integrity.steps(self.workdir, integrity.BEST)
                if there and integrity.newest(self.workdir, integrity.BEST) == k:
                    # saved before a start that fell back: a kill while it is replaced would leave none
                    return
                checkpoint.save_best(self.workdir, k, params, said)

            self.saver.start(integrity.BEST, write)

    def _own(self, state: RunState, k: int) -> RunState:
        """The state with what a step changes copied; what is frozen is never donated."""
        self.saver.ready(k)
        must_be_finite(state, k)
        return state._replace(train_state=self.saver.own(state.train_state))


def place(run: Run, frozen: Flat, before: Flat | None = None) -> tuple[Flat, Flat]:
    """(the original weights, what the devices keep of them); `before`: what they keep already."""
    if run.config.frozen_dtype == "float32":
        return frozen, frozen
    there = {n: x for n, x in (before or {}).items() if n in frozen}
    shrink = functools.partial(quantize.quantize, dtype=run.config.frozen_dtype)
    new = {n: x for n, x in frozen.items() if n not in there}
    shardings = run.placement.of(jax.eval_shape(shrink, new))
    return jax.tree.map(mesh.to_host, frozen), {**there, **jax.jit(shrink, out_shardings=shardings)(new)}


def start(run: Run, params: Flat) -> RunState:
    """Step 0."""
    trainable, frozen = tree.split(params, run.phases[0].plan.trainable)
    return RunState(programs.fresh(run, 0, trainable), *place(run, frozen), Progress())


def resume(run: Run, workdir: Path, at: int, header: dict[str, Any]) -> RunState:
    """A checkpoint's state. Raises UserError if it was made from other data, or on another base."""
    meta = checkpoint.read_meta(workdir, at)
    now, then = ((h["data"]["fingerprint"], h["tokenizer"], h["labels"]) for h in (header, meta))
    if now != then:
        changed = [
            what
            for what, a, b in zip(("the data", "the tokenizer", "the labels"), now, then, strict=True)
            if a != b
        ]
        raise UserError(
            f"{' and '.join(changed)} changed since step {at} of {workdir}: the files that config.data names "
            "are not what they were; restore them, or train in another --workdir"
        )
    progress = _with_best(workdir, Progress(**configs.renamed(meta["progress"], "progress")))
    shapes = run.net.shapes()
    names = run.phases[progress.phase].plan.trainable
    empty = jax.eval_shape(lambda p: programs.fresh(run, progress.phase, p), tree.split(shapes, names)[0])
    base = (
        {}
        if meta["base"] is None
        else weights.on_base(run.config, run.net, meta["base"], workdir, weights.changing(run))
    )
    want = {n: s for n, s in shapes.items() if n not in base}
    params, opt = checkpoint.restore(workdir, at, *run.placement.like((want, empty.opt)))
    trainable, frozen = tree.split({**run.placement.put(base), **params}, names)
    record.say(f"resuming at step {at} of {run.durations.total}")
    return RunState(
        step.TrainState(mesh.place(np.int32(at), run.mesh), trainable, opt),
        *place(run, frozen),
        progress,
    )


def _with_best(workdir: Path, progress: Progress) -> Progress:
    """The progress, if the best step that it knows of is there; without a best, if its folder was removed.

    Raises:
      UserError: it is damaged.
    """
    if progress.best is None:
        return progress
    if integrity.steps(workdir, integrity.BEST):
        checkpoint.stands_for(workdir)
        return progress
    record.say(
        f"WARNING: the best step so far, {progress.best_step}, is not in {workdir} any more; the best is "
        "chosen among the evaluations from now on"
    )
    return progress._replace(best=None, best_step=0)


def due(run: Run, state: RunState, done: int) -> bool:
    """Whether the next phase begins now, after `done` steps: its time has come, or its plateau, or the time
    of one after it."""
    later = run.phases[state.progress.phase + 1 :]
    plateau = bool(later) and later[0].start is None and state.progress.evals_since_best >= later[0].waits
    return plateau or any(p.start is not None and p.start <= done for p in later)


def enter(run: Run, state: RunState, done: int) -> RunState:
    """The same numbers in the next phase: what becomes frozen loses its optimizer state, so that the memory
    is free; what becomes trainable gets new state; what stays trainable keeps its own, or not, as
    `optim.at_phase` says."""
    phase = state.progress.phase + 1
    whole = {**state.frozen, **state.train_state.params}
    trainable, frozen = tree.split(whole, run.phases[phase].plan.trainable)
    fresh = programs.fresh(run, phase, trainable)
    opt = optim.carry(state.train_state.opt, fresh.opt, programs.came_from(run, phase))
    train_state = run.placement.put(step.TrainState(state.train_state.step, fresh.params, opt))
    there = RunState(
        train_state,
        *place(run, frozen, state.frozen_on_device),
        state.progress._replace(phase_starts=[*state.progress.phase_starts, done], evals_since_best=0),
    )
    # a plateau that was not reached in its time
    return enter(run, there, done) if due(run, there, done) else there
