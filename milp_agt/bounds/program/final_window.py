"""Programs for questions about the trained model: forms of its outputs as objectives after a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.bounds.program.output_objectives import (
    OutputForms,
    Reach,
    counted,
    counting,
    sums_of_box,
)
from milp_agt.bounds.program.state_bounds import Objectives, Programs, SolveOptions, improved
from milp_agt.bounds.program.window import RANGE_LIMIT, EncodedSteps, Window, curved_inputs
from milp_agt.bounds.program.witness import Witness
from milp_agt.bounds.step import State
from milp_agt.core.deadline import Deadline
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add, stacked
from milp_agt.core.graph import Node, boxes_of, evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import SolverUnavailableError
from milp_agt.training.tracing import FEATURES

# Test points in one program: the window is encoded once for all of them, and solved with each.
POINTS_AT_ONCE = 32
# Points counted in one program; separate programs may assume different poisonings.
COUNTED_AT_ONCE = 128

Answer = TypeVar("Answer")


@dataclass(kw_only=True)
class FinalWindow(Programs):
    """The last steps of a run as programs, for questions about the resulting model.

    Every bound is met with the ``known`` one, of cases that together cover all runs; where a solver is not
    asked, or proves nothing better, the known one is left.

    Attributes:
        window: the steps, as in the run.
        state: a box of the state after them, (1, *shape) each.
    """

    window: Window
    state: State
    _ready: list[tuple[Encoder, EncodedSteps]] = field(default_factory=list, repr=False)

    def by(self, deadline: Deadline | None) -> FinalWindow:
        """The same for a question with a deadline; what is not solved by then has its cheaper bounds. Reports
        and notes are shared."""
        at = None if deadline is None else deadline.at
        return replace(self, options=replace(self.options, deadline=at))

    def bound(self, asked: OutputForms, known: Interval) -> Interval:
        """Dual bounds of forms of the outputs over all runs through the window.

        Args:
            known: (cases, n, forms).

        Returns:
            A box (1, n, forms).
        """
        known = known.of_all
        lower, upper = known.lower.clone(), known.upper.clone()
        for part in torch.arange(len(asked)).split(POINTS_AT_ONCE):
            own, box = asked.part(part), Interval(known.lower[:, part], known.upper[:, part])

            def forms(own: OutputForms = own) -> tuple[Encoder, Expression]:
                encoder, found = self._encoded(own)
                return encoder, stacked([found, found.scale(-1.0)], (-1,))

            def solved(box: Interval = box) -> Interval:
                return self._minimised(forms, box)

            left = f"{len(part)} test points were left to the cheaper bounds"
            box = self._asked(solved, left, self._beyond(own)) or box
            lower[:, part], upper[:, part] = box.lower, box.upper
        if self.witness is not None:
            value, room = self._at_runs(self.witness, asked)
            ends = Interval(lower.amin(0), upper.amax(0))
            self.witness.check_forms("form of the outputs", value, room, ends, self._name)
        return Interval(lower, upper)

    @property
    def _name(self) -> str:
        return self.options.solver.name

    @property
    def _forward(self) -> tuple[Node, ...]:
        graph = self.window.step_graph
        return graph.graph.needed_for([graph.output])

    def _boxes(self, asked: OutputForms) -> dict[str, Interval]:
        """Ranges of all nodes of the forward pass over the box of the parameters."""
        return boxes_of(self._forward, dict(self.state) | {FEATURES: asked.inputs})

    def _at_runs(self, witness: Witness, asked: OutputForms) -> tuple[Tensor, Tensor]:
        """Values of forms at the centres of the inputs, and bounds of their rounding errors."""
        runs = len(next(iter(witness.states.values())))
        points = asked.inputs.centre[0].expand(runs, *asked.inputs.lower.shape[1:])
        found = evaluate(self._forward, {**witness.states, FEATURES: points})
        return asked.at(found[self.window.step_graph.output])

    def _beyond(self, asked: OutputForms) -> str | None:
        """Why the ranges of a question are too large for solvers; None if they are not."""
        boxes = self._boxes(asked)
        largest = max(float(box.magnitude.max()) for box in boxes.values())
        if largest <= RANGE_LIMIT:
            return None
        return f"ranges up to {largest:.1e} are beyond what a solver can take"

    def _asked(
        self, solve: Callable[[], Answer], left: str, why: str | None = None
    ) -> Answer | None:
        """What solvers answer; None, with a note, where there is a reason not to ask or they refuse."""
        if why is None:
            try:
                return solve()
            except SolverUnavailableError as error:  # a licence that is too small, say
                why = str(error)
        self.notes.append(f"{left}: {why}")
        return None

    def _minimised(
        self, forms: Callable[[], tuple[Encoder, Expression]], known: Interval
    ) -> Interval:
        """Bounds (1, *shape); minima of the forms are lower, then minus upper ends."""
        ends = torch.cat([known.lower.flatten(), -known.upper.flatten()]).cpu().numpy()
        gain = np.tile((known.upper.amax(0) - known.lower.amin(0)).flatten().cpu().numpy(), 2)
        found = self._improved(ends, gain, forms)
        low, high = torch.from_numpy(found).to(known.lower).chunk(2)
        return Interval(low.reshape(known.lower.shape), -high.reshape(known.lower.shape))

    def _improved(
        self,
        known: Array,
        gain: Array,
        forms: Callable[[], tuple[Encoder, Expression]],
        options: SolveOptions | None = None,
    ) -> Array:
        def build() -> Objectives:
            encoder, own = forms()
            return Objectives.of(encoder.finish(), own, gain, self._ready[0][1].batches)

        found, report = improved(known, gain, build, options or self.options)
        self.reports.append(report)
        return found

    def _encoded(self, asked: OutputForms) -> tuple[Encoder, Expression]:
        """The encoded window, with forms of the outputs after it, flat over (n, forms)."""
        encoder, outputs = self._outputs(asked)
        return encoder, asked.forms_of(outputs)

    def bound_sums(
        self, asked: OutputForms, weights: Tensor, known: Interval, nominal: Tensor
    ) -> Tensor:
        """Lower bounds of ``sum_i weights_i . form_i``, with one model for all test points.

        Points are taken ``COUNTED_AT_ONCE`` at a time, and the bounds of the parts add up.

        Args:
            weights: (rows, n, forms).
            known: bounds of the forms, (cases, n, forms).
            nominal: the forms of the nominal model, (n, forms), which show the possible gain.

        Returns:
            (1, rows).
        """
        known = known.of_all
        parts = torch.arange(len(asked)).split(COUNTED_AT_ONCE)
        least = [
            sums_of_box(weights[:, part], Interval(known.lower[:, part], known.upper[:, part]))
            for part in parts
        ]

        def solved() -> None:
            for number, part in enumerate(parts):
                some, before = weights[:, part], least[number]
                gain = torch.einsum("rnf,nf->r", some, nominal[part]) - before.amin(0)
                least[number] = self._summed(asked.part(part), some, before, gain)

        left = f"the sum over {len(asked)} test points was left to cheaper bounds"
        self._asked(solved, left, self._beyond(asked))
        every = torch.stack(least)
        total = every.sum(0) - gamma(len(parts)) * every.abs().sum(0)
        if self.witness is not None:
            value, room = self._at_runs(self.witness, asked)
            summed = torch.einsum("rnf,mnf->mr", weights, value)
            room = room + gamma(2 * weights[0].numel() + 16) * value.abs()
            room = torch.einsum("rnf,mnf->mr", weights.abs(), room)
            ends = Interval(total.amin(0), torch.full_like(total[0], torch.inf))
            self.witness.check_forms("sum over test points", summed, room, ends, self._name)
        return total

    def _summed(self, asked: OutputForms, weights: Tensor, known: Tensor, gain: Tensor) -> Tensor:
        def forms() -> tuple[Encoder, Expression]:
            encoder, outputs = self._outputs(asked)
            boxes = self._boxes(asked)
            largest = boxes[self.window.step_graph.output].magnitude.amax(0)
            return encoder, asked.sums_of(outputs, largest, weights)

        found = self._improved(known[0].cpu().numpy(), gain.cpu().numpy(), forms)
        return torch.from_numpy(found).to(known)[None]

    def most_at_once(self, asked: OutputForms, groups: Tensor, known: Interval) -> int:
        """How many test points can be reached by one run through the window.

        A point is reached if all forms of one of its groups are <= 0. Points are taken
        ``COUNTED_AT_ONCE`` at a time; a point counts as reached unless the contrary is proved.

        Args:
            groups: of the forms of each point, (n, forms).
            known: bounds of the forms, (cases, n, forms): forms above 0 reach nothing, and the
                upper ends are the big-M of the rows.
        """
        known, total = known.of_all, 0.0
        for part in torch.arange(len(asked)).split(COUNTED_AT_ONCE):
            own, reach = asked.part(part), Reach.of(groups[part])
            upper, able = known.upper[:, part], reach.able(known.lower[:, part])
            why = self._beyond(own)
            if why is None and not float(upper.max()) <= RANGE_LIMIT:
                why = f"bounds up to {float(upper.max()):.1e} are beyond what a solver can take"

            def forms(
                own: OutputForms = own,
                reach: Reach = reach,
                able: Tensor = able,
                upper: Tensor = upper,
            ) -> tuple[Encoder, Expression]:
                encoder, found = self._encoded(own)
                opened = reach.encode(encoder, found, upper[0], able[0])
                return encoder, opened.total

            def solved(reach: Reach = reach, able: Tensor = able) -> Array:
                options = counting(self.options)
                found = self._improved(-reach.counts(able), np.ones(1), forms, options)
                return counted(found, reach.points)

            counts = self._asked(solved, f"{len(part)} test points were counted one by one", why)
            total += float((reach.counts(able) if counts is None else counts)[0])
        most = int(total)
        if self.witness is not None:
            value, room = self._at_runs(self.witness, asked)
            self.witness.check_count(value, room, groups, most, self._name)
        return most

    def bound_parameters(self, coefficients: Mapping[str, Tensor], known: Interval) -> Interval:
        """Dual bounds of linear forms of the parameters after the window.

        Args:
            coefficients: (rows, *shape) by name of the parameter.
            known: (cases, rows).

        Returns:
            A box (1, rows).
        """
        box = known.of_all

        def forms() -> tuple[Encoder, Expression]:
            encoder, own = self._forms_of_state(coefficients)
            return encoder, stacked([own.below, own.above.scale(-1.0)], (-1,))

        left = f"{box.lower.shape[1]} functionals were left to the cheaper bounds"
        found = self._asked(lambda: self._minimised(forms, box), left)
        if found is not None and self.witness is not None:
            value, room = self.witness.at(coefficients)
            ends = Interval(found.lower.amin(0), found.upper.amax(0))
            self.witness.check_forms("functional", value, room, ends, self._name)
        return found or box

    def _forms_of_state(self, coefficients: Mapping[str, Tensor]) -> tuple[Encoder, Expression]:
        """Linear forms of the state, (rows,), rounding included."""
        encoder, state = self._state()
        parts, size, terms = [], 0.0, 0
        for name, on in coefficients.items():
            flat = on.detach().cpu().flatten(1).numpy()
            entries = state[name].reshape((flat.shape[1],))
            parts.append(entries.apply(sp.csr_matrix(flat), (len(flat),)))
            largest = self.state[name].magnitude.amax(0).flatten().cpu().numpy()
            size = size + np.abs(flat) @ largest
            terms += flat.shape[1]
        return encoder, add(parts).plus_error(gamma(2 * terms + 16) * size + TINY)

    def _state(self) -> tuple[Encoder, dict[str, Expression]]:
        """The encoded window and the state after it, which no longer depends on the selection."""
        if not self._ready:
            encoder = self.window.encoder()
            steps = self.window.encode(encoder)
            encoder.selection, encoder.envelopes = None, True
            encoder.origin = "model: state"
            state = {n: encoder.bounded(steps.state[n], box) for n, box in self.state.items()}
            self._ready.append((encoder, replace(steps, state=state)))
        encoder, steps = self._ready[0]
        return encoder.fork(), dict(steps.state)

    def _outputs(self, asked: OutputForms) -> tuple[Encoder, Expression]:
        """Outputs of the trained model at the test inputs, (n, outputs)."""
        encoder, known = self._state()
        boxes = self._boxes(asked)
        if bool((asked.inputs.lower == asked.inputs.upper).all()):
            known[FEATURES] = Expression.of(asked.inputs.lower[0].cpu().numpy())
        else:
            encoder.origin = f"model: {FEATURES}"
            known[FEATURES] = encoder.columns_of(asked.inputs)
        output = self.window.step_graph.output
        curved = curved_inputs(self._forward) | {output}
        for node in self._forward:
            if node.name in known:
                continue
            encoder.origin = f"model: {node.name}"
            ranges = tuple(boxes[name] for name in node.inputs)
            expression = node.op.encode(encoder, tuple(known[i] for i in node.inputs), ranges)
            if node.name in curved or expression.slack is not None:
                expression = encoder.bounded(expression, boxes[node.name])
            known[node.name] = expression
        return encoder, known[output]
