"""Reading one step off ``torch.optim.SGD`` and ``clip_grad_norm_``, and seeing that it did what it says."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from math import isinf
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad

from milp_agt.bounds.step import clipped_total
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.recording.backward import largest_difference
from milp_agt.recording.origins import is_watched
from milp_agt.recording.passes import differs
from milp_agt.training.training import ParameterGroup, UpdateRule
from milp_agt.training.training_checks import SMALLEST_TOTAL, no_rule_for

ASKED = "A run was to be recorded with its optimiser"


def check(optimizer: object, model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that the optimiser trains.

    Raises:
        UnsupportedOperationError: another optimiser than SGD.
        InvalidInputError: parameters of another model, or one that has taken steps already.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidInputError(
            ASKED, f"an object of type {type(optimizer).__name__}", "give the torch.optim.SGD"
        )
    if type(optimizer) is not torch.optim.SGD:
        name = type(optimizer).__name__
        raise no_rule_for(name if name != "sgd" else "a subclass of SGD")
    named = {id(p) for p in model.parameters()}
    foreign = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in named]
    if foreign:
        raise InvalidInputError(
            ASKED,
            f"{len(foreign)} parameters that are not the model's",
            "give the module whose parameters() the optimiser was made of",
        )
    if any(state.get("momentum_buffer") is not None for state in optimizer.state.values()):
        raise InvalidInputError(
            ASKED,
            "momentum buffers of earlier steps",
            "begin the recording before the first step, or make a new optimiser",
        )
    return trained_names(optimizer, model)


def trained_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that an optimiser trains now; numbers for those of another model."""
    own = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    names = {id(p): name for name, p in model.named_parameters()}
    known = tuple(name for key, name in names.items() if key in own)
    return (*known, *map(str, own - names.keys()))


def rule_of(optimizer: torch.optim.SGD, model: nn.Module, is_first: bool) -> UpdateRule:
    """The step that the optimiser is about to take; torch does not dampen the first one.

    The rule is that of the first group; those that differ from it stand in its ``groups``.

    Raises:
        UnsupportedOperationError: options that have no rule.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    rules: dict[UpdateRule, list[str]] = {}
    for group in optimizer.param_groups:
        for option in ("lr", "momentum", "weight_decay", "dampening"):
            if not isinstance(group[option], (int, float)) or is_watched(group[option]):
                raise UnsupportedOperationError(
                    ASKED,
                    f"{option} = {group[option]!r:.60}, which was computed from tensors of the training",
                    "give numbers that are fixed beforehand",
                )
        if group["nesterov"] and group["dampening"]:
            raise UnsupportedOperationError(
                ASKED, f"nesterov with dampening = {group['dampening']}", "leave one of them out"
            )
        if group.get("maximize"):
            raise UnsupportedOperationError(ASKED, "maximize = True", "leave maximize out")
        rule = UpdateRule(
            rate=float(group["lr"]),
            momentum=float(group["momentum"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
            dampening=0.0 if is_first or not group["momentum"] else float(group["dampening"]),
        )
        own = [names[id(p)] for p in group["params"] if p.requires_grad]
        if own:
            rules.setdefault(rule, []).extend(own)
    first, *others = rules
    return replace(first, groups=tuple((ParameterGroup(rules[rule]), rule) for rule in others))


class Reference:
    """SGD as its documentation states it, in the precision of the parameters.

    Attributes:
        parameters: values that the next step should find.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = {name: p.detach().clone() for name, p in parameters.items()}
        self._velocity: dict[str, Tensor] = {}
        self._buffers: dict[str, tuple[Tensor, int]] = {}

    def replaced(self, velocity: Mapping[str, Tensor | None]) -> str | None:
        """A parameter whose momentum buffer is not the one that the last step left; None if all are."""
        for name, (buffer, version) in self._buffers.items():
            same = velocity.get(name) is buffer and buffer._version == version
            if not same or not torch.equal(buffer, self._velocity[name]):
                return name
        return None

    def step(self, rule: UpdateRule, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where the step should lead, and how far rounding may take it from there, as ``2 eps`` of it."""
        slack = {}
        for name, theta in self.parameters.items():
            if name not in gradients:
                slack[name] = torch.zeros_like(theta)
                continue
            own = rule.of(name)
            direction = gradient = gradients[name] + own.weight_decay * theta
            size = gradients[name].abs() + own.weight_decay * theta.abs()
            if own.momentum:
                old = self._velocity.get(name, torch.zeros_like(theta))
                kept = 1.0 - own.dampening
                velocity = self._velocity[name] = own.momentum * old + kept * gradient
                size = abs(kept) * size + own.momentum * old.abs()
                direction = gradient + own.momentum * velocity if own.nesterov else velocity
                size = size * (1.0 + own.momentum)
            self.parameters[name] = theta - own.rate * direction
            kind = torch.finfo(theta.dtype)
            slack[name] = 16 * kind.eps * (theta.abs() + own.rate * size) + kind.tiny
        return slack

    def outside(
        self, parameters: Mapping[str, Tensor], slack: Mapping[str, Tensor]
    ) -> tuple[str, float] | None:
        """The parameter that is not where it should be, and how far off; None if all are."""
        for name, expected in self.parameters.items():
            apart = (parameters[name].detach() - expected).abs()
            if not bool((apart <= slack[name]).all()):
                return name, float(apart.max())
        return None

    def accept(
        self, parameters: Mapping[str, Tensor], velocity: Mapping[str, Tensor | None]
    ) -> None:
        """Go on from the run's own values, so that rounding does not add up over the steps."""
        self.parameters = {name: p.detach().clone() for name, p in parameters.items()}
        self._buffers = {n: (v, v._version) for n, v in velocity.items() if v is not None}
        self._velocity = {n: v.detach().clone() for n, (v, _) in self._buffers.items()}


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
