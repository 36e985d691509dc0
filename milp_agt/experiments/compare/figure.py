"""A comparison as figures: width over steps, and tightness over time."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from milp_agt.experiments.compare.comparison import Comparison, ComparisonRow
from milp_agt.io.drawing import COLOURS, DASHES, MARKERS, write_figure


def write_plot(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Draw ``compare.png`` and ``compare.svg`` into a folder.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    return write_figure(lambda: draw(comparison), folder, "compare")


def draw(comparison: Comparison) -> Any:
    """A matplotlib figure: left the mean width after each step, right that width against the seconds
    that had passed; one line for each row."""
    figure = import_module("matplotlib.figure").Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, row in enumerate(comparison.rows):
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
            "markevery": max(1, len(row.widths) // 10),
        }
        widths = _drawable(row)
        left.plot(np.arange(1, len(widths) + 1), widths, label=row.name, **style)
        right.plot(np.array(row.elapsed), widths, label=row.name, **style)
    for axes, label in ((left, "training step"), (right, "seconds")):
        axes.set_xlabel(label)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    if any(bool(np.isfinite(_drawable(row)).any()) for row in comparison.rows if row.widths):
        left.set_yscale("log")
        right.set_xscale("log")
    left.set_ylabel("mean width of a parameter")
    left.set_title("Width over steps", loc="left")
    right.set_title("Tightness over time", loc="left")
    right.legend(fontsize=8, frameon=False)
    return figure


def _drawable(row: ComparisonRow) -> Any:
    """Widths with gaps where a logarithmic axis has no place for them."""
    widths = np.array(row.widths)
    return np.where(np.isfinite(widths) & (widths > 0.0), widths, np.nan)
