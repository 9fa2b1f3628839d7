"""Checkpoints in Hugging Face's format, in and out: safetensors and JSON only, nothing in a file is ever executed.

In: `config.json` becomes the keys of `config.model`; the headers of the weight files are checked against the shapes of
that model; only then are the weights read, one tensor at a time. Out: the same tables of names backwards.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ptft.core import checkpoint
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean, install, joined, listed, short, shown, table
from ptft.core.tree import Flat
from ptft.hub.names import ACTIVATIONS, DEFAULTS, FAMILIES, SILENT, Family, Place, places
from ptft.inputs.tokenizer import Tokenizer, as_written, read_object

UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Names of modules that wrap others: torch.compile, DataParallel and DistributedDataParallel, FSDP, recomputed activations.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
BUFFERS = re.compile(r".*(position_ids|token_type_ids|inv_freq)|.*decoder\.bias")  # beside the parameters, or again
REMOTE = "hf:"
# Keys of a config.json that must say this or nothing.
ONLY = {
    "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "norm_bias": False, "attention_bias": False,
    "mlp_bias": False, "classifier_bias": False, "decoder_bias": True, "rope_type": "default", "rope_scaling": None,
}  # fmt: skip
# Kinds of heads: a parameter that tells, and the class in transformers.
HEADS = {
    "classify": ("head/classifier/kernel", "ForSequenceClassification"),
    "tag": ("head/tagger/kernel", "ForTokenClassification"),
    "mlm": ("head/decoder/bias", "ForMaskedLM"),
}
WANTED = [
    "config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json",
    "vocab.txt", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json",
    "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
]  # fmt: skip


class Tensor(NamedTuple):
    """An entry of a header."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


class Folder(NamedTuple):
    """A checkpoint whose headers were read, and nothing else."""

    path: Path
    kind: str  # its model_type
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]  # by their newest names, without the prefixes of wrappers and of a model with a head

    @property
    def family(self) -> Family:
        return FAMILIES[self.kind]

    @property
    def dtype(self) -> str:
        """The floating dtypes of its weights."""
        return "/".join(sorted({FLOATS[t.dtype] for t in self.tensors.values() if t.dtype in FLOATS}))


# In.


def is_folder(where: str) -> bool:
    """Whether `where` names a checkpoint from outside, read or refused here, rather than the folder of a run."""
    path = Path(where)
    if where.startswith(REMOTE) or (path.suffix in (".safetensors", *UNSAFE) and not path.is_dir()):
        return True
    if not where or not path.is_dir() or (path / "run.json").exists():
        return False
    names = [p.name for p in path.iterdir()]
    if any(n.endswith((".safetensors", ".safetensors.index.json")) or _is_unsafe(n) for n in names):
        return True
    return "config.json" in names and "model_type" in read_object(path / "config.json")


def _is_unsafe(name: str) -> bool:
    return name.endswith(UNSAFE) or ".ckpt" in name


def is_imported(where: str) -> bool:
    """Whether `where` holds weights that were pretrained elsewhere: such a checkpoint, or a run that was made of one."""
    run = Path(where) / "run.json"
    return is_folder(where) or (bool(where) and run.is_file() and read_object(run).get("imported") is not None)


@functools.lru_cache(maxsize=8)
def locate(where: str) -> Path:
    """The local folder of `where`; `hf:ORG/NAME` or `hf:ORG/NAME@REVISION` is downloaded, or found in huggingface_hub's cache."""
    if not where.startswith(REMOTE):
        return Path(where)
    name, _, revision = where.removeprefix(REMOTE).partition("@")
    how = "or give the folder of a download: config.json, model.safetensors and the tokenizer's files"
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{where} needs huggingface_hub; {install('hub')}; {how}") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=WANTED))
    except Exception as e:  # a dozen kinds: no network, no such repository, not allowed
        why = f"{type(e).__name__}: {short(str(e).partition(chr(10))[0], 160)}"
        raise UserError(f"{where} could not be fetched ({why}); go online, {how}") from None


