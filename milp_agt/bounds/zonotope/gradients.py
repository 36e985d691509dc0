"""The summed gradients of all parameters as one vector on the generators, before the optimiser takes them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from milp_agt.bounds.zonotope.layout import Layout
from milp_agt.bounds.zonotope.pieces import Summed
from milp_agt.bounds.zonotope.state import HybridZonotope


@dataclass(frozen=True)
class Gradient:
    """The summed gradients of all parameters as one vector, (p, ...).

    Attributes:
        on_moves: (p, entries, width), an entry for each sample and part.
        on_phase, on_bend: on the flips of this step, (p, f).
        charge: on those with rows, (p, q).
        down, up: noise of each sample generator, (p, m).
    """

    centre: Tensor
    size: Tensor
    on_state: Tensor
    on_moves: Tensor
    on_phase: Tensor
    on_bend: Tensor
    charge: Tensor
    below: Tensor
    above: Tensor
    down: Tensor
    up: Tensor

    def times(self, factor: float) -> Gradient:
        """All of it times a positive number."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Gradient(*(factor * part for part in parts))

    @staticmethod
    def of(old: HybridZonotope, layout: Layout, summed: Summed) -> Gradient:
        used, columns = layout.parameters, summed.columns
        zero = old.centre.new_zeros
        flips, batch, width = summed.flips.count, len(columns), old.samples.width
        found = Gradient(
            centre=zero(used),
            size=zero(used),
            on_state=zero(used, used),
            on_moves=zero(used, 0 if old.is_folded else batch, width),
            on_phase=zero(used, flips),
            on_bend=zero(used, flips),
            charge=zero(used, summed.flips.rows),
            below=zero(used),
            above=zero(used),
            down=zero(used, old.samples.count),
            up=zero(used, old.samples.count),
        )
        known = (columns >= 0).nonzero()[:, 0]
        for name, form in summed.gradients.items():
            at = layout.slices[name]
            found.centre[at] = form.centre.flatten()
            found.size[at] = form.size.flatten()
            if form.on_state is not None:
                found.on_state[at] = form.on_state.flatten(1).T
            if form.on_moves is not None:
                found.on_moves[at] = form.on_moves.flatten(2).permute(2, 1, 0)
            for target, part in (
                (found.on_phase, form.on_phase),
                (found.on_bend, form.on_bend),
                (found.charge, form.charge),
            ):
                target[at] = part.flatten(1).T
            found.below[at] = -form.base.lower.flatten()
            found.above[at] = form.base.upper.flatten()
            low, high = (end.flatten(1).T for end in (-form.charges.lower, form.charges.upper))
            found.down[at] = _in_columns(low, columns, known, old.samples.count)
            found.up[at] = _in_columns(high, columns, known, old.samples.count)
        return found


def _in_columns(values: Tensor, columns: Tensor, known: Tensor, count: int) -> Tensor:
    """Numbers of the samples of a batch, (p, n), at their generators, (p, m)."""
    out = values.new_zeros(len(values), count)
    out[:, columns[known]] = values[:, known]
    return out
