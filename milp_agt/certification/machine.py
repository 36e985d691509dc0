"""How fast this machine is, beside the one that the predictions of the plan were measured on."""

from __future__ import annotations

import math
from functools import cache
from time import perf_counter

import torch

from milp_agt.core.torch_modes import threads

# Seconds of the work below on one core of the machine on which the speeds in ``sizes`` were measured.
REFERENCE = 1.85e-3
REPEATED = 5


@cache
def slowness() -> float:
    """Seconds here for one second of a prediction: 1, 2, 4 and so on, so coarse that it stays the same.

    Measured once in a process, in some 30 ms, on one thread, by what bounds are made of: products of matrices
    and operations on single elements. The fastest of a few trials counts, so that other work on the machine
    matters little. Only what depends on a time limit is scaled by it; without one, the same run is bounded in
    the same way on every machine.
    """
    with threads(1):
        _work()
        best = min(_work() for _ in range(REPEATED))
    return float(2.0 ** max(0, round(math.log2(best / REFERENCE))))


def _work() -> float:
    """Seconds of a product of matrices and of a pass over intervals."""
    square = torch.full((192, 192), 0.5, dtype=torch.float64)
    low, high = torch.full((2, 2**16), -0.5, dtype=torch.float64)
    begun = perf_counter()
    for _ in range(2):
        square = square @ square / 192
        low, high = (
            torch.minimum(low * high, low * low),
            torch.maximum(high * high, high.clamp(min=0)),
        )
    return perf_counter() - begun
