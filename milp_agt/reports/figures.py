"""The figures of a report, each with the sentence that stands for it where it cannot be seen."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from milp_agt.io.drawing import BLACK, BLUE, COLOURS, GREEN, MARKERS, ORANGE, PURPLE, RED
from milp_agt.io.tables import format_number
from milp_agt.reports.content import Array, Content, Property
from milp_agt.reports.words import between

STYLE: Any = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "figure.facecolor": "white",
}
LINES = ((ORANGE, "o", "--"), (BLUE, "s", "-"), (GREEN, "^", "-."), (PURPLE, "D", ":"))
CERTIFIED: Any = {"color": BLUE, "linewidth": 9, "alpha": 0.45, "solid_capstyle": "butt"}
CERTIFIED["label"] = "certified interval"
REACHED: Any = {"color": RED, "markersize": 9, "linewidth": 3, "label": "reached by attacks"}
OPEN: Any = {"facecolor": "white", "hatch": "////", "edgecolor": "#999999"}


@dataclass(frozen=True)
class Picture:
    """A figure as text and pixels, with what it shows in one sentence."""

    name: str
    svg: str
    png: bytes
    alt: str


def pictures(content: Content) -> dict[str, Picture]:
    """Every figure that the content has something for, by name."""
    makers: dict[str, Callable[[Content], tuple[Figure, str] | None]] = {
        "bounds": _bounds,
        "widths": _widths,
        "map": _map,
        "points": margins,
        "predictions": predictions,
    }
    made = {}
    for name, maker in makers.items():
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
            drawn = maker(content)
            if drawn is not None:
                made[name] = _picture(name, *drawn)
    return made


def _picture(name: str, figure: Figure, alt: str) -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=160)
    return Picture(name, svg.getvalue(), png.getvalue(), alt)


def _axes(width: float, height: float, **options: Any) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**options)


def _bounds(content: Content) -> tuple[Figure, str] | None:
    """For each property the certified interval, the nominal value, the attack and the threshold."""
    shown = [p for p in content.wholes if np.isfinite([p.lower, p.upper]).all()]
    if not shown:
        return None
    figure = Figure(figsize=(7.2, 0.4 + 0.95 * len(shown)), layout="constrained")
    rows = np.atleast_1d(figure.subplots(len(shown), 1))
    for axes, each in zip(rows, shown, strict=True):
        _bound_line(axes, each)
    known: dict[str, Any] = {}
    for axes in rows:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=len(known))
    said = "; ".join(
        f"{p.name}: certified between {format_number(p.lower)} and {format_number(p.upper)}, "
        f"{format_number(p.nominal)} on the data as given"
        + (
            ""
            if p.reached is None
            else f", attacks reach {' to '.join(map(format_number, p.reached))}"
        )
        for p in shown
    )
    return figure, said


def _bound_line(axes: Axes, each: Property) -> None:
    axes.plot([each.lower, each.upper], [0, 0], **CERTIFIED)
    for end in (each.lower, each.upper):
        axes.plot([end], [0], "|", color=BLUE, markersize=20, markeredgewidth=2.5)
    if each.reached is not None:
        axes.plot(each.reached, [0, 0], "X-", **REACHED)
    axes.plot([each.nominal], [0], "o", color=BLACK, markersize=6, label="data as given")
    for asked in (each.at_least, each.at_most):
        if asked is not None:
            axes.axvline(asked, color=BLACK, linestyle="--", linewidth=1.2, label="asked for")
    axes.set_title(f"{each.name}: {between(each)}")
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    axes.spines["left"].set_visible(False)
    if each.is_share:
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    else:
        axes.margins(x=0.15)


def _widths(content: Content) -> tuple[Figure, str] | None:
    """Mean width of the parameter box after each step, for every relaxation that was run."""
    if not content.steps:
        return None
    figure, axes = _axes(7.2, 3.4)
    steps = np.array([step["step"] for step in content.steps])
    said = []
    stride = max(1, len(steps) // 12)
    positive = False
    for number, (name, widths) in enumerate(content.chains.items()):
        color, marker, dash = LINES[number % len(LINES)]
        # Looser lines show beneath tighter ones that meet them.
        thicker = len(content.chains) - 1 - number
        drawn = np.where(np.isfinite(widths) & (widths > 0), widths, np.nan)
        positive |= bool(np.isfinite(drawn).any())
        look: Any = {"color": color, "marker": marker, "linestyle": dash, "markevery": stride}
        look |= {"markersize": 5.0 + 1.5 * thicker, "linewidth": 1.5 + 0.8 * thicker}
        axes.plot(steps, drawn, label=name, **look)
        known = widths[np.isfinite(widths)]
        if len(known):
            said.append(f"{name} {format_number(float(known[-1]), 3)}")
    if content.attack is not None:
        reached = float(content.attack["mean_width"])
        axes.plot(steps[-1:], [reached], "X", color=RED, markersize=10, label="attacks")
        said.append(f"attacks {format_number(reached, 3)}")
        positive |= reached > 0
    if positive:
        axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("mean width of the parameters")
    axes.grid(axis="y", which="major", color="#dddddd", linewidth=0.8)
    axes.legend(title="relaxation")
    alt = f"Mean width of the parameter box over {len(steps)} steps; at the end: {', '.join(said)}."
    return figure, alt


def _map(content: Content) -> tuple[Figure, str] | None:
    """Predicted classes over two features, with the certified part in colour."""
    found = content.map
    if found is None:
        return None
    figure, axes = _axes(6.0, 4.8)
    classes = found.scores.shape[-1]
    axes.set_facecolor("white")
    axes.patch.set(hatch="////", edgecolor="#999999", linewidth=0)
    for k in range(classes):
        lead = found.lead[..., k]
        if lead.max() > 0:
            tint = tuple(0.65 + 0.35 * part for part in to_rgb(COLOURS[k % len(COLOURS)]))
            sure = np.ma.masked_where(~(lead > 0), np.zeros_like(lead))
            axes.pcolormesh(found.x, found.y, sure, cmap=ListedColormap([tint]), linewidth=0)
            axes.fill_between([], [], [], facecolor=tint, label=f"surely class {k}")
    centres = [0.5 * (edges[:-1] + edges[1:]) for edges in (found.x, found.y)]
    for k in range(classes):
        lead = found.scores[..., k] - np.delete(found.scores, k, -1).max(-1)
        if lead.min() < 0 < lead.max():
            axes.contour(*centres, lead, levels=[0.0], colors=BLACK, linewidths=1.4)
    axes.fill_between([], [], [], label="open", **OPEN)
    for (points, own), filled in ((found.train, True), (found.test, False)):
        for label in np.unique(own):
            color, marker = (each[int(label) % len(each)] for each in (COLOURS, MARKERS))
            look: Any = {"s": 26, "facecolor": color, "edgecolor": BLACK, "linewidth": 0.6}
            if not filled:
                look = {"s": 40, "facecolor": "white", "edgecolor": color, "linewidth": 1.6}
            look["label"] = f"class {label}, {'training' if filled else 'test'}"
            axes.scatter(*points[own == label].T, marker=marker, **look)
    axes.set_xlabel(found.names[0])
    axes.set_ylabel(found.names[1])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    share = np.floor(1000 * (found.lead.max(-1) > 0).mean()) / 10  # never rounded up to the whole
    return figure, (
        "Map of the two input features. The black line parts the classes that the model trained on the "
        f"given data predicts; in the coloured cells, {share:g} % of the map, no admissible poisoning "
        "changes the prediction at any point; elsewhere it is open."
    )


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
