"""One training step for the sets of states of many cells at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from milp_agt.bounds.cells import operations
from milp_agt.bounds.cells.form import Cut, Form, Span, States
from milp_agt.bounds.cells.moves import Moves, Phases
from milp_agt.bounds.step import NodeOrder, Step
from milp_agt.bounds.zonotope.kinks import kink_of
from milp_agt.bounds.zonotope.layout import AffineRule, Layout
from milp_agt.bounds.zonotope.softmax import Softmax, softmaxes
from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.linear_map import LinearMap
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.univariate import Univariate
from milp_agt.training.tracing import FEATURES, LABELS, LOSS_GRADIENT

# The least number that is above a kink.
LEAST = 5e-324


@dataclass
class Passage:
    """The forms of one step for a batch of cells, node by node.

    Attributes:
        states: before the step.
        forced: phases that are known, of any step.
        tracked: half widths of the strips around functions with a kink, by node, whose gradients tell
            what each phase costs; None where nobody asks.
    """

    schedule: NodeOrder
    step: Step
    states: States
    layout: Layout
    moves: Moves
    forced: Phases
    tracked: dict[str, Tensor] | None = None
    forms: dict[str, Form] = field(default_factory=dict)
    boxes: dict[str, Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        before = self.schedule.before
        self.sources = sources_of(self.schedule)
        self.softmaxes = softmaxes(before)
        self.inside = {
            node.name for s in self.softmaxes.values() for node in (s.exponentials, s.total)
        }
        self.nodes: Mapping[str, Node] = {node.name: node for node in self.schedule.all}
        self.cut: Cut | None = None
        self.jacobian = self.states.noise.new_zeros(0)  # of the step; once it is advanced
        self.void = torch.zeros(len(self.states), dtype=torch.bool, device=self.device)
        # Position in the batch of each poisoned sample, -1 where it is not in it.
        hit = self.states.samples[..., None] == self.step.samples
        self.position = torch.where(hit.any(-1), hit.to(torch.int64).argmax(-1), -1)

    @property
    def device(self) -> torch.device:
        return self.states.centre.device

    # -- leaves

    def leaves(self) -> None:
        """Forms of parameters and data."""
        self.parameters()
        poison, width = self.step.poison, self.moves.width
        lead, own = self.moves.columns[: self.moves.on_features], self.moves.on_features
        size = poison.features.flatten(1).shape[1]
        behind = self.moves.columns[own:] - size
        for name, nominal, columns, start in (
            (FEATURES, poison.features, lead, 0),
            (LABELS, poison.labels, behind, own),
        ):
            at = torch.arange(len(columns), device=self.device) + start
            self.forms[name] = self._data(nominal, columns, at, width)

    def parameters(self) -> None:
        states, used = self.states, self.layout.parameters
        down, up = states.reach()
        reach, terms = torch.maximum(down, up), states.terms()
        for name, part in self.layout.slices.items():
            if part.start >= used:
                continue
            shape = (len(states), *self.layout.shapes[name])
            centre = states.centre[:, part].reshape(shape)
            zero = torch.zeros_like(centre)
            eye = torch.eye(part.stop - part.start, dtype=torch.float64, device=self.device)
            self.forms[name] = Form(
                centre,
                zero,
                centre.abs() + terms[:, part].reshape(shape),
                reach[:, part].reshape(shape),
                Span(part.start, eye.reshape(-1, 1, *shape[1:])),
            )

    def _data(self, nominal: Tensor, columns: Tensor, at: Tensor, width: int) -> Form:
        count = len(self.position)
        centre = nominal.expand(count, *nominal.shape)
        if not len(columns) or bool((self.position < 0).all()):
            return Form.constant(centre)
        flat = centre.flatten(2).clone()
        cells = self.states.cells
        row, member = (self.position >= 0).nonzero(as_tuple=True)
        sample = self.position[row, member]
        coordinates = member[:, None] * width + at  # (hits, columns)
        away = torch.zeros_like(flat)
        on_moves = flat.new_zeros(cells.centre.shape[1], *flat.shape)
        flat[row[:, None], sample[:, None], columns] += cells.centre[row[:, None], coordinates]
        away[row[:, None], sample[:, None], columns] = cells.radius[row[:, None], coordinates]
        on_moves[coordinates, row[:, None], sample[:, None], columns] = 1.0
        # x + e is rounded to nearest in the run, and its centre here.
        moved = (away > 0.0).to(flat)
        size = flat.abs() + away
        error = gamma(8) * size * moved
        shape = centre.shape
        return Form(
            flat.reshape(shape),
            error.reshape(shape),
            size.reshape(shape),
            (away + error).reshape(shape),
            None,
            on_moves.reshape(-1, *shape),
        )

    # -- ranges

    def box(self, name: str) -> Interval:
        """The range of a node in each cell, (B, [n], *shape), forced phases taken into account."""
        if name not in self.boxes:
            form = self.forms[name]
            down, up = self.states.reach_of(self.whole(form), name in self.sources)
            down, up = torch.minimum(down, form.away), torch.minimum(up, form.away)
            error = gamma(8) * (form.centre.abs() + torch.maximum(down, up)) + TINY
            box = Interval(form.centre - down, form.centre + up).widen(error)
            if name in self.sources:
                box = self._forced(box, self.sources.index(name))
            self.boxes[name] = box
        return self.boxes[name]

    def whole(self, form: Form, summed: bool = False) -> Form:
        """A form in terms of parameters and moves alone."""
        return form if self.cut is None else self.cut.resolved(form, summed)

    def _forced(self, box: Interval, source: int) -> Interval:
        """Ends moved to the kink where a phase is known; a cell where that leaves nothing is void."""
        lower, upper = box.lower.flatten(2), box.upper.flatten(2)
        found = self.phases_here(source)
        if len(found):
            where = (self.step.samples == found.sample[:, None]).to(torch.int64).argmax(1)
            at = (found.cell, where, found.element)
            low = torch.where(found.on, lower[at].clamp(min=LEAST), lower[at])
            high = torch.where(found.on, upper[at], upper[at].clamp(max=0.0))
            empty = low > high
            self.void[found.cell[empty]] = True
            lower, upper = lower.clone(), upper.clone()
            lower[at], upper[at] = torch.where(empty, high, low), high
        shape = box.lower.shape
        return Interval(lower.reshape(shape), upper.reshape(shape))

    def phases_here(self, source: int) -> Phases:
        """The known phases of this step at one node."""
        own = (self.forced.step == self.step.index) & (self.forced.source == source)
        return self.forced.take(own.nonzero()[:, 0])

    @property
    def phases(self) -> int:
        """How many phases a step has in each cell."""
        return self.step.size * sum(self.nodes[name].signature.size for name in self.sources)

    def ranges(self) -> None:
        """The ranges of all nodes that functions with a kink read, and no more than these need."""
        self.leaves()
        for node in self.schedule.before:
            if all(name in self.forms for name in self.sources):
                break
            if node.name not in self.forms:
                self.take(node)
        for name in self.sources:
            self.box(name)

    def ambiguous(self) -> Phases:
        """Phases that are not known after all nodes were taken; ``on`` has no meaning."""
        parts = []
        for number, name in enumerate(self.sources):
            if name not in self.boxes:
                continue
            box = self.boxes[name]
            open_ = ((box.lower <= 0.0) & (box.upper > 0.0)).flatten(2)
            cell, where, element = open_.nonzero(as_tuple=True)
            parts.append(
                Phases(
                    cell,
                    torch.full_like(cell, self.step.index),
                    torch.full_like(cell, number),
                    self.step.samples[where],
                    element,
                    torch.ones_like(cell, dtype=torch.bool),
                )
            )
        return Phases.cat(parts) if parts else Phases.none(self.device)

    # -- operations

    def take(self, node: Node) -> None:
        """The form of one node."""
        op = node.op
        if node.name in self.inside:
            return
        if node.name in self.softmaxes:
            self.forms[node.name] = self._softmax(self.softmaxes[node.name])
            return
        inputs = [self.forms[name] for name in node.inputs]
        if not node.inputs:
            value = op.value()
            self.forms[node.name] = Form.constant(value.expand(len(self.states), *value.shape))
        elif isinstance(op, LinearMap):
            self.forms[node.name] = operations.linear(op, inputs)
        elif isinstance(op, Einsum):
            self.forms[node.name] = operations.product(op, inputs[0], inputs[1])
        elif isinstance(op, SquaredNorm):
            self.forms[node.name] = operations.squared(op, [self.whole(form) for form in inputs])
        else:
            assert isinstance(op, Univariate)
            self.forms[node.name] = self._univariate(node, op, inputs[0])

    def _univariate(self, node: Node, op: Univariate, argument: Form) -> Form:
        if argument.is_constant and not op.rounds_in_run:
            return Form.constant(op.value(argument.centre))
        box, half = self.box(node.inputs[0]), None
        if self.tracked is not None and kink_of(op) is not None:
            _, lower, upper = operations.strip(op, box)
            half = (0.5 * (upper - lower)).detach().requires_grad_()
            self.tracked[node.name] = half
        return operations.curved(op, argument, box, half)

    def _softmax(self, nodes: Softmax) -> Form:
        logits, name = self.forms[nodes.logits], nodes.differences.name
        form, box = self.forms[name], self.box(name)
        error = gamma(8) * (box.magnitude + form.centre.abs()) + TINY
        away = Interval(box.lower - form.centre, box.upper - form.centre).widen(error)
        found = operations.softmax(logits, away)
        down, up = self.states.reach_of(found)
        return replace(found, away=torch.minimum(found.away, torch.maximum(down, up)))

    def _cut(self) -> None:
        """Behind the gradient of the loss, nodes are seen through it: it has a number for each output."""
        form = self.forms[LOSS_GRADIENT]
        if form.on_state is not None:
            self.cut, self.forms[LOSS_GRADIENT] = Cut.of(form)

    def gradients(self) -> dict[str, Form]:
        """Forms of the summed gradients by parameter."""
        self.leaves()
        products = self.schedule.summed_products
        unmade = {node.name for node in products.values()}
        for node in self.schedule.before:
            if node.name not in self.forms and node.name not in unmade:
                self.take(node)
                if node.name == LOSS_GRADIENT:
                    self._cut()
        for node in self.schedule.sums:
            if node.name in products:
                own = products[node.name]
                assert isinstance(own.op, Einsum)
                first, second = (self.forms[name] for name in own.inputs)
                form = operations.product(own.op, first, second, summed=True)
            else:
                assert isinstance(node.op, SumSamples)
                form = operations.summed(self.forms[node.inputs[0]])
            self.forms[node.name] = self.whole(form, summed=True)
        for node in self.schedule.after:
            assert isinstance(node.op, LinearMap)
            inputs = [self.forms[name] for name in node.inputs]
            self.forms[node.name] = operations.linear(node.op, inputs)
        return {name: self.forms[node.name] for name, node in self.schedule.gradients}

    def advanced(self) -> States:
        """The sets after the optimiser step: affine in the old states and in the gradients."""
        gradient = self.gradients()
        states, step, layout = self.states, self.step, self.layout
        count, size, used = len(states), layout.size, layout.parameters
        zero = states.centre.new_zeros
        sizes, magnitude = zero(count, used), states.centre.abs() + states.terms()
        centre, radius = zero(count, used), zero(count, used)
        on_state = zero(count, used, used)
        on_moves = zero(count, used, states.on_moves.shape[2])
        for name, form in gradient.items():
            part = layout.slices[name]
            centre[:, part], sizes[:, part] = form.centre.flatten(1), form.size.flatten(1)
            radius = torch.cat(
                [radius[:, : part.start], form.radius.flatten(1), radius[:, part.stop :]], 1
            )
            if form.on_state is not None:
                onto = form.on_state.values.expand(-1, *form.centre.shape).flatten(2)
                on_state[:, part, form.on_state.at] = onto.permute(1, 2, 0)
            if form.on_moves is not None:
                on_moves[:, part] = form.on_moves.flatten(2).permute(1, 2, 0)
        rule = AffineRule.of(layout, step, gradient, magnitude, sizes)
        carry, scale, place, rounding = rule.carry, rule.scale, rule.place, rule.rounding
        jacobian = carry.expand(count, size, size).clone()
        jacobian[:, :, :used] += scale[:, None] * on_state[:, place]
        self.jacobian = jacobian
        # Rounding of the run (few operations), and of the products with the Jacobian here.
        carried = (jacobian.abs() @ magnitude[..., None])[..., 0]
        error = gamma(64) * rounding
        error = error + gamma(states.operations + 8.0 * used + 128.0) * (carried + rounding)
        fresh = scale.abs() * radius[:, place] * (1.0 + gamma(8)) + error + TINY
        return States(
            states.cells,
            states.samples,
            states.centre @ carry.T + scale * centre[:, place],
            jacobian @ states.on_moves + scale[:, None] * on_moves[:, place],
            torch.cat([jacobian @ states.noise, torch.diag_embed(fresh)], 2),
        )


def sources_of(schedule: NodeOrder) -> tuple[str, ...]:
    """The nodes that functions with a kink read, in order."""
    found = (n.inputs[0] for n in schedule.before if n.batched and kink_of(n.op) is not None)
    return tuple(dict.fromkeys(found))
