"""What stderr shows while a command works: a bar on a terminal, now and then a line without one."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

# Time left is told from all steps so far: one step of a large run outlasts rich's own 30 seconds.
ESTIMATE_FROM = 7 * 24 * 3600.0
# Without a terminal: seconds before the first line, and between two lines of one phase.
FIRST_LINE = 2.0
EVERY_LINE = 10.0
BEAT = 1.0  # seconds between two looks whether a line is due


def tell(text: object) -> None:
    """A line on stderr; that it takes none (a full disk, a reader that left) ends no command."""
    with suppress(OSError):
        print(f"milp-agt: {text}", file=sys.stderr, flush=True)


class Advance(Protocol):
    """Told how far a command is."""

    def __call__(self, done: int, total: int, text: str, unit: str = "") -> None:
        """``done`` of ``total`` of a unit, and what is known now; no unit means that of the command."""
        ...


@contextmanager
def progress(unit: str, quiet: bool, done: int = 0) -> Iterator[Advance]:
    """Yields what a command calls while it works; silent where ``quiet``, or where stderr is closed.

    ``done`` is what was there before, so that it does not count into the speed.
    """
    if quiet or sys.stderr is None:
        yield _silent
    elif sys.stderr.isatty():
        with _bar(unit, done) as advance, _logged():
            yield advance
    else:
        with _logged(), Lines(unit, done) as advance:
            yield advance


@contextmanager
def _logged() -> Iterator[None]:
    """What the package logs, a prediction of a long run say, as lines on stderr."""
    logger, handler = logging.getLogger("milp_agt"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("milp-agt: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _silent(done: int, total: int, text: str, unit: str = "") -> None:
    pass


class Lines:
    """Lines on stderr for logs: one when a phase begins and one every ten seconds, none at first.

    As a context it says every ten seconds what was told last, where nobody tells anything new.
    """

    def __init__(
        self, unit: str, before: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unit, self._clock = unit, clock
        self._begun = self._phase_begun = clock()
        self._told: float | None = None
        self._phase, self._before = unit, before
        self._last = 0, 0, "", unit
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._repeating = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Lines:
        self._repeating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._repeating.join()

    def _repeat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock:
                self._tell(*self._last)

    def __call__(self, done: int, total: int, text: str, unit: str = "") -> None:
        """Print a line if one is due."""
        with self._lock:
            self._last = done, total, text, unit
            self._tell(done, total, text, unit)

    def _tell(self, done: int, total: int, text: str, unit: str) -> None:
        phase, now = unit or self._unit, self._clock()
        fresh = phase != self._phase
        if fresh:
            self._phase, self._before, self._phase_begun = phase, 0, now
        if now - self._begun < FIRST_LINE:
            return
        if not fresh and self._told is not None and now - self._told < EVERY_LINE:
            return
        self._told = now
        counted = f" {done}/{total}" if total else ""
        known = f", {text}" if text else ""
        left = self._left(done, total, now)
        tell(f"{phase}{counted}{known}, {now - self._begun:.0f} s so far{left}")

    def _left(self, done: int, total: int, now: float) -> str:
        new = done - self._before
        if new <= 0 or done >= total:
            return ""
        return f", about {(now - self._phase_begun) / new * (total - done):.0f} s left of this"


@contextmanager
def _bar(unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.fields[unit]}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, speed_estimate_period=ESTIMATE_FROM
    ) as bar:
        task = bar.add_task("", total=None, completed=done, unit=unit)
        shown = [unit]

        def advance(done: int, total: int, text: str, unit: str = "", usual: str = unit) -> None:
            phase = unit or usual
            if phase != shown[0]:
                shown[0] = phase
                bar.refresh()  # the end of a short phase is seen
                bar.reset(task)
            bar.update(task, completed=done, total=total or None, description=text, unit=phase)

        yield advance
