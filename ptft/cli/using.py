"""The verbs for runs and checkpoints that are there: eval, predict, import, export."""

import argparse
import contextlib
import json
import sys

from ptft.core.errors import UserError


def import_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import exchange

    exchange.import_run(args.checkpoint, args.workdir)


def export_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import exchange

    exchange.export_run(args.workdir, args.to, args.merge)


def eval_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    """A split of the run's own data, or any other source of the same kind."""

    from ptft import data
    from ptft.cli import predict, texts
    from ptft.core import mesh
    from ptft.train import dataset, evaluate

    with contextlib.redirect_stdout(sys.stderr):  # whatever else is said, standard output is one JSON object
        config, tokenizer, net, params, labels = predict.load_run(args.workdir)
        where = args.data or config.data[args.split]
        if not where:
            raise UserError(
                f"the run has no data.{args.split}; give another --split, or a source with --data KIND:WHERE"
            )
        options = texts.columns(config.data, args.text_column, args.label_column)
        try:
            source = data.load(where, options, labels)
        except UserError as e:  # without what only a page can say
            raise UserError(str(e).removesuffix(data.SKIP)) from e
        rows = dataset.rows(net.objective, source, tokenizer, where)
        limit = config.data.dev_size if args.split == "dev" and not args.data else 0  # as in training
        grid = mesh.make()
        params = mesh.place(params, grid)
        split = evaluate.Split(rows, config.eval_batch or config.batch, grid, limit)
        metrics = evaluate.evaluate(net, params, split)
    print(
        json.dumps({"data": where, "rows": min(len(rows), limit or len(rows)), **metrics}, ensure_ascii=False)
    )


def predict_verb(args: argparse.Namespace, overrides: list[str]) -> None:
    from ptft.cli import predict

    request = predict.Request(args.text, args.file, args.text_column, args.to, args.json)
    predict.run(args.workdir, request)
