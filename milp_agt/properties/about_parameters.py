"""What can be asked of the parameters of a result, as methods of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from milp_agt.core.reachable import Bounds
from milp_agt.core.torch_modes import own_modes
from milp_agt.errors import InvalidInputError
from milp_agt.properties.decisions import Decider
from milp_agt.properties.functional import FunctionalQuestion, functional
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import TableOfParameters
from milp_agt.training.inputs import ArrayLike


class QuestionsAboutParameters:
    """Linear functionals of all reachable models at once.

    Attributes:
        models: the reachable models.
        decider: attacks what bounds leave open; None where nobody does.
    """

    models: ReachableModels
    decider: Decider | None

    @own_modes()
    def functional(
        self,
        coefficients: Mapping[str, ArrayLike],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> tuple[Bounds, ...]:
        """Bounds of linear functionals of the parameters, one for each row of coefficients.

        ``coefficients`` holds arrays by the names of ``model.state_dict()``: of the shape of the
        parameter for one functional, or (rows, *shape); parameters that are not named have
        coefficient 0. The forms are walked through the window, so that the bounds are at least as
        tight as the box. Rows that do not prove a threshold are attacked: their ``reached`` is the worst
        value of a real run, and ``shown`` are its data, which refute the threshold where it misses it.

        Raises:
            InvalidInputError: an unknown parameter, or a shape that does not fit; two thresholds.
        """
        if at_least is not None and at_most is not None:
            asked = "A functional has one threshold"
            raise InvalidInputError(asked, "both at_least and at_most", "ask twice")
        models = self.models.asked_now
        known = functional(models, coefficients)
        return _told(models, self._aimed(models, coefficients, known, at_least, at_most))

    @own_modes()
    def of_parameters(self, asked: TableOfParameters) -> Bounds:
        """A property of a run file about the parameters; attacked where its threshold is not proved.

        Raises:
            InvalidInputError: names or shapes that do not fit the model.
        """
        models = self.models.asked_now
        known, coefficients = asked.bounds(models), asked.arrays()
        (found,) = _told(
            models, self._aimed(models, coefficients, (known,), asked.at_least, asked.at_most)
        )
        return found

    def _aimed(
        self,
        models: ReachableModels,
        coefficients: Mapping[str, ArrayLike],
        known: tuple[Bounds, ...],
        at_least: float | None,
        at_most: float | None,
    ) -> tuple[Bounds, ...]:
        """Bounds of functionals, attacked where they do not prove a threshold, with what was reached."""
        low, found = at_least is not None, list(known)
        open_ = [
            (at_least is not None and each.lower < at_least)
            or (at_most is not None and each.upper > at_most)
            for each in known
        ]
        if self.decider is None or not any(open_):
            return known
        device = models.poison.features.device
        question = FunctionalQuestion.of(models.step_graph, coefficients, device)
        for row in np.flatnonzero(open_).tolist():
            if models.is_late():
                break
            own = question.row(row)
            found[row] = self.decider.worst_functional(own, known[row], low, models.deadline)
        return tuple(found)


def _told(models: ReachableModels, bounds: tuple[Bounds, ...]) -> tuple[Bounds, ...]:
    """The same, marked where the time of the question ended early."""
    if models.deadline is None or not models.deadline.missed:
        return bounds
    return tuple(replace(each, limit_reached=True) for each in bounds)
