"""JSON files as Hugging Face's libraries write them: read, or refused in a sentence that names the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptft.core.errors import UserError, short


@contextmanager
def as_written(what: Path | str) -> Iterator[None]:
    """Values of other types than transformers writes are the file's mistake, wherever they are met."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError, RecursionError) as e:
        raise UserError(
            f"{what} is not as transformers writes it ({type(e).__name__}: {short(e)}); fetch it again"
        ) from None


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object, every string in it one that a file can hold."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is none
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is no JSON ({short(e)}); fetch it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values
