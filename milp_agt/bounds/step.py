"""A training step: its batch, its optimiser scalars, the order of its nodes, and boxes of its state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from milp_agt.core.graph import Node, evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION, StepGraph
from milp_agt.training.training import NORM_SHIFT, UpdateRule

VELOCITY = "velocity:"
State = dict[str, Interval]  # parameters by name, and velocities under velocity_of(name)


def velocity_of(parameter: str) -> str:
    """Name of the velocity of a parameter in a state."""
    return f"{VELOCITY}{parameter}"


def is_velocity(name: str) -> bool:
    """Whether a tensor of a state is a velocity."""
    return name.startswith(VELOCITY)


@dataclass(frozen=True)
class Step:
    """One training step: its samples, their admissible moves, its optimiser scalars.

    Attributes:
        index: number of the step, from 0.
        samples: indices of the batch in the data set, (n,).
        poison: admissible moves of the batch.
        update: scalars of the optimiser.
        has_velocity: True if the state holds velocities.
        divisor: of the sum of the gradients, if it is not the count of the samples.
    """

    index: int
    samples: Tensor
    poison: Poison
    update: UpdateRule
    has_velocity: bool
    divisor: float | None = None

    @staticmethod
    def of_run(
        step_graph: StepGraph,
        poison: Poison,
        index: int,
        batch: Tensor,
        update: UpdateRule,
        has_velocity: bool,
    ) -> Step:
        """A step of a run over the batch of these samples of the whole data set."""
        weight = step_graph.loss.divisor(poison.labels[batch])
        divisor = None if weight is None else float(weight)
        return Step(index, batch, poison.take(batch), update, has_velocity, divisor)

    @property
    def size(self) -> int:
        return len(self.samples)

    def of(self, name: str) -> Step:
        """The step as one parameter takes it."""
        return replace(self, update=self.update.of(name))

    @property
    def theta_scalars(self) -> tuple[float, ...]:
        """Scalars of theta, (velocity,) the summed gradient and (sign of theta) in ``theta'``."""
        return self._scalars(self.update.theta_from)

    @property
    def velocity_scalars(self) -> tuple[float, ...]:
        """Scalars of theta, velocity, the summed gradient and (sign of theta) in ``v'``."""
        return self._scalars(self.update.velocity_from)

    @property
    def theta_sizes(self) -> tuple[float, ...]:
        """Sizes of the terms of ``theta'`` before they cancel; rounding grows with them."""
        return self._sizes(self.update.theta_sizes)

    @property
    def velocity_sizes(self) -> tuple[float, ...]:
        """The same for ``v'``."""
        return self._sizes(self.update.velocity_from)

    def _sizes(self, of_mean: tuple[float, float, float]) -> tuple[float, ...]:
        # A divisor is a sum over the batch that the run rounds.
        sizes = list(self._scalars(of_mean))
        if self.divisor is not None:
            sizes[2 if self.has_velocity else 1] *= 1.0 + self.size
        return tuple(sizes)

    def _scalars(self, of_mean: tuple[float, float, float]) -> tuple[float, ...]:
        theta, velocity, gradient = of_mean
        own = (theta, velocity) if self.has_velocity else (theta,)
        penalty = (gradient * self.update.l1,) if self.update.l1 else ()
        if self.update.clip_total is not None:
            return (*own, gradient)  # the mean is clipped, and comes as it is
        return (*own, gradient / self.count, *penalty)

    @property
    def count(self) -> float:
        """By what the sum of the gradients is divided."""
        return self.divisor or self.size


