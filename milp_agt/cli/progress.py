"""A line on stderr while a command works."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int, str], None]

# Time left is told from all steps so far: one step of a large run outlasts rich's own 30 seconds.
ESTIMATE_FROM = 7 * 24 * 3600.0


@contextmanager
def progress(unit: str, quiet: bool, done: int = 0) -> Iterator[Advance]:
    """Yields a function of (done, total, what is known now); silent where stderr is no terminal.

    ``done`` is what was there before, so that it does not count into the speed.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, text: None
        return
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
        TextColumn(unit),
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
        task = bar.add_task("", total=None, completed=done)
        yield lambda done, total, text: bar.update(
            task, completed=done, total=total, description=text
        )
