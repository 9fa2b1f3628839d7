"""What is due at a step, the same for a run alone and for runs side by side."""

from typing import NamedTuple

from ptft.core import record
from ptft.train import build
from ptft.train.build import Run
from ptft.train.state import Progress


class Due(NamedTuple):
    """What to do after a step."""

    log: bool
    evaluate: bool
    save: bool


def at(run: Run, k: int) -> Due:
    """What to do after step `k`. The last step is evaluated here only where the best is chosen on dev; the
    final scores come after the loop."""
    d, last = run.durations, k == run.durations.total
    chooses = build.metric(run) != "last"
    evaluate = run.data.dev is not None and ((last and chooses) or (d.evaluate > 0 and k % d.evaluate == 0))
    return Due(last or k % d.log == 0, evaluate, last or (d.save > 0 and k % d.save == 0))


def late(run: Run, seconds: float) -> bool:
    """Whether a checkpoint is due so long after the last one. Clocks differ: of several processes the lead's
    decides."""
    return 0 < run.durations.save_seconds <= seconds and record.is_lead()


def stopped_early(run: Run, progress: Progress) -> bool:
    """Whether waiting for a better best has ended the run; before its last phase it never does."""
    return 0 < run.config.early_stop <= progress.evals_since_best and progress.phase + 1 == len(run.phases)