@dataclass(frozen=True)
class NodeOrder:
    """The nodes of a step graph in the order in which engines visit them.

    ``sums`` are the sums over samples; ``before`` holds the nodes that depend on no sum, ``after`` those
    that depend on one and have no sample axis. ``gradients`` are the nodes of the summed gradients with
    the names of their parameters; ``precision`` is that of the run.
    """

    before: tuple[Node, ...]
    sums: tuple[Node, ...]
    after: tuple[Node, ...]
    gradients: tuple[tuple[str, Node], ...]
    precision: Precision = FLOAT64

    @staticmethod
    def of(step_graph: StepGraph) -> NodeOrder:
        nodes = step_graph.graph.needed_for(step_graph.gradients.values())
        sums = tuple(n for n in nodes if isinstance(n.op, SumSamples))
        summed = {n.name for n in sums}
        late = set(summed)
        after = []
        for node in nodes:
            if node.name not in summed and late & set(node.inputs):
                late.add(node.name)
                after.append(node)
        before = tuple(n for n in nodes if n.name not in late)
        return NodeOrder(
            before, sums, tuple(after), step_graph.gradient_nodes, step_graph.precision
        )

    @property
    def all(self) -> tuple[Node, ...]:
        return (*self.before, *self.sums, *self.after)

    @cached_property
    def batched(self) -> frozenset[str]:
        """All nodes with a sample axis."""
        return frozenset(n.name for n in self.before if n.batched)

    @cached_property
    def supports(self) -> frozenset[str]:
        """Nodes with a sample axis whose ranges the linear bounds of other nodes need."""
        read = {name for node in self.before for name in node.inputs}
        leaves = {node.name for node in self.before if not node.inputs}
        return self.batched & (read | leaves)

    @cached_property
    def summed_products(self) -> dict[str, Node]:
        """Products of each sample that only one sum reads, by the name of the sum."""
        read = Counter(name for node in self.all for name in node.inputs)
        products = {n.name: n for n in self.before if isinstance(n.op, Einsum) and n.batched}
        return {
            node.name: products[node.inputs[0]]
            for node in self.sums
            if node.inputs[0] in products and read[node.inputs[0]] == 1
        }

    @cached_property
    def outer_products(self) -> dict[str, Node]:
        """Summed products that multiply every entry of one operand with every entry of the other."""
        found = self.summed_products
        return {n: p for n, p in found.items() if isinstance(p.op, Einsum) and p.op.is_outer}

    def values(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of all nodes that the parameter gradients need; of summed products only the sums."""
        skipped = {node.name for node in self.summed_products.values()}
        values = evaluate((n for n in self.before if n.name not in skipped), leaves)
        for name, product in self.summed_products.items():
            assert isinstance(product.op, Einsum)
            values[name] = product.op.summed_value(*(values[i] for i in product.inputs))
        return evaluate((*self.sums, *self.after), values)


def step_at_points(
    step_graph: StepGraph,
    schedule: NodeOrder,
    state: Mapping[str, Tensor],
    features: Tensor,
    labels: Tensor,
    update: UpdateRule,
    present: Tensor | None = None,
) -> dict[str, Tensor]:
    """One optimiser step at points; leading axes (many attacks at once) are allowed throughout.

    ``present``, (attacks, n), is 1 for samples of the batch that are present and 0 for absent ones, on a
    graph of :func:`milp_agt.training.clipping.with_absences`: the mean is over the present samples,
    and an empty batch skips its step. None: all are present.
    """
    leaves = dict(state) | {FEATURES: features, LABELS: labels}
    absent = torch.zeros_like(labels[..., 0]) if present is None else 1.0 - present
    leaves[SELECTION] = absent.unsqueeze(-1)
    values = schedule.values(leaves)
    left = None if present is None else present.sum(-1)
    weight = step_graph.loss.divisor(labels)
    size = labels.shape[-2] if weight is None else weight
    return updated_points(step_graph, state, values, update, size, left)


def updated_points(
    step_graph: StepGraph,
    state: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    update: UpdateRule,
    size: int | Tensor,
    left: Tensor | None = None,
) -> dict[str, Tensor]:
    """The optimiser's part of a step from the ``values`` of its nodes, over a batch.

    ``size`` divides the sums over the batch: how many samples it has, or one number for each run, (runs,).
    ``left``, (attacks,): how many samples the sums of each attack are over, where not over all.
    """
    new: dict[str, Tensor] = {}
    means = {}
    for name in step_graph.parameters:
        total = values[step_graph.gradients[name]]
        if left is None:
            means[name] = total / size if isinstance(size, int) else _over(total, size)
        else:
            means[name] = total / left.clamp(min=1.0).reshape(-1, *[1] * (total.dim() - 1))
    if update.clip_total is not None:
        lead = total.dim() - len(step_graph.graph[name].shape)
        means = clipped_total(means, update.clip_total, lead)
    for name, gradient in means.items():
        if update.l1:
            gradient = gradient + update.l1 * torch.sign(state[name])
        own = update.of(name)
        gradient = gradient + own.weight_decay * state[name]
        direction = gradient
        if velocity_of(name) in state:
            kept = 1.0 - own.dampening
            velocity = own.momentum * state[velocity_of(name)] + kept * gradient
            new[velocity_of(name)] = velocity
            direction = gradient + own.momentum * velocity if own.nesterov else velocity
        new[name] = state[name] - own.rate * direction
        if update.projection is not None:
            new[name] = new[name].clamp(*update.projection)
    return new if left is None else _unless_empty(left, new, state)


def clipped_total(gradients: Mapping[str, Tensor], clip: float, lead: int) -> dict[str, Tensor]:
    """``g min(1, clip / (|g| + 1e-6))`` with the norm over all gradients, as clip_grad_norm_ does it.

    Each combination of the ``lead`` axes in front is a gradient by itself.
    """
    flat = torch.cat([g.reshape(*g.shape[:lead], -1) for g in gradients.values()], -1)
    factor = (clip / (torch.linalg.vector_norm(flat, dim=-1) + NORM_SHIFT)).clamp(max=1.0)
    return {
        name: g * factor.reshape(*factor.shape, *[1] * (g.dim() - lead))
        for name, g in gradients.items()
    }


def _over(total: Tensor, weight: Tensor) -> Tensor:
    """Totals (..., *shape) divided by one number for each attack, (...)."""
    return total / weight.reshape(*weight.shape, *[1] * (total.dim() - weight.dim()))


def _unless_empty(
    left: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The new state, or the old one where no sample is left, (attacks,)."""
    return {
        name: torch.where((left > 0).reshape(-1, *[1] * (value.dim() - 1)), value, old[name])
        for name, value in new.items()
    }


def initial_state(step_graph: StepGraph, box: Mapping[str, Interval], momentum: bool) -> State:
    """The box of theta_0, with zero velocities if there is momentum."""
    state: State = {name: box[name] for name in step_graph.parameters}
    if momentum:
        for name in step_graph.parameters:
            state[velocity_of(name)] = Interval.point(torch.zeros_like(box[name].lower))
    return state


def union(states: Sequence[State]) -> State:
    """One box, (1, *shape) for each name, that contains all cases of all states."""
    if len(states) == 1 and all(len(box.lower) == 1 for box in states[0].values()):
        return states[0]
    hulls = {name: [state[name].hull() for state in states] for name in states[0]}
    return {
        name: Interval(
            torch.stack([h.lower for h in each]).amin(0, keepdim=True),
            torch.stack([h.upper for h in each]).amax(0, keepdim=True),
        )
        for name, each in hulls.items()
    }
