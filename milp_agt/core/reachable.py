"""Reachable sets, bounds of quantities, and records of steps, as numpy arrays for the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError, SoundnessError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """A certified interval for one quantity, with its value in the nominal run.

    Guarantee: for every admissible poisoning the quantity lies in [lower, upper].

    ``reached`` is the worst value that a real training run on admissible data shows, the other side of the
    bound that it stands for; None where nothing was attacked. ``limit_reached`` says whether the time of the
    question ended before all was bounded and attacked.

    Raises:
        SoundnessError: a NaN, or a nominal or reached value outside the interval.
    """

    lower: float
    nominal: float
    upper: float
    reached: float | None = field(default=None, kw_only=True)
    limit_reached: bool = field(default=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.reached is not None and not self.lower <= self.reached <= self.upper:
            raise SoundnessError(
                "What an attack reached must lie within its certified bounds",
                f"{self.reached} in [{self.lower}, {self.upper}]",
                "do not use this certificate; please report this run",
            )
        if math.isnan(self.nominal) or not self.lower <= self.nominal <= self.upper:
            raise SoundnessError(
                "The nominal value must lie within its certified bounds",
                f"{self.nominal} in [{self.lower}, {self.upper}]",
                "please report this run",
            )


@dataclass(frozen=True)
class ReachableSet:
    """A box that contains the parameters of every admissible training run, float64.

    Attributes:
        lower, upper: ends by the names of ``model.state_dict()``, shapes as there. Frozen parameters
            have boxes of width zero; all names of a shared parameter have the same box.
        nominal: the parameters of the run on the data as given.
        trainable: names that count in the widths (each shared parameter once).
    """

    lower: Mapping[str, Array]
    upper: Mapping[str, Array]
    nominal: Mapping[str, Array]
    trainable: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name, value in self.nominal.items():
            low, high = self.lower[name], self.upper[name]
            if not ((low <= value) & (value <= high)).all():
                raise SoundnessError(
                    f"The nominal value of '{name}' must lie within its box",
                    f"a distance of {np.nanmax(np.maximum(low - value, value - high)):.3e}",
                    "please report this run",
                )

    @property
    def widths(self) -> Array:
        """Widths of all trainable parameters, concatenated."""
        return np.concatenate([(self.upper[n] - self.lower[n]).reshape(-1) for n in self.trainable])

    @property
    def mean_width(self) -> float:
        """Mean of :attr:`widths`: the number by which relaxations are compared."""
        return float(self.widths.mean())

    @property
    def max_width(self) -> float:
        """Largest of :attr:`widths`."""
        return float(self.widths.max())

    @property
    def mean_size(self) -> float:
        """Mean of |theta| over the trainable parameters of the nominal run: the scale of widths."""
        sizes = [np.abs(self.nominal[n]).reshape(-1) for n in self.trainable]
        return float(np.concatenate(sizes).mean())

    def contains(self, state_dict: Mapping[str, Any]) -> bool:
        """True if the parameters lie in the box; no tolerance is needed.

        Raises:
            InvalidInputError: a missing parameter or a wrong shape.
        """
        if not isinstance(state_dict, Mapping):
            raise InvalidInputError(
                "A model is looked for in the reachable set by its state_dict()",
                f"{type(state_dict).__name__} {state_dict!r:.60}",
                "give model.state_dict()",
            )
        remedy, inside = "pass the state_dict() of the certified architecture", True
        for name, low in self.lower.items():
            if name not in state_dict:
                asked = f"A model with parameter '{name}' is needed"
                raise InvalidInputError(asked, f"parameters {sorted(state_dict)}", remedy)
            value = state_dict[name]
            array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            if array.shape != low.shape:
                asked = f"Parameter '{name}' needs shape {low.shape}"
                raise InvalidInputError(asked, f"shape {array.shape}", remedy)
            inside &= bool(((low <= array) & (array <= self.upper[name])).all())
        return inside


@dataclass(frozen=True)
class StepRecord:
    """The record of one training step.

    Attributes:
        step: number of finished steps.
        mean_width, max_width: of the parameter box.
        seconds: wall-clock time of the step, all chains together.
        relaxation: the tightest level actually used.
        adversary: the kind of adversary covered, e.g. "static, dataset".
        batch: number of samples in the batch.
        chains: mean width after each level, loosest first.
        program: columns, rows, solves and limits of the program of this step; None
            without a program.
    """

    step: int
    mean_width: float
    max_width: float
    seconds: float
    relaxation: str
    adversary: str
    batch: int
    chains: Mapping[str, float]
    program: Mapping[str, int] | None = None
