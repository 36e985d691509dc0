"""A linearised step with other slopes: the free slopes, and the planes that follow from a choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from milp_agt.bounds.linear.intercepts import HasIntercepts
from milp_agt.bounds.linear.linearized_step import LinearizedStep, SampleChunk
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.planes import FreeSlope, LinearBounds

# The place of a node in a step: its sample chunk (-1 for nodes without a sample axis) and its name.
Place = tuple[int, str]
SHARED = -1
Slopes = Mapping[Place, tuple[Tensor, ...]]


@dataclass(frozen=True)
class RowIntercepts:
    """Intercepts of planes that differ from row to row; see :class:`~.intercepts.Intercepts`.

    Attributes:
        size: (rows, [n], *shape).
        lower, upper: (rows, cases, [n], *shape).
        charge_positive, charge_all: (rows, states - 1, n, *shape), or None if no state is charged.
    """

    size: Tensor
    lower: Tensor
    upper: Tensor
    charge_positive: Tensor | None = None
    charge_all: Tensor | None = None

    @staticmethod
    def of(planes: LinearBounds, batched: bool, cases: int) -> RowIntercepts:
        size, lower, upper = planes.magnitude, planes.lower, planes.upper
        assert lower is not None
        assert upper is not None
        if not (cases == 1 and batched and max(lower.shape[1], upper.shape[1]) > 1):
            return RowIntercepts(size, lower, upper)
        shape = (-1, max(lower.shape[1], upper.shape[1]), *size.shape[1:])
        lower, upper = lower.expand(shape), upper.expand(shape)
        up, down = upper[:, :1] - upper[:, 1:], lower[:, :1] - lower[:, 1:]
        return RowIntercepts(size, lower[:, :1], upper[:, :1], down - up, up)

    def narrow(self, axis: int, index: Tensor) -> RowIntercepts:
        """The intercepts of some indices of one axis, counted from the right."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(axis, index)

        return RowIntercepts(
            self.size.index_select(axis, index),
            self.lower.index_select(axis, index),
            self.upper.index_select(axis, index),
            of(self.charge_positive),
            of(self.charge_all),
        )

    def apply(self, coefficients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Constant (rows, cases), magnitude (rows,) and charges (rows, n, states - 1) of rows."""
        magnitude = (coefficients.detach().abs() * self.size).flatten(1).sum(1)
        positive = coefficients.clamp(min=0.0).unsqueeze(1)
        constant = positive * self.lower + (coefficients.unsqueeze(1) - positive) * self.upper
        return constant.flatten(2).sum(-1), magnitude, self._charges(coefficients, positive)

    def apply_diagonal(self, coefficients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The same for one row per pair (form, sample): (forms, n, cases), (forms, n), (forms, n, ...)."""
        magnitude = (coefficients.detach().abs() * self.size).flatten(2).sum(-1)
        positive = coefficients.clamp(min=0.0).unsqueeze(1)
        constant = positive * self.lower + (coefficients.unsqueeze(1) - positive) * self.upper
        constant = constant.flatten(3).sum(-1).transpose(1, 2)
        return constant, magnitude, self._charges(coefficients, positive)

    def _charges(self, coefficients: Tensor, positive: Tensor) -> Tensor | None:
        if self.charge_positive is None or self.charge_all is None:
            return None
        charges = positive * self.charge_positive + coefficients.unsqueeze(1) * self.charge_all
        return charges.flatten(3).sum(-1).transpose(1, 2)


def pack_slopes(index: int, slopes: Slopes) -> list[Any]:
    """The slopes of a training step as plain values: its index, then each place with its tensors."""
    return [index, [[*place, list(values)] for place, values in slopes.items()]]


def unpack_slopes(plain: Sequence[Any]) -> tuple[int, Slopes]:
    """The inverse of :func:`pack_slopes`."""
    index, places = plain
    return index, {(at, name): tuple(values) for at, name, values in places}


def free_slopes(schedule: NodeOrder, relaxed: LinearizedStep) -> dict[Place, tuple[FreeSlope, ...]]:
    """The slopes of a step that may be chosen; nodes without any are left out."""
    found = {
        place: node.op.free_slopes(*inputs) for place, node, inputs in _sites(schedule, relaxed)
    }
    return {place: slopes for place, slopes in found.items() if slopes}


def with_slopes(schedule: NodeOrder, relaxed: LinearizedStep, slopes: Slopes) -> LinearizedStep:
    """The same step with planes of these slopes, each with a leading axis of rows.

    Forms that pass backward through it must have as many rows.
    """
    planes: dict[Place, LinearBounds] = {
        place: node.op.relax_with(slopes[place], *inputs)
        for place, node, inputs in _sites(schedule, relaxed)
        if place in slopes
    }
    cases = len(next(iter(relaxed.state.values())).lower)

    def changed(index: int, sample_chunk: SampleChunk) -> SampleChunk:
        own = {name: p for (at, name), p in planes.items() if at == index}
        offsets: dict[str, HasIntercepts] = {
            n: RowIntercepts.of(p, index != SHARED, cases) for n, p in own.items()
        }
        return replace(
            sample_chunk,
            planes={**sample_chunk.planes, **own},
            offsets={**sample_chunk.offsets, **offsets},
        )

    return replace(
        relaxed,
        shared=changed(SHARED, relaxed.shared),
        chunks=tuple(changed(k, f) for k, f in enumerate(relaxed.chunks)),
        cuts=(),
        composed=None,
    )


def _sites(
    schedule: NodeOrder, relaxed: LinearizedStep
) -> Iterator[tuple[Place, Node, tuple[Interval, ...]]]:
    """Every linearised node with the boxes of its inputs."""
    boxes, size = relaxed.ranges.boxes, relaxed.step.size
    batched = {node.name for node in schedule.before if node.batched}
    for index, sample_chunk in enumerate(relaxed.chunks):
        part = sample_chunk.samples
        whole = part == slice(0, size)

        def box(name: str, part: slice = part, whole: bool = whole) -> Interval:
            full = boxes[name]
            if whole or name not in batched:
                return full
            return Interval(full.lower[:, part], full.upper[:, part])

        for node in schedule.before:
            if node.name in sample_chunk.planes:
                yield (index, node.name), node, tuple(box(i) for i in node.inputs)
    known = {**boxes, **relaxed.update.boxes(relaxed.state, boxes)}
    other = (*schedule.before, *schedule.after, *relaxed.update.nodes)
    for node in (*other, *relaxed.update.projections.values()):
        if node.name in relaxed.planes:
            yield (SHARED, node.name), node, tuple(known[i] for i in node.inputs)
