"""A benchmark as figures: one column for each axis, one row for each of tightness, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from milp_agt.experiments.bench.bench_table import Benchmark, Row
from milp_agt.io.drawing import COLOURS, MARKERS, write_figure

AXES = {"step": "training step", "samples": "training samples", "hidden": "hidden width"}
MEASURES = {
    "ratio": "certified / attacked width",
    "seconds_per_step": "seconds per step",
    "peak_mib": "peak memory [MiB]",
}


def write_plot(benchmark: Benchmark, folder: Path) -> tuple[Path, ...]:
    """Draw ``bench.png`` and ``bench.svg`` into a folder.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    return write_figure(lambda: draw(benchmark), folder, "bench")


def draw(benchmark: Benchmark) -> Any:
    """A matplotlib figure: medians over the seeds, every method a line, other axes at their base."""
    rows = benchmark.rows
    sizes = {name: {getattr(row, name) for row in rows} for name in AXES}
    axes = [name for name in AXES if name == "step" or len(sizes[name]) > 1]
    methods = list(dict.fromkeys(row.method for row in rows))
    figure = import_module("matplotlib.figure").Figure(
        figsize=(1.0 + 3.5 * len(axes), 8.0), layout="constrained"
    )
    panels = figure.subplots(len(MEASURES), len(axes), sharex="col", squeeze=False)
    for panel_row, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        panel_row[0].set_ylabel(label)
        for panel, axis in zip(panel_row, axes, strict=True):
            for number, method in enumerate(methods):
                points = series(rows, axis, measure, method)
                if len(points) > 1 or axis == "step":
                    panel.plot(
                        list(points),
                        list(points.values()),
                        label=method,
                        color=COLOURS[number % len(COLOURS)],
                        marker=MARKERS[number % len(MARKERS)],
                    )
            if any(bool((line.get_ydata() > 0).any()) for line in panel.lines):
                panel.set_yscale("log")
            panel.grid(axis="y", color="#dddddd", linewidth=0.8)
    for panel, axis in zip(panels[-1], axes, strict=True):
        panel.set_xlabel(AXES[axis])
    panels[0][0].legend(fontsize=8, frameon=False)
    figure.suptitle(benchmark.named_machine(), fontsize=7)
    return figure


def series(rows: Sequence[Row], axis: str, measure: str, method: str) -> dict[int, float]:
    """The median over the seeds of a measure of one method along an axis, others at their base.

    The base of a size is that of the first row, the base of the step the last one. A value that a
    logarithmic axis has no place for becomes nan, a gap.
    """
    base = {name: getattr(rows[0], name) for name in AXES} | {"step": max(r.step for r in rows)}
    found: dict[int, list[float]] = {}
    for row in rows:
        others = all(getattr(row, name) == value for name, value in base.items() if name != axis)
        value = getattr(row, measure)
        if row.method == method and others and value is not None:
            found.setdefault(getattr(row, axis), []).append(value)
    medians = {at: median(values) for at, values in sorted(found.items())}
    return {at: v if np.isfinite(v) and v > 0 else np.nan for at, v in medians.items()}
