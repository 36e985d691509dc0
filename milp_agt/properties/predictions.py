"""Which outputs can the reachable models give at a test point?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from milp_agt.bounds.program import OutputForms
from milp_agt.core.interval import as_array
from milp_agt.properties.models import ReachableModels

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The outputs of every reachable model lie in ``[lower, upper]``, (points, outputs) each.

    ``nominal`` are the outputs of the model that was trained on the data as given.
    """

    lower: Array
    nominal: Array
    upper: Array

    @staticmethod
    def of(models: ReachableModels, features: Tensor) -> Predictions:
        """For test features (n, *shape)."""
        forms = OutputForms.of_outputs(features, models.step_graph.outputs)
        box, nominal = models.bound(forms).hull(), models.outputs(features)
        return Predictions(as_array(box.lower), as_array(nominal), as_array(box.upper))

    def largest_error(self, targets: npt.ArrayLike) -> Array:
        """The largest distance of any reachable model from each target, (points, outputs)."""
        true = np.asarray(targets, dtype=np.float64).reshape(self.nominal.shape)
        return np.maximum(np.abs(self.upper - true), np.abs(self.lower - true))
