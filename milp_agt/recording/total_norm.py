"""``torch.nn.utils.clip_grad_norm_`` inside a recorded loop: found while it changes the gradients."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from math import isinf
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.nn.utils import clip_grad

from milp_agt.bounds.step import clipped_total
from milp_agt.recording.backward import largest_difference
from milp_agt.recording.passes import differs
from milp_agt.recording.watched_numbers import is_watched
from milp_agt.training.training import UpdateRule
from milp_agt.training.training_checks import SMALLEST_TOTAL

_FILE = str(Path(clip_grad.__file__))


def check_clipped(
    bound: float,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor | None],
    versions: Mapping[str, int],
) -> dict[str, Tensor]:
    """The gradients that a clipping to the norm ``bound`` left: those before it, scaled down once.

    Raises:
        UnsupportedOperationError: others.
    """
    left = {n: g.detach().clone() for n, g in after.items() if g is not None}
    expected = clipped_total({n: g.double() for n, g in before.items()}, bound, 0)
    worst, apart, size = largest_difference(left, expected)
    eps = torch.finfo(next(iter(left.values())).dtype).eps
    once = all(g is not None and g._version == versions[n] + 1 for n, g in after.items())
    if len(left) < len(before) or not once or not apart <= 1024 * eps * size:
        raise differs(
            f"gradients that were clipped, and changed besides ('{worst}' is {apart:.3g} off)",
            "call clip_grad_norm_(model.parameters(), max_norm) once, right before the step",
        )
    return left


def clipping(rule: UpdateRule, bound: float) -> UpdateRule:
    """The rule of a step with this clipping; an infinite norm only measures."""
    if isinf(bound):
        return rule
    groups = tuple((group, replace(own, clip_total=bound)) for group, own in rule.groups)
    return replace(rule, clip_total=bound, groups=groups)


def running_clip(trained: Mapping[str, Tensor]) -> float | None:
    """The largest norm of the call of ``clip_grad_norm_`` that is running, if one is.

    Raises:
        UnsupportedOperationError: one of another norm, of some parameters only, or by a number that is not
            fixed beforehand.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_name, frame.f_code.co_filename) != (
        "clip_grad_norm_",
        _FILE,
    ):
        frame = frame.f_back
    if frame is None:
        return None
    given = frame.f_locals
    bound, kind, parameters = given["max_norm"], given["norm_type"], given["parameters"]
    if float(kind) != 2.0:
        raise differs(f"clip_grad_norm_ with norm_type = {kind!r}", "use the 2-norm")
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    held = {id(p) for p in parameters if p.grad is not None}
    if held != {id(p) for p in trained.values()}:
        raise differs(
            f"clip_grad_norm_ of {len(held)} of {len(trained)} trained parameters",
            "clip all of them together, clip_grad_norm_(model.parameters(), max_norm)",
        )
    plain = isinstance(bound, (int, float)) and not is_watched(bound)
    if not plain or not bound >= SMALLEST_TOTAL:
        raise differs(
            f"clip_grad_norm_ with max_norm = {bound!r:.60}",
            f"give a number >= {SMALLEST_TOTAL:g} that is fixed beforehand",
        )
    return float(bound)
