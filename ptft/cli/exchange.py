"""A checkpoint from outside becomes the folder of a run; a run becomes a folder that transformers loads."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from ptft import models
from ptft.core import checkpoint, mesh, record, stored, writing
from ptft.core import config as configs
from ptft.core.config import Config
from ptft.core.errors import UserError, joined
from ptft.freeze import adapters
from ptft.hub import config_json, folders, read, write
from ptft.inputs import tokenizer_files
from ptft.report import markdown
from ptft.train import build, spec, weights


def import_run(where: str, workdir: Path) -> None:
    """Makes the folder of a run of a checkpoint, its heads included, and says what was found.

    Raises:
      UserError: whatever `hub` refuses, or a workdir that holds something; nothing is written then.
    """
    _must_be_new(workdir)
    folder = folders.open_folder(where)
    tokenizer, labels = tokenizer_files.load(folder.path), config_json.labels(folder)
    keys = config_json.model_keys(folder)
    objective = _objective(folder, labels, keys.get("max_len", 512))
    try:
        config = spec.resolve({"model": keys, "objective": objective, "data": {"names": labels}})
    except UserError as e:
        raise UserError(f"{folder.path}/config.json cannot be read as a config of ptft: {e}") from None
    # A pooler comes along even where the model's own pooling does not read it.
    whole = build.net(
        config.replace(**{"model.pooling": "cls"}) if "pooling" in config.model else config, tokenizer, labels
    ).shapes()
    params, what = read.load_params(folder, whole, skip="", new_ok="(head|backbone/pooler)/.*")
    if objective["name"] == "classify":
        read.must_be_whole(folder, what.new)
    origin = {
        "from": where,
        "model_type": folder.kind,
        "architectures": folder.config.get("architectures"),
        "dtype": folder.dtype,
    }
    origin["sentence"] = config_json.sentence(folder)
    origin["head"] = any(n.startswith("head/") for n in params)
    header = {
        "config": config.to_dict(),
        "config_hash": configs.digest(config),
        "versions": record.versions(),
        "tokenizer": tokenizer.fingerprint,
        "labels": labels,
        "imported": origin,
    }
    lead, many = record.is_lead(), jax.process_count() > 1
    with writing.folder_at_once(workdir) if lead else nullcontext(writing.beside(workdir)) as part:
        record.write_json(part / "config.json", config.to_dict())
        if lead:
            tokenizer.save(part / "tokenizer")
        # several processes write together only what lies on the devices of all
        checkpoint.save_best(part, 0, mesh.place(params, mesh.make()) if many else params, header)
        record.write_json(part / "run.json", stored.sealed(header))
    said = f"objective: {objective['name']}" + (f", labels {joined(labels)}" if labels else "")
    record.say(f"{where}: {folder.kind}, {len(params)} tensors, {folder.dtype} in the file, float32 here")
    record.say("  model: " + ", ".join(f"{k} {v}" for k, v in keys.items()))
    record.say(f"  tokenizer: {tokenizer.vocab_size:,} entries; {said}")
    record.say(f"  not in the file: {joined(what.new) or 'nothing'}")
    record.say(f"  unused: {joined(what.unused) or 'nothing'}")
    ready = f"ptft predict --workdir {workdir} --text …" if labels else ""
    record.say(
        f"next: {ready or f'ptft train --config configs/finetune.py:task=sst2,init={workdir} --workdir …'}"
    )


def _objective(folder: folders.Folder, labels: Sequence[str], max_len: int) -> dict[str, Any]:
    """What the checkpoint was trained for, as the section `objective` of a config."""
    nsp = folder.family.mlm.get("head/nsp", "no such head") + ".weight" in folder.tensors
    own = {"name": config_json.task(folder)} if labels else {"name": "mlm_nsp", "nsp": nsp}
    seq_len = min(512, max_len)
    cuts = config_json.cuts(folder, seq_len) if own["name"] == "classify" else {}
    return {**own, "seq_len": seq_len, **cuts}


def export_run(workdir: Path, to: Path, merge: bool = False) -> None:
    """Writes a run, pretrained, finetuned or imported, as a folder in Hugging Face's format, with a model
    card.

    Args:
      merge: make one whole model of a delta and its base, and of the backbone and what was added to it.
    """
    _must_be_new(to)
    config, tokenizer, net = weights.run_net(workdir)
    adapters.must_merge(net.added)
    if (parts := weights.in_parts(workdir)) and not merge:
        raise UserError(
            f"{workdir} holds {parts}, and no whole model by itself; --merge makes one of it and what it was "
            "trained on"
        )
    run = spec.read_run(workdir, "run.json")
    labels = list(config.data.names) or run["labels"]
    computed, what = weights.computed_params(workdir, config, net)
    params = adapters.merge(net.added, computed)
    dtype = (run.get("imported") or {}).get("dtype", "float32")  # untouched weights go out as they came in
    dtype = dtype if dtype in folders.FLOATS.values() else "float32"
    dims, told = models.dims(net.backbone), (run.get("imported") or {}).get("sentence", {})
    model = write.Model(config, dims, params, tokenizer, labels, dtype, told)
    if not record.is_lead():
        return
    with writing.folder_at_once(to) as part:
        left = write.write(part, model)
        writing.write_text(part / "README.md", card(config, run, _result(workdir), what.step))
    record.say(
        f"{to}: {len(params) - len(left)} tensors of step {what.step}, {dtype}; "
        f"{', '.join(sorted(p.name for p in to.iterdir()))}"
    )
    if left:
        record.say(f"  left out, transformers has no place for them: {', '.join(left)}")


def _must_be_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; expected the name of a new folder")
    if folder.is_mount():  # it cannot be made under another name, and renamed
        raise UserError(f"{folder} is a disk's own folder; expected the name of a new folder in it")


def _result(workdir: Path) -> dict[str, Any]:
    return spec.read_run(workdir, "result.json") if (workdir / "result.json").is_file() else {}


def card(config: Config, run: dict[str, Any], result: dict[str, Any], step: int) -> str:
    """The model card: task, data, what was trained, metrics, versions. Paths of this machine stay here."""
    task, data = config.objective.name, config.data
    lines = ["---", "library_name: transformers", "tags: [ptft]"]
    lines += [
        f"pipeline_tag: {tag}"
        for tag in ({"classify": "text-classification", "tag": "token-classification"}.get(task),)
        if tag
    ]
    lines += ["---", "", f"# {config.model.get('family', config.model.name)}, {task}", ""]
    rows = [("objective", task), ("step", step)]
    rows += [
        (f"data.{split}", data[split].rpartition("/")[2]) for split in ("train", "dev", "test") if data[split]
    ]
    if labels := list(data.names) or run["labels"]:
        rows.append(("labels", ", ".join(labels)))
    if config.init_from:
        rows.append(
            (
                "started from",
                Path(config.init_from).name if not config.init_from.startswith("hf:") else config.init_from,
            )
        )
    if (run.get("imported") or {}).get("from"):
        rows.append(("imported from", Path(run["imported"]["from"]).name))
    if result:
        rows += [
            ("freeze", config.freeze),
            ("parameters that moved", f"{result['trainable']:,} of {result['total']:,}"),
        ]
        rows += [
            (f"{split} {name}", f"{x:.4f}")
            for split in ("dev", "test")
            for name, x in result.get(split, {}).items()
            if x is not None
        ]
    rows += [
        ("config hash", run["config_hash"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items())),
    ]
    lines += ["| | |", "|---|---|"]
    lines += [*(f"| {markdown.inline(k)} | {markdown.inline(str(v))} |" for k, v in rows), ""]
    lines += [
        "The configuration that made it:",
        "",
        "```json",
        json.dumps({k: config.to_dict()[k] for k in ("optim", "objective", "model")}, indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)
