"""The one loop, for pretraining and finetuning."""

import functools
import json
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ptft import build, checkpoint, cost, freeze, mesh, optim, pipeline, record, step
from ptft import config as configs
from ptft.build import Run
from ptft.config import Config
from ptft.errors import UserError
from ptft.objectives import Rows
from ptft.tree import Flat

PREEMPTED = 75  # exit code: stopped from outside, and saved


class Program(NamedTuple):
    """Compiled for one shape of run; runs that differ in seed and data alone share it."""

    init: Callable[[Flat], step.Moving]
    train: Callable[..., Any]
    cost: cost.Cost


def program(run: Run) -> Program:
    """Compiles the training step of a run, ahead of time where there is a whole-program form (`jit`)."""
    c, d = run.config, run.durations
    _ = [c.optim[k] for k in c.optim]
    rates = tuple(run.plan.rates.items())
    return _program(run.net, json.dumps(c.optim.to_dict()), rates, d.warmup, d.total, c.batch, c.accumulate, c.parallel, run.mesh)


@functools.lru_cache(maxsize=4)
def _program(net: step.Net, optim_json: str, rates: Any, warmup: int, total: int, batch: int, accumulate: int, parallel: str, grid: Any) -> Program:
    tx = optim.build(Config(json.loads(optim_json)), dict(rates), warmup, total)
    compiled = step.compile_train(net, tx, grid, accumulate, parallel)
    used = cost.Cost(None, None, None)
    if parallel == "jit":
        everywhere, by_rows = mesh.replicated(grid), mesh.by_rows(grid)

        def shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        params = {n: shape(s, everywhere) for n, s in net.shapes().items()}
        moving = jax.eval_shape(lambda p: step.init_moving(p, tx), {n: params[n] for n, _ in rates})
        example = {**net.objective.example(batch), "row": np.zeros(batch, np.int32), "valid": np.zeros(batch, np.float32)}
        aot = compiled.lower(  # type: ignore[attr-defined]
            jax.tree.map(lambda x: shape(x, everywhere), moving),
            {n: s for n, s in params.items() if n not in dict(rates)},
            {k: shape(v, by_rows) for k, v in example.items()},
            jax.ShapeDtypeStruct((), np.uint32, sharding=everywhere),
        ).compile()
        compiled, used = aot, cost.of(aot, accumulate)
    return Program(lambda params: jax.device_put(step.init_moving(params, tx), mesh.replicated(grid)), compiled, used)


@functools.lru_cache(maxsize=4)
def _eval_step(net: step.Net) -> Callable[..., Any]:
    return jax.jit(step.eval_step(net))


def evaluate(net: step.Net, params: Flat, rows: Rows, batch: int, grid: Any, limit: int = 0) -> dict[str, float]:
    """Metrics over a split, from global sums; the last batch is padded with rows that do not count."""
    batch = math.ceil(batch / grid.size) * grid.size
    parts = [_eval_step(net)(params, mesh.put(b, grid)) for b in pipeline.eval_batches(rows, batch, limit)]
    return net.objective.report(_total(parts))


@functools.lru_cache(maxsize=4)
def _predict_step(net: step.Net) -> Callable[..., jax.Array]:
    def probabilities(params: Flat, batch: dict[str, jax.Array]) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), len(batch["row"]))
        return jax.nn.softmax(net.predict(params, net.objective.prepare(batch, keys)))

    return jax.jit(probabilities)


def predict(net: step.Net, params: Flat, rows: Rows, batch: int) -> np.ndarray:
    """Class probabilities f32[N, k] of a classifier's rows."""
    parts = [_predict_step(net)(params, b) for b in pipeline.eval_batches(rows, batch)]
    return np.concatenate(parts)[: len(rows)]


def _total(parts: list[record.Sums]) -> record.Sums:
    """The sum of many steps' sums, added on the host after all were dispatched."""
    return functools.reduce(record.add, jax.device_get(parts), None)  # type: ignore[arg-type, return-value]