def open_folder(where: str | Path) -> Folder:
    """Reads `config.json` and the headers of the weight files.

    Raises:
      UserError: no such folder, an architecture or a file format that is not read, a damaged file.
    """
    path = locate(str(where))
    if path.suffix in UNSAFE and not path.is_dir():
        raise UserError(_unsafe([path.name]))
    if path.is_file():
        raise UserError(f"{path} is a file; expected the folder that it lies in, with config.json and the tokenizer: {path.parent}")
    if not path.is_dir():
        beside = [p.name for p in path.absolute().parent.glob("*") if p.is_dir()]
        raise UserError(f"expected a folder with config.json and model.safetensors, got {path}; {did_you_mean(path.name, beside)}")
    if (path / "adapter_config.json").is_file():
        raise UserError(_adapter(path))
    with as_written(path / "model.safetensors.index.json"):
        files = _weight_files(path)
    if not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json; it holds {joined(sorted(p.name for p in path.iterdir())) or 'nothing'}")
    config = read_object(path / "config.json")
    with as_written(path / "config.json"):
        kind = _kind(path, config)
    return Folder(path, kind, config, _tensors(path, FAMILIES[kind], files))


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    """Its model_type; where that is missing, what the class in `architectures` says."""
    classes = list(map(str, config.get("architectures") or ()))
    said = [k for k, f in FAMILIES.items() for name in classes if re.match(f"{f.stem}(For|Model$)", name)]
    kind = str(config.get("model_type") or next(iter([*said, *classes]), ""))
    if not kind:
        raise UserError(
            f"{path}/config.json has neither model_type nor architectures, so the weights could be of any model; "
            f'add "model_type": one of {", ".join(FAMILIES)}'
        )
    if kind not in FAMILIES:
        raise UserError(f"{path}: the architecture {shown(kind)} is not one that ptft has; {did_you_mean(kind[:60], FAMILIES)}")
    return kind


def _tensors(path: Path, family: Family, files: Iterable[Path]) -> dict[str, Tensor]:
    """Every entry of the headers, by its name in `hub_names`."""
    entries = []
    for tensor in (t for file in files for t in _header(file)):
        # Old files say gamma and beta (TensorFlow's words) for a LayerNorm's weight and bias.
        new = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", WRAPPERS.sub("", tensor.name)))
        entries.append((new, tensor))
    # A model inside of another, as Lightning saves it: model.bert.embeddings …
    word = family.body["backbone/embeddings/word"] + ".weight"
    before = {name.removesuffix(word) for name, _ in entries if name == word or name.endswith(f".{word}")}
    outer = {p.removesuffix(family.prefix) for p in before} if not before & {"", family.prefix} else {""}
    if len(outer) > 1:
        raise UserError(f"{path} holds several encoders: {listed(sorted(outer))}; expected one, save it alone with save_pretrained")
    tensors: dict[str, Tensor] = {}
    for name, tensor in entries:
        new = name.removeprefix("".join(outer)).removeprefix(family.prefix)
        if new in tensors:
            both = f"{tensors[new].file.name} and in {tensor.file.name}"
            raise UserError(f"{short(tensor.name)} is in {path} twice, in {both}; fetch it again")
        tensors[new] = tensor
    return tensors


def _adapter(path: Path) -> str:
    said = read_object(path / "adapter_config.json")
    base, kind = said.get("base_model_name_or_path"), said.get("peft_type")
    model = {"TOKEN_CLS": "ForTokenClassification", "SEQ_CLS": "ForSequenceClassification"}.get(str(said.get("task_type")), "")
    return (
        f"{path} is a PEFT adapter ({shown(kind)}) to {shown(base)} and no whole model; merge the two where peft is installed: "
        f"PeftModel.from_pretrained(AutoModel{model}.from_pretrained(BASE), ADAPTER).merge_and_unload().save_pretrained(NEW) and "
        "AutoTokenizer.from_pretrained(BASE).save_pretrained(NEW), with the number of labels that it was trained with; then read NEW "
        "(prompts and prefixes cannot be merged). Where model.safetensors beside it is the merged model, remove adapter_config.json"
    )


def _unsafe(files: Sequence[str]) -> str:
    return (
        f"{joined(files)}: ptft reads safetensors only, because pickles run code and TensorFlow's own format is out of scope. Where "
        "transformers and the file's framework are installed, from_pretrained(FOLDER).save_pretrained(NEW), of the class that config.json "
        "names in architectures, and of AutoTokenizer, writes a folder that is read (Google's TensorFlow files: with transformers 4, "
        "BertForPreTraining.from_pretrained(…, from_tf=True))"
    )


