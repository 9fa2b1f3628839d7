"""The one loop, for pretraining and finetuning."""

import importlib.util
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ptft.core import (
    checkpoint,
    integrity,
    locks,
    mesh,
    record,
    saver,
    signals,
    startup,
    stored,
    times,
    watchdog,
)
from ptft.core import config as configs
from ptft.core.clock import Clock
from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.train import build, description, ending, evaluate, result, schedule, spec, weights
from ptft.train import stage as stages
from ptft.train import state as states
from ptft.train.build import Run
from ptft.train.stage import Stage
from ptft.train.state import Journal, Progress, RunState


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
    record.claim(workdir, "run.json")
    clock = Clock(startup.elapsed())
    with ExitStack() as held:
        if workdir.exists():
            held.enter_context(locks.only(workdir))
        if (done := finished(config, workdir)) is not None:
            if not quiet:
                record.say(f"{workdir} holds this run, finished; its result (the data were not read again):")
            return done
        clock.turn("data")
        run = build.build(config, chosen)
        clock.turn("restore" if (workdir / integrity.RESUME).exists() else "start")
        mesh.alike({"config": configs.digest(config), "data": run.data.fingerprint})
        if not quiet:
            description.describe(run)
        at = checkpoint.newest(workdir)
        # before compiling: what does not fit shows early
        fresh = weights.start_params(run, quiet) if at is None else {}
        base = None
        if config.checkpoint == "delta":
            base = fresh or weights.start_params(run, quiet=True, like={})
        header = description.header(run, base)
        state = states.start(run, fresh) if at is None else states.resume(run, workdir, at, header)
        del fresh, base  # or the devices would hold them beside what is kept quantized
        clock.turn("start")
        stage = stages.enter(run, state, quiet)
        if not workdir.exists():  # a mistake so far has left nothing behind
            held.enter_context(locks.only(workdir))
        record.write_json(workdir / "config.json", config.to_dict())
        cost = stage.program.cost._asdict()
        record.write_json(workdir / "run.json", stored.sealed({**header, "cost": cost}))
        if record.is_lead():
            run.data.tokenizer.save(workdir / "tokenizer")
        log = held.enter_context(closing(_log(run, workdir, at or 0, quiet)))
        clock.open(workdir, at or 0, run.durations.total)
        saves = held.enter_context(saver.saving())
        return _train(run, stage, Journal(workdir, header, log, quiet, saves, clock))


def _log(run: Run, workdir: Path, at: int, quiet: bool) -> record.Log:
    there = importlib.util.find_spec("tensorboardX") is not None
    board = there if run.config.tensorboard is None else run.config.tensorboard
    total = run.durations.total
    return record.Log(workdir, resume_step=at, tensorboard=board, total_steps=total, quiet=quiet)


def _train(run: Run, stage: Stage, journal: Journal) -> dict[str, Any]:
    """From where `stage` is to the end; the result."""
    state, pace = fit(run, stage, journal)
    with journal.clock.during("evaluate"):
        ending.prove(run, state, journal)
        ended = ending.final_metrics(run, state, journal)
    journal.clock.write(ended.steps)
    spent = times.summary(times.read(journal.workdir))
    if spent and not journal.quiet:
        record.say(f"wall time: {times.describe(spent)}")
    progress = state.progress
    a_step = statistics.median(pace[1:] or pace) if pace else progress.seconds / max(ended.steps, 1)
    outcome = result.of(run, journal.header, progress, ended, a_step)._replace(times=spent).to_json()
    record.write_json(journal.workdir / "result.json", stored.sealed(outcome))
    return outcome


