"""Moves of the label of one sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from milp_agt.core.arguments import is_at_least
from milp_agt.core.option_table import Index, Key
from milp_agt.errors import InvalidThreatModelError
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.sets import Ball, Box, MoveSet, Vertices
from milp_agt.threats.units import Lengths, Radius, Units, norm_of, radii, radius_text

LabelRadius = Annotated[
    Radius | None,
    Key(
        Lengths,
        "For a regression, the largest move of the targets: one number, one for each output, for each "
        "sample, or for both; leave it out for classes, whose labels flip.",
    ),
]
LabelNorm = Annotated[
    str | float,
    Key(
        Literal["inf", "2", "1", 2, 1],
        "For a regression, the norm of a move over the outputs of one sample.",
    ),
]
Target = Annotated[
    int | Sequence[int] | None,
    Key(
        Index | Annotated[list[Index], Field(min_length=1)],
        "Class, or classes, that labels may flip to; any unless given.",
    ),
]


@dataclass(frozen=True)
class LabelMoves:
    """Moves of the encoded label of one sample: flips of a class, or a ball around a target.

    Attributes:
        units: of the radius, and the name of the threat model.
    """

    radius: Radius | None
    norm: str | float
    target: int | Sequence[int] | None
    units: Units

    def bind(self, labels: Tensor, loss: LossFunction, mask: Tensor) -> MoveSet:
        """The moves of the samples in ``mask`` (N,). Raises InvalidThreatModelError: contradictory
        options, or options that do not fit the loss."""
        order = norm_of(self.units.name, self.norm)
        self.units.check()
        if loss.is_classification:
            return self._flips(labels, loss, order).only(mask)
        if self.target is not None or order == 0:
            raise InvalidThreatModelError(
                f"{self.units.name} for loss '{loss.key}' moves real targets",
                "norm 0" if order == 0 else f"target = {self.target}",
                "drop target=, and use norm 'inf', 1 or 2",
            )
        if self.radius is None:
            raise InvalidThreatModelError(
                f"{self.units.name} needs a finite label radius >= 0 for loss '{loss.key}'",
                "none",
                "give the largest move of a target",
            )
        given = self.units.per_sample(self.radius, tuple(labels.shape[1:]))
        radius = radii(self.units.name, given, labels, False, "output")
        radius = self.units.to_model(radius, labels, order)
        if order == math.inf:
            return Box(-radius, radius).only(mask)
        return Ball(int(order), radius, -radius, radius, False).only(mask)

    def describe(self) -> str:
        """The possible changes of a poisoned sample's label, to follow "the labels of ... "."""
        if self.radius is not None:
            order = norm_of(self.units.name, self.norm)
            where = "" if order == math.inf else f" in the norm {order:g}"
            unit, beside = self.units.words(self.radius)
            return f"moved by at most {radius_text(self.radius)}{unit}{where}{beside}"
        if self.target is None:
            return "replaced by any class"
        if isinstance(self.target, (int, np.integer)):
            return f"replaced by class {self.target}"
        return f"replaced by one of the classes {', '.join(str(t) for t in self.target)}"

    def _flips(self, labels: Tensor, loss: LossFunction, order: float) -> Vertices:
        if self.radius is not None or order != math.inf:
            raise InvalidThreatModelError(
                f"{self.units.name} with a label radius or norm is for regression",
                f"loss '{loss.key}' with radius {self.radius}, norm {self.norm!r}",
                "leave both out: labels flip to a class",
            )
        vertices = loss.vertices(labels.shape[1]).to(labels)
        if self.target is None:
            return Vertices(vertices[None] - labels[:, None])
        given: Any = self.target
        several = isinstance(given, Iterable) and not isinstance(given, str)
        wanted: list[Any] = list(given) if several else [given]
        bad = [t for t in wanted if not is_at_least(t, 0, whole=True) or t >= len(vertices)]
        if bad or not wanted or len(set(wanted)) != len(wanted):
            raise InvalidThreatModelError(
                f"{self.units.name} flips labels to classes out of 0..{len(vertices) - 1}",
                f"target = {self.target!r:.60}",
                "name a class that exists, or several distinct ones",
            )
        return Vertices(vertices[wanted][None] - labels[:, None])
