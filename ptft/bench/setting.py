"""A benchmark's settings, one task, model and size each, and by how much one strategy gains over another
there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ptft.bench import results, stats
from ptft.bench.cell_result import Row

Scores = Mapping[int, float]
Verdict = bool | None  # None: open
MARGIN = 0.01


class Setting(NamedTuple):
    """One task, model and size."""

    title: str
    task: str
    size: int
    higher: bool
    rows: dict[str, list[Row]]  # freeze -> the rows that are quoted, one a seed
    scores: dict[str, Scores]  # freeze -> seed -> test
    tried: dict[str, tuple[float, list[float]]]  # freeze -> the learning rate that dev chose, all of them

    def gain(self, a: str, b: str) -> stats.Difference | None:
        """How much better a is than b, paired by seed; None without two seeds, or where one failed."""
        if a not in self.scores or b not in self.scores:
            return None
        better, worse = (a, b) if self.higher else (b, a)
        difference = stats.paired(self.scores[better], self.scores[worse])
        return difference if difference and difference.p is not None else None


def settings(rows: Sequence[Row]) -> Iterator[Setting]:
    """Those that start from pretrained weights; of several strategies with one freeze, the first."""
    pretrained = [
        r
        for r in rows
        if r["kind"] == "train"
        and not r["repeat"]
        and r.get("init_from")
        and isinstance(r.get("freeze"), str)
    ]
    for task, model, size in dict.fromkeys((r["task"], r["model"], r["size"]) for r in pretrained):
        group = [r for r in pretrained if (r["task"], r["model"], r["size"]) == (task, model, size)]
        metric = group[0]["metric"]
        by_freeze: dict[str, results.Quoted] = {}
        for quoted in results.quoted(group, metric).values():
            by_freeze.setdefault(quoted.rows[0]["freeze"], quoted)
        scores: dict[str, Scores] = {
            name: {r["seed"]: results.score(r, "test", metric) for r in q.rows}
            for name, q in by_freeze.items()
        }
        tried = {name: (q.lr, sorted(q.tried)) for name, q in by_freeze.items() if q.lr is not None}
        title = ", ".join(filter(None, [task, model, f"{size:,} examples" if size else "all examples"]))
        kept = {name: q.rows for name, q in by_freeze.items()}
        yield Setting(title, task, size, results.higher_is_better(metric, group), kept, scores, tried)


def in_words(name: str, gain: stats.Difference) -> str:
    interval = f" [{gain.lo:+.3f}, {gain.hi:+.3f}]" if gain.half else ""  # equal differences have none
    return f"{name} {gain.mean:+.3f}{interval}".replace("-0.", "−0.")


def all_corrected(
    gains: Sequence[tuple[str, str, stats.Difference]],
) -> list[tuple[str, str, stats.Difference]]:
    """The more is compared, the more looks broken by chance alone (Holm)."""
    adjusted = stats.corrected([gain for _, _, gain in gains])
    return [(a, b, gain) for (a, b, _), gain in zip(gains, adjusted, strict=True) if gain]


def are_no_worse(gains: Sequence[stats.Difference]) -> Verdict:
    """Whether all of them leave room for no more than MARGIN of loss."""
    # Where the seeds do not vary, there is no spread to go by.
    if all(gain.lo is not None and gain.hi is not None and gain.hi > gain.lo >= -MARGIN for gain in gains):
        return True
    return False if any(stats.apart(gain) and gain.mean < 0 for gain in gains) else None
