"""One pass forward through training with every flip as a generator: the steps of a hybrid zonotope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from milp_agt.bounds.step import NodeOrder, State, Step
from milp_agt.bounds.zonotope.bounds import MEMORY, Carried, Effort, StateBounds
from milp_agt.bounds.zonotope.dual import Multipliers
from milp_agt.bounds.zonotope.exchanges import unless_emptied
from milp_agt.bounds.zonotope.flips import Flips, widened
from milp_agt.bounds.zonotope.folding import most_flips, projected, sign_of, with_flips
from milp_agt.bounds.zonotope.gradients import Gradient, shortened
from milp_agt.bounds.zonotope.layout import AffineRule, Layout
from milp_agt.bounds.zonotope.pieces import Summed, summed_gradients
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.bounds.zonotope.state import AT_ONCE, HybridZonotope, Noise, fit_in, most_groups
from milp_agt.bounds.zonotope.work import Work
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.rounding import TINY, gamma
from milp_agt.threats.poison import Poison, Whole
from milp_agt.training.training import Batch

# Ranges beyond this prove nothing that intervals do not.
WILD = 1e6


@dataclass(frozen=True)
class ZonotopePass(Carried):
    """The set of states, carried through training one step after the other."""

    @staticmethod
    def begin(
        schedule: NodeOrder,
        state: State,
        parameters: Sequence[str],
        poison: Poison,
        effort: Effort | None = None,
        batches: Sequence[Batch] = (),
        restriction: Restriction = UNRESTRICTED,
        memory: int = MEMORY,
    ) -> ZonotopePass:
        """The set before the first step.

        Args:
            state: boxes of parameters, then velocities, (1, *shape) each.
            poison: moves of the whole data set.
            batches, restriction: see :meth:`SampleGenerators.of`.
            memory: bytes; samples share a piece of a step, and have generators, as far as these fit in.
        """
        layout, box = Layout.of(state, parameters), Layout.box(state.values())
        samples = SampleGenerators.of(poison, batches, restriction)
        folded = not fit_in(samples.count * samples.width * len(box.lower), memory)
        zonotope = HybridZonotope.of_box(samples.until(0), box.lower, box.upper, folded)
        effort = effort or Effort()
        bounds = StateBounds.of(zonotope, None, effort.state)
        return ZonotopePass(schedule, layout, zonotope, bounds, effort, samples, memory)

    @property
    def is_bounded(self) -> bool:
        """Whether every coordinate lies within a range that is worth going on with."""
        radius = self.bounds.radius
        return bool(torch.isfinite(radius).all()) and bool((radius <= WILD).all())

    def state(self) -> State:
        """Boxes of all tensors of the state, (1, *shape)."""
        return self.layout.boxes(self.bounds.box(self.zonotope.centre))

    def updated(self) -> State:
        """The same before the projection that the step ended with, if there was one."""
        return self.state() if self.unprojected is None else self.layout.boxes(self.unprojected)

    def advanced(self, step: Step, last: bool = False) -> ZonotopePass:
        """The set after one more step."""
        zonotope, work = self._moved(step)
        if not last:
            zonotope = zonotope.of_samples(self.samples.until(step.index + 1))
        box = None
        effort = self.effort.last if last else self.effort.state
        effort = work.steps(effort, 2 * zonotope.size, zonotope.flips)
        bounds = StateBounds.of(zonotope, self.bounds.alpha, effort)
        if zonotope.flips.rows > work.most_rows:
            kept = bounds.most_used(work.kept_rows)
            zonotope = zonotope.with_rows(kept)
            bounds = StateBounds.of(zonotope, bounds.alpha.with_rows(kept), 0)
        if zonotope.flips.limits > work.most_limits:
            kept = bounds.most_limited(work.most_limits * 4 // 5)
            zonotope = replace(zonotope, flips=zonotope.flips.with_limits(kept))
            alpha = bounds.alpha.with_limits(kept, zonotope.flips)
            bounds = StateBounds.of(zonotope, alpha, 0)
        if step.update.projection is not None:
            box = bounds.box(zonotope.centre)
            used = self.layout.parameters
            zonotope = projected(zonotope, box, used, step.update.projection)
            bounds = StateBounds.of(zonotope, bounds.alpha, effort)
        own = self.zonotope.samples.at(step)[:, 0]
        may_be_empty = step.poison.whole is Whole.REMOVED and bool((own >= 0).all())
        if may_be_empty and step.size <= step.poison.budget:
            before, after = self.bounds.box(self.zonotope.centre), bounds.box(zonotope.centre)
            zonotope = unless_emptied(zonotope, before, after, int(own[0]))
            bounds = StateBounds.of(zonotope, bounds.alpha, effort)
        return replace(self, zonotope=zonotope, bounds=bounds, unprojected=box)

    def _moved(self, step: Step) -> tuple[HybridZonotope, Work]:
        """The set after a step, not yet bounded; the forms of its nodes are gone before it is."""
        found = summed_gradients(self, step)
        return _updated(self, step, found), found.work


def _updated(before: ZonotopePass, step: Step, found: Summed) -> HybridZonotope:
    """The state after the optimiser step: affine in the old state and in the gradients."""
    gradient = Gradient.of(before.zonotope, before.layout, found)
    clip = step.update.clip_total
    if clip is not None:
        means = _after(
            before, found, gradient, AffineRule.mean(before.layout, step.count, gradient.size)
        )
        # A bound of each mean alone, without a search: what clipping makes of them is exact to first order.
        box = StateBounds.of(means, None, 0).box(means.centre)
        gradient = shortened(gradient.times(1.0 / step.count), box, clip)
    layout, precision = before.layout, before.schedule.precision
    magnitude = before.zonotope.centre.abs() + before.bounds.terms
    rule = AffineRule.of(layout, step, found.gradients, magnitude, gradient.size, precision)
    return _after(before, found, gradient, rule)


def _after(
    before: ZonotopePass, found: Summed, gradient: Gradient, rule: AffineRule
) -> HybridZonotope:
    """The set of all x' of a rule."""
    old, bounds = before.zonotope, before.bounds
    size, used, columns = old.size, before.layout.parameters, found.columns
    scale, place, penalty = rule.scale, rule.place, rule.penalty
    magnitude = old.centre.abs() + bounds.terms
    jacobian = rule.carry.clone()
    jacobian[:, :used] += scale[:, None] * gradient.on_state[place]
    sign = scale > 0
    low, high = gradient.below[place], gradient.above[place]
    down, up = gradient.down[place], gradient.up[place]
    factor = scale.abs()
    count = old.flips.count + found.flips.count
    # Rounding of the run (few operations), and of the products with the Jacobian here.
    error = gamma(64) * rule.rounding + gamma(old.operations + 8.0 * used + 128.0) * (
        jacobian.abs() @ magnitude + rule.rounding
    )
    middle, under, over = sign_of(bounds.box(old.centre), old.centre)
    rises = penalty > 0
    under, over = (
        penalty.abs() * torch.where(rises, first[place], second[place])
        for first, second in ((under, over), (over, under))
    )
    error = error + rule.reduced
    grow = 1.0 + gamma(8)
    new = Noise(
        torch.eye(size, dtype=scale.dtype, device=scale.device)[None],
        ((factor * torch.where(sign, low, high) + under) * grow + error + TINY)[None],
        ((factor * torch.where(sign, high, low) + over) * grow + error + TINY)[None],
        _grown(factor[:, None] * torch.where(sign[:, None], down, up))[None],
        _grown(factor[:, None] * torch.where(sign[:, None], up, down))[None],
        _on_new(factor, gradient.charge[place] * grow, old.flips.rows)[None],
    )
    moved = old.moved(jacobian)
    squares = old.squares
    if max(part.shape[-1] for part in (squares, gradient.squares)):
        squares = _carried_squares(old, jacobian, scale, gradient.squares[place], columns)
    known = (columns >= 0).nonzero()[:, 0]
    every = torch.arange(size, device=scale.device)
    chunk = max(1, AT_ONCE // max(1, gradient.on_moves[0].numel()))
    for part in () if old.is_folded else every.split(chunk):
        more = scale[part, None, None] * gradient.on_moves[place[part]][:, known]
        moved[part[0] : part[-1] + 1].index_add_(1, columns[known], more)
    centre = rule.carry @ old.centre + scale * gradient.centre[place] + penalty * middle[place]
    newest = HybridZonotope(
        old.samples,
        old.flips.joined(found.flips),
        centre,
        moved,
        widened(jacobian @ old.on_phase, count)
        + _on_new(scale, gradient.on_phase[place], old.flips.count),
        widened(jacobian @ old.on_bend, count)
        + _on_new(scale, gradient.on_bend[place], old.flips.count),
        new,
        squares,
        old.is_folded,
    )
    newest = with_flips(newest, most_flips(size, before.memory))
    noise = old.noise.carried(jacobian).joined(newest.noise)
    if len(noise) > most_groups(size, before.samples.count, before.memory):
        noise = noise.merged()
    return replace(newest, noise=noise)


def _grown(end: Tensor) -> Tensor:
    """An end of noise of either sign, rounded upwards."""
    return end + gamma(8) * end.abs()


def _carried_squares(
    old: HybridZonotope, jacobian: Tensor, scale: Tensor, new: Tensor, columns: Tensor
) -> Tensor:
    """The squares after a step, (P, m, width^2), with those of this step, (P, entries, width^2 or 0)."""
    shape = (old.size, old.samples.count, old.samples.width**2)
    carried = scale.new_zeros(shape)
    if old.squares.shape[-1]:
        carried = (jacobian @ old.squares.flatten(1)).reshape(shape)
    if new.shape[-1]:
        known = (columns >= 0).nonzero()[:, 0]
        carried.index_add_(1, columns[known], scale[:, None, None] * new[:, known])
    return carried


def _on_new(scale: Tensor, on_flips: Tensor, before: int) -> Tensor:
    """Coefficients on the flips of this step, (P, f), behind zeros for those before it."""
    zero = on_flips.new_zeros(len(on_flips), before)
    return torch.cat([zero, scale[:, None] * on_flips], 1)


OWN = ("centre", "on_moves", "on_phase", "on_bend", "squares")
PROVED = ("below", "above", "clean", "poisoned", "rest", "each", "terms")


def pack_forward(forward: ZonotopePass) -> dict[str, Any]:
    """Plain values; what follows from the run itself is left out."""
    zonotope = forward.zonotope
    return {
        "zonotope": {name: getattr(zonotope, name) for name in OWN},
        "flips": _plain(zonotope.flips),
        "noise": _plain(zonotope.noise),
        "bounds": {name: getattr(forward.bounds, name) for name in PROVED},
        "alpha": _plain(forward.bounds.alpha),
    }


def unpack_forward(begun: ZonotopePass, plain: Mapping[str, Any]) -> ZonotopePass:
    """What :func:`pack_forward` packed, of a run that has just begun."""
    flips = Flips(**plain["flips"])
    samples = begun.samples.first(plain["zonotope"]["on_moves"].shape[1])
    zonotope = replace(
        begun.zonotope,
        samples=samples,
        flips=flips,
        noise=Noise(**plain["noise"]),
        **plain["zonotope"],
    )
    bounds = StateBounds(flips, Multipliers(**plain["alpha"]), **plain["bounds"])
    return replace(begun, zonotope=zonotope, bounds=bounds)


def _plain(parts: Any) -> dict[str, Any]:
    return {field.name: getattr(parts, field.name) for field in fields(parts)}
