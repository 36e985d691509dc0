"""Figures of tables: a palette that all eyes and printers can tell apart, and the files they go to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from milp_agt.errors import InvalidInputError
from milp_agt.io.files import replace

# Okabe and Ito (*Color Universal Design*, 2008), which colour-blind people can tell apart; lines differ by
# marker and dash as well, for grey prints.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, BLACK = "#56B4E9", "#D55E00", "#F0E442", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, BLACK)
MARKERS = "os^DvP*X"
DASHES = ("-", "--", "-.", ":")


def write_figure(draw: Callable[[], Any], folder: Path, name: str) -> tuple[Path, ...]:
    """Save the matplotlib figure that ``draw`` makes as ``name.png`` and ``name.svg``.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InvalidInputError(
            f"The figure '{name}' is to be drawn",
            "no module matplotlib",
            "pip install 'milp_agt[plot]'",
        )
    figure = draw()
    paths = tuple(folder / f"{name}.{kind}" for kind in ("png", "svg"))
    for path in paths:
        kind = path.suffix[1:]
        replace(path, partial(figure.savefig, format=kind, dpi=150))
    return paths