def _weight_files(path: Path) -> list[Path]:
    index, there = path / "model.safetensors.index.json", sorted(p.name for p in path.iterdir())
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if index.is_file():
        shards = sorted({str(name) for name in read_object(index).get("weight_map", {}).values()})
        for name in shards:
            if name not in there:
                raise UserError(f"{index} names the file {shown(name)}, which is not in {path}; fetch it again")
        if shards:
            return [path / name for name in shards]
    if alone := [n for n in there if re.fullmatch(r"model-\d+-of-\d+\.safetensors", n)]:
        raise UserError(f"{path} has {alone[0]} and no model.safetensors.index.json that lists it; fetch the index, too")
    if other := [n for n in there if _is_unsafe(n)]:
        raise UserError(f"{path} has no model.safetensors but {_unsafe(other)}")
    raise UserError(f"{path} has no model.safetensors, the only kind of weights that ptft reads; it holds {joined(there) or 'nothing'}")


def _header(file: Path) -> list[Tensor]:
    try:
        with safetensors.safe_open(file, "numpy") as f:
            entries = ((name, f.get_slice(name)) for name in f.keys())  # noqa: SIM118, it is no mapping
            return [Tensor(file, name, e.get_dtype(), tuple(e.get_shape())) for name, e in entries]
    except safetensors.SafetensorError as e:
        why = "it was cut short, or is another format: fetch it again"
        raise UserError(f"{file} is no intact safetensors file ({short(e)}); {why}") from None


def model_keys(folder: Folder) -> dict[str, Any]:
    """`config.json` -> the keys of `config.model`."""
    with as_written(folder.path / "config.json"):
        return _model_keys(folder)


def _model_keys(folder: Folder) -> dict[str, Any]:
    c, family = _old_words(folder), folder.family
    for key, ok in ONLY.items():
        if c.get(key, ok) not in (ok, None):
            raise UserError(f"{folder.path}/config.json: {key} is {shown(c[key])}; ptft has {ok!r} only")
    if c.get("quantization_config"):
        raise UserError(f"{folder.path} is quantized; expected float32, float16 or bfloat16 weights")
    keys = {ours: c.get(theirs, {**DEFAULTS, **SILENT.get(folder.kind, {})}[theirs]) for ours, theirs in family.keys.items()}
    for ours, theirs in family.keys.items():
        value = keys[ours]
        if ours not in ("activation", "pooling") and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31
        ):
            raise UserError(f"{folder.path}/config.json: {theirs} is {shown(value)}; expected a number from 0 to 2**31")
    # Before a model of so many layers is traced.
    before = next(spec.partition("{}")[0] for spec in family.body.values() if "{}" in spec)
    blocks = {int(m[1]) + 1 for n in folder.tensors if (m := re.match(re.escape(before) + r"(\d+)\.", n))}
    if max(blocks, default=0) != keys["layers"]:
        row = (f"{before}*", f"{max(blocks, default=0)} layers", f"{keys['layers']} layers")
        raise UserError(f"the weights of {folder.path} do not fit its config.json, or config.model over it:\n{table([row])}")
    act = keys["activation"]
    if act not in ACTIVATIONS or c.get("classifier_activation", act) != act:
        raise UserError(f"{folder.path}/config.json: the activation {shown(act)} (everywhere) is not one of {', '.join(ACTIVATIONS)}")
    keys |= {"name": family.model, **family.fixed, "activation": ACTIVATIONS[act]}
    if family.model == "bert":
        keys["family"] = folder.kind
    if "roberta" in folder.kind:
        keys["offset"] = c.get("pad_token_id", 1) + 1  # positions begin after that of padding
        keys["max_len"] -= keys["offset"]
    if keys.get("embedding") == keys["hidden"]:
        keys["embedding"] = 0
    pooling = folder.path / "1_Pooling" / "config.json"  # a sentence encoder
    if pooling.is_file():
        keys["pooling"] = _pooling(pooling)
    return keys


