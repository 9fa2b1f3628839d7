"""What follows the loop: the proof that the freeze held, and the final scores."""

import math
from collections.abc import Mapping

from ptft.core import checkpoint, record, stored
from ptft.core.errors import UserError
from ptft.freeze import ledger, quantize, resolve
from ptft.train import evaluate, schedule, weights
from ptft.train import state as states
from ptft.train.build import Run
from ptft.train.result import Ended
from ptft.train.state import Journal, RunState


def prove(run: Run, state: RunState, journal: Journal) -> None:
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
    starts = [*state.progress.phase_starts, *[None] * (len(run.phases) - len(reached))]
    proof["phases"] = [{"strategy": p.strategy, "began": k} for p, k in zip(run.phases, starts, strict=True)]
    record.write_json(journal.workdir / "freeze_ledger.json", stored.sealed(proof))
    if not journal.quiet or not proof["holds"]:
        unread = () if run.net.objective.reads_pooled else ("backbone/pooler/",)
        record.say(ledger.describe(proof, unread))
    if not proof["holds"]:
        raise RuntimeError(f"the freeze did not hold: see {journal.workdir}/freeze_ledger.json")


def final_metrics(run: Run, state: RunState, journal: Journal) -> Ended:
    """Dev and test metrics of the best parameters, or of the last where nothing chose a best."""
    c, steps, progress, params = run.config, int(state.train_state.step), state.progress, state.params
    best_step = steps
    if progress.best is not None:
        like = run.placement.like(states.stored(run, state))
        changed, loaded = checkpoint.load_params(journal.workdir, like, skip="", new_ok="")
        if loaded.step != progress.best_step:
            raise UserError(
                f"{journal.workdir}/best holds step {loaded.step}, and the best of this run is step "
                f"{progress.best_step}; restore that folder"
            )
        whole = quantize.computed(
            {**state.frozen, **state.train_state.params, **changed},
            loaded.meta.get("thin", ()),
            c.frozen_dtype,
        )
        params, best_step = run.placement.put(whole), loaded.step
    scores, splits = {}, evaluate.splits(run)
    if not splits:  # whether the last update has left a network that computes
        batch = evaluate.Split(run.data.train, c.batch, run.mesh, c.batch)
        _must_compute("train", evaluate.evaluate(run.net, params, batch))
    for name, split in splits.items():
        scores[name] = evaluate.evaluate(run.net, params, split)
        _must_compute(name, scores[name])
        if name == "test" or not schedule.at(run, steps).evaluate:  # or the loop has written it
            journal.log.write(best_step, name, scores[name])
    return Ended(steps, best_step, scores)


def _must_compute(split: str, scores: Mapping[str, float]) -> None:
    if not math.isfinite(scores["loss"]):
        raise UserError(
            f"the loss on {split} is {scores['loss']}: the run diverged; lower optim.lr or optim.clip. "
            "Checkpoints stay"
        )
