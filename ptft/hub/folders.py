"""A checkpoint's folder in Hugging Face's format: whether it is one, where it lies, and the headers of its
weight files."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.numpy

from ptft.core.errors import UserError, did_you_mean, install, joined, listed, short, shown
from ptft.hub.names import places
from ptft.inputs.hf_json import as_written, read_object
from ptft.models import Family, anatomy, families

UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Names of modules that wrap others: torch.compile, DataParallel and DistributedDataParallel, FSDP, recomputed
# activations.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
REMOTE = "hf:"
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
    # by their newest names, without the prefixes of wrappers and of a model with a head
    tensors: Mapping[str, Tensor]

    @property
    def family(self) -> Family:
        return families()[self.kind]

    @property
    def dtype(self) -> str:
        """The floating dtypes of its weights."""
        return "/".join(sorted({FLOATS[t.dtype] for t in self.tensors.values() if t.dtype in FLOATS}))


def is_folder(where: str) -> bool:
    """Whether `where` names a checkpoint from outside, read or refused here, rather than the folder of a
    run."""
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
    """Whether `where` holds weights that were pretrained elsewhere: such a checkpoint, or a run that was made
    of one."""
    run = Path(where) / "run.json"
    return is_folder(where) or (
        bool(where) and run.is_file() and read_object(run).get("imported") is not None
    )


@functools.lru_cache(maxsize=8)
def locate(where: str) -> Path:
    """The local folder of `where`; `hf:ORG/NAME` or `hf:ORG/NAME@REVISION` is downloaded, or found in
    huggingface_hub's cache."""
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
        raise UserError(
            f"{path} is a file; expected the folder that it lies in, with config.json and the tokenizer: "
            f"{path.parent}"
        )
    if not path.is_dir():
        beside = [p.name for p in path.absolute().parent.glob("*") if p.is_dir()]
        raise UserError(
            f"expected a folder with config.json and model.safetensors, got {path}; "
            f"{did_you_mean(path.name, beside)}"
        )
    if (path / "adapter_config.json").is_file():
        raise UserError(_adapter(path))
    with as_written(path / "model.safetensors.index.json"):
        files = _weight_files(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} has no config.json; it holds "
            f"{joined(sorted(p.name for p in path.iterdir())) or 'nothing'}"
        )
    config = read_object(path / "config.json")
    with as_written(path / "config.json"):
        kind = _kind(path, config)
    return Folder(path, kind, config, _tensors(path, families()[kind], files))


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    """Its model_type; where that is missing, what the class in `architectures` says."""
    classes = list(map(str, config.get("architectures") or ()))
    said = [k for k, f in families().items() for name in classes if re.match(f"{f.stem}(For|Model$)", name)]
    kind = str(config.get("model_type") or next(iter([*said, *classes]), ""))
    if not kind:
        raise UserError(
            f"{path}/config.json has neither model_type nor architectures, so the weights could be of any "
            "model; "
            f'add "model_type": one of {", ".join(families())}'
        )
    if kind not in families():
        raise UserError(
            f"{path}: the architecture {shown(kind)} is not one that ptft has; "
            f"{did_you_mean(kind[:60], families())}"
        )
    return kind


def _tensors(path: Path, family: Family, files: Iterable[Path]) -> dict[str, Tensor]:
    """Every entry of the headers, by its name in the table of its family."""
    entries = []
    for tensor in (t for file in files for t in _header(file)):
        # Old files say gamma and beta (TensorFlow's words) for a LayerNorm's weight and bias.
        new = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", WRAPPERS.sub("", tensor.name)))
        entries.append((new, tensor))
    # A model inside of another, as Lightning saves it: model.bert.embeddings …
    word = places(family, anatomy(family.model).table)[0].name
    before = {name.removesuffix(word) for name, _ in entries if name == word or name.endswith(f".{word}")}
    outer = {p.removesuffix(family.prefix) for p in before} if not before & {"", family.prefix} else {""}
    if len(outer) > 1:
        raise UserError(
            f"{path} holds several encoders: {listed(sorted(outer))}; expected one, save it alone with "
            "save_pretrained"
        )
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
    model = {"TOKEN_CLS": "ForTokenClassification", "SEQ_CLS": "ForSequenceClassification"}.get(
        str(said.get("task_type")), ""
    )
    return (
        f"{path} is a PEFT adapter ({shown(kind)}) to {shown(base)} and no whole model; merge the two where "
        f"peft is installed: PeftModel.from_pretrained(AutoModel{model}.from_pretrained(BASE), "
        "ADAPTER).merge_and_unload().save_pretrained(NEW) and "
        "AutoTokenizer.from_pretrained(BASE).save_pretrained(NEW), with the number of labels that it was "
        "trained with; then read NEW (prompts and prefixes cannot be merged). Where model.safetensors "
        "beside it is the merged model, remove adapter_config.json"
    )


def _unsafe(files: Sequence[str]) -> str:
    return (
        f"{joined(files)}: ptft reads safetensors only, because pickles run code and TensorFlow's own format "
        "is out of scope. Where transformers and the file's framework are installed, "
        "from_pretrained(FOLDER).save_pretrained(NEW), of the class that config.json names in "
        "architectures, and of AutoTokenizer, writes a folder that is read (Google's TensorFlow files: with "
        "transformers 4, BertForPreTraining.from_pretrained(…, from_tf=True))"
    )


def _weight_files(path: Path) -> list[Path]:
    index, there = path / "model.safetensors.index.json", sorted(p.name for p in path.iterdir())
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if index.is_file():
        shards = sorted({str(name) for name in read_object(index).get("weight_map", {}).values()})
        for name in shards:
            if name not in there:
                raise UserError(
                    f"{index} names the file {shown(name)}, which is not in {path}; fetch it again"
                )
        if shards:
            return [path / name for name in shards]
    if alone := [n for n in there if re.fullmatch(r"model-\d+-of-\d+\.safetensors", n)]:
        raise UserError(
            f"{path} has {alone[0]} and no model.safetensors.index.json that lists it; fetch the index, too"
        )
    if other := [n for n in there if _is_unsafe(n)]:
        raise UserError(f"{path} has no model.safetensors but {_unsafe(other)}")
    raise UserError(
        f"{path} has no model.safetensors, the only kind of weights that ptft reads; it holds "
        f"{joined(there) or 'nothing'}"
    )


def _header(file: Path) -> list[Tensor]:
    try:
        with safetensors.safe_open(file, "numpy") as f:
            entries = ((name, f.get_slice(name)) for name in f.keys())  # noqa: SIM118, it is no mapping
            return [Tensor(file, name, e.get_dtype(), tuple(e.get_shape())) for name, e in entries]
    except safetensors.SafetensorError as e:
        why = "it was cut short, or is another format: fetch it again"
        raise UserError(f"{file} is no intact safetensors file ({short(e)}); {why}") from None
