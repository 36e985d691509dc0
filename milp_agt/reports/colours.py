"""Colours of the figures: those of Okabe and Ito (*Color Universal Design*, 2008), which colour-blind
people can tell apart. Lines differ by marker and dash as well, so that a grey print reads the same.
"""

from __future__ import annotations

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
CLASSES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, BLACK)
LINES = ((ORANGE, "o", "--"), (BLUE, "s", "-"), (GREEN, "^", "-."), (PURPLE, "D", ":"))
MARKERS = "os^DvP*X"
