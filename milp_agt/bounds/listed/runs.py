"""Training on every data set of a list at once, each run with a bound of its rounding.

The run of the user on one of the data sets differs from the one computed here by rounding alone: both
compute the same steps in float64, each with sums in an order of its own. Dense networks carry a radius that
holds both (:mod:`milp_agt.bounds.listed.dense`); others a box, by the
interval rules of their operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.listed.choices import ListedChoices, ListedData
from milp_agt.bounds.listed.dense import ROUNDED, DenseNet, ErrorNorm, GradientBounds, Reference
from milp_agt.bounds.step import NodeOrder, State, Step, is_velocity, updated_points, velocity_of
from milp_agt.core.graph import evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.training.tracing import FEATURES, LABELS, LOSS_GRADIENT, SELECTION, StepGraph
from milp_agt.training.training import UpdateRule

# Elements of nodes of a batch that are computed at once: few enough for a processor's cache.
ELEMENTS_AT_ONCE = 2**20
# Most runs that get norms of their own, one after the other.
MOST_REFITTED = 16


def begin(
    plain: StepGraph,
    exchanged: StepGraph,
    choices: ListedChoices,
    start: State,
    steps: Sequence[Step],
) -> ListedRuns:
    """All runs before the first step.

    Args:
        plain: the graph of a step.
        exchanged: the same under threats to whole samples; other threats leave it as it is.
        start: initial parameters and velocities, points, (1, *shape) each.
        steps: of the whole run.
    """
    size = sum(n.signature.size for n in plain.graph if n.batched) * max(s.size for s in steps)
    chunk = max(1, ELEMENTS_AT_ONCE // size)
    pieces = -(-len(choices) // chunk)
    bounds = [len(choices) * k // pieces for k in range(pieces + 1)]
    parts = tuple(slice(a, b) for a, b in pairwise(bounds))
    net = net_of(plain, [step.update for step in steps])
    if net is None:
        order = NodeOrder.of(exchanged)
        return BoxedRuns(choices, parts, exchanged, order, _expanded(start, len(choices)))
    centre = {name: box.lower for name, box in start.items()}
    alone = replace(choices, picked=choices.picked[:1])
    order = NodeOrder.of(plain)
    none = start[plain.parameters[0]].lower.new_zeros(1)
    plainly = (ErrorNorm(),) * (len(steps) + 1)
    first = CentredRuns(alone, (slice(0, 1),), net, order, plainly, centre, none, centre)
    norms = first.fitted_norms(steps)
    every = {name: _repeated(value, len(choices)) for name, value in centre.items()}
    radius = _repeated(none, len(choices))
    return CentredRuns(choices, parts, net, order, norms, every, radius, centre)


def net_of(plain: StepGraph, rules: Sequence[UpdateRule]) -> DenseNet | None:
    """The dense network whose runs carry a radius; None where they carry boxes."""
    return DenseNet.of(plain) if all(map(_is_plain, rules)) else None


def _is_plain(rule: UpdateRule) -> bool:
    """Whether a step is one affine map of state and gradient, the same for all parameters."""
    clipped = rule.projection is not None or rule.clip_total is not None
    return not (rule.l1 or rule.groups or clipped)


def _repeated(value: Tensor, count: int) -> Tensor:
    return value.expand(count, *value.shape[1:]).contiguous()


def _expanded(state: State, count: int) -> State:
    return {n: box.each(lambda end: _repeated(end, count)) for n, box in state.items()}


@dataclass(frozen=True)
class BoxedRuns:
    """Boxes by interval arithmetic, one for each run."""

    choices: ListedChoices
    parts: Sequence[slice]
    step_graph: StepGraph
    order: NodeOrder
    state: State

    def advanced(self, step: Step) -> Self:
        built = UpdateGraph.of(self.step_graph.gradient_nodes, step, self.step_graph.precision)
        pieces = [self._part(step, part, built) for part in self.parts]
        joined = {name: Interval.joined([piece[name] for piece in pieces]) for name in self.state}
        return replace(self, state=joined)

    def _part(self, step: Step, part: slice, built: UpdateGraph) -> State:
        adversary, state = ListedData(self.choices, part), self.boxes(part)
        ranges = bound_propagation.propagate(self.order, state, step, adversary)
        known = built.boxes(state, ranges.boxes)
        found = built.projected({name: known[node] for name, node in built.outputs.items()})
        emptied = adversary.emptied(step)
        found = {name: box.expand_states(adversary.cases) for name, box in found.items()}
        return found if emptied is None else emptied.merged(state, found)

    def boxes(self, part: slice) -> State:
        return {n: box.each(lambda end: end[part]) for n, box in self.state.items()}

    def tensors(self) -> dict[str, Tensor]:
        ends = [(f"lower:{n}", b.lower) for n, b in self.state.items()]
        return dict([*ends, *((f"upper:{n}", b.upper) for n, b in self.state.items())])

    def restored(self, tensors: Mapping[str, Tensor]) -> Self:
        state = {n: Interval(tensors[f"lower:{n}"], tensors[f"upper:{n}"]) for n in self.state}
        return replace(self, state=state)


@dataclass(frozen=True)
class CentredRuns:
    """Points, and for each a bound of its distance from the user's run in a norm of the whole state.

    Attributes:
        norms: of the state before each step and after the last.
        radius: in the norm of this time, (choices,).
        start: points before the first step, (1, *shape) each.
        finished: steps so far.
    """

    choices: ListedChoices
    parts: Sequence[slice]
    net: DenseNet
    order: NodeOrder
    norms: Sequence[ErrorNorm]
    centre: Mapping[str, Tensor]
    radius: Tensor
    start: Mapping[str, Tensor]
    finished: int = 0

    @property
    def norm(self) -> ErrorNorm:
        return self.norms[self.finished]

    def advanced(self, step: Step) -> Self:
        reference: Reference | None = None
        new = {name: torch.empty_like(value) for name, value in self.centre.items()}
        radius = torch.empty_like(self.radius)
        for part in self.parts:
            state, bounds, reference = self._evaluated(step, part, reference)
            for name, value in state.items():
                new[name][part] = value
            radius[part] = self._grown(step, part, bounds)
        return replace(self, centre=new, radius=radius, finished=self.finished + 1)

    def _evaluated(
        self, step: Step, part: slice, reference: Reference | None
    ) -> tuple[dict[str, Tensor], GradientBounds, Reference]:
        """The points after a step, and bounds of the gradients before it."""
        data, choices = step.poison, self.choices
        state = {name: value[part] for name, value in self.centre.items()}
        features = choices.features(part, step.samples)
        labels = choices.labels(part, step.samples)
        present = choices.present(part, step.samples)
        sizes, moved = (features.square().sum(-1) + 1.0).sqrt(), None
        if choices.changes.features is not None:
            moved = choices.masks(part, step.samples)
            # Room for moved features that are rounded once more.
            sizes = ((features.abs() + data.features.abs()).square().sum(-1) + 1.0).sqrt()
        leaves = {**state, FEATURES: features, LABELS: labels, SELECTION: labels[..., :1] * 0.0}
        left: Tensor | None = None
        shares = torch.full_like(labels[:1, :, 0], 1.0 / step.size)
        if present is not None:
            left = present.sum(-1)
            shares = present / left.clamp(min=1.0)[:, None]
            needed = self.net.step_graph.graph.needed_for([LOSS_GRADIENT])
            leaves |= evaluate(needed, leaves)
            leaves[LOSS_GRADIENT] = leaves[LOSS_GRADIENT] * present[..., None]
        values = self.order.values(leaves)
        if present is not None:
            values[LABELS] = labels * present[..., None]
        bounds, reference = self.net.bounds(
            state,
            values,
            sizes if sizes.dim() == 2 else sizes[None],
            shares,
            self._near(part),
            reference,
            data.features,
            moved,
        )
        graph = self.net.step_graph
        return updated_points(graph, state, values, step.update, step.size, left), bounds, reference

    def _near(self, part: slice) -> Tensor:
        return self.norm.per_parameter * self.radius[part]

    def _grown(self, step: Step, part: slice, bounds: GradientBounds) -> Tensor:
        """The radius after a step: the old one grown, and what both runs round in the step."""
        after = self.norms[self.finished + 1]
        growth = self.norm.growth(bounds.least, bounds.greatest, step.update, after)
        at = self.centre
        names = self.net.step_graph.parameters
        theta = _size([at[n][part] for n in names]) + self._near(part)
        velocity = torch.zeros_like(theta)
        if step.has_velocity:
            velocity = _size([at[velocity_of(n)][part] for n in names])
            velocity = velocity + self.norm.of_velocity * self.radius[part]
        rounded = gamma(32) * (1.0 + step.update.weight_decay)
        sizes = step.update.theta_sizes
        from_gradient = abs(step.update.theta_from[2])
        parameters = from_gradient * bounds.error + rounded * (
            sizes[0] * theta + sizes[1] * velocity + sizes[2] * bounds.size
        )
        decay, kept, new = (abs(x) for x in step.update.velocity_from)
        moving = new * bounds.error + rounded * (
            decay * theta + kept * velocity + new * bounds.size
        )
        own = after.of_sizes(parameters, moving if step.has_velocity else 0.0 * moving)
        grown = (growth * self.radius[part] + 2.0 * own) * ROUNDED + TINY
        grown = torch.where(torch.isnan(grown), torch.inf, grown)
        if not self.choices.removes:
            return grown
        emptied = self.choices.masks(part, step.samples).all(1)
        own = after.of_sizes(
            self._near(part), self.norm.of_velocity * self.radius[part] * step.has_velocity
        )
        return torch.where(emptied, own, grown)

    def fitted_norms(self, steps: Sequence[Step]) -> tuple[ErrorNorm, ...]:
        """The norms in which errors of the first run grow least."""
        runs, lows, highs = self, [], []
        for step in steps:
            state, bounds, _ = runs._evaluated(step, slice(0, 1), None)
            lows.append(bounds.least)
            highs.append(bounds.greatest)
            runs = replace(runs, centre=state)
        rules: list[UpdateRule] = [step.update for step in steps]
        return ErrorNorm.fitted(torch.cat(lows).cpu(), torch.cat(highs).cpu(), rules)

    def boxes(self, part: slice) -> State:
        near = self._near(part)
        found: State = {}
        for name, value in self.centre.items():
            off = self.norm.of_velocity * self.radius[part] if is_velocity(name) else near
            point = value[part]
            wide = off.reshape(-1, *[1] * (point.dim() - 1)) * ROUNDED
            lower, upper = point - wide, point + wide
            # A run that has diverged to NaN has the whole line for a box.
            found[name] = Interval(
                torch.nextafter(lower, lower - 1.0).nan_to_num(nan=-torch.inf, neginf=-torch.inf),
                torch.nextafter(upper, upper + 1.0).nan_to_num(nan=torch.inf, posinf=torch.inf),
            )
        return found

    def tensors(self) -> dict[str, Tensor]:
        done = torch.tensor(self.finished)
        return {**self.centre, "radius": self.radius, "finished": done}

    def restored(self, tensors: Mapping[str, Tensor]) -> Self:
        centre = {name: tensors[name] for name in self.centre}
        done = int(tensors["finished"])
        return replace(self, centre=centre, radius=tensors["radius"], finished=done)


ListedRuns = BoxedRuns | CentredRuns


def _size(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of tensors (choices, *shape) together, (choices,)."""
    return torch.stack([t.flatten(1).square().sum(1) for t in tensors]).sum(0).sqrt()


