"""`ptft tune`: the strategy and the learning rate that are best on dev, searched for by Optuna.

    WORKDIR/tune.db      Optuna's study: TPE (Bergstra et al. 2011) proposes, a median pruner stops
    WORKDIR/tune.json    the config, every trial, the strategies of none, the best
    WORKDIR/runs/HASH    the runs of the trial that is on, and that of the best so far

A trial is tried cheaply first, by freezing deeper: `S` runs as `S&top-K`, K being 0.4 of the blocks, at which
the ranks of whole runs are said to be found again (arXiv 2504.10735), and what is frozen without dropout, so
that it is computed once an example (the feature cache). A strategy that so trains nothing less (`head`,
`top-1`), or cannot be cut (added parameters, phases, rules, auto), runs for a third of the steps instead.
Only a trial whose cheap try is no worse than the median of those that were finished goes on to the whole run.
Cheap tries of strategies that are cut in different ways are compared all the same: it is a guess what to
spend the time on, and no result.

Trials do not see the test split; the best is evaluated on it, once, at the end. The same command goes on
after a stop: a trial that was under way is tried again, from its checkpoint, and N trials are N over all
starts.
"""

import math
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict

from ptft.bench import cell, identity, results, search_space
from ptft.bench.search_space import Search
from ptft.bench.study import done, load_optuna, opened, retry, winner
from ptft.core import config as configs
from ptft.core import locks, progress, record, signals
from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.core.stored import Object
from ptft.planning import auto
from ptft.train import build, evaluate, spec, train, weights

SHARE = 0.4  # of the blocks that a cheap try trains, at most
ALL = "0"  # the one thing there is to lock


class TuneFile(TypedDict, total=False):
    """tune.json, as far as it is read again."""

    config: Required[Object]
    content: Mapping[str, str]
    trials: Sequence[Object]
    best: Any


def run(values: Mapping[str, Any], workdir: Path, trials: int, page: Sequence[str]) -> dict[str, Any]:
    """Searches until there are so many trials, and returns what `tune.json` holds.

    Args:
      values: a finetune config, with or without a section `tune`.
      page: arguments of the command line that name the config.
    Raises:
      UserError: a mistake in the config, another config or other files than the folder's, no optuna, or no
        trial that did not diverge.
      SystemExit(75): stopped by SIGTERM or SIGINT.
    """
    optuna = load_optuna()
    record.claim(workdir, "tune.json")
    whole = spec.resolve({k: v for k, v in values.items() if k != "tune"})
    section = configs.resolve({"tune": values.get("tune", {})}, {"tune": search_space.SPEC})
    search = search_space.resolve(whole, section.tune, workdir, page)
    file = workdir / "tune.json"
    state = _begun(file, {**whole.to_dict(), **section.to_dict()}, whole, search)
    with (
        locks.of(workdir) as held,
        opened(optuna, workdir, search.falls) as study,
        signals.preemption() as caught,
    ):
        if not held.take(ALL):
            raise UserError(
                f"another process searches in {workdir}; wait for it, or choose another --workdir"
            )
        results.write_json(file, state)
        retry(optuna, study)
        while len(done(study)) < trials:
            if caught:
                record.say(f"stopped by signal {caught[0]}; the same command goes on from here")
                raise SystemExit(signals.PREEMPTED)
            _trial(optuna, study, search, f"trial {len(done(study)) + 1}/{trials}")
            state["trials"] = _rows(study)
            results.write_json(file, state)
            _clear(study, search)
            record.say(f"trial {len(state['trials'])}/{trials} {_news(state['trials'][-1], search.metric)}")
        state["trials"] = _rows(study)
        tried = {row["freeze"] for row in state["trials"]}
        state["untried"] = [name for name in search.space if name not in tried]
        state["best"] = _best(study, search, state["best"], state["trials"])
    results.write_json(file, state)
    return state


