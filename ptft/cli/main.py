"""`ptft VERB`: train, status, eval, plan, tune, bench, report, predict, import, export.

Exit codes: 0 done, 75 preempted and saved, 2 the user's mistake (one message; --debug shows the traceback),
else a crash.
"""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ptft.cli import benchmark, status, training, using
from ptft.core.errors import UserError, did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, runs one verb, and turns a user's mistake into exit code 2."""
    args, rest = parser().parse_known_args(argv)
    try:
        overrides = _overrides(args, rest)
        if args.verb == "status":  # looks at files, and need not wait for jax
            status.status_verb(args, overrides)
            return 0
        from ptft.core import compiled, mesh, record

        if args.verb != "bench":  # whose processes each take cells of their own
            mesh.start()
        compiled.start()
        with contextlib.nullcontext() if record.is_lead() else _silence():
            VERBS[args.verb][0](args, overrides)
        mesh.wait("done")  # what one process has written, another may read next
        # which says nothing unless there is something to say of the texts
        if compiled.seen.programs and args.verb != "predict":
            record.note(f"compiled programs: {compiled.seen}")
        return 0
    except KeyboardInterrupt:
        print(f"ptft {args.verb}: stopped at once", file=sys.stderr)
        return 130
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as e:
        full = isinstance(e, OSError) and e.errno == errno.ENOSPC
        if args.debug or (isinstance(e, OSError) and e.filename is None and not full):
            raise
        # A file that cannot be opened, made or written is a matter of the command, not of the program.
        said = f"{e.filename or 'the disk is full'}: {e.strerror}" if isinstance(e, OSError) else str(e)
        print(f"ptft {args.verb}: {said}", file=sys.stderr)
        return 2


