"""The verbs for runs and checkpoints that are there: eval, predict, import, export."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from ptft.core.errors import UserError

MOST = 4096  # rows of a batch that a run may ask for, whatever there is to evaluate


def import_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import exchange
    from ptft.core import progress

    with progress.doing(f"importing {args.checkpoint}", watch=True):
        exchange.import_run(args.checkpoint, args.workdir)


def export_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import exchange
    from ptft.core import progress

    _check_depth(args.workdir)
    with progress.doing(f"exporting {args.workdir}", watch=True):
        exchange.export_run(args.workdir, args.to, args.merge)


def eval_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    """A split of the run's own data, or any other source of the same kind."""

    from ptft import data
    from ptft.cli import predict, texts
    from ptft.core import mesh, record
    from ptft.train import dataset, evaluate

    _check_depth(args.workdir)
    with contextlib.redirect_stdout(sys.stderr):  # whatever else is said, standard output is one JSON object
        config, tokenizer, net, params, labels = predict.load_run(args.workdir)
        where = args.data or config.data[args.split]
        if not where:
            raise UserError(
                f"the run has no data.{args.split}; give another --split, or a source with --data KIND:WHERE"
            )
        options = texts.columns(config.data, args.text_column, args.label_column)
        if not args.data:  # the run may be a stranger's
            record.note(f"{args.split}: {where!r}, as the run's config names it; --data evaluates on another")
        try:
            source = data.load(where, options, labels)
        except UserError as e:  # without what only a page can say
            own = f"\nthe run's own data.{args.split} cannot be read here; name another source with --data"
            raise UserError(str(e).removesuffix(data.SKIP) + own * (not args.data)) from e
        rows = dataset.rows(net.objective, source, tokenizer, where)
        limit = config.data.dev_size if args.split == "dev" and not args.data else 0  # as in training
        grid = mesh.make()
        params = mesh.place(params, grid)
        # of a batch far above the rows, all but them would be filling
        size = min(config.eval_batch or config.batch, max(len(rows), MOST))
        split = evaluate.Split(rows, size, grid, limit)
        metrics = evaluate.evaluate(net, params, split)
    print(
        json.dumps({"data": where, "rows": min(len(rows), limit or len(rows)), **metrics}, ensure_ascii=False)
    )


def predict_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import predict

    _check_depth(args.workdir)
    request = predict.Request(args.text, args.file, args.text_column, args.to, args.json)
    predict.run(args.workdir, request)


def _check_depth(workdir: Path) -> None:
    """Refuses a run whose config has more layers than its checkpoint has parameters: to trace them would take
    minutes, before the checkpoint is found not to fit."""
    from ptft.core import config as configs
    from ptft.core import integrity
    from ptft.train import spec

    try:
        config = configs.resolve(spec.read_run(workdir, "config.json"), spec.SPEC)
    except UserError:  # said by what reads the run
        return
    layers, stored = config.model.get("layers", 0), integrity.tensors(workdir)
    if stored is not None and config.checkpoint == "full" and layers > stored:
        raise UserError(
            f"{workdir}/config.json is of another model: model.layers is {layers}, and the checkpoint holds "
            f"{stored} parameters; restore the file"
        )