def _begun(file: Path, plain: dict[str, Any], config: Config, search: Search) -> dict[str, Any]:
    """What `tune.json` holds before a start's first trial.

    Args:
      plain: the config with its section `tune`, as the file has it.
    Raises:
      UserError: the file is of another config, or of other files.
    """
    known = results.read_json(file, TuneFile) if file.exists() else {}
    if known and (changes := configs.difference(known["config"], plain)):
        raise UserError(
            f"{search.workdir} holds a search of another config (there -> asked):\n  "
            + "\n  ".join(changes)
            + "\nchoose another --workdir"
        )
    if leaks := cell.leaks(config, config.data.train):
        raise UserError("; ".join(leaks))
    content = identity.content(config)
    if changed := [
        key for key, is_now in content.items() if known.get("content", content).get(key) != is_now
    ]:
        raise UserError(
            f"{search.workdir} holds a search of other files, though their paths are the same: "
            f"{', '.join(changed)}; its trials do not compare with new ones. Choose another --workdir"
        )
    return {
        "config": plain, "content": content, "metric": search.metric,
        "lower_is_better": sorted(search.lower_is_better), "trials": known.get("trials", []),
        "best": known.get("best"),
    }  # fmt: skip


def _trial(optuna: Any, study: Any, search: Search, label: str) -> None:
    """Runs one trial, cheaply and, if that is promising, as a whole."""
    # As if it had never stopped: what is proposed depends on the seed and on the trials that count.
    study.sampler = optuna.samplers.TPESampler(seed=search.base.seed + len(done(study)))
    trial, start_time, pruned = study.ask(), time.perf_counter(), optuna.trial.TrialState.PRUNED
    name = trial.suggest_categorical("freeze", list(search.space))
    config = search.config(name, trial.suggest_float("lr", search.low, search.high, log=True))
    cheap = cheaper(config)
    how = {"freeze": cheap.freeze, "train_for": cheap.train_for, "frozen_dropout": cheap.frozen_dropout}
    trial.set_user_attr("optim.lr", config.optim.lr)
    less = "whole at once" if cheap == config else f"for {cheap.train_for}"
    less = less if cheap.freeze == config.freeze else f"as {cheap.freeze}"
    record.say(f"{label} {name}, lr {config.optim.lr:g}: tried {less}")
    score, error = _score(cheap, search)
    trial.set_user_attr(
        "cheap",
        {**how, "dev": record.plain(score), "error": error, "seconds": time.perf_counter() - start_time},
    )
    if math.isfinite(score):
        trial.report(score, 0)
        if not trial.should_prune():
            score, error = _score(config, search)
            trial.set_user_attr("seconds", time.perf_counter() - start_time)
            if math.isfinite(score):
                study.tell(trial, score)
                return
    # A trial that diverges is pruned and not failed, so that TPE keeps away from its like.
    trial.set_user_attr("error", error)
    study.tell(trial, state=pruned)


def cheaper(config: Config) -> Config:
    """The same with the lower blocks frozen; for a third of the steps, where that is no less."""
    strategy = config.freeze
    if isinstance(strategy, str) and not auto.ask(strategy) and ";" not in strategy:
        run = build.build(config)
        depth = len(run.layout.blocks)
        sets, at, rates = strategy.partition("@")
        try:
            cut = build.refrozen(run, f"{sets}&top-{max(1, round(SHARE * depth))}{at}{rates}")
        except UserError:  # nothing of it lies so high, or it is no set of what the model has
            cut = run
        if len(cut.phases) == 1 and set(cut.plan.trainable) < set(run.plan.trainable):
            return cut.config.replace(frozen_dropout=False)
    short = config.replace(train_for=f"{math.ceil(auto.unchosen(config).durations.total / 3)} steps")
    try:
        auto.unchosen(short)
    # phases that begin later than that: the whole run is its own cheap try, and is not run twice
    except UserError:
        return config
    return short


def _score(config: Config, search: Search) -> tuple[float, str]:
    """(the dev metric, ""), or of a run that diverged (nan, why)."""
    try:
        folder = search.folder(config)
        with progress.silence():
            result = train.run(config, folder, quiet=True, chosen=auto.choose(config, folder))
        score = float(result["dev"][search.metric])
        return score, "" if math.isfinite(score) else f"dev {search.metric} is {score}"
    except UserError as e:
        return math.nan, str(e)


