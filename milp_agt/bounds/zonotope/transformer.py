"""Affine forms of the nodes of a step, from what their operations say: slopes, centres, kinks, residuals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from milp_agt.bounds.step import Step
from milp_agt.bounds.zonotope import linear_maps, pairs, squares
from milp_agt.bounds.zonotope.bounds import Carried
from milp_agt.bounds.zonotope.candidates import Search
from milp_agt.bounds.zonotope.curves import curved
from milp_agt.bounds.zonotope.exchanges import exchanged, selection_box
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.form import Form, SummedForm, data_form, holding_zero
from milp_agt.bounds.zonotope.kinks import kink_of, pieces_of, unsupported
from milp_agt.bounds.zonotope.local import Local
from milp_agt.bounds.zonotope.owed import MOST, Shares, Split, most_of, owing, tells
from milp_agt.bounds.zonotope.pairs import Factor
from milp_agt.bounds.zonotope.products import Operand, besides_squares, multiplied, settled, squared
from milp_agt.bounds.zonotope.rows import Slots, rows_of
from milp_agt.bounds.zonotope.softmax import Softmax, softmax_form, softmaxes
from milp_agt.bounds.zonotope.sums import summed
from milp_agt.bounds.zonotope.work import Work
from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.einsum import Letters
from milp_agt.formulations.exchange import Exchange
from milp_agt.formulations.linear_map import LinearMap
from milp_agt.formulations.rounding_error import RoundingError
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.univariate import Smooth, Univariate
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION


@dataclass
class Transformer:
    """The forms of one step, node by node in topological order.

    Every operation is exact for the affine part at the centre. What is left is a box: the residual of a
    univariate function over the range of its argument, the product of two deviations, and rounding, of
    the real run and of the computation here. Boxes have two states, a sample that is clean and one
    that may be poisoned. Kinks become flips.

    Attributes:
        before: the pass up to the state before the step.
        work: limits of the whole step.
        earlier: flips of the pieces of the batch before this one.
        share: of the batch that is done after this piece.
    """

    before: Carried
    step: Step
    work: Work
    earlier: Flips
    share: float
    forms: dict[str, Form] = field(default_factory=dict)
    boxes: dict[str, Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        before = self.before
        self.schedule, self.zonotope, self.bounds = before.schedule, before.zonotope, before.bounds
        self.layout = before.layout
        self.columns = self.zonotope.samples.at(self.step)
        self.first: dict[str, int] = {}  # slot of the first element of a node with kinks
        count = 0
        for node in self.schedule.before:
            if node.batched and kink_of(node.op) is not None and node.inputs[0] not in self.first:
                self.first[node.inputs[0]] = count
                count += node.signature.size
        self.softmaxes = softmaxes(self.schedule.before)
        self.unmade = {
            node.name for s in self.softmaxes.values() for node in (s.exponentials, s.total)
        }
        self.unmade |= {
            s.differences.name
            for s in self.softmaxes.values()
            if not self.work.fits(s.differences.signature.size)
        }
        self.states = self.zonotope.samples.states
        self.slots = Slots.empty(self.states, self.step.size, self.zonotope.centre)
        self.flips = self.earlier
        self.done: set[str] = set()
        self.shares: dict[str, Shares] = {}  # of clean samples by who is poisoned
        zonotope, samples = self.zonotope, self.zonotope.samples
        elements = sum(node.signature.size for node in self.schedule.before if node.batched)
        self.tells = tells(samples, elements * self.work.batch)
        self.keeps_squares = (
            squares.fit_in(zonotope.size, samples.count, samples.width, self.before.memory)
            and not zonotope.is_folded
            and not self.first  # where phases flip, ranges know more than the sum of both parts
            and self.step.update.clip_total is None  # which is not linear in the gradients
            and samples.parts == 1
            and samples.is_mirrored
        )

    # -- leaves

    def leaves(self) -> None:
        """Forms of the parameters, and of the data of the batch."""
        used = self.layout.parameters
        eye = torch.eye(used, dtype=torch.float64, device=self.zonotope.centre.device)
        for name, part in self.layout.slices.items():
            if part.start >= used:
                continue
            shape = self.layout.shapes[name]
            centre = self.zonotope.centre[part].reshape(shape)
            zero = torch.zeros_like(centre)[None]
            radius = self.bounds.radius[part].reshape(shape)
            self.forms[name] = Form(
                centre,
                Interval(zero, zero),
                centre.abs() + radius,
                on_state=eye[:, part].reshape(used, *shape),
            )
            low, high = (end[part].reshape(shape) for end in (self.bounds.below, self.bounds.above))
            error = gamma(4) * (centre.abs() + radius) + TINY
            self.boxes[name] = Interval((centre - low)[None], (centre + high)[None]).widen(error)
        samples, poison = self.zonotope.samples, self.step.poison
        widths = (samples.on_features, samples.width - samples.on_features)
        widths = widths if samples.count and poison.whole is None else (0, 0)
        last = samples.parts - 1
        for name, nominal, box, start, width, own in (
            (FEATURES, poison.features, poison.feature_box(), 0, widths[0], 0),
            (LABELS, poison.labels, poison.label_box(), widths[0], widths[1], last),
        ):
            self.boxes[name] = box
            self.forms[name] = data_form(
                nominal, box, samples.width, start, width, self.columns, own
            )
        if poison.whole is not None:
            box = selection_box(poison, self.columns, self.step.size)
            self.boxes[SELECTION] = box
            self.forms[SELECTION] = Form.constant(torch.zeros_like(box.lower[0]), self.states)

    # -- ranges

    def box(self, name: str) -> Interval:
        """The range of a node in all states, (states, n, *shape), or (1, *shape) without sample axis."""
        if name not in self.boxes:
            self.boxes[name] = self._range(self.nodes[name], self.forms[name])
        return self.boxes[name]

    @property
    def nodes(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.schedule.all}

    def _range(self, node: Node, form: Form) -> Interval:
        if form.is_constant:
            return Interval.point(form.centre[None])
        if node.batched and (self._is_masked(node) or not self.work.fits(form.centre[0].numel())):
            if self._told(form) and isinstance(form.on_state, Local):
                moved = self.slots.moved(form)
                known = Shares.of_form(form, moved, self.bounds, self.zonotope.samples)
                self.shares |= {} if known is None else {node.name: known}
            return node.op.interval(*(self.box(name) for name in node.inputs))
        down, up = self._reach(form, node.name)
        error = gamma(8) * (form.centre.abs() + torch.maximum(down, up)) + TINY
        box = Interval(form.centre - down, form.centre + up).widen(error)
        if all(name in self.boxes for name in node.inputs):
            plain = node.op.interval(*(self.boxes[name] for name in node.inputs))
            states = max(len(plain.lower), len(box.lower))
            box = box.expand_states(states).meet(
                plain.expand_states(states), f"'{node.name}' by intervals and as a zonotope"
            )
        return box

    def _is_masked(self, node: Node) -> bool:
        """Whether it is the elementwise product of a node with phases, or with constants: the product of
        the ranges is as tight as what the forms of both say together."""
        if not isinstance(node.op, Einsum) or len(set(node.op.letters)) > 1:
            return False
        forms = [self.forms[name] for name in node.inputs]
        return any(form.is_phase or form.is_constant for form in forms)

    def _reach(self, form: Form, name: str = "") -> tuple[Tensor, Tensor]:
        """How far a node lies below and above its centre, (states or 1, [n], *shape)."""
        if len(form.rest.lower) == 1:  # no sample axis
            low, high = -form.rest.lower, form.rest.upper
            if isinstance(form.on_state, Tensor):
                radius = self.bounds.radius[: self.layout.parameters]
                moved = torch.einsum("p...,p->...", form.on_state.abs(), radius)
                low, high = low + moved, high + moved
            return low, high
        if form.on_state is None:
            return self._own_reach(form)
        every = torch.arange(len(form.centre), device=form.size.device)
        return self._reach_of(form, every, name)

    def _reach_of(self, form: Form, at: Tensor, name: str = "") -> tuple[Tensor, Tensor]:
        """The same of a form of numbers of the samples ``at`` of the batch, of the node of a name."""
        found: list[tuple[Tensor, Tensor]] = []
        shares: list[tuple[Tensor, ...]] = []
        samples, columns, slots = self.zonotope.samples, self.columns[at], self.slots.take(at)
        told = name and self._told(form)
        for rows in rows_of(form, self.zonotope, self.bounds, columns, slots):
            above, below = rows.both(self.zonotope, self.bounds)
            found.append((below.given(samples, rows.own), above.given(samples, rows.own)))
            if told:
                shares.append(Shares.of((below, above), samples, rows.own))
        count, shape = len(form.centre), (self.states, *form.centre.shape)
        down, up = (
            torch.cat([pair[k] for pair in found], 1)
            .reshape(self.states, -1, count)
            .transpose(1, 2)
            .reshape(shape)
            for k in (0, 1)
        )
        if told:
            self.shares[name] = Shares.joined(shares, form.centre, samples)
        return down.clamp(min=0.0), up.clamp(min=0.0)

    def _told(self, form: Form) -> bool:
        """Whether it is told apart who moves a node."""
        return self.tells and form.centre.numel() * self.zonotope.samples.count <= MOST

    def _plain_reach(self, form: Form) -> Tensor:
        """How far a node may lie from its centre by the boxes of parameters and moves, (n, *shape)."""
        radius = self.bounds.radius[: self.layout.parameters]
        low, high = self._own_reach(form)
        reach = torch.maximum(low, high).amax(0)
        longest = 8.0 * len(radius) + 64.0
        if isinstance(form.on_state, Local):
            reach = reach + form.on_state.reach(radius)
            longest += 8.0 * form.on_state.symbols
        return reach * (1.0 + gamma(longest)) + gamma(64) * form.size + TINY

    def _own_reach(self, form: Form) -> tuple[Tensor, Tensor]:
        """The same for a node that only its own sample's move and flips reach."""
        low, high = -form.rest.lower, form.rest.upper
        if form.owed is not None:
            low, high = (end + most_of(self.zonotope.samples, form.owed) for end in (low, high))
        if form.on_moves is not None:
            moved = torch.zeros_like(low).expand(self.states, *low.shape[1:]).clone()
            for part, columns in enumerate(self.columns.T):
                reach = self.zonotope.samples.reach[columns.clamp(min=0)].T * (columns >= 0)
                reach = reach.reshape(*reach.shape, *[1] * (form.on_moves.dim() - 2))
                more = torch.einsum("d...,d...->...", form.on_moves.abs(), reach)
                for state in range(self.states):
                    if state >> part & 1:
                        moved[state] += more * (1.0 + gamma(64))
            low, high = low + moved, high + moved
        moved_by = self.slots.moved(form)
        if moved_by is not None:
            low, high = low + moved_by[0], high + moved_by[1]
        return low, high

    def operand(self, name: str) -> Operand:
        """A node as a factor: its form, and how far it lies from its centre."""
        form = self.forms[name]
        if form.is_constant:
            return Operand(form, None)
        if name in self.layout.slices:
            below, above = self.bounds.given(self.layout.slices[name], self.columns)
            shape = (self.states, len(self.columns), *self.layout.shapes[name])
            away = Interval(-below.reshape(shape), above.reshape(shape))
            known = None
            if self.tells:  # alike in all clean samples
                known = Shares.of_state(
                    self.bounds, self.layout.slices[name], shape[2:], self.zonotope.samples
                )
            return Operand(form, away, True, known)
        box = self.box(name)
        away = holding_zero(Interval(box.lower - form.centre, box.upper - form.centre))
        return Operand(form, away, shares=self.shares.get(name))

    # -- operations

    def take(self, node: Node) -> None:
        """The form of one node."""
        op = node.op
        if node.name in self.unmade:
            return
        if node.name in self.softmaxes:
            self.forms[node.name] = self._softmax(self.softmaxes[node.name])
            return
        inputs = [self.forms[name] for name in node.inputs]
        if not node.inputs:
            self.forms[node.name] = Form.constant(op.value(), self.states if node.batched else 1)
        elif isinstance(op, LinearMap):
            self.forms[node.name] = linear_maps.of_forms(op, inputs, node.batched_inputs)
        elif isinstance(op, Einsum):
            self.forms[node.name] = self.product(node)
        elif isinstance(op, RoundingError):
            self.forms[node.name] = inputs[0].blurred(op.error)
        elif isinstance(op, RunRounding):
            error = op.error(*(self.box(name) for name in node.inputs))
            self.forms[node.name] = inputs[0].blurred(error)
        elif isinstance(op, Exchange):
            boxes = [self.box(name).expand_states(2) for name in node.inputs]
            width = self.zonotope.samples.width
            self.forms[node.name] = exchanged(op, inputs[0], boxes[0], boxes[1], width)
        elif isinstance(op, SquaredNorm):
            operands = [settled(self.operand(name), self.zonotope.samples) for name in node.inputs]
            self.forms[node.name] = squared(op, operands)
        elif node.batched and kink_of(op) is not None:
            self.forms[node.name] = self._kinked(node, inputs[0])
        elif isinstance(op, Univariate):
            self.forms[node.name] = self._curved(op, inputs[0], node.inputs[0])
        else:
            raise unsupported(op, node)

    def product(self, node: Node, summed: bool = False) -> Form:
        assert isinstance(node.op, Einsum)
        first, second = (self.operand(name) for name in node.inputs)
        own = None
        if summed and self.keeps_squares:
            columns = self.columns[:, 0]
            reach = self.zonotope.samples.reach[columns.clamp(min=0)] * (columns >= 0)[:, None]
            first, second, own = besides_squares(node.op.letters, first, second, reach, self._reach)
        return multiplied(
            node.op, first, second, self.slots, summed, self._by_pairs, own, self._owing
        )

    def _owing(self, whole: Interval, split: Split | None) -> tuple[Interval, Interval | None]:
        return owing(self.zonotope.samples, self.columns, whole, split)

    def _by_pairs(self, letters: Letters, first: Factor, second: Factor) -> Interval | None:
        noisy = self.zonotope.noise_share(self.bounds.radius) > pairs.NOISY
        return pairs.product(
            letters, first, second, self.work.pairs if noisy else 0, self._reach_of
        )

    def _softmax(self, nodes: Softmax) -> Form:
        name, logits = nodes.differences.name, self.forms[nodes.logits]
        known = self.shares.get(name)
        if name in self.unmade:
            self.boxes[name] = nodes.differences.op.interval(self.box(nodes.logits))
            known = self.shares.get(nodes.logits)
            known = known and known.apart()
        centre, box = nodes.differences.op.value(logits.centre), self.box(name)
        for node in (nodes.exponentials, nodes.total, nodes.probability):
            box = node.op.interval(box)
            self.boxes[node.name] = box
        away = self.box(name)
        error = gamma(8) * (away.magnitude + centre.abs()) + TINY
        away = Interval(away.lower - centre, away.upper - centre).widen(error)
        return softmax_form(logits, away.expand_states(self.states), known, self._owing)

    def _curved(self, op: Univariate, argument: Form, name: str) -> Form:
        if argument.is_constant and not isinstance(op, Smooth):
            return Form.constant(op.value(argument.centre), len(argument.rest.lower))
        box = self.box(name)
        return curved(op, argument, box, self.shares.get(name), self._owing)

    def _kinked(self, node: Node, argument: Form) -> Form:
        kink = kink_of(node.op)
        assert kink is not None
        source = node.inputs[0]
        if source not in self.done:
            self.done.add(source)
            if argument.on_state is not None:
                search = Search(
                    argument,
                    self.zonotope,
                    self.bounds,
                    self.slots,
                    self.first[source],
                    self.before.effort.candidates,
                    self.work,
                    self.share,
                    self.step,
                )
                near = ~(self._plain_reach(argument) < argument.centre.abs())
                self.flips = search.found(self.flips, near)
        return pieces_of(node, kink, argument, self.slots, self.first[source])

    # -- sums over samples

    def sum(self, node: Node) -> SummedForm:
        """A sum over the batch; a product that nothing else reads is never formed sample by sample."""
        assert isinstance(node.op, SumSamples)
        product = self.schedule.summed_products.get(node.name)
        read = [self.forms[name].on_state for name in (product or node).inputs]
        symbols = sum(part.symbols for part in read if isinstance(part, Local))
        if product is not None:
            form = self.product(product, summed=True)
        else:
            form = self.forms[node.inputs[0]]
            on_state = form.on_state
            if isinstance(on_state, Local):
                form = replace(form, on_state=on_state.summed())
        return summed(form, self.flips.since(self.earlier), self.slots, self.columns, symbols)
