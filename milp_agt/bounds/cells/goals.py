"""What a search is asked: predictions at points, or ends of linear forms of the final state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.cells.form import States
from milp_agt.bounds.cells.passing import Bounded, Run, bounded_outputs, bounded_state
from milp_agt.core.interval import Interval

# A margin of a real training counts as lost below this: far beyond what two orders of summation differ.
LOST = -1e-8
# An end is as loose as its loosest leaf: leaves count for it that are looser than this share of that one.
LEVEL = 0.6


@dataclass(frozen=True)
class Asked:
    """Forms ``coefficients . f(x) + constant`` of the outputs at points, and what must hold of them.

    Attributes:
        inputs: (n, *shape).
        coefficients: (n, forms, outputs).
        constant: (n, forms).
        of_box: from bounds of the forms, (cases, n, forms), to those of the margin of each point,
            (cases, n): the point holds in a case if its margin is above zero.
    """

    inputs: Tensor
    coefficients: Tensor
    constant: Tensor
    of_box: Callable[[Interval], Interval]

    @property
    def shape(self) -> tuple[int, int]:
        """Items and forms of each."""
        points, forms = self.constant.shape
        return points, forms

    def bounded(self, run: Run, states: States, items: Tensor) -> Bounded:
        """Bounds of the forms of some items in every cell."""
        coefficients, constant = self.coefficients[items], self.constant[items]
        return bounded_outputs(run, states, self.inputs[items], coefficients, constant)

    def values(self, run: Run, state: Mapping[str, Tensor], items: Tensor) -> Tensor:
        """The forms of some items at trained models, (B, items, forms)."""
        outputs = run.outputs(state, self.inputs[items])
        found = torch.einsum("nfo,bno->bnf", self.coefficients[items], outputs)
        return found + self.constant[items]

    def margin(self, box: Interval, reached: Tensor) -> Tensor:
        """Of all items in each case, (cases, n), from bounds (cases, n, forms); rises with lower ends, and
        settles an item above zero. ``reached`` is the least margin, or value, of real trainings, (n,)."""
        return self.of_box(box).lower

    def shifted(self, lower: Tensor, items: Tensor, reached: Tensor) -> Tensor:
        """Lower ends of some items, (B, items, forms), less what they need to be above."""
        return lower

    def unit(self, items: Tensor) -> Tensor:
        """What forms of some items are measured in, (items,)."""
        return torch.ones_like(self.constant[items, 0])

    def level(self, margins: Tensor) -> Tensor:
        """Margins below which items are split for, (n,), from those of all leaves, (leaves, n)."""
        return torch.zeros_like(margins[0])

    def urgency(self, margins: Tensor, level: Tensor) -> Tensor:
        """How soon leaves are split, (leaves,), the least first."""
        return margins.amin(1)

    def weight(self, gap: Tensor, effect: Tensor) -> Tensor:
        """What forms count that are ``gap`` short, and on which all noise in doubt acts by ``effect``."""
        return 1.0 / (gap + 0.2 * effect)

    def shown(self, values: Tensor, items: Tensor) -> Tensor:
        """What trainings show of some items, (B, items), from the forms at their models."""
        full = values.new_full((len(values), *self.shape), torch.inf)
        full[:, items] = values
        return self.of_box(Interval(full, full)).lower[:, items]

    def lost(self, reached: Tensor) -> Tensor:
        """Items that real trainings have settled the other way, (n,) bool."""
        return reached < LOST


@dataclass(frozen=True)
class Ends:
    """Lower ends of linear forms of the final state, (n, P), each up to a share of a scale.

    A leaf settles a form once its lower bound is above what a real training reached, less ``gap * scale``.

    Attributes:
        rows: coefficients on the coordinates of the state, (n, P).
        scale: of each form, (n,), > 0.
        gap: share of the scale that may stay between bounds and trainings.
    """

    rows: Tensor
    scale: Tensor
    gap: float

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), 1

    def bounded(self, run: Run, states: States, items: Tensor) -> Bounded:
        return bounded_state(run, states, self.rows[items])

    def values(self, run: Run, state: Mapping[str, Tensor], items: Tensor) -> Tensor:
        flat = torch.cat([state[name].flatten(1) for name in run.layout.slices], 1)
        return (flat @ self.rows[items].T)[..., None]

    def margin(self, box: Interval, reached: Tensor) -> Tensor:
        return self.shifted(box.lower, torch.arange(len(self.rows)), reached)[..., 0]

    def shifted(self, lower: Tensor, items: Tensor, reached: Tensor) -> Tensor:
        wanted = reached[items] - self.gap * self.scale[items]
        return (lower - wanted[:, None]) / self.scale[items][:, None]

    def unit(self, items: Tensor) -> Tensor:
        return self.scale[items]

    def level(self, margins: Tensor) -> Tensor:
        return LEVEL * margins.amin(0).clamp(max=0.0)

    def urgency(self, margins: Tensor, level: Tensor) -> Tensor:
        return (margins - level).clamp(max=0.0).sum(1)

    def weight(self, gap: Tensor, effect: Tensor) -> Tensor:
        return torch.ones_like(gap)

    def shown(self, values: Tensor, items: Tensor) -> Tensor:
        return values[..., 0]

    def lost(self, reached: Tensor) -> Tensor:
        return torch.zeros_like(reached, dtype=torch.bool)


# Items, n of them, each with as many forms, that a leaf settles once its margin is above zero.
Goal = Asked | Ends
