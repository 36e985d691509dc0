"""The meaning of the leading axis of boxes: separate cases, or influences that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from milp_agt.bounds.forms import Forms
from milp_agt.core.graph import Node
from milp_agt.core.influence import Influence, charge_of, worst_of
from milp_agt.core.interval import Interval
from milp_agt.core.planes import LinearBounds


class BoxAlgebra(Protocol):
    """How engines compute with boxes.

    ``samples`` are the indices of the batch in the data set, None for test points.
    """

    @property
    def exact_images_suffice(self) -> bool:
        """Whether a backward pass gains little for a node whose relaxations are exact on its box."""
        ...

    def image(self, node: Node, inputs: Sequence[Interval], samples: Tensor | None) -> Interval:
        """The box of a node from those of its inputs."""
        ...

    def relax(self, node: Node, inputs: Sequence[Interval], samples: Tensor | None) -> LinearBounds:
        """Linear bounds of a node on the boxes of its inputs."""
        ...

    def concretise(self, forms: Forms, state: Mapping[str, Interval], worst_case: Tensor) -> Tensor:
        """Lower bounds of forms over the boxes of a state, (rows, leading)."""
        ...

    def wins(self, first: Tensor, second: Tensor) -> Tensor:
        """Mask, (rows, leading or 1), of where the second of two lower bounds (rows, leading) is kept."""
        ...

    def meet(self, first: Interval, second: Interval, what: str) -> Interval:
        """A valid box of one node from two valid ones."""
        ...

    def outcome(self, bounds: Tensor) -> Tensor:
        """Lower bounds over the reachable models: (rows, leading) to (rows, cases)."""
        ...

    def hull(self, box: Interval) -> Interval:
        """One box that contains all states and cases, (1, *shape)."""
        ...

    def outer(self, box: Interval) -> Interval:
        """A box whose states or cases are each valid by themselves."""
        ...


@dataclass(frozen=True)
class SeparateBoxes:
    """Boxes of states or cases, each valid by itself."""

    exact_images_suffice = True

    def image(self, node: Node, inputs: Sequence[Interval], samples: Tensor | None) -> Interval:
        return node.op.interval(*inputs)

    def relax(self, node: Node, inputs: Sequence[Interval], samples: Tensor | None) -> LinearBounds:
        return node.op.relax(*inputs)

    def concretise(self, forms: Forms, state: Mapping[str, Interval], worst_case: Tensor) -> Tensor:
        return forms.concretise(state, worst_case)

    def wins(self, first: Tensor, second: Tensor) -> Tensor:
        return second > first

    def meet(self, first: Interval, second: Interval, what: str) -> Interval:
        return first.meet(second, what)

    def outcome(self, bounds: Tensor) -> Tensor:
        return bounds

    def hull(self, box: Interval) -> Interval:
        hull = box.hull()
        return Interval(hull.lower.unsqueeze(0), hull.upper.unsqueeze(0))

    def outer(self, box: Interval) -> Interval:
        return box


SEPARATE = SeparateBoxes()


def better(algebra: BoxAlgebra, first: Tensor, second: Tensor) -> Tensor:
    """The better of two lower bounds of each row, (rows, leading)."""
    return torch.where(algebra.wins(first, second), second, first)


@dataclass(frozen=True)
class AddedInfluences:
    """Boxes as columns of :class:`Influence`: the base, then the base moved by each sample alone.

    Attributes:
        budget: how many samples can be poisoned at once.
        column_of: the column of every sample of the data set, (N,), -1 for samples that stay clean.
    """

    budget: int
    column_of: Tensor
    exact_images_suffice = False  # products read influences of stable units, too

    @cached_property
    def columns(self) -> int:
        return int((self.column_of >= 0).sum()) + 1

    def _of(self, box: Interval, own: Tensor | None = None) -> Influence:
        return Influence.of(box.expand_states(self.columns), self.budget, own)

    def _inputs(
        self, node: Node, inputs: Sequence[Interval], samples: Tensor | None
    ) -> list[Influence]:
        own = None if samples is None else self.column_of[samples]
        return [
            self._of(box, own if batched else None)
            for box, batched in zip(inputs, node.batched_inputs, strict=True)
        ]

    def image(self, node: Node, inputs: Sequence[Interval], samples: Tensor | None) -> Interval:
        if not inputs:
            return node.op.interval()
        return node.op.influence(*self._inputs(node, inputs, samples)).columns()

    def relax(self, node: Node, inputs: Sequence[Interval], samples: Tensor | None) -> LinearBounds:
        return node.op.relax_influence(*self._inputs(node, inputs, samples))

    def concretise(self, forms: Forms, state: Mapping[str, Interval], worst_case: Tensor) -> Tensor:
        """Each column is moved by one sample; rounding must cover ``budget`` of them at once.

        If ``|v_0|`` and all ``|v_0 + d_j|`` are at most M, then ``|v_0 + sum d_j| <= (2 budget + 1) M``.
        """
        terms = sum(on[0].numel() for on in forms.coefficients.values())
        operations = (2.0 * self.budget + 1.0) * (forms.operations + terms + 64.0)
        return replace(forms, operations=operations).concretise(state, worst_case)

    def wins(self, first: Tensor, second: Tensor) -> Tensor:
        """Chosen row by row: a bound cannot mix the influences of two bounds."""
        return self.outcome(second) > self.outcome(first)

    def meet(self, first: Interval, second: Interval, what: str) -> Interval:
        """The better of two sets of influences; the meet with a box that holds for every poisoned set."""
        if len(second.lower) == 1:
            return first.meet(second, what)
        return self._of(first).better(self._of(second)).columns()

    def outcome(self, bounds: Tensor) -> Tensor:
        down = charge_of(bounds[:, :1] - bounds[:, 1:])
        bound = bounds[:, 0] - worst_of(down.T, self.budget)
        bound = torch.nextafter(bound, bound - torch.inf)
        return torch.where(torch.isnan(bound), -torch.inf, bound).unsqueeze(1)

    def hull(self, box: Interval) -> Interval:
        return self._of(box).hull()

    def outer(self, box: Interval) -> Interval:
        return self.hull(box)
