"""Linear functionals of the parameters: c . theta over all reachable models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.core.option_table import KIND
from milp_agt.core.reachable import Bounds
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import InvalidInputError
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfParameters
from milp_agt.properties.witness import Witness
from milp_agt.training.inputs import ArrayLike, of_kind
from milp_agt.training.tracing import StepGraph


@dataclass(frozen=True)
class FunctionalQuestion:
    """Rows of coefficients on the trainable parameters, and what the frozen ones contribute.

    Attributes:
        coefficients: (rows, *shape) by name of the trainable parameter.
        constant: (rows,); its own rounding error is at most ``error``.
    """

    coefficients: Mapping[str, Tensor]
    constant: Tensor
    error: Tensor

    @staticmethod
    def of(
        graph: StepGraph, given: Mapping[str, ArrayLike], device: torch.device
    ) -> FunctionalQuestion:
        """From arrays by parameter name, each (*shape) for one row, or (rows, *shape); others are refused."""
        of_kind(given, Mapping, "A functional", "give coefficients by name: {'0.bias': c}")
        known = {**graph.initial, **graph.frozen}
        rows = {n: _rows(n, v, known, graph.aliases.get(n, n)) for n, v in given.items()}
        counts = {len(value) for value in rows.values()}
        if len(counts) != 1:
            raise InvalidInputError(
                "A linear functional needs coefficients with one count of rows",
                f"{sorted(counts) or 'no coefficients'}",
                "give an array of the parameter's shape, or (rows, *shape), under its name",
            )
        (count,) = counts
        constant = torch.zeros(count, dtype=torch.float64, device=device)
        coefficients = {n: constant.new_zeros(count, *v.shape) for n, v in graph.initial.items()}
        size, terms = constant.clone(), 1
        for name, value in rows.items():
            own, value = graph.aliases.get(name, name), value.to(constant)
            if own in coefficients:
                coefficients[own] = coefficients[own] + value
            else:
                products = (value * graph.frozen[own].to(constant)).flatten(1)
                constant, size = constant + products.sum(1), size + products.abs().sum(1)
                terms += products.shape[1]
        return FunctionalQuestion(coefficients, constant, gamma(2 * terms + 8) * size + TINY)

    def row(self, number: int) -> FunctionalQuestion:
        """One of the rows."""
        part = slice(number, number + 1)
        rows = {name: value[part] for name, value in self.coefficients.items()}
        return FunctionalQuestion(rows, self.constant[part], self.error[part])

    def flat(self, graph: StepGraph) -> Tensor:
        """The coefficients of one row on all trainable parameters, one after the other, (P,)."""
        return torch.cat([self.coefficients[name].flatten() for name in graph.parameters])

    def answer(self, models: ReachableModels) -> tuple[Bounds, ...]:
        """Bounds of every row: the worst over all cases."""
        box = models.bound_parameters(self.coefficients)
        lower, upper = box.lower.amin(0) + self.constant, box.upper.amax(0) + self.constant
        at_nominal = torch.zeros_like(self.constant)
        for name, value in self.coefficients.items():
            at_nominal = at_nominal + value.flatten(1) @ models.nominal[name].flatten()
        lower = lower - self.error - gamma(4) * lower.abs()
        upper = upper + self.error + gamma(4) * upper.abs()
        rows = torch.stack([lower, at_nominal + self.constant, upper], 1)
        return tuple(Bounds(*(float(v) for v in row)) for row in rows)


@dataclass(frozen=True, eq=False)
class AttackedFunctional(Bounds):
    """Bounds of a functional with the value that an attack on its threshold reached.

    Attributes:
        shown: the poisoned data of the run that shows ``reached``.
    """

    shown: Witness = field(repr=False, kw_only=True)


def functional(models: ReachableModels, given: Mapping[str, ArrayLike]) -> tuple[Bounds, ...]:
    """Bounds of every row of coefficients; see :meth:`FunctionalQuestion.of`."""
    device = models.poison.features.device
    return FunctionalQuestion.of(models.step_graph, given, device).answer(models)


def _rows(name: str, values: ArrayLike, known: Mapping[str, Tensor], own: str) -> Tensor:
    """Coefficients on one parameter, (rows, *shape) float64; ``own``: its name in ``known``."""
    asked = f"Coefficients on parameter '{name}'"
    if own not in known:
        raise InvalidInputError(
            f"{asked} were given",
            f"parameters {sorted(known)}",
            "use the names of model.state_dict()",
        )
    host = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        array = np.asarray(host, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{asked} must be numbers", str(error), "give an array") from None
    shape, finite = tuple(known[own].shape), bool(np.isfinite(array).all())
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or array.ndim != len(shape) + 1 or not finite:
        raise InvalidInputError(
            f"{asked} need shape {shape}, or a row axis before it",
            f"shape {array.shape}" + ("" if finite else " with NaN or infinity"),
            "match the shape of the parameter with finite numbers",
        )
    return torch.from_numpy(array.copy())


@PROPERTIES.register
class FunctionalTable(TableOfParameters):
    """One linear functional of the parameters."""

    what = "linear functionals of the parameters"
    kind: Literal["functional"] = Field(description=KIND)
    coefficients: Annotated[dict[str, list[Any]], Field(min_length=1)] = Field(
        description="Coefficients by the name of a parameter, as nested lists of its shape; parameters "
        "that are left out have none."
    )

    @property
    def detail(self) -> str:
        return ", ".join(self.coefficients)

    def bounds(self, models: ReachableModels) -> Bounds:
        answers = functional(models, self.arrays())
        if len(answers) != 1:
            raise InvalidInputError(
                "A property is one functional",
                f"{len(answers)} rows of coefficients",
                "split it into one property for each row",
            )
        return answers[0]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The coefficients by the name of the parameter."""
        return {name: _array(name, values) for name, values in self.coefficients.items()}


def _array(name: str, values: list[Any]) -> npt.NDArray[Any]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"coefficients of '{name}' are nested lists of numbers",
            str(error),
            "match the shape of the parameter",
        ) from None
