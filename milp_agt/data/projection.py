"""Principal components, fitted on samples that training does not use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError

Array = npt.NDArray[Any]

# Share of the training part that is set aside for the fit.
SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Projected:
    """What is left for training after the fit, at which positions it stood, and what to say about it."""

    x: Array
    y: Array
    x_test: Array
    kept: Array
    note: str


def project(asked: str, x: Array, y: Array, x_test: Array, components: int, seed: int) -> Projected:
    """Project features on the leading principal components of a part that is set aside.

    ``z = V^T (x - mean)`` with V the leading right singular vectors of the centred part. Samples
    are flattened first. A sign convention makes V the same on every machine: the largest entry of
    each component is positive.

    Raises:
        InvalidInputError: fewer than one component, or more than the features or the part allow.
    """
    aside, width = round(SHARE * len(x)), math.prod(x.shape[1:])
    flat, flat_test = x.reshape(len(x), width), x_test.reshape(len(x_test), width)
    limit = min(aside, width)
    if not 1 <= components <= limit:
        raise InvalidInputError(
            asked,
            f"pca = {components}, with {width} features and {aside} samples set aside",
            f"ask for 1 to {limit} components",
        )
    order = np.random.default_rng(seed).permutation(len(x))
    fit, kept = np.sort(order[:aside]), np.sort(order[aside:])
    mean = flat[fit].mean(axis=0)
    _, _, basis = np.linalg.svd(flat[fit] - mean, full_matrices=False)
    basis = basis[:components]
    rows = np.arange(components)
    basis = basis * np.sign(basis[rows, np.abs(basis).argmax(axis=1)])[:, None]
    return Projected(
        (flat[kept] - mean) @ basis.T,
        y[kept],
        (flat_test - mean) @ basis.T,
        kept,
        f"features were projected on {components} principal components, fitted on {aside} samples "
        "that were taken out of the training part and that the adversary does not touch",
    )