def refitted(runs: ListedRuns, steps: Sequence[Step], lost: float) -> ListedRuns:
    """All runs, where those with a larger radius than ``lost`` are computed again in norms of their own.

    The norms of :class:`CentredRuns` follow the first run; a few others may go where losses curve more.
    """
    if not isinstance(runs, CentredRuns):
        return runs
    near = runs.norm.per_parameter * runs.radius
    worst = (~(near <= lost)).nonzero()[:, 0]
    if not 0 < len(worst) <= MOST_REFITTED:
        return runs
    centre, radius = {n: v.clone() for n, v in runs.centre.items()}, runs.radius.clone()
    for choice in worst.tolist():
        alone = replace(runs.choices, picked=runs.choices.picked[choice : choice + 1])
        own = replace(
            runs,
            choices=alone,
            parts=(slice(0, 1),),
            centre=runs.start,
            radius=torch.zeros_like(radius[:1]),
            finished=0,
        )
        own = replace(own, norms=own.fitted_norms(steps))
        for step in steps:
            own = own.advanced(step)
        found = runs.norm.of_sizes(
            own.norm.per_parameter * own.radius,
            own.norm.of_velocity * own.radius * step.has_velocity,
        )
        if bool(found < radius[choice]) or not bool(torch.isfinite(radius[choice])):
            radius[choice] = found[0]
            for name, value in own.centre.items():
                centre[name][choice] = value[0]
    return replace(runs, centre=centre, radius=radius)


def hull(runs: ListedRuns) -> State:
    """One box that holds all runs, (1, *shape) each."""
    parts = [{n: box.hull() for n, box in runs.boxes(part).items()} for part in runs.parts]
    found = {name: Interval.holding(part[name] for part in parts) for name in parts[0]}
    return {name: box.each(lambda end: end.unsqueeze(0)) for name, box in found.items()}
