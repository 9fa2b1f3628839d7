"""What a config may hold, and the configs that runs have kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptft import data, models, objectives
from ptft.core import config as configs
from ptft.core import duration, placement, plugins, stored
from ptft.core.config import Config, Field, Spec
from ptft.core.errors import UserError, did_you_mean
from ptft.freeze import language, quantize
from ptft.hub import config_json, folders
from ptft.train import optim, run_files

SPEC: Spec = {
    "seed": Field(
        0, int, lo=0, hi=2**31 - 1, doc="initial weights, order of batches, dropout, masks, training subset"
    ),
    "batch": Field(
        32, int, lo=1, doc="global batch size", also=("batch_size", "per_device_train_batch_size")
    ),
    "eval_batch": Field(0, int, lo=0, doc="0: as batch"),
    "accumulate": Field(1, int, lo=1, doc="parts a batch is cut into", also=("gradient_accumulation_steps",)),
    "train_for": Field(
        "3 epochs",
        (str, int),
        check=duration.check,
        doc="steps, epochs or examples",
        also=("steps", "epochs", "max_steps", "num_epochs", "num_train_epochs"),
    ),
    "warmup": Field(
        "10%", (str, int), check=duration.check_share, doc="a share of train_for, or steps, epochs, examples"
    ),
    "eval_every": Field(
        "1 epoch", (str, int), check=duration.check_share, doc="evaluation on dev; '0': only at the end"
    ),
    "save_every": Field(
        "1 epoch",
        (str, int),
        check=duration.check_share_or_time,
        doc=(
            "a checkpoint to resume from, written beside the loop (several processes wait for it); also '10 "
            "minutes' (of several processes: at the first line of the log after them); '0': only at the end"
        ),
    ),
    "log_every": Field("50 steps", (str, int), check=duration.check_share),
    "keep": Field(2, int, lo=1, doc="checkpoints to keep"),
    "checkpoint": Field(
        "full",
        str,
        choices=("full", "delta"),
        doc="delta: only what is trainable, and the digest of the start's weights",
    ),
    "early_stop": Field(0, int, lo=0, doc="stop after this many evaluations without a better best; 0: never"),
    "best": Field(
        "", str, doc="dev metric that chooses the best checkpoint; '': the objective's; 'last': the last step"
    ),
    "init_from": Field(
        "",
        str,
        doc=(
            "a run, a folder in Hugging Face's format or hf:ORG/NAME: backbone, tokenizer and model size "
            "are its"
        ),
    ),
    "init_weights": Field(
        True, bool, doc="False: take tokenizer and size from init_from, but start from random weights"
    ),
    "freeze": Field(
        "full",
        (str, tuple),
        check=language.problem,
        doc="a strategy's name, a list of (pattern, action), or a list of (start, such a list)",
    ),
    "frozen_dropout": Field(
        True, bool, doc="False: parts of the backbone in which nothing is trainable run as in evaluation"
    ),
    "frozen_dtype": Field(
        "float32",
        str,
        choices=quantize.DTYPES,
        doc="how the matrices that are frozen are kept on the devices",
    ),
    "cache_features": Field(
        "auto",
        str,
        choices=("auto", "off"),
        doc="compute what lies below all that is trainable once an example, where it pays",
    ),
    "strict_cost": Field(
        False, bool, doc="a compiled step that costs more than its freeze should is an error, not a warning"
    ),
    "parallel": Field("jit", str, choices=("jit", "pmap")),
    "devices": Field(0, int, lo=0, doc="0: all of them"),
    "shard": Field(
        "none",
        (str, tuple),
        check=placement.problem,
        doc=(
            "parameters that are cut over the devices, with their optimizer state: none, all, trainable, "
            "frozen, or a list of (pattern, 'shard' or 'replicate')"
        ),
    ),
    "shard_over": Field(0, int, lo=0, doc="so many devices hold one copy of what is cut; 0: all of them"),
    "dtype": Field(
        "float32", str, choices=("float32", "bfloat16"), doc="of the computation; weights are float32"
    ),
    "tensorboard": Field(None, (bool, type(None)), doc="None: where tensorboardX is installed"),
    "model": models.spec,
    "objective": objectives.spec,
    "optim": optim.SPEC,
    "data": {
        **data.SPEC,
        "train": Field("", str, doc="KIND:WHERE, such as files:/data/train.tsv or tfds:imdb_reviews@train"),
        "dev": Field("", str),
        "test": Field("", str),
        "names": Field(
            (),
            tuple,
            doc="names of the labels for people, in the order of their ids; empty: the labels themselves",
        ),
        "train_size": Field(0, int, lo=0, doc="this many training examples, chosen by the seed; 0: all"),
        "dev_size": Field(
            0, int, lo=0, doc="evaluate on so many dev rows, drawn by label, the same for every run; 0: all"
        ),
        "tokenizer": Field(
            "", str, doc="a vocab.txt or a run's folder; '': init_from's, else trained on the training split"
        ),
        "vocab_size": Field(8000, int, lo=100, doc="of a tokenizer trained here"),
        "lowercase": Field(True, bool, doc="of a tokenizer trained here"),
    },
}


RESTORE = "restore it, or train in another folder"


def resolve(values: Mapping[str, Any]) -> Config:
    """Checks a config; with `init_from`, the model's keys default to those of that run."""
    start, own = values.get("init_from"), values.get("model", {})
    if start and isinstance(start, str) and isinstance(own, Mapping):
        base = (
            config_json.model_keys(folders.open_folder(start))
            if folders.is_folder(start)
            else read_run(Path(start), "config.json")["model"]
        )
        if own.get("name", base["name"]) == base["name"]:
            values = {**values, "model": {**base, **own}}
    return configs.resolve(values, SPEC)


def read_run(workdir: Path, name: str) -> Any:
    """A JSON file of a run's folder (`run_files.KINDS`); what reads a run never executes a config.

    Raises:
      UserError: the folder is no run's, or the file is damaged.
    """
    file = workdir / name
    if folders.is_folder(str(workdir)):
        raise UserError(
            f"{workdir} is no run but a folder in Hugging Face's format; first: ptft import {workdir} "
            "--workdir RUN"
        )
    if not file.is_file():
        beside = sorted(p.name for p in (workdir if workdir.is_dir() else workdir.parent).glob("*"))
        what, near = (f"has no {name}", name) if workdir.is_dir() else ("does not exist", workdir.name)
        raise UserError(f"{workdir} is not the folder of a run: it {what}; {did_you_mean(near, beside)}")
    renames = "auto" if name == "auto.json" else "config"
    values = stored.read(file, run_files.KINDS[name], RESTORE, renames)
    if name == "config.json":
        try:
            configs.resolve(values, SPEC)
        except UserError as e:
            # without a file of its author's own its keys are unknown
            if (workdir / "run.json").is_file():
                plugins.check(read_run(workdir, "run.json").get("plugins", {}))
            raise UserError(f"{file} is damaged, or of another version of ptft: {e}\n{RESTORE}") from None
    return values
