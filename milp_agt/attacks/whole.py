"""Attacks on whole samples as moves of samples: what there is to choose when they come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.sets import Box, MoveSet, Vertices
from milp_agt.training.exchanged import with_absences
from milp_agt.training.tracing import StepGraph

# New samples lie within the data's largest distance from their middle, times this. They may be
# anything; clipping makes of farther ones only other directions of the same length.
REACH = 16.0


@dataclass(frozen=True)
class Exchanged:
    """A threat to whole samples as one to a data set whose samples move, come or go.

    Attributes:
        step_graph: one in which samples may be absent, where any may.
        poison: the moves; samples that may be inserted stand behind the others.
        batches: with the places of inserted samples behind each.
        present: which samples are there to begin with, (N,), 1 or 0: a poisoned sample is there if it
            was not, and the other way round. None: samples only move.
        middle: of the features, around which new samples lie, (*shape); None if there are none.
    """

    step_graph: StepGraph
    poison: Poison
    batches: tuple[Tensor, ...]
    present: Tensor | None
    middle: Tensor | None = None

    @staticmethod
    def of(step_graph: StepGraph, poison: Poison, batches: Sequence[Tensor]) -> Exchanged:
        """The same threat, or a part of it that can be searched: see :data:`REACH`."""
        whole, order = poison.whole, tuple(batches)
        if whole is None:
            return Exchanged(step_graph, poison, order, None)
        count = len(poison.features)
        present = torch.ones(count, dtype=torch.float64, device=poison.features.device)
        if whole is Whole.REMOVED:
            graph = with_absences(step_graph.to(present.device))
            return Exchanged(graph, replace(poison, whole=None), order, present)
        middle = 0.5 * (poison.features.amin(0) + poison.features.amax(0))
        if whole is Whole.SUBSTITUTED:
            return Exchanged(step_graph, _movable(step_graph, poison), order, None, middle)
        places = torch.arange(count, count + poison.budget, device=present.device)
        more = _with_places(poison, middle)
        return Exchanged(
            with_absences(step_graph.to(present.device)),
            _movable(step_graph, more),
            tuple(torch.cat([batch, places]) for batch in order),
            torch.cat([present, present.new_zeros(poison.budget)]),
            middle,
        )


def _with_places(poison: Poison, middle: Tensor) -> Poison:
    """The data with places for as many samples as may be inserted; these alone are open."""

    def extended(values: Tensor, new: Tensor) -> Tensor:
        return torch.cat([values, new.expand(poison.budget, *values.shape[1:])])

    closed = torch.zeros_like(poison.open)
    return replace(
        poison,
        features=extended(poison.features, middle),
        labels=extended(poison.labels, poison.labels[:1]),
        open=torch.cat([closed, closed.new_ones(poison.budget)]),
    )


def _movable(step_graph: StepGraph, poison: Poison) -> Poison:
    """Open samples may become any others within reach, with any label."""
    loss, labels = step_graph.loss, poison.labels
    moves: MoveSet
    if loss.is_classification:
        vertices = loss.vertices(step_graph.outputs).to(labels)
        moves = Vertices(vertices[None] - labels[:, None])
    else:
        moves = _within_reach(labels)
    return replace(
        poison,
        feature_moves=_within_reach(poison.features.flatten(1)).only(poison.open),
        label_moves=moves.only(poison.open),
        whole=None,
    )


def _within_reach(values: Tensor) -> Box:
    """Moves of (N, size) into the box around all values, stretched from its middle."""
    low, high = values.amin(0), values.amax(0)
    middle = 0.5 * (low + high)
    reach = REACH * (high - middle).clamp(min=1e-3)
    return Box(middle - reach - values, middle + reach - values)
