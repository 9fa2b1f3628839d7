"""Durations in a config: "500 steps", "3 epochs", "20000 examples", "10%", "10 minutes"."""

import math
import re

from ptft.core.errors import UserError

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|examples?|%)?\s*")

_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(minute|hour)s?\s*")


def steps(name: str, text: str | int, *, batch: int, examples: int, total: int | None = None) -> int:
    """A duration in steps: "1000", "500 steps", "3 epochs", "20000 examples", or "10%" of `total`.

    `batch` is the global batch size and `examples` the number of training examples an epoch.
    """
    if why := (check if total is None else check_share)(text):
        raise UserError(f"{name}: {why}")
    match = _DURATION.fullmatch(str(text))
    assert match
    number, unit = float(match[1]), (match[2] or "steps").rstrip("s")
    if unit == "%":
        return round((total or 0) * number / 100)
    if unit == "epoch":
        return math.ceil(number * examples / batch)
    return math.ceil(number / batch) if unit == "example" else int(number)


def check(text: str | int) -> str | None:
    """Why `text` is not a duration, or None: the `check` of a `Field`."""
    match = _DURATION.fullmatch(str(text))
    if not match or match[2] == "%":
        return f"expected a duration such as '500 steps', '3 epochs' or '20000 examples', got {text!r}"
    if not (match[2] or "steps").startswith(("epoch", "example")) and "." in match[1]:
        return f"{text!r} is not a whole number of steps"
    return None


def check_share(text: str | int) -> str | None:
    """The same for a duration that may also be a share of the run, such as '10%'."""
    match = _DURATION.fullmatch(str(text))
    if match and match[2] == "%":
        return None if float(match[1]) <= 100 else f"{text!r} is more than the whole"
    why = check(text)
    return why and why.replace("'500 steps'", "'10%', '500 steps'")


def seconds(text: str | int) -> float:
    """The seconds of "10 minutes" or "2 hours"; 0.0: it is no time, but may be another duration."""
    match = _TIME.fullmatch(str(text))
    return float(match[1]) * {"minute": 60, "hour": 3600}[match[2]] if match else 0.0


def check_share_or_time(text: str | int) -> str | None:
    """`check_share` for a duration that may also be a time, such as '10 minutes'."""
    why = None if seconds(text) else check_share(text)
    return why and why.replace("'10%', ", "'10 minutes', '10%', ")
