"""`ptft VERB`: train, eval, plan, tune, bench, report, predict, import, export.

Exit codes: 0 done, 75 preempted and saved, 2 the user's mistake (one message; --debug shows the traceback), else a crash.
"""

import argparse
import contextlib
import errno
import functools
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptft.core.errors import UserError, did_you_mean

# Each verb imports what it needs: jax alone takes a second, and --help needs none of it.


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, runs one verb, and turns a user's mistake into exit code 2."""
    args, rest = parser().parse_known_args(argv)
    try:
        overrides = [r.removeprefix("--config.") for r in rest if r.startswith("--config.")]
        unknown = [r for r in rest if not r.startswith("--config.") or not hasattr(args, "config")]
        if unknown:
            names = [k.replace("_", "-") for k in vars(args) if k not in ("verb", "folder", "checkpoint")]
            known = [f"--{name}" for name in names] + ["--config.KEY=VALUE"] * hasattr(args, "config")
            raise UserError(f"unknown argument {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
        from ptft.core import compiled, mesh, record

        mesh.start()
        compiled.start()
        VERBS[args.verb][0](args, overrides)
        if compiled.seen.programs and args.verb != "predict":  # which says nothing unless there is something to say of the texts
            record.note(f"compiled programs: {compiled.seen}")
    except KeyboardInterrupt:
        print(f"ptft {args.verb}: stopped at once", file=sys.stderr)
        return 130
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as e:
        full = isinstance(e, OSError) and e.errno == errno.ENOSPC
        if args.debug or (isinstance(e, OSError) and e.filename is None and not full):
            raise
        # A file that cannot be opened, made or written is a matter of the command, not of the program.
        said = f"{e.filename or 'the disk is full'}: {e.strerror}" if isinstance(e, OSError) else str(e)
        print(f"ptft {args.verb}: {said}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ptft", description=__import__("ptft").__doc__, allow_abbrev=False)
    verbs = top.add_subparsers(dest="verb", required=True)
    for name, (_, about, options) in VERBS.items():
        verb = verbs.add_parser(name, help=about, description=about, allow_abbrev=False)
        verb.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
        for flag, settings in options.items():
            verb.add_argument(flag, **settings)
    return top


def load_config(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    from ptft.core import config as configs
    from ptft.train import spec

    values = configs.load(args.config)
    configs.override(values, overrides, spec.SPEC)
    return values


def load_run_config(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """That of one run, with or without a section `tune`. Of a page for bench, `ptft train` takes the run whose freeze is named."""
    values = load_config(args, overrides)
    if "bench" in values and not (args.verb == "train" and any(o.startswith("freeze=") for o in overrides)):
        raise UserError(
            f"{args.config} is a page for ptft bench; expected one for ptft train: its section 'bench' compares many runs. To train one "
            "of them, name its strategy: --config.freeze=…"
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
        traced = built._replace(config=config.replace(parallel="jit"))  # the same step; under pmap it has no whole-program form
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
            record.say(f"{split}: " + ", ".join(f"{k} {v:.4f}" for k, v in result[split].items() if v is not None))
    chosen = f"the best by {result['chosen_by']}" if result.get("chosen_by") else "the last"
    record.say(f"these are of step {result['best_step']}, {chosen}, of {result['steps']} in {args.workdir}")


def plan_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.core import config as configs
    from ptft.core import record
    from ptft.planning import auto, plans
    from ptft.train import build, description, spec

    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        values = load_config(args, overrides)
    values = {k: v for k, v in values.items() if k not in ("tune", "bench")}
    config = spec.resolve({**values, "parallel": "jit"})
    asked = [configs.literal(f) for f in args.freeze] if args.freeze else [config.freeze]
    strategies = [auto.chosen(config.replace(freeze=f), args.json) if auto.ask(f) else f for f in asked]
    outline = build.outline(config.replace(freeze=strategies[0]))
    resolved = [build.refrozen(outline, s) for s in strategies]  # what is wrong with any is said before the first is compiled
    rows = plans.rows(outline, strategies, args.probe)
    if args.json:
        print(json.dumps({"device": record.device(), "versions": record.versions(), "rows": rows}, ensure_ascii=False))
        return
    if len(strategies) == 1 or args.rules:
        for run in resolved:
            print("\n".join(description.describe_freeze(run)) + "\n")
    print(plans.text(rows))


def tune_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.bench import tune
    from ptft.core import record

    if args.trials < 1:
        raise UserError(f"--trials {args.trials}: expected a number above 0")
    values = load_run_config(args, overrides)
    page = ["--config", args.config, *(f"--config.{o}" for o in overrides if not o.startswith("tune."))]
    record.say(tune.table(tune.run(values, args.workdir, args.trials, page)))


def bench_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    # A process that took most of an accelerator's memory for itself would leave none to those that measure.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from ptft.bench import cell, identity, probe, protocol, results, runner
    from ptft.core import mesh, record
    from ptft.planning import auto
    from ptft.train import spec, train

    values, workdir = load_config(args, overrides), args.workdir
    record.claim(workdir, "bench.json")
    bench = protocol.section(values)
    if bench.budget != "steps":  # what the price of each strategy is compared with is measured beside it
        known = protocol.cells({**values, "bench": {**values["bench"], "budget": "steps"}}, spec.resolve)
        probe.in_turns([c.config for c in known if c.kind == "train" and not auto.ask(c.config.freeze)], workdir)
    with mesh.preemption() as caught:
        cells = protocol.cells(values, spec.resolve, identity.content, probe.spend(bench.budget, workdir, caught))
        if caught:
            raise SystemExit(train.PREEMPTED)
    mine = runner.pick(cells, shard(args.shard), args.only)
    cell.check(mine, bench.metric)
    group_key = (lambda cell: None) if args.isolated or args.only else cell.group_key
    there, ours = results.read(workdir), {c.cell for c in cells}
    have = [row for row in there if row["cell"] in ours]
    if others := len(there) - len(have):
        record.say(f"{others} cells in {workdir} are of another config, or of other data or weights: they do not count here")
    waiting = runner.groups(runner.left_of(mine, have), group_key)
    if args.check:
        record.say(runner.schedule(waiting, mine, have))
        return
    words = runner.command_line(args.config, overrides)
    command = runner.quoted(words)
    if not (args.only and (workdir / "bench.json").exists()):  # one cell alone changes nothing of what the benchmark is
        whole = f"{command} --workdir {shlex.quote(str(workdir))}"
        record.write_json(workdir / "bench.json", runner.describe(values, mine if args.only else cells, whole))
    expected = {} if args.only else cell.expected(waiting, workdir, args.isolated)
    if not args.only:
        record.say(runner.schedule(waiting, mine, have, expected))
    if args.isolated:
        argv = [sys.executable, "-m", "ptft", *words]
        isolated = functools.partial(
            runner.run_in_subprocess, workdir=workdir, argv=argv, metric=bench.metric, command=command, budget=bench.budget
        )
        rows = runner.run(mine, workdir, isolated, expected=expected, locked=False)  # each process takes its cell
    else:
        do, alone = functools.partial(cell.run_cell, metric=bench.metric), bool(args.only)
        share = functools.partial(cell.run_group, workdir=workdir)
        rows = runner.run(
            mine,
            workdir,
            lambda cell: runner.run_in_process(cell, workdir, do, bench.metric, command, bench.budget, alone),
            lambda group: runner.run_group(group, workdir, share, bench.metric, command, bench.budget),
            group_key,
            expected,
        )
    if not args.only:
        record.say(f"next: ptft report {workdir}")
    if failed := sum(row["status"] == "failed" for row in rows):
        record.say(f"{failed} of {len(rows)} cells failed; the same command tries them again")
        raise SystemExit(1)


def shard(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    place, many = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= place <= many:
        raise UserError(f"--shard {text}: expected i/n, the i-th of n parts, such as 1/4 … 4/4")
    return place, many


def report_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.core import record
    from ptft.report import files, markdown

    paths = files.write(*args.folder, to=args.to, table=args.csv)
    print(markdown.first_screen(paths["md"].read_text(encoding="utf-8")) + "\n")
    for kind, path in paths.items():
        record.say(f"{kind}: {path}")


def import_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import exchange

    exchange.import_run(args.checkpoint, args.workdir)


def export_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import exchange

    exchange.export_run(args.workdir, args.to, args.merge)


def eval_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    """A split of the run's own data, or any other source of the same kind."""
    import jax

    from ptft import data
    from ptft.cli import predict, texts
    from ptft.core import mesh
    from ptft.train import dataset, evaluate

    with contextlib.redirect_stdout(sys.stderr):  # whatever else is said, standard output is one JSON object
        config, tokenizer, net, params, labels = predict.load_run(args.workdir)
        where = args.data or config.data[args.split]
        if not where:
            raise UserError(f"the run has no data.{args.split}; give another --split, or a source with --data KIND:WHERE")
        options = texts.columns(config.data, args.text_column, args.label_column)
        try:
            source = data.load(where, options, labels)
        except UserError as e:  # without what only a page can say
            raise UserError(str(e).removesuffix(data.SKIP)) from e
        rows = dataset.rows(net.objective, source, tokenizer, where)
        limit = config.data.dev_size if args.split == "dev" and not args.data else 0  # as in training
        grid = mesh.make()
        params = jax.device_put(params, mesh.replicated(grid))
        metrics = evaluate.evaluate(net, params, rows, config.eval_batch or config.batch, grid, limit)
    print(json.dumps({"data": where, "rows": min(len(rows), limit or len(rows)), **metrics}, ensure_ascii=False))


def predict_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import predict

    predict.run(args.workdir, args.text, args.file, args.text_column, args.to, args.json)


CONFIG = {"--config": {"required": True, "metavar": "FILE.py[:ARG]", "help": "a page of configs/; change keys with --config.KEY=VALUE"}}
WORKDIR = {"--workdir": {"required": True, "type": Path, "metavar": "DIR", "help": "the run's folder"}}
TEXT_COLUMN: dict[str, dict[str, Any]] = {
    "--text-column": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "column of the text, twice for a pair; a number from 0 if the table has no header; without it, the run's own data.text",
    }
}
VERBS: dict[str, tuple[Any, str, dict[str, dict[str, Any]]]] = {
    "train": (
        train_verb,
        "pretrain or finetune; the same command resumes",
        {
            **CONFIG,
            "--workdir": {"type": Path, "metavar": "DIR", "help": "where the run's files go"},
            "--check": {"action": "store_true", "help": "build everything, trace one step, print plan and cost, train nothing"},
        },
    ),
    "eval": (
        eval_verb,
        "evaluate a run",
        {
            **WORKDIR,
            "--split": {"default": "test", "choices": ("train", "dev", "test")},
            "--data": {"default": "", "metavar": "KIND:WHERE", "help": "another source, such as files:test.tsv"},
            **TEXT_COLUMN,
            "--label-column": {"default": "", "metavar": "NAME", "help": "column of the label; without it, the run's own data.label"},
        },
    ),
    "plan": (
        plan_verb,
        "print what a strategy trains and costs",
        {
            **CONFIG,
            "--freeze": {"action": "append", "metavar": "NAME", "help": "a strategy or a list of rules; may be given several times"},
            "--probe": {"type": int, "default": 3, "metavar": "N", "help": "time N steps of each on this device; 0: none"},
            "--rules": {"action": "store_true", "help": "also show what each strategy claims, rule by rule"},
            "--json": {"action": "store_true", "help": "the table as JSON"},
        },
    ),
    "tune": (
        tune_verb,
        "search for the best strategy and learning rate; the same command goes on",
        {
            **CONFIG,
            **WORKDIR,
            "--trials": {"type": int, "default": 20, "metavar": "N", "help": "how many, over all starts"},
        },
    ),
    "bench": (
        bench_verb,
        "compare strategies over seeds; the same command goes on",
        {
            **CONFIG,
            **WORKDIR,
            "--check": {"action": "store_true", "help": "build everything, print the schedule, train nothing"},
            "--shard": {"default": "1/1", "metavar": "i/n", "help": "run the i-th of n parts; they may share the folder"},
            "--only": {"default": "", "metavar": "HASH", "help": "run one cell alone"},
            "--isolated": {"action": "store_true", "help": "run every cell in a process of its own: honest times and memory"},
        },
    ),
    "report": (
        report_verb,
        "write report.md, report.png and report.html",
        {
            "folder": {"type": Path, "nargs": "+", "help": "of a run, or of one or several benchmarks, which are merged"},
            "--to": {"type": Path, "metavar": "DIR", "help": "where the report goes; without it, into the first folder"},
            "--csv": {"action": "store_true", "help": "also report.csv, a line a cell"},
        },
    ),
    "import": (
        import_verb,
        "make a run of a checkpoint in Hugging Face's format",
        {"checkpoint": {"metavar": "FOLDER", "help": "config.json, model.safetensors, tokenizer; or hf:ORG/NAME"}, **WORKDIR},
    ),
    "export": (
        export_verb,
        "write a run as a folder that transformers loads",
        {
            **WORKDIR,
            "--to": {"required": True, "type": Path, "metavar": "FOLDER", "help": "a new folder"},
            "--merge": {"action": "store_true", "help": "make one whole model of a base and what was added to it or kept apart from it"},
        },
    ),
    "predict": (
        predict_verb,
        "what a run says of texts: labels and probabilities, tagged words, or the words for gaps such as [MASK]",
        {
            **WORKDIR,
            "--text": {
                "action": "append",
                "help": "may be given several times; a tab makes a pair, where the run takes pairs (or was imported: then one tab)",
            },
            "--file": {
                "type": Path,
                "help": ".tsv .csv .jsonl .parquet: a table; .conll: a word a line; others, and standard input, one text a line",
            },
            **TEXT_COLUMN,
            "--to": {
                "type": Path,
                "metavar": "FILE",
                "help": ".csv .tsv .jsonl: the columns of --file and what was predicted (in a tsv, a tab or line end becomes a blank)",
            },
            "--json": {"action": "store_true", "help": "one JSON object a line"},
        },
    ),
}