def _overrides(args: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """The changes of the config among what the parser does not know. Raises UserError for all else."""
    unknown = [r for r in rest if not r.startswith("--config.") or not hasattr(args, "config")]
    if unknown:
        names = [k.replace("_", "-") for k in vars(args) if k not in ("verb", "folder", "checkpoint")]
        known = [f"--{name}" for name in names]
        known += ["--config.KEY=VALUE"] if hasattr(args, "config") else []
        own = unknown[0].removeprefix("--").partition("=")[0]
        near = did_you_mean(unknown[0], known)
        if hasattr(args, "config") and _is_key(own):
            near = f"it is a key of the config: --config.{own}=…"
        raise UserError(f"unknown argument {unknown[0]!r}; {near}")
    return [r.removeprefix("--config.") for r in rest]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Of several processes one speaks."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        yield


def _is_key(name: str) -> bool:
    from ptft.core import config
    from ptft.train import spec

    return name in config.leaves(spec.SPEC)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ptft", description=__import__("ptft").__doc__, allow_abbrev=False)
    verbs = top.add_subparsers(dest="verb", required=True)
    for name, (_, about, options) in VERBS.items():
        verb = verbs.add_parser(name, help=about, description=about, allow_abbrev=False)
        verb.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
        for flag, settings in options.items():
            verb.add_argument(flag, **settings)
    return top


CONFIG = {
    "--config": {
        "required": True,
        "metavar": "FILE.py[:ARG]",
        "help": "a page of configs/; change keys with --config.KEY=VALUE",
    }
}
WORKDIR = {"--workdir": {"required": True, "type": Path, "metavar": "DIR", "help": "the run's folder"}}
TEXT_COLUMN: dict[str, dict[str, Any]] = {
    "--text-column": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": (
            "column of the text, twice for a pair; a number from 0 if the table has no header; without it, "
            "the run's own data.text"
        ),
    }
}
VERBS: dict[str, tuple[Any, str, dict[str, dict[str, Any]]]] = {
    "train": (
        training.train_verb,
        "pretrain or finetune; the same command resumes",
        {
            **CONFIG,
            "--workdir": {"type": Path, "metavar": "DIR", "help": "where the run's files go"},
            "--check": {
                "action": "store_true",
                "help": "build everything, trace one step, print plan and cost, train nothing",
            },
        },
    ),
    "status": (
        status.status_verb,
        "how far a run or a benchmark is, and what it does now",
        {
            "folder": {"type": Path, "metavar": "DIR", "help": "of a run or of a benchmark"},
            "--json": {"action": "store_true", "help": "the same as JSON"},
        },
    ),
    "eval": (
        using.eval_verb,
        "evaluate a run",
        {
            **WORKDIR,
            "--split": {"default": "test", "choices": ("train", "dev", "test")},
            "--data": {
                "default": "",
                "metavar": "KIND:WHERE",
                "help": "another source, such as files:test.tsv",
            },
            **TEXT_COLUMN,
            "--label-column": {
                "default": "",
                "metavar": "NAME",
                "help": "column of the label; without it, the run's own data.label",
            },
        },
    ),
    "plan": (
        training.plan_verb,
        "print what a strategy trains and costs",
        {
            **CONFIG,
            "--freeze": {
                "action": "append",
                "metavar": "NAME",
                "help": "a strategy or a list of rules; may be given several times",
            },
            "--probe": {
                "type": int,
                "default": 3,
                "metavar": "N",
                "help": "time N steps of each on this device; 0: none",
            },
            "--devices": {
                "metavar": "N,N",
                "help": "what one of so many devices holds instead, 1,8,64; as compiled for CPUs",
            },
            "--rules": {
                "action": "store_true",
                "help": "also list every parameter, and which rule freezes or trains it",
            },
            "--json": {"action": "store_true", "help": "the table as JSON"},
        },
    ),
    "tune": (
        training.tune_verb,
        "search for the best strategy and learning rate; the same command goes on",
        {
            **CONFIG,
            **WORKDIR,
            "--trials": {"type": int, "default": 20, "metavar": "N", "help": "how many, over all starts"},
        },
    ),
    "bench": (
        benchmark.bench_verb,
        "compare strategies over seeds; the same command goes on",
        {
            **CONFIG,
            **WORKDIR,
            "--check": {
                "action": "store_true",
                "help": "build everything, print the schedule, train nothing",
            },
            "--shard": {
                "default": "1/1",
                "metavar": "i/n",
                "help": "run the i-th of n parts; they may share the folder, as processes of a launcher do",
            },
            "--only": {"default": "", "metavar": "HASH", "help": "run one cell alone"},
            "--isolated": {
                "action": "store_true",
                "help": "run every cell in a process of its own: honest times and memory",
            },
        },
    ),
    "report": (
        benchmark.report_verb,
        "write report.md, report.png and report.html",
        {
            "folder": {
                "type": Path,
                "nargs": "+",
                "help": "of a run, or of one or several benchmarks, which are merged",
            },
            "--to": {
                "type": Path,
                "metavar": "DIR",
                "help": "where the report goes; without it, into the first folder",
            },
            "--csv": {"action": "store_true", "help": "also report.csv, a line a cell"},
        },
    ),
    "import": (
        using.import_verb,
        "make a run of a checkpoint in Hugging Face's format",
        {
            "checkpoint": {
                "metavar": "FOLDER",
                "help": "config.json, model.safetensors, tokenizer; or hf:ORG/NAME",
            },
            **WORKDIR,
        },
    ),
    "export": (
        using.export_verb,
        "write a run as a folder that transformers loads",
        {
            **WORKDIR,
            "--to": {"required": True, "type": Path, "metavar": "FOLDER", "help": "a new folder"},
            "--merge": {
                "action": "store_true",
                "help": "make one whole model of a base and what was added to it or kept apart from it",
            },
        },
    ),
    "predict": (
        using.predict_verb,
        "what a run says of texts: labels and probabilities, tagged words, or the words for gaps such as "
        "[MASK]",
        {
            **WORKDIR,
            "--text": {
                "action": "append",
                "help": (
                    "may be given several times; a tab makes a pair, where the run takes pairs (or was "
                    "imported: then one tab)"
                ),
            },
            "--file": {
                "type": Path,
                "help": (
                    ".tsv .csv .jsonl .parquet: a table; .conll: a word a line; others, and standard input, "
                    "one text a line"
                ),
            },
            **TEXT_COLUMN,
            "--to": {
                "type": Path,
                "metavar": "FILE",
                "help": (
                    ".csv .tsv .jsonl: the columns of --file and what was predicted (in a tsv, a tab or "
                    "line end becomes a blank)"
                ),
            },
            "--json": {"action": "store_true", "help": "one JSON object a line"},
        },
    ),
}
