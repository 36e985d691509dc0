"""The figures that show every test point: margins of a classifier, predictions of a regression."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from milp_agt.io.drawing import BLACK, BLUE, ORANGE, RED
from milp_agt.io.tables import format_number
from milp_agt.reports.content import Array, Content

SHOWN_OUTPUTS = 3  # of the predictions of a regression
TARGET: Any = {"color": ORANGE, "markersize": 3.5, "fillstyle": "none", "label": "target"}
PREDICTION: Any = {"color": BLACK, "linewidth": 1.2, "label": "prediction, data as given"}


def margins(content: Content) -> tuple[Figure, str] | None:
    """The margin of each test point, most at risk first, and how far poisoning can move it."""
    points = content.points
    if points is None or len(points) == 0:
        return None
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rank = np.arange(1, len(points) + 1)
    status = np.array(points.status)
    looks = {"surely right": (BLUE, "o"), "open": (ORANGE, "D")}
    looks |= {"refuted": (RED, "v"), "surely wrong": (RED, "X")}
    present = [name for name in looks if (status == name).any()]
    width = _line_width(len(points))
    for name in present:
        own = status == name
        color, marker = looks[name]
        ends = _drawn(points.lower[own]), _drawn(points.upper[own])
        above.vlines(rank[own], *ends, color=color, linewidth=width, alpha=0.45)
        look: Any = {"color": color, "markersize": np.clip(width, 2.0, 5.0)}
        look["label"] = f"{name} ({int(own.sum())})"
        above.plot(rank[own], points.nominal[own], marker, **look)
    above.axhline(0.0, color=BLACK, linewidth=1.0)
    above.set_ylabel("margin of the true class")
    above.legend(loc="best")
    _moved(below, rank, points.nominal, (points.lower, points.upper), points.reached, width)
    below.set_ylabel("poisoning moves\nthe margin by")
    below.set_xlabel(f"{points.on} point, most at risk first")
    _count_axis(below, len(points))
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    counts = ", ".join(f"{int((status == name).sum())} {name}" for name in present)
    return figure, (
        f"Certified interval of the margin of the true class of each of {len(points)} {points.on} "
        f"points: {counts}."
    )


def predictions(content: Content) -> tuple[Figure, str] | None:
    """The prediction of each test point by rising nominal one, and how far poisoning can move it."""
    found = content.predictions
    if found is None or len(found) == 0:
        return None
    shown = min(found.outputs, SHOWN_OUTPUTS)
    figure = Figure(figsize=(7.2, 4.6 * shown), layout="constrained")
    panels = figure.subplots(2 * shown, 1, sharex=True, squeeze=False).ravel()
    rank = np.arange(1, len(found) + 1)
    width = _line_width(len(found))
    for output in range(shown):
        own = np.flatnonzero(found.output == output)
        own = own[np.argsort(found.nominal[own], kind="stable")]
        name = f" of output {output}" if found.outputs > 1 else ""
        bounds = found.lower[own], found.upper[own]
        above, below = panels[2 * output : 2 * output + 2]
        above.plot(rank, found.label[own], "o", **TARGET)
        low, high = map(_drawn, bounds)
        above.vlines(rank, low, high, color=BLUE, linewidth=width, alpha=0.45)
        above.plot(rank, found.nominal[own], **PREDICTION)
        above.set_ylabel(f"prediction{name}")
        reached = None if found.reached is None else (found.reached[0][own], found.reached[1][own])
        _moved(below, rank, found.nominal[own], bounds, reached, width)
        below.set_ylabel(f"poisoning moves\nprediction{name} by")
    panels[-1].set_xlabel(f"{found.on} point, by rising prediction")
    _count_axis(panels[-1], len(found))
    pairs = [axes.get_legend_handles_labels() for axes in panels[:2]]
    handles, labels = ([*first, *second] for first, second in zip(*pairs, strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure, (
        f"Certified interval of the prediction at each of {len(found)} {found.on} points, by rising "
        f"prediction: {format_number(float(found.width.max()), 3)} wide at most, "
        f"{format_number(float(found.width.mean()), 3)} on average."
    )


def _moved(
    axes: Axes,
    rank: Array,
    nominal: Array,
    bounds: tuple[Array, Array],
    reached: tuple[Array, Array] | None,
    width: float,
) -> None:
    """Certificate and attack as distances from the nominal value."""
    low, high = (_drawn(end - nominal) for end in bounds)
    axes.vlines(
        rank, low, high, color=BLUE, linewidth=width, alpha=0.45, label="certified interval"
    )
    if reached is not None:
        least, most = (end - nominal for end in reached)
        axes.vlines(rank, least, most, color=RED, linewidth=0.6 * width, label="reached by attacks")
    axes.axhline(0.0, color=BLACK, linewidth=1.0)
    unbounded = int((np.isnan(low) | np.isnan(high)).sum())
    if unbounded:
        axes.set_title(f"{unbounded} points have no finite bound, and no bar")


def _drawn(ends: Array) -> Array:
    """Values that can be drawn; NaN for the others."""
    return np.where(np.isfinite(ends), ends, np.nan)


def _line_width(count: int) -> float:
    """Of one of so many vertical lines side by side."""
    return max(1.0, min(6.0, 240 / count))


def _count_axis(axes: Axes, count: int) -> None:
    axes.set_xlim(0.4, count + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
