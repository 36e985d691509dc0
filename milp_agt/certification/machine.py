"""How fast this machine is, beside the one of the predictions, and how it frees memory."""

from __future__ import annotations

import ctypes
import math
import sys
from functools import cache
from time import perf_counter

import torch

from milp_agt.core.torch_modes import threads

# Seconds of the work below on one core of the machine on which the speeds in ``sizes`` were measured.
REFERENCE = 1.85e-3
REPEATED = 5
# Of glibc: larger blocks are handed back to the system when they are freed. Number of the option, and bytes.
MAPPED, FROM = -3, 2**17


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


@cache
def free_at_once() -> None:
    """Have freed tensors handed back to the system at once, in this process, from here on.

    By default glibc learns from the first large tensor that is freed to keep all later ones, and between
    tensors that live on it then holds as much again as is in use. That is faster, so only runs whose memory
    is scarce do without. Nothing happens with other libraries of C.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        library.mallopt(MAPPED, FROM)
