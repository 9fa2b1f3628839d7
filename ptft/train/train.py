"""The one loop, for pretraining and finetuning."""

import importlib.util
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ptft.core import checkpoint, mesh, record, startup
from ptft.core import config as configs
from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.freeze import ledger, quantize, resolve
from ptft.train import (
    build,
    contract,
    cost,
    description,
    evaluate,
    feature_cache,
    pipeline,
    programs,
    result,
    schedule,
    spec,
    weights,
)
from ptft.train import state as states
from ptft.train.build import Run
from ptft.train.programs import Program
from ptft.train.result import Ended
from ptft.train.state import RunState

PREEMPTED = 75  # exit code: stopped from outside, and saved


def run(config: Config, workdir: Path, quiet: bool = False, chosen: str = "") -> dict[str, Any]:
    """Trains, or resumes from the newest good checkpoint in `workdir`, or returns the result of a finished
    run.

    Nothing is written before config, data and starting weights are known to fit.

    Args:
      chosen: the strategy, where `config.freeze` leaves it to the data (`ptft.planning.auto.choose`).
    Raises:
      UserError: a mistake in config or data, or a loss that is not finite.
      SystemExit(75): stopped by SIGTERM or SIGINT, and saved.
    """
    if (done := finished(config, workdir)) is not None:
        if not quiet:
            record.say(f"{workdir} holds this run, finished; its result (the data were not read again):")
        return done
    run = build.build(config, chosen)
    if not quiet:
        description.describe(run)
    at = checkpoint.newest(workdir)
    # before compiling: what does not fit shows early
    fresh = weights.start_params(run, quiet) if at is None else {}
    header = description.header(
        run,
        base=None if config.checkpoint == "full" else fresh or weights.start_params(run, quiet=True, like={}),
    )
    state = states.start(run, fresh) if at is None else states.resume(run, workdir, at, header)
    del fresh  # or the devices would hold it beside what is kept quantized
    cached_run, program, state = enter(run, state, quiet)
    record.write_json(workdir / "config.json", config.to_dict())
    record.write_json(workdir / "run.json", {**header, "cost": program.cost._asdict()})
    if record.is_lead():
        run.data.tokenizer.save(workdir / "tokenizer")

    total = run.durations.total
    board = (
        importlib.util.find_spec("tensorboardX") is not None
        if config.tensorboard is None
        else config.tensorboard
    )
    with closing(
        record.Log(workdir, resume_step=at or 0, tensorboard=board, total_steps=total, quiet=quiet)
    ) as log:
        state, pace = fit(run, cached_run, program, state, workdir, header, log, quiet)
        prove(run, state, workdir, quiet)
        ended = final_metrics(run, state, workdir, log)
    progress = state.progress
    a_step = statistics.median(pace[1:] or pace) if pace else progress.seconds / max(ended.steps, 1)
    found = result.of(run, header, progress, ended, a_step).to_json()
    record.write_json(workdir / "result.json", found)
    return found


def enter(run: Run, state: RunState, quiet: bool) -> tuple[Run, Program, RunState]:
    """The run as the state's phase trains it, its compiled step, checked against the plan, and its cost in
    the progress."""
    phase = state.progress.phase
    cached_run = feature_cache.shorten(run, phase, state.progress.phase_starts[-1], state.params, quiet)
    program = programs.program(cached_run, phase)
    if not quiet:
        which = (
            ""
            if len(run.phases) == 1
            else f"phase {phase + 1} of {len(run.phases)}, {run.phases[phase].strategy}: "
        )
        record.say(which + cost.describe(program.cost))
    contract.check(cached_run, program, phase)
    return cached_run, program, state._replace(progress=state.progress.at_cost(program.cost.flops))


def following(run: Run, state: RunState, done: int, quiet: bool) -> tuple[Run, Program, RunState, float]:
    """`enter` for the phase that is due, and the seconds that it took: compiling is not the steps' time."""
    jax.block_until_ready(state.train_state)
    begun = time.perf_counter()
    return *enter(run, states.enter(run, state, done), quiet), time.perf_counter() - begun


def prove(run: Run, state: RunState, workdir: Path, quiet: bool) -> None:
    """Writes the freeze ledger of what was done; a freeze that did not hold is an error."""
    reached = run.phases[: state.progress.phase + 1]
    before = weights.start_params(run, quiet=True, like={**state.frozen, **state.train_state.params})
    proof = ledger.make(
        resolve.union(reached),
        before,
        {**state.frozen, **state.train_state.params},
        state.train_state.opt,
        reached[-1].plan,
    )
    begun = [*state.progress.phase_starts, *[None] * (len(run.phases) - len(reached))]
    proof["phases"] = [{"strategy": p.strategy, "began": k} for p, k in zip(run.phases, begun, strict=True)]
    record.write_json(workdir / "freeze_ledger.json", proof)
    if not quiet or not proof["holds"]:
        unread = () if run.net.objective.reads_pooled else ("backbone/pooler/",)
        record.say(ledger.describe(proof, unread))
    if not proof["holds"]:
        raise RuntimeError(f"the freeze did not hold: see {workdir}/freeze_ledger.json")


