"""The weights that a run starts on, and those that a run's folder stands for."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ptft.core import checkpoint, mesh, plugins, record
from ptft.core import config as configs
from ptft.core.config import Config
from ptft.core.errors import UserError, joined, shown
from ptft.core.tree import Flat
from ptft.freeze import adapters, ledger, quantize
from ptft.hub import folders, read
from ptft.inputs.tokenizer import Tokenizer
from ptft.train import build, dataset, pipeline, spec
from ptft.train.build import Run
from ptft.train.net import Net
from ptft.train.spec import SPEC

# The keys of a config that decide what a run's weights answer; paths may change when a folder moves.
DECIDES = re.compile(r"(model|objective)\.|(freeze|dtype|frozen_dtype|checkpoint|data\.names):")


def initial(config: Config, net: Net, quiet: bool = True) -> Flat:
    """The weights of `init_from`, and fresh ones for what it lacks; says what was loaded, new and unused."""
    start, want, loaded = config.init_from, net.shapes(), Flat()
    if start and config.init_weights:
        skip, new_ok = "" if net.objective.reuse_head else "head/.*", "(head|adapter|backbone/pooler)/.*"
        if folders.is_folder(start):
            folder = folders.open_folder(start)
            loaded, what = read.load_params(folder, want, skip=skip, new_ok=new_ok)
            origin = f"{folder.kind}, {folder.dtype} in the file, float32 here"
        elif in_parts(Path(start)):
            loaded, what = checkpoint.choose(whole(Path(start)), want, start, skip=skip, new_ok=new_ok)
            origin = "with what was added to it or kept apart from its base"
        else:
            loaded, what = checkpoint.load_params(Path(start), want, skip=skip, new_ok=new_ok)
            origin = f"step {what.step}"
        if not quiet:
            record.say(f"from {start} ({origin}): loaded {len(what.loaded)} tensors")
            record.say(f"  new: {joined(what.new) or 'none'}")
            record.say(f"  unused: {joined(what.unused) or 'none'}")
    must_be_finite(loaded, start)
    fresh = net.init(config.seed, tuple(n for n in want if n not in loaded))
    return {n: loaded[n] if n in loaded else fresh[n] for n in want}


def must_be_finite(params: Mapping[str, Any], where: Any) -> None:
    """Raises UserError where weights that were read are not all finite numbers."""
    for name, x in params.items():
        if not np.isfinite(np.asarray(x)).all():
            raise UserError(
                f"{where}: {name} holds values that are no finite numbers: its training diverged, or the "
                "file is damaged; take another checkpoint"
            )


def in_parts(workdir: Path) -> str:
    """What keeps a run's checkpoint from being the weights of a plain model by itself: "a delta" or "added
    parameters"; "" if nothing."""
    if spec.read_run(workdir, "config.json").get("checkpoint") == "delta":
        return "a delta"
    added = any(
        row["name"].startswith("adapter/") for row in spec.read_run(workdir, "run.json").get("freeze", ())
    )
    return "added parameters" if added else ""


def run_net(workdir: Path) -> tuple[Config, Tokenizer, Net]:
    """What a run's folder says of its model, without any data."""
    values, known = spec.read_run(workdir, "config.json"), spec.read_run(workdir, "run.json")
    if other := plugins.check(known.get("plugins", {})):
        record.note(f"WARNING: {joined(other)} changed since {workdir} was trained")
    config, meta = configs.resolve(values, SPEC), checkpoint.known(workdir)
    _must_agree(workdir, config, known, meta)
    tokenizer = dataset.run_tokenizer(workdir)
    return config, tokenizer, build.net(config, tokenizer, known["labels"])


def _must_agree(workdir: Path, config: Config, known: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Raises UserError where config.json or run.json say what the run's checkpoint, whose files have hashes,
    does not."""
    trained = configs.resolve(configs.renamed(meta["config"]), SPEC) if "config" in meta else config
    lines = [f"config.json: {x}" for x in configs.difference(trained, config) if DECIDES.match(x)]
    lines += [
        f"run.json: {key}: {shown(meta[key], 200)} -> {shown(known.get(key), 200)}"
        for key in ("labels", "tokenizer")
        if key in meta and known.get(key) != meta[key]
    ]
    if lines:
        raise UserError(
            f"files of {workdir} were changed after it was trained (trained -> there now):\n  "
            + "\n  ".join(lines)
            + "\nrestore them; another config is another run"
        )


def run_params(workdir: Path, config: Config, net: Net) -> tuple[Flat, checkpoint.Loaded]:
    """All that the best (or newest) checkpoint of a run stands for; a delta is put on its base."""
    params, what = checkpoint.load_params(workdir, None, skip="")
    must_be_finite(params, workdir)
    if config.checkpoint == "delta":
        params |= on_base(config, net, spec.read_run(workdir, "run.json")["base"], workdir, params)
    return params, what


def computed_params(workdir: Path, config: Config, net: Net) -> tuple[Flat, checkpoint.Loaded]:
    """`run_params` as a step computes with them, where the frozen ones are quantized: what was evaluated."""
    stored, what = run_params(workdir, config, net)
    return quantize.computed(stored, what.meta.get("thin", ()), config.frozen_dtype), what


def whole(workdir: Path) -> Flat:
    """The weights of a run as those of a plain model: on its base, what was added merged."""
    config, _, network = run_net(workdir)
    return adapters.merge(network.added, run_params(workdir, config, network)[0])


def changing(run: Run) -> list[str]:
    """What may differ from the weights that a run started on: all that is trainable in some phase, and all
    that is added."""
    trainable = set(run.plan.trainable)
    return [n for n in run.net.shapes() if n in trainable or n.startswith("adapter/")]


def on_base(config: Config, net: Net, digest: str, workdir: Path, changed: Any) -> Flat:
    """The weights that a delta leaves out. Raises UserError if what it started on is not what it was."""
    rest = {n: x for n, x in initial(config, net).items() if n not in changed}
    if ledger.digest_of(rest) != digest:
        what = (
            f"{config.init_from} is" if config.init_from else f"the initial weights of seed {config.seed} are"
        )
        raise UserError(
            f"{workdir} holds only what moved, on a base with the digest {digest}; {what} another "
            f"({ledger.digest_of(rest)}): restore the base that it was trained on"
        )
    return rest


def start_params(run: Run, quiet: bool, like: Flat | None = None) -> Flat:
    """All parameters at step 0. `like`: those of a later step, for what was chosen by data and is not to be
    chosen again."""
    params = run.placement.put(initial(run.config, run.net, quiet))
    if like is None:
        return adapters.fill(run.net.added, params, squares(run, params)) if run.net.added else params
    return adapters.fill(run.net.added, params | {n: like[n] for n in like if adapters.is_fixed(n)})


def squares(run: Run, params: Flat) -> Flat | None:
    """Squared gradients of the first training examples in the run's order, where added parameters are chosen
    by them."""
    if not (examples := max(a.examples for a in run.net.added)):
        return None
    numbers = pipeline.order(len(run.used), run.config.seed)
    chosen = run.used[[numbers[i] for i in range(min(examples, len(run.used)))]]
    add, total = jax.jit(run.net.squares), None
    for part in np.array_split(chosen, math.ceil(len(chosen) / 64)):
        rows = {
            **run.data.train.batch(part),
            "example_id": part.astype(np.int32),
            "weight": np.ones(len(part), np.float32),
        }
        sums = add(params, mesh.place(rows, run.mesh))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    return total