@contextmanager
def preemption() -> Iterator[list[int]]:
    """A list that SIGTERM or SIGINT fills; a second signal ends the process at once."""
    caught: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        old = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: the caller handles signals
        old = {}
    try:
        yield caught
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def start_params(run: Run, quiet: bool) -> Flat:
    """Fresh weights, with the backbone of `init_from` over them; says what was loaded, new and unused."""
    c = run.config
    params = run.net.init(c.seed)
    if c.init_from and c.init_weights:
        loaded, what = checkpoint.load_params(Path(c.init_from), run.net.shapes())
        params |= loaded
        if not quiet:
            record.say(f"from {c.init_from} (step {what.step}): loaded {len(what.loaded)} tensors")
            record.say(f"  new: {', '.join(what.new) or 'none'}")
            record.say(f"  unused: {', '.join(what.unused) or 'none'}")
    return jax.device_put(params, mesh.replicated(run.mesh))


def open_workdir(config: Config, workdir: Path) -> dict[str, Any] | None:
    """Checks that the folder is new or of the same config; the stored result if the run is already finished."""
    file = workdir / "config.json"
    if file.exists():
        changes = configs.difference(json.loads(file.read_text(encoding="utf-8")), config.to_dict())
        if changes:
            raise UserError(
                f"{workdir} holds a run of another config; these keys differ (there -> asked):\n  "
                + "\n  ".join(changes)
                + "\nchoose another --workdir, or go back to that config"
            )
    if (workdir / "result.json").exists():
        return json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    record.write_json(file, config.to_dict())
    return None


class Progress(NamedTuple):
    """What a resume must know besides parameters and optimizer state."""

    best: float | None = None
    best_step: int = 0
    waited: int = 0  # evaluations since the best