def _clear(study: Any, search: Search) -> None:
    """Of all runs, that of the best trial is needed once more."""
    best = winner(study)
    keep = search.folder(search.config(best.params["freeze"], best.params["lr"])) if best else None
    for folder in (search.workdir / "runs").glob("*"):
        if folder != keep:
            shutil.rmtree(folder)


def _best(study: Any, search: Search, before: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best trial, its command, and its metrics on test, which are computed once."""
    if (best := winner(study)) is None:
        raise UserError(
            f"none of {len(done(study))} trials gave a finite dev {search.metric}; lower optim.lr or "
            f"tune.lr: see {search.workdir}/tune.json"
        )
    config = search.config(best.params["freeze"], best.params["lr"])
    changes = [f"--config.freeze={best.params['freeze']}", f"--config.optim.lr={config.optim.lr:g}"]
    words = [*search.page, *changes, "--workdir", f"{search.workdir}/best"]
    row = {
        **next(r for r in rows if r["params"] == best.params),
        "command": "ptft train " + shlex.join(words),
    }
    if before and before["params"] == best.params:
        return {**row, "test": before["test"]}
    return {
        **row,
        "test": _test(config.replace(**{"data.test": search.test}), search.folder(config))
        if search.test
        else None,
    }


def _test(config: Config, folder: Path) -> dict[str, float]:
    run = auto.built(config, folder)
    computed, _ = weights.computed_params(folder, config, run.net)
    params = run.placement.put(computed)
    return evaluate.evaluate(run.net, params, evaluate.splits(run)["test"])


def _rows(study: Any) -> list[dict[str, Any]]:
    """The trials that count, numbered from 1."""
    return [_row(k, t) for k, t in enumerate(done(study), 1)]


def _row(number: int, t: Any) -> dict[str, Any]:
    """A trial as JSON. `dev`: of the whole run; None for one that was pruned."""
    known, error = t.user_attrs, t.user_attrs.get("error", "")
    return {
        "trial": number, "freeze": t.params["freeze"], "lr": known["optim.lr"], "params": t.params,
        "state": "diverged" if error else t.state.name.lower(), "error": error,
        "dev": t.value if t.state.name == "COMPLETE" else None,
        "cheap": known["cheap"], "seconds": known.get("seconds", known["cheap"]["seconds"]),
    }  # fmt: skip


def _news(row: Mapping[str, Any], metric: str) -> str:
    said = (
        f"dev {metric} {row['dev']:.4f}"
        if row["dev"] is not None
        else ": ".join(filter(None, [row["state"], row["error"]]))
    )
    return f"{row['freeze']}, lr {row['lr']:g}: {said} ({row['seconds']:.1f} s)"


def table(searched: Mapping[str, Any]) -> str:
    """The trials, the best first, and what came of them."""
    falls = not results.higher_is_better(searched["metric"], [searched])
    rows = sorted(
        searched["trials"], key=lambda r: (r["dev"] is None, (r["dev"] or 0) * (1 if falls else -1))
    )
    width = max(len(r["freeze"]) for r in rows)
    lines = [
        f"{'trial':>5}  {'freeze':<{width}}  {'lr':>9}  {'cheap try':>9}  {'dev ' + searched['metric']:>12}  "
        f"{'seconds':>7}"
    ]
    for r in rows:
        cheap, dev = ("" if x is None else f"{x:.4f}" for x in (r["cheap"]["dev"], r["dev"]))
        lines.append(
            f"{r['trial']:>5}  {r['freeze']:<{width}}  {r['lr']:>9.3g}  {cheap:>9}  {dev or r['state']:>12}  "
            f"{r['seconds']:>7.1f}"
        )
    pruned, diverged = (sum(r["state"] == state for r in rows) for state in ("pruned", "diverged"))
    lines.append(
        f"{pruned} of {len(rows)} trials were pruned after their cheap try"
        + (f", {diverged} diverged" if diverged else "")
    )
    if searched["untried"]:
        lines.append(f"tried in no trial: {', '.join(searched['untried'])}")
    best = searched["best"]
    if best["test"]:
        lines.append(
            "the best on test: " + ", ".join(f"{k} {v:.4f}" for k, v in best["test"].items() if v is not None)
        )
    return "\n".join([*lines, best["command"]])
