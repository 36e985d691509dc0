"""Backward bound propagation through the nodes of a batch: coefficients pass from each node to its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import OnMoves
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.linearized_step import SampleChunk, per_sample
from milp_agt.core.graph import BackwardSlopes, NarrowableSlopes, Node
from milp_agt.core.interval import Interval
from milp_agt.formulations.einsum import EndPlanes
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION

# Coefficients are narrowed to a strip of at most 1 / NARROW of the extent.
NARROW = 2


@dataclass(frozen=True, eq=False)
class Strip:
    """Where coefficients can be nonzero: at ``index`` of ``extent`` along ``axis`` (from the right)."""

    axis: int
    index: Tensor
    extent: int

    @staticmethod
    def of(coefficients: Tensor) -> Strip | None:
        """The narrowest strip that contains all coefficients, (rows, *shape); None if none is narrow."""
        best: Strip | None = None
        used = (coefficients != 0).any(0)
        for axis in range(-used.dim(), 0):
            others = [a for a in range(-used.dim(), 0) if a != axis]
            index = (used.any(others) if others else used).nonzero()[:, 0]
            extent = used.shape[axis]
            narrow = NARROW * len(index) <= extent
            if narrow and (best is None or len(index) * best.extent < len(best.index) * extent):
                best = Strip(axis, index, extent)
        return best

    def cut(self, coefficients: Tensor) -> Tensor:
        return coefficients.index_select(self.axis, self.index)

    def fill(self, coefficients: Tensor) -> Tensor:
        """The full coefficients, with zeros outside the strip."""
        shape = list(coefficients.shape)
        shape[self.axis] = self.extent
        return coefficients.new_zeros(shape).index_copy_(
            coefficients.dim() + self.axis, self.index, coefficients
        )

    def along(self, axis: int | None) -> Strip | None:
        return None if axis is None else Strip(axis, self.index, self.extent)

    def fits(self, other: Strip | None) -> bool:
        return other is not None and other.axis == self.axis and other.index is self.index


class BackwardPass:
    """The state of one backward pass through the nodes of one sample chunk."""

    def __init__(
        self,
        sample_chunk: SampleChunk,
        constant: Tensor,
        magnitude: Tensor,
        pending: dict[str, Tensor],
        strips: Mapping[str, Strip] | None = None,
        diagonal: bool = False,
    ) -> None:
        self.sample_chunk, self.diagonal = sample_chunk, diagonal
        self.constant, self.magnitude = constant, magnitude
        self.pending, self.strips = pending, dict(strips or {})
        self._moves: dict[str, Tensor] = {}

    @property
    def moves(self) -> OnMoves:
        """What was found so far on the moves of the samples."""
        return OnMoves(**self._moves)

    def replace(self, node: Node) -> None:
        """Replace a node by its planes: its coefficients pass on to its inputs."""
        if node.name not in self.pending:
            return
        coefficient, strip = self.pending.pop(node.name), self.strips.pop(node.name, None)
        planes = self.sample_chunk.planes.get(node.name)
        narrow = None
        if strip is not None:
            narrow = _narrowed(planes, strip)
        if strip is not None and narrow is None:
            coefficient, strip = strip.fill(coefficient), None
        if planes is None:
            self._leaf(node, coefficient)
            return
        offsets = self.sample_chunk.offsets[node.name]
        axes: tuple[int | None, ...] = (None,) * len(node.inputs)
        if strip is not None and narrow is not None:
            assert not isinstance(offsets, EndPlanes)  # these are never narrow
            offsets = offsets.narrow(strip.axis, strip.index)
            planes, axes = narrow
        apply = offsets.apply_diagonal if self.diagonal else offsets.apply
        constant, magnitude, charges = apply(coefficient)
        self.magnitude = self.magnitude + magnitude
        if constant is not None:
            self.constant = self.constant + constant
        if charges is not None:
            self._add_moves("charges", charges)
        on_inputs = planes.backward(coefficient, self.diagonal)
        for name, own, axis in zip(node.inputs, on_inputs, axes, strict=True):
            if own is not None:
                self._add_coefficients(name, own, None if strip is None else strip.along(axis))

    def strip(self) -> None:
        """Drop coefficients that are all 0, and narrow sparse ones to strips."""
        found = {name: on for name, on in self.pending.items() if bool((on != 0).any())}
        self.strips = _shared({n: s for n, on in found.items() if (s := Strip.of(on)) is not None})
        self.pending = {
            name: self.strips[name].cut(on) if name in self.strips else on
            for name, on in found.items()
        }

    def _add_moves(self, name: str, more: Tensor) -> None:
        self._moves[name] = self._moves[name] + more if name in self._moves else more

    def _add_coefficients(self, name: str, coefficient: Tensor, strip: Strip | None) -> None:
        """Add coefficients on a node."""
        known, before = self.pending.get(name), self.strips.pop(name, None)
        if known is not None and not (strip is not None and strip.fits(before)):
            known = before.fill(known) if before else known
            coefficient = strip.fill(coefficient) if strip else coefficient
            strip = None
        self.pending[name] = coefficient if known is None else known + coefficient
        if strip is not None:
            self.strips[name] = strip

    def coefficients(self) -> dict[str, Tensor]:
        """The remaining coefficients, with zeros outside their strips."""
        return {
            name: self.strips[name].fill(c) if name in self.strips else c
            for name, c in self.pending.items()
        }

    def _leaf(self, node: Node, coefficient: Tensor) -> None:
        if node.name in (FEATURES, LABELS):
            self._add_moves(node.name, self._from_nominal(coefficient, node.name))
        elif node.name != SELECTION:  # planes have slope 0 on it
            value = node.op.value()
            axes = coefficient.dim() - value.dim()
            terms = (coefficient * value).flatten(axes)
            self.constant = self.constant + terms.sum(-1, keepdim=True)
            self.magnitude = self.magnitude + terms.abs().sum(-1)

    def _from_nominal(self, coefficient: Tensor, leaf: str) -> Tensor:
        """Add the nominal value to the constant; returns the coefficients on the moves."""
        nominal, size = self.sample_chunk.nominal[leaf], self.sample_chunk.leaves[leaf]
        full = coefficient.expand(-1, *nominal.shape[1:])
        if self.diagonal:
            self.constant = self.constant + per_sample(full, nominal)
            self.magnitude = self.magnitude + (full.abs() * size).flatten(2).sum(-1)
        else:
            flat = full.flatten(1)
            self.constant = self.constant + flat @ nominal.flatten(1).T
            self.magnitude = self.magnitude + flat.abs() @ size.flatten()
        return full


def _shared(strips: Mapping[str, Strip]) -> dict[str, Strip]:
    """The same strips; equal ones share one index tensor, so that they fit where nodes meet."""
    shared: dict[str, Strip] = {}
    for name, strip in strips.items():
        known = (s for s in shared.values() if s.extent == strip.extent)
        same = next((s for s in known if torch.equal(s.index, strip.index)), strip)
        shared[name] = Strip(strip.axis, same.index, strip.extent)
    return shared


def _narrowed(
    planes: BackwardSlopes | None, strip: Strip
) -> tuple[BackwardSlopes, tuple[int | None, ...]] | None:
    # Tested by attribute, because isinstance with a protocol is slow.
    own: NarrowableSlopes | None = planes if hasattr(planes, "narrow") else None  # type: ignore[assignment]
    return None if own is None else own.narrow(strip.axis, strip.index)


@dataclass
class SampleForms:
    """Lower bounds of quantities of single samples, one row for each pair (form, sample).

    ``(form, i)`` is at least ``coefficients . state + constant + moves of sample i - charge``, where
    moves and charge count only if sample i is poisoned.

    Attributes:
        coefficients: on the parameters, (forms, n, *shape).
        constant: for each case, (forms, n, cases or 1).
        magnitude: (forms, n).
        moves: of the sample itself, (forms, n, ...).
        operations: as in :class:`Forms`.
    """

    coefficients: dict[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    moves: OnMoves
    operations: float

    def rows(self, part: Tensor, state: Mapping[str, Interval]) -> Forms:
        """The rows with flat indices ``part`` over (forms, n), as forms on a state."""

        def on(name: str, box: Interval) -> Tensor:
            own = self.coefficients.get(name)
            if own is None:
                return box.lower.new_zeros(len(part), *box.lower.shape[1:])
            return own.flatten(0, 1)[part]

        return Forms(
            {name: on(name, box) for name, box in state.items()},
            self.constant.flatten(0, 1)[part],
            self.magnitude.flatten()[part],
            self.operations,
        )

    def moves_of(self, part: Tensor, at: Tensor, samples: int) -> OnMoves:
        """The moves of rows ``part``, (rows, samples, ...).

        Row r belongs to the sample at position ``at[r]`` of a batch of ``samples``.
        """

        def spread(tensor: Tensor) -> Tensor:
            picked = tensor.flatten(0, 1)[part]
            full = picked.new_zeros(len(part), samples, *picked.shape[1:])
            full[torch.arange(len(part)), at] = picked
            return full

        return self.moves.map(spread)


def sample_forms(
    nodes: Sequence[Node], sample_chunk: SampleChunk, target: str, coefficients: Tensor
) -> SampleForms:
    """Propagate forms of one node backward to the parameters, for every sample separately.

    Args:
        nodes: nodes with a sample axis up to the target, in topological order, with their planes in
            ``sample_chunk``.
        target: the node whose forms are propagated.
        coefficients: on the target, (forms, n, *shape).
    """
    zero = coefficients.new_zeros(coefficients.shape[:2])
    backward = BackwardPass(
        sample_chunk, zero.unsqueeze(-1), zero, {target: coefficients}, diagonal=True
    )
    for node in reversed(nodes):
        backward.replace(node)
    largest = max(node.signature.size for node in nodes)
    return SampleForms(
        backward.pending,
        backward.constant,
        backward.magnitude,
        backward.moves,
        2.0 * largest + 16.0 * len(nodes) + 64.0,
    )