def _pooling(file: Path) -> str:
    """How a sentence encoder pools, in the words of sentence-transformers, older and newer."""
    said = read_object(file)
    modes = [k.removeprefix("pooling_mode_").partition("_")[0] for k, on in said.items() if k.startswith("pooling_mode_") and on is True]
    mode = str(said.get("pooling_mode", " and ".join(modes)))
    if mode not in ("mean", "cls"):
        raise UserError(f"{file}: pooling by {short(mode, 60) or 'nothing'}; ptft has mean and cls")
    modules = file.parent.parent / "modules.json"
    if other := [m for m in _modules(modules) if m.rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize")]:
        raise UserError(
            f"{modules}: {short(', '.join(other))} after the encoder; ptft has Transformer, Pooling and, without any effect here, Normalize"
        )
    return {"mean": "mean", "cls": "first"}[mode]


def _modules(file: Path) -> list[str]:
    """The kinds of modules that a sentence encoder's modules.json lists; none if there is no such file."""
    with as_written(file):
        return [str(m["type"]) for m in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def sentence(folder: Folder) -> dict[str, Any]:
    """What a sentence encoder does besides pooling, to be handed on: whether it normalizes, and where it cuts texts."""
    settings = folder.path / "sentence_bert_config.json"
    normalizes = any(m.endswith("Normalize") for m in _modules(folder.path / "modules.json"))
    return {"normalize": normalizes, "max_seq_length": read_object(settings).get("max_seq_length") if settings.is_file() else None}


def cuts(folder: Folder, most: int) -> dict[str, Any]:
    """Where and at which end a classifier's texts are cut, as its tokenizer_config.json says; after `most` tokens at the latest."""
    file = folder.path / "tokenizer_config.json"
    said = read_object(file) if file.is_file() else {}
    length = said.get("model_max_length")
    seq_len = int(min(most, length)) if isinstance(length, int | float) and length >= 3 else most
    return {"seq_len": seq_len, "truncate": "tail" if said.get("truncation_side") == "left" else "head"}


def _old_words(folder: Folder) -> dict[str, Any]:
    """The config.json with ModernBERT's newer words, a list of layer types and a table of rotary bases, put back into the older ones."""
    c = dict(folder.config)
    for kind, key in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
        rope = (c.get("rope_parameters") or {}).get(kind)
        if rope:
            c[key] = rope["rope_theta"]
            c["rope_type"] = c.get("rope_type", "default") if rope.get("rope_type", "default") == "default" else rope["rope_type"]
    if kinds := c.get("layer_types"):
        every = kinds[1:].index("full_attention") + 1 if "full_attention" in kinds[1:] else len(kinds)
        if kinds != [("sliding_attention", "full_attention")[i % every == 0] for i in range(len(kinds))]:
            raise UserError(
                f"{folder.path}/config.json: layer_types {shown(kinds, 200)} repeat in no period; ptft has every n-th layer global"
            )
        c["global_attn_every_n_layers"] = every
    return c


def task(folder: Folder) -> str:
    """What a classifier learned, as the `architectures` say: "classify" (texts) or "tag" (words); "" if the file is none of ours."""
    with as_written(folder.path / "config.json"):
        names = list(map(str, folder.config.get("architectures") or ()))
    return next((t for t in ("classify", "tag") if getattr(folder.family, t) and any(n.endswith(HEADS[t][1]) for n in names)), "")


def labels(folder: Folder) -> list[str]:
    """The class names of a classifier, in the order of their ids; [] if the file is no classifier of ours."""
    kind = task(folder)
    if not kind or folder.config.get("problem_type") not in (None, "single_label_classification"):
        return []
    at = [p.name for p in places(folder.family, HEADS[kind][0], (kind,))]
    shape = next((folder.tensors[n].shape for n in at if n in folder.tensors), None)
    if shape is None:
        raise UserError(_incomplete(folder, kind, at[:1]))
    rows, given = (*shape, 0)[0], folder.config.get("id2label")
    with as_written(folder.path / "config.json"):
        # transformers leaves out the names where there are two classes of the names LABEL_0 and LABEL_1.
        said = {int(i): str(n) for i, n in (given or {i: f"LABEL_{i}" for i in range(min(rows, 2**16))}).items()}
    if rows == 1:  # a regression
        return []
    if sorted(said) != list(range(len(said))) or len(said) != rows:
        raise UserError(
            f"{folder.path}/config.json: id2label has the ids {shown(sorted(said))}, the classifier {rows} rows; expected 0 … {rows - 1}: "
            "write the names of the classes that it was trained with, in their order"
        )
    if twice := [n for n, times in Counter(said.values()).items() if times > 1]:
        raise UserError(f"{folder.path}/config.json: id2label calls two classes {shown(twice[0])}; expected {rows} names")
    return [said[i] for i in range(rows)]


def must_be_whole(folder: Folder, new: Iterable[str]) -> None:
    """Refuses a classifier of texts without some of its parameters, `new`: transformers would draw them at random, and so the answers."""
    at = [places(folder.family, n, ("classify",))[0] for n in new]
    if at:
        raise UserError(_incomplete(folder, "classify", [folder.family.prefix * p.inner + p.name for p in at]))


def _incomplete(folder: Folder, kind: str, lost: Iterable[str]) -> str:
    stem = folder.family.stem
    return (
        f"{folder.path} is a {stem}{HEADS[kind][1]} by its config.json, but holds no {joined(lost)}, so nothing can be predicted with it; "
        f'fetch or save it again, or write "architectures": ["{stem}Model"] there to import the encoder alone'
    )


class Found(NamedTuple):
    """A parameter of ours, the tensor that holds it, and the shape that this tensor must have."""

    name: str
    place: Place
    shape: tuple[int, ...]


def load_params(
    folder: Folder, want: Flat, *, skip: str = "head/.*", new_ok: str = "(head|backbone/pooler)/.*"
) -> tuple[Flat, checkpoint.Loaded]:
    """Parameters f32 from a checkpoint, by name; every name on both sides is accounted for, as `checkpoint.load_params` does.

    Nothing is read or allocated before all names, shapes and dtypes fit. An MLM head whose decoder is a matrix of its own
    is left out: here the decoder is the word table.

    Raises:
      UserError: a tensor is missing, has another shape or no floating dtype (path, have, want), or holds NaN or infinity.
    """
    found, new, rows = [], [], []
    tied = _whole_mlm(folder) if any(n.startswith("head/decoder") and not re.fullmatch(skip, n) for n in want) else True
    for name, leaf in want.items():
        at = [p for p in places(folder.family, name) if p.name in folder.tensors]
        if re.fullmatch(skip, name) or not at or (not tied and name.startswith("head/")):
            new.append(name)
            if not re.fullmatch(f"{skip}|{new_ok}", name):
                rows.append((places(folder.family, name)[0].name if places(folder.family, name) else name, "missing", f"for {name}"))
            continue
        shape = leaf.shape[::-1] if at[0].transposed else leaf.shape
        found.append(Found(name, at[0], (shape[0] * at[0].parts, *shape[1:])))
    for _, place, shape in found:
        have = folder.tensors[place.name]
        if have.shape != shape or have.dtype not in FLOATS:
            rows.append((have.name, f"{have.dtype}{list(have.shape)}", f"{'/'.join(FLOATS)}{list(shape)}"))
    if rows:
        raise UserError(f"the weights of {folder.path} do not fit its config.json, or config.model over it:\n{table(rows)}")
    params = {name: jax.device_put(_read(folder, place)) for name, place, _ in found}  # on a CPU without a copy
    used = {place.name for _, place, _ in found} | {folder.family.decoder if tied else ""}
    unused = [t.name for n, t in folder.tensors.items() if n not in used and not BUFFERS.fullmatch(n)]
    return params, checkpoint.Loaded(list(params), new, unused, 0)


def _read(folder: Folder, place: Place) -> np.ndarray:
    """One parameter, filled in slices of 8 MiB; the file is opened anew for each, since its pages count as memory while it is open."""
    tensor = folder.tensors[place.name]
    rows = tensor.shape[0] // place.parts
    shape = (rows, *tensor.shape[1:])
    out = _aligned(shape[::-1] if place.transposed else shape)
    target = out.T if place.transposed else out
    step = max(1, 2**21 // max(math.prod(shape[1:]), 1))
    for at in range(0, rows, step):
        end = min(at + step, rows)
        with safetensors.safe_open(tensor.file, "numpy") as f:
            part = f.get_slice(tensor.name)[place.part * rows + at : place.part * rows + end]
        if not np.isfinite(part).all():
            raise UserError(f"{tensor.file}: {short(tensor.name)} holds NaN or infinity; fetch the file again")
        target[at:end] = part
    return out


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty f32 array at a multiple of 64 bytes, which jax on a CPU takes as it is."""
    n = 4 * math.prod(shape)
    raw: np.ndarray = np.empty(n + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n].view(np.float32).reshape(shape)


def _whole_mlm(folder: Folder) -> bool:
    """Whether the file has an MLM head, all of it, that fits: in ModernBERT's classifiers two of its tensors are there, too."""
    names = [f"head/{n}" for n in ("transform/kernel", "norm/scale", "decoder/bias")]
    return all(places(folder.family, n, ("mlm",))[0].name in folder.tensors for n in names) and _tied(folder)


def _tied(folder: Folder) -> bool:
    """Whether the MLM decoder, if the file holds one, is the word table; compared a thousand rows at a time."""
    word = places(folder.family, "backbone/embeddings/word/embedding")[0].name
    own, table = (folder.tensors.get(n) for n in (folder.family.decoder, word))
    if own is None or table is None:
        return folder.config.get("tie_word_embeddings", True) is not False
    if own.shape != table.shape or len(own.shape) != 2 or own.dtype not in FLOATS or table.dtype not in FLOATS:
        return False
    with safetensors.safe_open(own.file, "numpy") as a, safetensors.safe_open(table.file, "numpy") as b:
        x, y = a.get_slice(own.name), b.get_slice(table.name)
        ends = [(i, min(i + 1000, own.shape[0])) for i in range(0, own.shape[0], 1000)]  # a slice beyond the end is an error
        return all(np.array_equal(x[i:j], y[i:j]) for i, j in ends)


# Out.


def write(
    to: Path, config: Config, dims: Any, params: Flat, tokenizer: Tokenizer, labels: Sequence[str], dtype: str, told: Mapping[str, Any]
) -> list[str]:
    """Writes `model.safetensors`, `config.json` and the tokenizer into the folder `to`; returns the names left out.

    Args:
      config: of the run.
      dims: of the backbone, whose fields are the keys of `config.model` with nothing left open.
      params: `backbone/**` and the head, if there is one.
      labels: of a classifier, for people.
      dtype: "float32", "float16" or "bfloat16".
      told: what `sentence` said of the checkpoint that the run was imported from; {} if there was none.
    Raises:
      UserError: transformers has no such model.
    """
    kind = getattr(dims, "family", config.model.name)
    if kind not in FAMILIES:
        raise UserError(f"transformers has no model like {config.model.name!r}; there is {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    head = head_of(params)
    nsp = head == "mlm" and "head/nsp/kernel" in params and "head/nsp" in family.mlm
    what = "ForPreTraining" if nsp else HEADS[head][1] if head else "Model"
    if head and not getattr(family, head):
        having = ", ".join(k for k, f in FAMILIES.items() if getattr(f, head))
        raise UserError(
            f"transformers' {family.stem}{what} has layers before its classifier that a run of {head!r} lacks; "
            f"to export one, train a model of another kind: {having}"
        )
    if blank := config.objective.get("blank"):
        raise UserError(f"transformers' classifiers read the pooled output, this run reads its blank, {blank!r}: there is no class for it")
    _check_dims(kind, dims, "nsp" if nsp else head, tokenizer)
    tensors, left = outside(family, params, head, nsp)
    if lost := [n for n in left if not n.startswith(("backbone/pooler/", "head/nsp/"))]:
        raise UserError(f"model.family={kind!r} has no place for {', '.join(lost[:5])}; expected another family, of {', '.join(FAMILIES)}")
    to.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({n: x.astype(dtype) for n, x in tensors.items()}, to / "model.safetensors", metadata={"format": "pt"})
    values = {"architectures": [family.stem + what], "model_type": kind, "dtype": dtype, **_outside_keys(kind, dims, tokenizer)}
    if head in ("classify", "tag"):
        values |= {"id2label": {str(i): n for i, n in enumerate(labels)}, "label2id": {n: i for i, n in enumerate(labels)}}
        values[family.dropout] = config.objective.dropout
    if head == "classify":
        values["problem_type"] = "single_label_classification"
    _write_json(to / "config.json", values)
    types = ["token_type_ids"] if getattr(dims, "types", 0) > 1 and "roberta" not in kind else []
    side = "left" if config.objective.get("truncate") == "tail" else "right"  # texts are cut as the run cuts them
    more = {"model_max_length": config.objective.seq_len, "truncation_side": side}
    tokenizer.save(to, model_input_names=["input_ids", *types, "attention_mask"], **more)
    if not head and dims.pooling != "cls":
        _write_pooling(to, dims, told)
    return left


def head_of(params: Mapping[str, Any]) -> str:
    """The kind of head among parameters: one of `HEADS`, or "" for the encoder alone."""
    return next((kind for kind, (name, _) in HEADS.items() if name in params), "")


def outside(family: Family, params: Mapping[str, Any], head: str, nsp: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters under the names and in the layout of a file, and the names of those that have no place there.

    Args:
      head: one of `HEADS`, or "" for the encoder alone.
      nsp: whether an "mlm" head has next-sentence prediction too, and so the encoder a pooler.
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    left = []
    for name, x in params.items():
        at = places(family, name, (head,) if head else ())
        unread = head == "tag" or (head == "mlm" and not nsp)
        if not at or (unread and name.startswith("backbone/pooler/")):
            left.append(name)
            continue
        full = family.prefix * (at[0].inner and head != "") + at[0].name
        parts.setdefault(full, {})[at[0].part] = np.asarray(x).T if at[0].transposed else np.asarray(x)
    return {n: np.ascontiguousarray(np.concatenate([p[i] for i in sorted(p)])) for n, p in parts.items()}, left


def _check_dims(kind: str, dims: Any, head: str, tokenizer: Tokenizer) -> None:
    """Refuses what a config.json of this kind cannot say."""
    wanted = {"pooler": "tanh", "offset": tokenizer.pad + 1 if "roberta" in kind else 0, **FAMILIES[kind].fixed}
    if "types" in FAMILIES[kind].keys and dims.types == 0:
        wanted["types"] = 2
    if kind == "electra" and dims.embedding == dims.hidden:
        wanted["embedding"] = 0
    if head in ("classify", "nsp") and "pooling" not in FAMILIES[kind].keys:
        wanted["pooling"] = "cls"
    for key, value in wanted.items():
        if getattr(dims, key, value) != value:
            raise UserError(
                f"transformers' {FAMILIES[kind].stem} knows model.{key}={value!r} only, this run has {getattr(dims, key)!r}: "
                f"train with --config.model.{key}={value} to export it"
            )


def _outside_keys(kind: str, dims: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    values = {theirs: getattr(dims, ours) for ours, theirs in FAMILIES[kind].keys.items()}
    values["max_position_embeddings"] += getattr(dims, "offset", 0)
    if values.get("embedding_size") == 0:
        values["embedding_size"] = dims.hidden
    dropouts = {"distilbert": ["attention_dropout"], "modernbert": ["attention_dropout", "embedding_dropout"]}
    values |= {key: dims.dropout for key in dropouts.get(kind, ["attention_probs_dropout_prob"])}
    values |= {"pad_token_id": tokenizer.pad, "tie_word_embeddings": True}
    if kind == "modernbert":
        values |= {"cls_token_id": tokenizer.cls, "sep_token_id": tokenizer.sep, "classifier_activation": dims.activation}
    return values | (
        {"bos_token_id": tokenizer.cls, "eos_token_id": tokenizer.sep} if kind not in ("bert", "distilbert", "electra") else {}
    )


def _write_pooling(to: Path, dims: Any, told: Mapping[str, Any]) -> None:
    """What makes the folder a sentence encoder for sentence-transformers."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **({"2_Normalize": "Normalize"} if told.get("normalize") else {})}
    modules = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"} for i, (p, k) in enumerate(kinds.items())]
    (to / "1_Pooling").mkdir(exist_ok=True)
    mode = {f"pooling_mode_{m}": m == {"mean": "mean_tokens", "first": "cls_token"}[dims.pooling] for m in ("mean_tokens", "cls_token")}
    _write_json(to / "modules.json", modules)
    _write_json(to / "sentence_bert_config.json", {"max_seq_length": told.get("max_seq_length") or dims.max_len, "do_lower_case": False})
    _write_json(to / "1_Pooling" / "config.json", {"word_embedding_dimension": dims.hidden, **mode})


def _write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