def improves(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` is better; NaN never is. Losses and perplexity fall, everything else rises."""
    if not math.isfinite(value):
        return False
    return best is None or (value < best if "loss" in metric or "perplexity" in metric else value > best)


def run(config: Config, workdir: Path, quiet: bool = False) -> dict[str, Any]:
    """Trains, or resumes from the newest good checkpoint in `workdir`, or returns the result of a finished run.

    Raises:
      UserError: a mistake in config or data.
      SystemExit(75): stopped by SIGTERM or SIGINT, and saved.
    """
    begun = time.perf_counter()
    if (done := open_workdir(config, workdir)) is not None:
        if not quiet:
            record.say(f"{workdir} holds this run, finished; its result:")
        return done
    built = build.build(config)
    d, net, metric = built.durations, built.net, config.best or built.net.objective.best
    header = describe(built, quiet)
    prog = program(built)
    if not quiet:
        record.say(cost.describe(prog.cost))
    record.write_json(workdir / "run.json", {**header, "cost": prog.cost._asdict()})
    if record.is_lead():
        built.data.tokenizer.save(workdir / "tokenizer")

    params = start_params(built, quiet)
    frozen = {n: x for n, x in params.items() if n not in built.plan.rates}
    moving = prog.init({n: params[n] for n in built.plan.trainable})
    progress, start = Progress(), checkpoint.newest(workdir) or 0
    if start:
        whole = jax.tree.map(lambda x: x, {**frozen, **moving.params})
        restored, opt = checkpoint.restore(workdir, start, whole, moving.opt)
        frozen = {n: restored[n] for n in frozen}
        moving = step.Moving(jax.device_put(np.int32(start), mesh.replicated(built.mesh)), {n: restored[n] for n in moving.params}, opt)
        progress = Progress(**checkpoint.read_meta(workdir, start)["progress"])
        record.say(f"resuming at step {start} of {d.total}")

    def save() -> None:
        meta = {**header, "progress": progress._asdict()}
        checkpoint.save(workdir, int(moving.step), {**frozen, **moving.params}, moving.opt, meta, keep=config.keep)

    def assess() -> dict[str, float]:
        return evaluate(net, {**frozen, **moving.params}, built.data.dev, eval_batch, built.mesh, config.data.dev_size)  # type: ignore[arg-type]

    seed = jax.device_put(np.uint32(config.seed), mesh.replicated(built.mesh))
    eval_batch = config.eval_batch or config.batch
    log = record.Log(workdir, resume_step=start, tensorboard=config.tensorboard, total_steps=d.total, quiet=quiet)
    window: list[record.Sums] = []
    pace: list[float] = []
    batches = pipeline.train_batches(built.data.train, built.index, config.seed, config.batch, start, d.total)
    with preemption() as caught:
        clock = time.perf_counter()
        for k in range(start + 1, d.total + 1):
            moving, sums = prog.train(moving, frozen, mesh.put(next(batches), built.mesh), seed)
            window.append(sums)
            last = k == d.total or bool(caught)
            due_eval = built.data.dev is not None and (k == d.total or (d.evaluate > 0 and k % d.evaluate == 0))
            due_save = last or (d.save > 0 and k % d.save == 0)
            if not (due_eval or due_save or k % d.log == 0):
                continue
            pace.append(_log_window(log, net, k, window, clock))
            window = []
            if due_eval:
                dev = assess()
                log.write(k, "dev", dev)
                if metric != "last":
                    if metric not in dev:
                        raise UserError(f"best={metric!r} is no metric of this objective; expected one of {', '.join(dev)} or last")
                    better = improves(metric, dev[metric], progress.best)
                    progress = Progress(dev[metric], k, 0) if better else progress._replace(waited=progress.waited + 1)
                    if better:
                        checkpoint.save_best(workdir, k, {**frozen, **moving.params}, header)
                    last |= bool(config.early_stop) and progress.waited >= config.early_stop
            if due_save or last:
                save()
            if caught:
                record.say(f"stopped by signal {caught[0]} and saved step {k}; the same command goes on from here")
                raise SystemExit(PREEMPTED)
            if last:
                break
            clock = time.perf_counter()
    final, best_step = {**frozen, **moving.params}, int(moving.step)
    if progress.best is not None:
        best_step = progress.best_step
        final, _ = checkpoint.load_params(workdir, {n: _like(x) for n, x in final.items()}, skip="", new_ok="")
    result = {"best_step": best_step, "steps": int(moving.step)}
    for split in ("dev", "test"):
        if (rows := getattr(built.data, split)) is not None:
            limit = config.data.dev_size if split == "dev" else 0
            result[split] = evaluate(net, final, rows, eval_batch, built.mesh, limit)  # type: ignore[assignment]
            log.write(best_step, split, result[split])  # type: ignore[arg-type]
    log.close()
    trainable, total = built.plan.counts()
    result |= {
        "seconds": time.perf_counter() - begun,
        "seconds_per_step": statistics.median(pace[1:] or pace or [math.nan]),
        "trainable": trainable,
        "total": total,
        "trainable_share": trainable / total,
        "flops_per_step": prog.cost.flops,
        **{k: header[k] for k in ("config_hash", "versions", "device", "data")},
    }
    record.write_json(workdir / "result.json", result)
    return result


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _log_window(log: record.Log, net: step.Net, k: int, window: list[record.Sums], clock: float) -> float:
    """Logs the steps since the last line and returns their seconds a step; a loss that is not finite stops the run here."""
    sums = _total(window)
    seconds = (time.perf_counter() - clock) / len(window)
    norm = record.divide({"grad_norm": sums.pop("grad_norm")})
    values = net.objective.report(sums) | norm
    log.write(k, "train", values)
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(f"the training loss is {values['loss']} at step {k}; nothing was saved after the last checkpoint. Lower optim.lr or clip")
    return seconds


def describe(built: Run, quiet: bool) -> dict[str, Any]:
    """Prints what will run, and returns it as the run's header."""
    c, trained = built.config, built.data
    if not quiet:
        record.say(f"device: {record.device()}")
        build.report_data(trained)
        record.say(f"freeze: {c.freeze}\n{freeze.describe(built.plan)}")
        record.say(f"{built.durations.total} steps of {c.batch} examples")
    return {
        "config_hash": configs.digest(c),
        "versions": record.versions(),
        "device": record.device(),
        "data": {"fingerprint": trained.fingerprint, "notes": trained.notes, "train_rows": len(built.index)},
        "tokenizer": trained.tokenizer.fingerprint,
        "labels": list(trained.labels),
        "freeze": built.plan.table(),
    }
