"""The verbs that train or say what training costs: train, plan, tune."""

import argparse
import contextlib
import json
import sys
from typing import Any

from ptft.core.errors import UserError


def load_config(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    from ptft.core import pages
    from ptft.train import spec

    values = pages.load(args.config)
    pages.override(values, overrides, spec.SPEC)
    return values


def load_run_config(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """That of one run, with or without a section `tune`. Of a page for bench, `ptft train` takes the run
    whose freeze is named."""
    values = load_config(args, overrides)
    if "bench" in values and not (args.verb == "train" and any(o.startswith("freeze=") for o in overrides)):
        raise UserError(
            f"{args.config} is a page for ptft bench; expected one for ptft train: its section 'bench' "
            "compares many runs. To train one of them, name its strategy: --config.freeze=…"
        )
    return {key: value for key, value in values.items() if key != "bench"}


def train_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.core import record, startup
    from ptft.planning import auto
    from ptft.train import contract, cost, description, programs, spec, train, weights

    startup.imported()
    values = load_run_config(args, overrides)
    values.pop("tune", None)  # what ptft tune may try
    config = spec.resolve(values)
    if args.check:
        if args.workdir:
            train.finished(config, args.workdir)
        built = auto.built(config, quiet=False)
        description.describe(built)
        weights.start_params(built, quiet=False)
        # the same step; under pmap it has no whole-program form
        traced = built._replace(config=config.replace(parallel="jit"))
        for phase in {p.plan: i for i, p in enumerate(traced.phases)}.values():
            program = programs.program(traced, phase)
            which = "" if len(traced.phases) == 1 else f"{traced.phases[phase].strategy}: "
            record.say(which + cost.describe(program.cost))
            contract.check(traced, program, phase)
        record.say("checked; nothing was trained")
        return
    if not args.workdir:
        raise UserError("--workdir DIR is missing: where the run's files go (or --check to train nothing)")
    result = train.run(config, args.workdir, chosen=auto.choose(config, args.workdir, quiet=False))
    for split in ("dev", "test"):
        if split in result:
            record.say(
                f"{split}: " + ", ".join(f"{k} {v:.4f}" for k, v in result[split].items() if v is not None)
            )
    chosen = f"the best by {result['chosen_by']}" if result.get("chosen_by") else "the last"
    record.say(f"these are of step {result['best_step']}, {chosen}, of {result['steps']} in {args.workdir}")


def plan_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.core import pages, record
    from ptft.planning import auto, plans, scaling
    from ptft.train import build, description, spec

    numbers = scaling.counts(args.devices) if args.devices else []
    if numbers:
        scaling.pretend(max(numbers))
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        values = load_config(args, overrides)
    values = {k: v for k, v in values.items() if k not in ("tune", "bench")}
    config = spec.resolve({**values, "parallel": "jit"})
    asked = [pages.literal(f) for f in args.freeze] if args.freeze else [config.freeze]
    strategies = [auto.chosen(config.replace(freeze=f), args.json) if auto.ask(f) else f for f in asked]
    few = scaling.on(config, 1) if numbers else config
    outline = build.outline(few.replace(freeze=strategies[0]))
    # what is wrong with any is said before the first is compiled
    resolved = [build.refrozen(outline, s) for s in strategies]
    if getattr(outline.net.objective, "labels", ()) and not (config.data.labels or config.data.names):
        assumed = f"{len(outline.data.labels)} classes are assumed, as no data are read"
        record.note(f"{assumed}; --config.data.labels names yours")
    if numbers:
        rows = scaling.rows(config, strategies, numbers)
    else:
        rows = plans.rows(outline, strategies, args.probe)
    if args.json:
        print(
            json.dumps(
                {"device": record.device(), "versions": record.versions(), "rows": rows}, ensure_ascii=False
            )
        )
        return
    if len(strategies) == 1 or args.rules:
        for run in resolved:
            print("\n".join(description.describe_freeze(run, args.rules)) + "\n")
    print(scaling.text(rows) if numbers else plans.text(rows))


def tune_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    import jax

    from ptft.bench import tune
    from ptft.core import record

    if jax.process_count() > 1:
        raise UserError("ptft tune runs in one process: each trial depends on those before; start one alone")
    if args.trials < 1:
        raise UserError(f"--trials {args.trials}: expected a number above 0")
    values = load_run_config(args, overrides)
    page = ["--config", args.config, *(f"--config.{o}" for o in overrides if not o.startswith("tune."))]
    record.say(tune.table(tune.run(values, args.workdir, args.trials, page)))