def fit(
    run: Run,
    cached_run: Run,
    program: Program,
    state: RunState,
    workdir: Path,
    header: dict[str, Any],
    log: record.Log,
    quiet: bool,
) -> tuple[RunState, list[float]]:
    """The loop, from the step that `state` is at; also returns the seconds a step between two lines of the
    log."""
    c, d = run.config, run.durations
    at = int(state.train_state.step)
    seed = jax.device_put(np.uint32(c.seed), mesh.replicated(run.mesh))
    batches = pipeline.train_batches(cached_run.data.train, run.used, c.seed, c.batch, at, d.total)
    window: list[record.Sums] = [evaluate.as_sums(state.progress.window)] if state.progress.window else []
    pace: list[float] = []
    done = at == d.total or schedule.stopped_early(run, state.progress)
    with mesh.preemption() as caught:
        clock = time.perf_counter()
        begun = clock - state.progress.seconds
        for k in range(at + 1, at + 1 if done else d.total + 1):
            if states.due(run, state, k - 1):
                cached_run, program, state, paused = following(run, state, k - 1, quiet)
                batches = pipeline.train_batches(
                    cached_run.data.train, run.used, c.seed, c.batch, k - 1, d.total
                )
                clock, begun = clock + paused, begun + paused
            batch, constants = (
                mesh.put(next(batches), run.mesh),
                feature_cache.constants(cached_run.data.train),
            )
            train_state, sums = program.train(
                state.train_state, state.frozen_on_device, batch, seed, constants
            )
            state = state._replace(train_state=train_state)
            if not quiet:
                startup.stepped(sums)
            window.append(sums)
            # steps run ahead of this loop, but not so far that a signal waits for many
            jax.block_until_ready(window[-3:-2])
            due = schedule.at(run, k)
            stop = mesh.agreed(bool(caught), any(due))  # read once: a later signal counts at the next step
            if not (any(due) or stop):
                continue
            window = [evaluate.total(window)]
            values = evaluate.of_window(run.net, window[0], k)
            if any(due):
                pace.append((time.perf_counter() - clock) / (k - at))
                log.write(k, "train", values)
                window = []
            progress = state.progress
            if due.evaluate:
                values = evaluate.evaluate(cached_run.net, state.params, evaluate.splits(cached_run)["dev"])
                log.write(k, "dev", values)
                progress = evaluate.judged(run, values, k, progress)
                if progress.best_step == k:
                    checkpoint.save_best(
                        workdir, k, states.stored(run, state), states.meta(run, state, header)
                    )
            done = k == d.total or schedule.stopped_early(run, progress)
            rest = jax.tree.map(lambda x: np.asarray(x).tolist(), window[0]) if window else None
            state = state._replace(
                progress=progress._replace(seconds=time.perf_counter() - begun, window=rest)
            )
            if due.save or done or stop:
                checkpoint.save(
                    workdir,
                    k,
                    states.stored(run, state),
                    train_state.opt,
                    states.meta(run, state, header),
                    keep=c.keep,
                )
            if stop:
                why = f"signal {caught[0]}" if caught else "a signal to another process"
                record.say(f"stopped by {why} and saved step {k}; the same command goes on from here")
                raise SystemExit(PREEMPTED)
            if done:
                break
            clock, at = time.perf_counter(), k
    return state, pace


def final_metrics(run: Run, state: RunState, workdir: Path, log: record.Log) -> Ended:
    """Dev and test metrics of the best parameters, or of the last where nothing chose a best."""
    c, steps, progress, params = run.config, int(state.train_state.step), state.progress, state.params
    best_step = steps
    if progress.best is not None:
        changed, loaded = checkpoint.load_params(workdir, None, skip="", new_ok="")
        whole = quantize.computed(
            {**state.frozen, **state.train_state.params, **changed}, loaded.meta["thin"], c.frozen_dtype
        )
        params, best_step = jax.device_put(whole, mesh.replicated(run.mesh)), loaded.step
    scores = {}
    for name, split in evaluate.splits(run).items():
        scores[name] = evaluate.evaluate(run.net, params, split)
        if name == "test" or not schedule.at(run, steps).evaluate:  # or the loop has written it
            log.write(best_step, name, scores[name])
    return Ended(steps, best_step, scores)


def finished(config: Config, workdir: Path) -> dict[str, Any] | None:
    """The stored result of a finished run, else None. Raises UserError if the folder holds a run of another
    config."""
    record.claim(workdir, "run.json")
    if (workdir / "config.json").exists():
        changes = configs.difference(spec.read_run(workdir, "config.json"), config.to_dict())
        if changes:
            raise UserError(
                f"{workdir} holds a run of another config; these keys differ (there -> asked):\n  "
                + "\n  ".join(changes)
                + "\nchoose another --workdir, or go back to that config"
            )
    return spec.read_run(workdir, "result.json") if (workdir / "result.json").exists() else None