def fit(run: Run, stage: Stage, journal: Journal) -> tuple[RunState, list[float]]:
    """The loop, from the step that `stage` is at; also returns the seconds a step between two lines of the
    log."""
    at, last, quiet = int(stage.state.train_state.step), run.durations.total, journal.quiet
    seed = mesh.place(np.uint32(run.config.seed), run.mesh)
    batches, cut_short = stage.batches(at), stage.state.progress.window
    window: list[record.Sums] = [evaluate.as_sums(cut_short)] if cut_short else []
    pace: list[float] = []
    done = at == last or schedule.stopped_early(run, stage.state.progress)
    with signals.preemption() as caught, watchdog.watching() as dog:
        clock = saved_at = time.perf_counter()
        start_time = clock - stage.state.progress.seconds
        for k in range(at + 1, at + 1 if done else last + 1):
            dog.step()
            if states.due(run, stage.state, k - 1):
                dog.pause()
                stage, paused = _following(run, stage, journal, k - 1)
                batches = stage.batches(k - 1)
                clock, start_time = clock + paused, start_time + paused
                dog.resume()
            journal.clock.turn("wait")
            batch = next(batches)
            journal.clock.turn("step")
            dog.waits()  # a step may be begun only once all have ended one before
            stage, sums = stage.step(batch, seed)
            if not quiet:
                startup.stepped(sums)
            window.append(sums)
            # steps run ahead of this loop, but not so far that a signal waits for many
            jax.block_until_ready(window[-3:-2])
            due = schedule.at(run, k)
            late = schedule.late(run, time.perf_counter() - saved_at)
            # read once: a later signal counts at the next step
            stop, late = mesh.agreed((bool(caught), late), any(due))
            if not (any(due) or stop or late):
                continue
            journal.told(k)
            window = [evaluate.total(window)]
            values = evaluate.of_window(run.net, window[0], k)
            if any(due):
                pace.append((time.perf_counter() - clock) / (k - at))
                journal.log.write(k, "train", values)
                window = []
            dog.pause()
            progress = judged(run, stage, journal, k) if due.evaluate else stage.state.progress
            done = k == last or schedule.stopped_early(run, progress)
            rest, spent = evaluate.as_plain(window[0]) if window else None, time.perf_counter() - start_time
            stage = stage.at(progress._replace(seconds=spent, window=rest))
            if due.save or done or stop or late:
                journal.save(run, stage.state, k)
                saved_at = time.perf_counter()
            if stop or done:
                journal.wait(k)
                # of the last step there is no next one, and the last scores may take long
                if stop or mesh.agreed((bool(caught),), True)[0]:
                    raise _stopped(caught, k)
                break
            clock, at = time.perf_counter(), k
            dog.resume()
    return stage.state, pace


def _following(run: Run, stage: Stage, journal: Journal, done: int) -> tuple[Stage, float]:
    journal.wait(done)  # or what becomes frozen would not leave the memory
    with journal.clock.during("start"):
        return stages.following(run, stage.state, done, journal.quiet)


def _stopped(caught: Sequence[int], k: int) -> SystemExit:
    why = f"signal {caught[0]}" if caught else "a signal to another process"
    record.say(f"stopped by {why} and saved step {k}; the same command goes on from here")
    return SystemExit(signals.PREEMPTED)


def judged(run: Run, stage: Stage, journal: Journal, k: int) -> Progress:
    """The progress after an evaluation on dev at step `k`, whose parameters are saved if none were better."""
    with journal.clock.during("evaluate"):
        values = evaluate.evaluate(stage.run.net, stage.state.params, evaluate.splits(stage.run)["dev"])
    journal.log.write(k, "dev", values)
    progress = evaluate.judged(run, values, k, stage.state.progress)
    if progress.best_step == k:
        journal.save_best(run, stage.state, k)
    return progress


def finished(config: Config, workdir: Path) -> dict[str, Any] | None:
    """The stored result of a finished run, else None. Raises UserError if the folder holds a run of another
    config."""
    record.claim(workdir, "run.json")
    if (stored := _config(workdir)) is not None:
        changes = configs.difference(stored, config.to_dict())
        if changes:
            raise UserError(
                f"{workdir} holds a run of another config; these keys differ (there -> asked):\n  "
                + "\n  ".join(changes)
                + "\nchoose another --workdir, or go back to that config"
            )
    return spec.read_run(workdir, "result.json") if (workdir / "result.json").exists() else None


def _config(workdir: Path) -> dict[str, Any] | None:
    """The config that a folder was trained with, from the first place that has it; None: nothing was."""
    if (workdir / "config.json").exists():
        return spec.read_run(workdir, "config.json")
    if (workdir / "run.json").exists():
        return spec.read_run(workdir, "run.json")["config"]
    if any(integrity.steps(workdir, kind) for kind in (integrity.BEST, integrity.RESUME)):
        return configs.renamed(checkpoint.known(workdir)["config"])
    if (workdir / "result.json").exists():
        raise UserError(
            f"{workdir} holds a result, and neither config.json nor run.json say of what; restore them, or "
            "choose another --workdir"
        )
    return None
