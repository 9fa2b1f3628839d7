"""A phase as it is trained: the run with its feature cache, its compiled step, and the state it is in."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from ptft.core import mesh, record
from ptft.train import contract, cost, feature_cache, pipeline, programs
from ptft.train import state as states
from ptft.train.build import Run
from ptft.train.pipeline import Batch
from ptft.train.programs import Program
from ptft.train.state import Progress, RunState


class Stage(NamedTuple):
    run: Run  # from the first trainable block on, where there is a feature cache
    program: Program
    state: RunState

    def batches(self, done: int) -> Iterator[Batch]:
        """The training's batches from the one after `done` on."""
        c, d = self.run.config, self.run.durations
        return pipeline.train_batches(self.run.data.train, self.run.used, c.seed, c.batch, done, d.total)

    def step(self, batch: Batch, seed: jax.Array) -> tuple["Stage", record.Sums]:
        """The stage after one more step, which runs ahead of the host."""
        placed, constants = mesh.put(batch, self.run.mesh), feature_cache.constants(self.run.data.train)
        state = self.state
        after, sums = self.program.train(state.train_state, state.frozen_on_device, placed, seed, constants)
        return self._replace(state=state._replace(train_state=after)), sums

    def at(self, progress: Progress) -> "Stage":
        return self._replace(state=self.state._replace(progress=progress))


def enter(run: Run, state: RunState, quiet: bool) -> Stage:
    """The phase that a state is in, its step checked against the plan, and its cost in the progress."""
    phase = state.progress.phase
    use = feature_cache.Use(phase, state.progress.phase_starts[-1])
    cached_run = feature_cache.shorten(run, use, state.params, quiet)
    program = programs.program(cached_run, phase)
    if not quiet:
        which = f"phase {phase + 1} of {len(run.phases)}, {run.phases[phase].strategy}: "
        record.say((which if len(run.phases) > 1 else "") + cost.describe(program.cost))
    contract.check(cached_run, program, phase)
    return Stage(cached_run, program, state).at(state.progress.at_cost(program.cost.flops))


def following(run: Run, state: RunState, done: int, quiet: bool) -> tuple[Stage, float]:
    """`enter` for the phase that is due, and the seconds that it took: compiling is not the steps' time."""
    jax.block_until_ready(state.train_state)
    start_time = time.perf_counter()
    return enter(run, states.enter(run, state, done), quiet), time.perf_counter() - start_time
