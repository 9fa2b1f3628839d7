"""What a long step does and how far it is: a bar on a terminal, elsewhere a line now and then."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ptft.core import record

# Seconds into a step at which a line is said; after the last, every so many.
DUE = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SOON = 2.0  # and at which a bar is drawn
REDRAW = 0.25

clock = time.monotonic

T = TypeVar("T")
_silent = ContextVar("silent", default=False)


@contextmanager
def silence() -> Iterator[None]:
    """Inside of it `doing` says nothing: whoever runs many things says how far they are."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


@contextmanager
def bar(total: int, done: int) -> Iterator[Callable[[str], None]]:
    """A bar from the start, and `silence` inside; what it gives advances the bar by one and says something
    beside it."""
    screen, text = record.screen(), TextColumn("{task.description}")
    with (
        silence(),
        Progress(BarColumn(), MofNCompleteColumn(), text, console=screen, disable=screen is None) as shown,
    ):
        task = shown.add_task("", total=total, completed=done)
        yield lambda text: shown.update(task, advance=1, description=text)


@contextmanager
def doing(what: str, of: str = "", total: int = 0, watch: bool = False) -> Iterator[Callable[..., None]]:
    """Says what a step does and how far it is, if it takes long. It gives `advance(n=1, place="")`: so many
    more are done, the last of them there.

    Args:
      what: such as "tokenizing".
      of: what is counted, such as "texts"; "": nothing is.
      total: how many there are; 0: not known.
      watch: a thread looks at the clock, for work that seldom comes back, as compiling; else `advance` does.
    """
    if not record.is_lead() or _silent.get():
        yield lambda n=1, place="": None
        return
    step, ended = _Step(what, of, total), threading.Event()
    thread = threading.Thread(target=step.watch, args=(ended,), daemon=True)
    if watch:
        thread.start()
    try:
        yield step.count if watch else step.advance
    finally:
        ended.set()
        if watch:
            thread.join()
        if step.bar:
            step.bar.stop()


def each(items: Iterable[T], what: str, of: str, total: int = 0, watch: bool = False) -> Iterator[T]:
    """The items as they come, counted by `doing`."""
    with doing(what, of, total, watch=watch) as advance:
        for one in items:
            yield one
            advance()


class _Step:
    """What is done of a step, and when it says so next."""

    def __init__(self, what: str, of: str, total: int):
        self.what, self.of, self.total = what, of, total
        self.done, self.place = 0, ""
        self.start_time = clock()
        self.due = SOON if record.screen() else DUE[0]
        self.bar: Progress | None = None

    def count(self, n: int = 1, place: str = "") -> None:
        self.done, self.place = self.done + n, place

    def advance(self, n: int = 1, place: str = "") -> None:
        self.count(n, place)
        self.look()

    def watch(self, ended: threading.Event) -> None:
        while not ended.wait(self.look()):
            pass

    def look(self) -> float:
        """Says how far the step is if that is due; the seconds until it is again."""
        spent = clock() - self.start_time
        if spent >= self.due:
            self.due = self.say(spent)
        return self.due - spent

    def say(self, spent: float) -> float:
        """Returns when it is due again."""
        many = f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,}"
        text = f"{self.what}: {f'{many} {self.of}, ' if self.of else ''}{spent:.0f} s"
        text += f", at {self.place}" if self.place else ""
        if (screen := record.screen()) is None:
            record.note(text)
            return next((due for due in DUE if due > spent), spent + DUE[-1])
        if self.bar is None:
            # drawn here alone, as steps may be timed; it goes when the step ends
            columns = BarColumn(), TextColumn("{task.description}", markup=False)
            self.bar = Progress(*columns, console=screen, transient=True, auto_refresh=False)
            self.bar.add_task("", total=self.total or None)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=self.done, description=text, refresh=True)
        return spent + REDRAW
