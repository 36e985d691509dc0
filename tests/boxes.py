"""Reachable sets side by side, and runs that are cut off and taken up again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import milp_agt as agt
from milp_agt.core.reachable import ReachableSet


def assert_same(
    one: ReachableSet, other: ReachableSet, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Both have the same ends and the same nominal run, to the last bit unless a tolerance is given."""
    for end in ("lower", "nominal", "upper"):
        own, others = getattr(one, end), getattr(other, end)
        assert own.keys() == others.keys()
        for name, value in own.items():
            np.testing.assert_allclose(others[name], value, rtol=rtol, atol=atol, err_msg=name)


def assert_within(inner: ReachableSet, outer: ReachableSet, tolerance: float = 0.0) -> None:
    """Every box of ``inner`` lies in that of ``outer``; the tolerance is relative to the ends."""
    for name, low in outer.lower.items():
        high = outer.upper[name]
        assert (inner.lower[name] >= low - tolerance * (1 + abs(low))).all(), name
        assert (inner.upper[name] <= high + tolerance * (1 + abs(high))).all(), name


def resumed(certify: Callable[..., agt.Result], folder: Path, stop: int) -> agt.Result:
    """The run that is cut off after a step, and goes on from its checkpoint."""

    class Stopped(Exception):
        pass

    def on_step(_result: agt.Result, step: int, _steps: int) -> None:
        if step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        certify(checkpoint=folder, on_step=on_step)
    return certify(checkpoint=folder)
