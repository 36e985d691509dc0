"""The adversary's choices at points that solvers find: starts for real attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milp_agt.core.expression import Array, Expression, Index

# Samples poisoned by less than this share at every point of a group count as clean.
LEAST_GATE = 1e-6


@dataclass(frozen=True)
class Incumbents:
    """Data of one step of a window at some points of a program.

    A relaxation may poison a sample by a fraction of 1; its moves are then scaled by the same fraction.

    Attributes:
        step: index of the step in the run.
        places: positions in the batch of the samples that any of the points poisons, (m,).
        samples: their indices, (m,).
        gates: the fraction by which each is poisoned, for each quota, (points, m, quotas), 0 to 1.
        features: (points, m, *shape).
        labels: encoded, (points, m, width).
    """

    step: int
    places: Index
    samples: Index
    gates: Array
    features: Array
    labels: Array

    def rows(self, points: slice) -> Incumbents:
        """The data at some of the points."""
        values = self.gates[points], self.features[points], self.labels[points]
        return Incumbents(self.step, self.places, self.samples, *values)


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """The training data of a step of a window, as expressions over the columns of a program.

    Attributes:
        step: index of the step in the run.
        samples: indices of the batch, (n,).
        gates: the fraction by which each sample is poisoned, (n,) for each quota.
        features, labels: (n, *shape) and (n, width).
    """

    step: int
    samples: Index
    gates: tuple[Expression, ...]
    features: Expression
    labels: Expression

    def over(self, columns: Index, rest: Array) -> EncodedBatch:
        """The same over some columns; all others are fixed to their values in ``rest`` (all,)."""
        return EncodedBatch(
            self.step,
            self.samples,
            tuple(gate.over(columns, rest) for gate in self.gates),
            self.features.over(columns, rest),
            self.labels.over(columns, rest),
        )

    def at(self, points: Array) -> Incumbents:
        """The data at points (points, columns)."""
        gates = np.stack([gate.at(points) for gate in self.gates], -1)
        places = np.flatnonzero(np.any(gates > LEAST_GATE, axis=(0, 2)))
        return Incumbents(
            self.step,
            places,
            self.samples[places],
            gates[:, places].clip(0.0, 1.0),
            self._part(self.features, places).at(points),
            self._part(self.labels, places).at(points),
        )

    def _part(self, values: Expression, places: Index) -> Expression:
        index = np.arange(values.size, dtype=np.int64).reshape(values.shape)
        return values.take(index[places])


def incumbents_of(batches: Sequence[EncodedBatch], points: Sequence[Array]) -> list[Incumbents]:
    """The data of all steps of a window at some points; empty if no sample is poisoned at any."""
    if not points or not batches:
        return []
    found = [batch.at(np.stack(points)) for batch in batches]
    return found if any(own.places.size for own in found) else []
