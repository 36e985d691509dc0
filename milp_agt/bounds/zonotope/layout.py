"""Where the tensors of a state lie among the coordinates of a zonotope; what an optimiser does to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.step import State, Step, velocity_of
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.formulations.optimiser_step import OptimiserStep
from milp_agt.formulations.run_rounding import RunRounding


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a state lies among its coordinates: parameters first, then velocities."""

    slices: Mapping[str, slice]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: int

    @property
    def size(self) -> int:
        """How many coordinates there are, velocities included."""
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes.values())

    @staticmethod
    def of(state: State, parameters: Sequence[str]) -> Layout:
        """That of boxes (1, *shape), parameters before velocities."""
        shapes = {name: tuple(box.lower.shape[1:]) for name, box in state.items()}
        slices, at, inner = {}, 0, 0
        for name, shape in shapes.items():
            size = int(torch.Size(shape).numel())
            slices[name] = slice(at, at + size)
            at += size
            if name in parameters:
                inner = at
        return Layout(slices, shapes, inner)

    @staticmethod
    def box(tensors: Iterable[Interval]) -> Interval:
        """The inverse of :meth:`boxes`: all coordinates of these boxes, one after the other."""
        lows, highs = zip(
            *((b.lower[0].flatten(), b.upper[0].flatten()) for b in tensors), strict=True
        )
        return Interval(torch.cat(lows), torch.cat(highs))

    def boxes(self, box: Interval) -> State:
        """A box of all coordinates as boxes of tensors, (1, *shape)."""
        return {
            name: Interval(
                box.lower[part].reshape(1, *self.shapes[name]),
                box.upper[part].reshape(1, *self.shapes[name]),
            )
            for name, part in self.slices.items()
        }


@dataclass(frozen=True)
class AffineRule:
    """``x' = carry x + scale g[place] + penalty sign(x)``, with what the run rounds; P coordinates.

    Attributes:
        carry: (P, P).
        scale, place, penalty: (P,).
        rounding: sizes of the terms of x', to which rounding in float64 is charged, (..., P).
        reduced: what a run of reduced precision rounds, (..., P).
    """

    carry: Tensor
    scale: Tensor
    place: Tensor
    penalty: Tensor
    rounding: Tensor
    reduced: Tensor

    @staticmethod
    def _empty(like: Tensor) -> AffineRule:
        zero = torch.zeros_like
        size = like.shape[-1]
        flat = like.new_zeros(size)
        place = torch.zeros(size, dtype=torch.int64, device=like.device)
        carry = like.new_zeros(size, size)
        return AffineRule(carry, flat, place, zero(flat), zero(like), zero(like))

    @staticmethod
    def mean(layout: Layout, count: float, sizes: Tensor) -> AffineRule:
        """The mean gradients, of terms of these sizes, in place of parameters; 0 in place of velocities."""
        rule, used = AffineRule._empty(sizes.new_zeros(layout.size)), layout.parameters
        rule.scale[:used] = 1.0 / count
        rule.place[:used] = torch.arange(used, device=rule.place.device)
        rule.rounding[:used] = sizes / count
        return rule

    @staticmethod
    def of(
        layout: Layout,
        step: Step,
        parameters: Iterable[str],
        magnitude: Tensor,
        sizes: Tensor,
        precision: Precision = FLOAT64,
    ) -> AffineRule:
        """The step for some parameters and their velocities.

        Args:
            magnitude: sizes of the terms of the coordinates, (..., P).
            sizes: those of the summed gradients of the parameters, (..., p).
        """
        rule = AffineRule._empty(magnitude)
        for name in parameters:
            part = layout.slices[name]
            own = torch.arange(part.start, part.stop, device=magnitude.device)
            update = step.of(name)
            targets = [(own, update.theta_scalars, update.theta_sizes)]
            sources = [own]
            if step.has_velocity:
                velocity = layout.slices[velocity_of(name)]
                at = torch.arange(velocity.start, velocity.stop, device=own.device)
                sources.append(at)
                targets.append((at, update.velocity_scalars, update.velocity_sizes))
            for at, scalars, of_terms in targets:
                for source, share, term in zip(sources, scalars, of_terms, strict=False):
                    rule.carry[at, source] += share
                    rule.rounding[..., at] += abs(term) * magnitude[..., source]
                rule.scale[at] = scalars[len(sources)]
                rule.place[at] = own
                rule.rounding[..., at] += abs(of_terms[len(sources)]) * sizes[..., own]
                if step.update.l1:
                    rule.penalty[at] = scalars[-1]
                    rule.rounding[..., at] += abs(of_terms[-1])
                if precision == FLOAT64:
                    continue
                read = [*(magnitude[..., source] for source in sources), sizes[..., own]]
                read += [torch.ones_like(read[0])] * (len(scalars) - len(read))
                kept = 1.0 if at is own else 0.0
                rule.reduced[..., at] = _reduced(precision, scalars, of_terms, kept, read)
        return rule


def _reduced(
    precision: Precision,
    scalars: tuple[float, ...],
    of_terms: tuple[float, ...],
    kept: float,
    sizes: Sequence[Tensor],
) -> Tensor:
    """What a run of reduced precision rounds in one tensor of the next state, from the sizes of what it
    reads: the old state, the sums of the gradients, the sign."""
    rounding = RunRounding(OptimiserStep.of(scalars, of_terms, 1, kept), precision)
    boxes = [Interval(-size[None], size[None]) for size in sizes]
    return rounding.error(boxes[0], *boxes)[0]
