"""Numbers as a report says them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ptft.bench import stats


def count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def sign(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def between(low: float, high: float) -> str:
    return f"[{sign(low)},\N{NO-BREAK SPACE}{sign(high)}]"


def interval(s: stats.Summary | None) -> str:
    """Student's t of a difference; "" of equal values: without width it says nothing of other seeds."""
    return "" if s is None or s.lo is None or s.hi is None or not s.half else between(s.lo, s.hi)


def signed(s: stats.Summary) -> str:
    return f"{sign(s.mean)} {interval(s)}".strip()


def plus_minus_signed(s: stats.Summary) -> str:
    return sign(s.mean) + (f" ± {s.half:.3f}" if s.half else "")


def plus_minus(s: stats.Summary) -> str:
    return f"{s.mean:.3f}" + (f" ± {s.half:.3f}" if s.half else "")


def percent(share: float | None) -> str:
    if share is None:
        return "–"
    if share == 0:
        return "0 %"
    if share >= 0.995:
        return f"{share * 100:.0f} %"
    digits = 1 if share >= 0.01 else max(2, -math.floor(math.log10(share)) - 2)
    return f"{share * 100:.{digits}f} %"


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def seconds(value: float | int | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.{0 if value >= 0.01 else 1}f} ms"
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s" if value < 3600 else f"{value / 3600:.1f} h"


def size(value: float | None) -> str:
    """Bytes."""
    if value is None:
        return "–"
    return f"{value / 2**20:,.0f} MiB" if value >= 10 * 2**20 else f"{value / 2**20:.1f} MiB"


def listed(names: Sequence[str], most: int = 6) -> str:
    """ "a, b and c"; of many the first."""
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most + 1 else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def distinct(items: Any) -> list[dict[str, Any]]:
    return list({json.dumps(x, sort_keys=True): x for x in items if x}.values())


def facts(
    versions: Sequence[Mapping[str, Any]],
    places: Sequence[Mapping[str, Any]],
    config_hash: str | None,
    command: str | None,
) -> list[tuple[str, str]]:
    pairs = [("command", command), ("config", config_hash)]
    pairs += [("device", ", ".join(f"{k} {v}" for k, v in place.items())) for place in places]
    pairs += [("versions", ", ".join(f"{k} {v}" for k, v in v.items())) for v in versions]
    return [(name, value) for name, value in pairs if value]
