"""TensorFlow Datasets without TensorFlow: `tfds:NAME[/CONFIG]@SPLIT`, such as
`tfds:imdb_reviews@train[:95%]`.

Reads what is prepared in $TFDS_DATA_DIR (default ~/tensorflow_datasets) in a random-access format, and
otherwise downloads and prepares it as array_record. Some builders need TensorFlow for that, once: `pip
install "ptft[tf]"`.
"""

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.download import downloader

from ptft.core import progress
from ptft.core.config import Config
from ptft.core.errors import UserError, did_you_mean, install
from ptft.core.record import say
from ptft.data import BadRows, Source, documents, labelled
from ptft.data._sentences import sentences

urllib3_log = getLogger("urllib3")
downloader.MAX_RETRIES = 3  # its ten take minutes to say that there is no network
INSTEAD = "; or download the files yourself and read them with files:GLOB"


def open(rest: str, options: Config, labels: Sequence[str]) -> Source:
    """Reads a split, or a slice of it. Label names are the ClassLabel's; without `data.label` every text is a
    document.

    Raises:
      UserError: no such data set, config, split or column; it cannot be prepared here; a label out of range.
    """
    name, _, split = rest.partition("@")
    if not split:
        raise UserError(f"tfds:{rest}: expected tfds:NAME@SPLIT, such as tfds:{name}@train")
    builder = _builder(name)
    with quiet():
        records = data_source(builder, split, f"tfds:{rest}")
    features = builder.info.features
    keys = ["text", *(["text_b"] if options.text_b else []), *(["label"] if options.label else [])]
    columns = [_column(name, features, key, options[key]) for key in keys]
    rows = BadRows(options.on_bad_row)
    if not options.label:
        return documents(((where, sentences(row[0])) for where, row in _read(records, columns, rest)), rows)
    names = list(getattr(features[columns[-1]], "names", None) or ())
    examples = (
        (where, row[0], row[1] if options.text_b else None, _label(row[-1], names))
        for where, row in _read(records, columns, rest)
    )
    return labelled(examples, rows, labels or [str(label) for label in options.labels] or names)


def data_source(builder: tfds.core.DatasetBuilder, split: str, where: str) -> Sequence[Mapping[str, Any]]:
    """The records of a prepared builder's split; `where` is what the user wrote."""
    splits = list(builder.info.splits)
    for part in split.split("+"):
        if splits and (name := part.partition("[")[0]) not in splits:
            raise UserError(f"{where}: no split {name!r} after '@'; {did_you_mean(name, splits)}")
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as e:
        raise UserError(
            f"{where}: its format in {builder.data_dir} has no random access; prepare it as array_record"
        ) from e
    except (ValueError, AssertionError) as e:
        raise UserError(f"{where}: {str(e).splitlines()[0]}") from e


def decoded(value: Any) -> Any:
    """Text as str (array_record gives bytes), numbers as Python's."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return value.item() if hasattr(value, "item") else value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS: its log, its progress bars and what it prints."""
    verbosity, retries = logging.get_verbosity(), urllib3_log.level
    logging.set_verbosity(logging.ERROR)
    urllib3_log.setLevel("ERROR")
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        urllib3_log.setLevel(retries)


def _builder(name: str) -> tfds.core.DatasetBuilder:
    # a name may come from a stranger's run, and TFDS runs code for more: a namespace's (`NS:NAME`) is
    # downloaded, and a data set below `data_dir=…` names modules to import
    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?", name):
        expected = "tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:1.0.0"
        raise UserError(f"tfds:{name}: expected {expected}{INSTEAD}")
    with quiet(), contextlib.suppress(tfds.core.DatasetNotFoundError):
        return read_only_builder.builder_from_files(name)  # any version and format that is prepared
    base, _, config = name.partition("/")
    try:
        with quiet():
            builder = tfds.builder(name, file_format="array_record")
            prepared = builder.is_prepared()
        if not prepared:
            say(f"tfds: downloading and preparing {name} in {builder.data_dir}")
            with quiet(), progress.doing(f"preparing tfds:{name}", watch=True):
                builder.download_and_prepare()
        return builder
    except tfds.core.DatasetNotFoundError as e:
        if base not in (known := _known()):
            raise UserError(f"tfds:{name}: no data set {base!r}; {did_you_mean(base, known)}") from e
        raise UserError(_needs_tensorflow(name)) from e
    except Exception as e:  # whatever the network, the disk or the builder's own code raises
        if isinstance(e, ImportError) and importlib.util.find_spec("tensorflow") is None:
            raise UserError(_needs_tensorflow(name)) from e
        configs = tfds.builder_cls(base).builder_configs
        if config and config.partition("/")[0].partition(":")[0] not in configs:
            raise UserError(f"tfds:{name}: no config {config!r}; {did_you_mean(config, configs)}") from e
        raise UserError(
            f"tfds:{name} could not be downloaded and prepared: {type(e).__name__}: {str(e)[:300]}{INSTEAD}"
        ) from e


def _needs_tensorflow(name: str) -> str:
    prepare = (
        f"python -c \"import tensorflow_datasets as t; t.builder('{name}', "
        "file_format='array_record').download_and_prepare()\""
    )
    needs = f"tfds:{name} is not prepared, and TFDS needs TensorFlow to prepare it"
    return f"{needs}; {install('tf')}; then once: {prepare}{INSTEAD}"


def _known() -> set[str]:
    """All names: those that load here, and those whose import needs TensorFlow, read from TFDS's own
    source."""
    names = set(tfds.list_builders(with_community_datasets=False))
    for init in Path(tfds.__file__).parent.glob("*/__init__.py"):
        classes = re.findall(
            r"^from tensorflow_datasets\.[\w.]+ import ([A-Z]\w+)$", init.read_text(), re.MULTILINE
        )
        names.update(map(tfds.core.naming.camelcase_to_snakecase, classes))
    return names


def _column(name: str, features: Any, key: str, asked: str) -> str:
    # Sorted: a prepared data set gives its features back in no order.
    texts = sorted(n for n, f in features.items() if isinstance(f, tfds.features.Text))
    column = asked or next((n for n in ("text", "sentence") if n in texts), texts[0] if texts else "")
    if column not in features:
        raise UserError(
            f"tfds:{name} has no column {column!r} (data.{key}); it has {', '.join(map(repr, features))}"
        )
    return column


def _label(value: Any, names: list[str]) -> str:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)


def _read(
    records: Sequence[Mapping[str, Any]], columns: list[str], rest: str
) -> Iterator[tuple[str, list[Any]]]:
    for i in range(len(records)):
        yield f"tfds:{rest}[{i}]", [decoded(records[i][c]) for c in columns]
