"""Questions on top of a window: forms of the outputs of the trained model as objectives."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder, as_arrays
from milp_agt.core.expression import Expression, add, stacked
from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import Restriction
from milp_agt.core.rounding import TINY, gamma
from milp_agt.core.strengthening import DEFAULT, Strengthening
from milp_agt.engines.program.bounds import ProgramReport
from milp_agt.engines.program.collective import Reach
from milp_agt.engines.program.objectives import Objectives, SolveOptions, minimise
from milp_agt.engines.program.window import RANGE_LIMIT, curved_inputs, encode_steps
from milp_agt.engines.relaxed import RelaxedStep
from milp_agt.engines.step import Schedule, State
from milp_agt.errors import SolverUnavailableError
from milp_agt.poison import Poison
from milp_agt.tracing import FEATURES, StepGraph

# Test points in one program: the window is encoded once for all of them, and solved with each.
POINTS_AT_ONCE = 32
# Points that are counted together; what one poisoning does to points of two programs is not known.
COUNTED_AT_ONCE = 128


@dataclass(frozen=True)
class WindowProgram:
    """The last steps of a run as a program, for questions about the model that they end in.

    Attributes:
        window, state: the steps, and the box of the parameters after them.
        exact_phases, exact_products: what is kept, as in the run.
        options: how to solve.
        past: the steps before the window, as far as they are known.
        strengthening: switches of the rows beyond the plain encoding.
        reports: what each question took, in the order in which they were asked.
        notes: questions that were left to the cheaper bounds, and why.
    """

    step_graph: StepGraph
    schedule: Schedule
    window: Sequence[RelaxedStep]
    state: State
    poison: Poison
    restriction: Restriction
    exact_phases: bool
    exact_products: bool
    options: SolveOptions
    past: Sequence[RelaxedStep] = ()
    strengthening: Strengthening = DEFAULT
    reports: list[ProgramReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def bound(
        self,
        forward: Sequence[Node],
        inputs: Interval,
        coefficients: Tensor,
        constant: Tensor,
        known: Interval,
    ) -> Interval:
        """Dual bounds of forms ``coefficients . f(x) + constant`` over all runs through the window.

        Args:
            forward: the forward pass, in topological order.
            inputs: box of each test input, (1, n, *shape).
            coefficients, constant: (n, forms, outputs) and (n, forms).
            known: what is proved already, (n, forms): the widest gap is closed first.

        Returns:
            A box (n, forms), infinite where a solver proved nothing. It does not rest on ``known``.
        """
        lower, upper = torch.empty_like(constant), torch.empty_like(constant)
        for part in torch.arange(len(constant)).split(POINTS_AT_ONCE):
            box = Interval(inputs.lower[:, part], inputs.upper[:, part])
            gain = known.width[part]
            try:
                lower[part], upper[part] = self._piece(
                    forward, box, coefficients[part], constant[part], gain
                )
            except SolverUnavailableError as error:  # a licence that is too small, say
                self.notes.append(
                    f"{len(part)} test points were left to the cheaper bounds: {error}"
                )
                lower[part], upper[part] = -torch.inf, torch.inf
        return Interval(lower, upper)

    def _piece(
        self,
        forward: Sequence[Node],
        inputs: Interval,
        coefficients: Tensor,
        constant: Tensor,
        gain: Tensor,
    ) -> tuple[Tensor, Tensor]:
        started = time.monotonic()
        boxes = self._boxes(forward, inputs)
        largest = max(float(box.magnitude.max()) for box in boxes.values())
        if not largest <= RANGE_LIMIT:
            self.notes.append(
                f"{len(constant)} test points were left to the cheaper bounds: ranges up to {largest:.1e} "
                "are beyond what a solver can take"
            )
            nothing = torch.full_like(constant, torch.inf)
            return -nothing, nothing
        encoder, forms = self._encoded(forward, boxes, coefficients, constant)
        both = stacked([forms, forms.scale(-1.0)], (-1,))
        gains = np.tile(gain.reshape(-1).cpu().numpy(), 2)
        objectives = Objectives.of(encoder.finish(), both, gains)
        solved = minimise(objectives, self.options)
        self.reports.append(ProgramReport.of(objectives, solved, time.monotonic() - started))
        low, high = torch.from_numpy(solved.bounds).to(constant).chunk(2)
        return low.reshape(constant.shape), -high.reshape(constant.shape)

    def _encoded(
        self,
        forward: Sequence[Node],
        boxes: Mapping[str, Interval],
        coefficients: Tensor,
        constant: Tensor,
    ) -> tuple[Encoder, Expression]:
        """The window with forms of the outputs at its end, flat over (n, forms)."""
        encoder = Encoder(self.exact_phases, self.exact_products, strengthening=self.strengthening)
        outputs = self._outputs(forward, boxes, encoder)
        return encoder, _forms(outputs, coefficients, constant)

    def most_at_once(
        self,
        forward: Sequence[Node],
        inputs: Interval,
        coefficients: Tensor,
        constant: Tensor,
        groups: Tensor,
        known: Interval,
    ) -> int:
        """How many test points can be reached by one run through the window.

        A point is reached if for one of its groups all forms are <= 0. Points are taken
        ``COUNTED_AT_ONCE`` at a time; what no solver proves counts as reached.

        Args:
            forward, inputs, coefficients, constant: as for :meth:`bound`.
            groups: of the forms of each point, (n, forms).
            known: what is proved of the forms, (n, forms); its upper ends are the big-M of the rows.
        """
        total = 0
        for part in torch.arange(len(constant)).split(COUNTED_AT_ONCE):
            boxes = self._boxes(forward, Interval(inputs.lower[:, part], inputs.upper[:, part]))
            largest = max(float(box.magnitude.max()) for box in boxes.values())
            sizes = (largest, float(known.upper[part].max()))
            if not all(size <= RANGE_LIMIT for size in sizes):
                self.notes.append(
                    f"{len(part)} test points were counted one by one: ranges up to {max(sizes):.1e} are "
                    "beyond what a solver can take"
                )
                total += len(part)
                continue
            try:
                encoder, forms = self._encoded(forward, boxes, coefficients[part], constant[part])
                counted = Reach.of(groups[part]).encode(
                    encoder, forms, known.upper[part], self.options.solver
                )
                total += counted.most(encoder, self.options)
            except SolverUnavailableError as error:
                self.notes.append(f"{len(part)} test points were counted one by one: {error}")
                total += len(part)
        return total

    def bound_parameters(self, coefficients: Mapping[str, Tensor], known: Interval) -> Interval:
        """Dual bounds of linear forms of the parameters after the window.

        Args:
            coefficients: (rows, *shape) by name of the parameter.
            known: what is proved already, (rows,): the widest gap is closed first.

        Returns:
            A box (rows,), infinite where a solver proved nothing. It does not rest on ``known``.
        """
        started = time.monotonic()
        nothing = torch.full_like(known.lower, torch.inf)
        try:
            encoder = Encoder(
                self.exact_phases, self.exact_products, strengthening=self.strengthening
            )
            forms = self._forms_of_state(encoder, coefficients)
            both = stacked([forms.below, forms.above.scale(-1.0)], (-1,))
            gains = np.tile(known.width.cpu().numpy(), 2)
            objectives = Objectives.of(encoder.finish(), both, gains)
            solved = minimise(objectives, self.options)
        except SolverUnavailableError as error:  # a licence that is too small, say
            self.notes.append(
                f"{len(nothing)} functionals were left to the cheaper bounds: {error}"
            )
            return Interval(-nothing, nothing)
        self.reports.append(ProgramReport.of(objectives, solved, time.monotonic() - started))
        low, high = torch.from_numpy(solved.bounds).to(nothing).chunk(2)
        return Interval(low, -high)

    def _forms_of_state(self, encoder: Encoder, coefficients: Mapping[str, Tensor]) -> Expression:
        """Linear forms of the state, (rows,), rounding charged."""
        state = self._state(encoder)
        encoder.selection = None
        encoder.origin = "model: state"
        parts, size, terms = [], 0.0, 0
        for name, on in coefficients.items():
            flat = on.detach().cpu().flatten(1).numpy()
            box = self.state[name]
            entries = encoder.bounded(state[name], box).reshape((flat.shape[1],))
            parts.append(entries.apply(sp.csr_matrix(flat), (len(flat),)))
            size = size + np.abs(flat) @ box.magnitude.amax(0).flatten().cpu().numpy()
            terms += flat.shape[1]
        return add(parts).blur(gamma(2 * terms + 16) * size + TINY)

    def _state(self, encoder: Encoder) -> dict[str, Expression]:
        """The state after the window."""
        steps = encode_steps(
            self.step_graph,
            self.schedule,
            self.window,
            self.poison,
            self.restriction,
            encoder,
            self.past,
        )
        return steps.state

    def _boxes(self, forward: Sequence[Node], inputs: Interval) -> dict[str, Interval]:
        boxes = dict(self.state) | {FEATURES: inputs}
        for node in forward:
            if node.name not in boxes:
                boxes[node.name] = node.op.interval(*(boxes[i] for i in node.inputs))
        return boxes

    def _outputs(
        self, forward: Sequence[Node], boxes: Mapping[str, Interval], encoder: Encoder
    ) -> Expression:
        """Outputs of the trained model at the test inputs, (n, outputs)."""
        state = self._state(encoder)
        encoder.selection = None
        encoder.origin = "model: state"
        known = {name: encoder.bounded(state[name], box) for name, box in self.state.items()}
        inputs = boxes[FEATURES]
        if bool((inputs.lower == inputs.upper).all()):
            known[FEATURES] = Expression.of(inputs.lower[0].cpu().numpy())
        else:
            encoder.origin = f"model: {FEATURES}"
            shape = tuple(inputs.lower.shape[1:])
            known[FEATURES] = encoder.columns(*as_arrays(inputs.hull(), shape))
        curved = curved_inputs(forward) | {self.step_graph.output}
        for node in forward:
            if node.name in known:
                continue
            encoder.origin = f"model: {node.name}"
            ranges = tuple(boxes[name] for name in node.inputs)
            expression = node.op.encode(encoder, tuple(known[i] for i in node.inputs), ranges)
            if node.name in curved or expression.spread is not None:
                expression = encoder.bounded(expression, boxes[node.name])
            known[node.name] = expression
        return known[self.step_graph.output]


def _forms(outputs: Expression, coefficients: Tensor, constant: Tensor) -> Expression:
    """The forms of each test point as one flat expression, rounding charged."""
    weights = coefficients.detach().cpu().numpy()
    points, count, width = weights.shape
    blocks = sp.csr_matrix(sp.block_diag(list(weights), format="csr"))
    flat = outputs.reshape((points * width,)).apply(blocks, (points * count,))
    shift = constant.detach().cpu().numpy().reshape(-1)
    moved = add([flat, Expression.of(shift)])
    rounding = 2.0**-50 * (np.abs(shift) + np.abs(moved.constant))
    return moved.blur(rounding)
