"""What the distance between a bound and the nominal value is made of."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why a bound is not the nominal value; every operation of the graph says what its planes cost."""

    MOVES = "moves"  # what poisoned samples do through all operations as they are linearised
    FLIPS = "flips"  # kinks: relu and its phase, clipping, pooling
    PRODUCTS = "products"  # bilinear terms
    CURVATURE = "curvature"  # smooth functions
    SELECTION = "selection"  # every objective has poisoned samples of its own
    START = "start box"  # what came before the window
    ROUNDING = "rounding"
