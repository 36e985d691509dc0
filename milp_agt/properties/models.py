"""All reachable models at once: bounds of forms of their outputs and of their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.evaluate import evaluate
from milp_agt.core.graph import Node
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.engines.linear import Forms, bound_forms, forms_of_outputs
from milp_agt.engines.relaxed import RelaxedStep
from milp_agt.engines.step import Schedule, State
from milp_agt.poison import Poison
from milp_agt.tracing import FEATURES, StepGraph

# Test points, and forms of the parameters, that share one walk through the window.
POINTS_AT_ONCE = 64
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class OutputForms:
    """Forms ``coefficients . f(x) + constant`` of the outputs f at test inputs x.

    Attributes:
        inputs: box of each test input, (1, n, *shape); a point where nobody touches it.
        coefficients: (n, forms, outputs).
        constant: (n, forms).
    """

    inputs: Interval
    coefficients: Tensor
    constant: Tensor

    def __len__(self) -> int:
        return len(self.coefficients)

    def part(self, points: Tensor) -> OutputForms:
        """The forms of some of the test points."""
        box = Interval(self.inputs.lower[:, points], self.inputs.upper[:, points])
        return OutputForms(box, self.coefficients[points], self.constant[points])


@dataclass(frozen=True)
class Models:
    """All that is known of the reachable models: a box, and the steps that led to it.

    ``window`` may be empty (a loaded result): then only the box counts.
    """

    step_graph: StepGraph
    schedule: Schedule
    state: State
    nominal: dict[str, Tensor]
    window: Sequence[RelaxedStep]
    poison: Poison

    @property
    def forward(self) -> tuple[Node, ...]:
        return self.step_graph.graph.needed_for([self.step_graph.output])

    def outputs(self, features: Tensor) -> Tensor:
        """Outputs of the nominal model, (n, outputs)."""
        leaves = {**self.nominal, FEATURES: features}
        return evaluate(self.forward, leaves)[self.step_graph.output]

    def at_nominal(self, forms: OutputForms) -> Tensor:
        """The forms at the nominal model and the centre of each input, (n, forms)."""
        outputs = self.outputs(forms.inputs.centre[CLEAN])
        return torch.einsum("nfo,no->nf", forms.coefficients, outputs) + forms.constant

    def bound(self, forms: OutputForms) -> Interval:
        """Bounds of forms of the outputs over all reachable models and all inputs in their boxes.

        Returns:
            A box of shape (cases, n, forms): in every case the better of intervals on the final box
            and of linear forms walked back from the test point through the window. The cases are
            exhaustive: each reachable model belongs to one of them.
        """
        pieces = [
            self._bound_piece(forms.part(part))
            for part in torch.arange(len(forms)).split(POINTS_AT_ONCE)
        ]
        return Interval(
            torch.cat([p.lower for p in pieces]).unsqueeze(0),
            torch.cat([p.upper for p in pieces]).unsqueeze(0),
        )

    def bound_parameters(self, coefficients: Mapping[str, Tensor]) -> Interval:
        """Bounds of linear forms of the parameters, (cases, rows); coefficients (rows, *shape) each."""
        rows = len(next(iter(coefficients.values())))
        lower, upper = [], []
        for part in torch.arange(rows).split(ROWS_AT_ONCE):
            both = {n: torch.cat([c[part], -c[part]]) for n, c in coefficients.items()}
            low, high = self._walked(Forms.start(self._on_state(both))).chunk(2)
            lower.append(low)
            upper.append(-high)
        return Interval(torch.cat(lower).unsqueeze(0), torch.cat(upper).unsqueeze(0))

    def _on_state(self, coefficients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The coefficients with zeros for what a form does not name."""
        first = next(iter(coefficients.values()))
        return {
            name: coefficients.get(name, first.new_zeros(len(first), *box.lower.shape[1:]))
            for name, box in self.state.items()
        }

    def _walked(self, start: Forms) -> Tensor:
        """The best lower bound of forms of the final state: on its box, or through the window."""
        best = start.concretise(self.state, torch.zeros_like(start.constant))
        if not self.window:
            return best
        through = bound_forms(self.step_graph, self.schedule, self.window, start, self.poison)
        return torch.maximum(best, through)

    def _bound_piece(self, forms: OutputForms) -> Interval:
        boxed = self._by_intervals(forms)
        coefficients, constant = forms.coefficients, forms.constant
        both = torch.cat([coefficients, -coefficients], 1).transpose(0, 1)
        own = forms_of_outputs(self.step_graph, self.forward, self.state, forms.inputs, both)
        own.constant = own.constant + torch.cat([constant, -constant], 1).T
        own.magnitude = own.magnitude + torch.cat([constant, constant], 1).T.abs()
        rows = torch.arange(own.constant.numel(), device=constant.device)
        best = self._walked(own.rows(rows, self.state))
        lower, upper = best.reshape(-1, len(forms)).T.chunk(2, 1)
        walked = Interval(lower, -upper)
        return boxed.meet(walked, "a form of the outputs by intervals and by linear forms")

    def _by_intervals(self, forms: OutputForms) -> Interval:
        boxes = dict(self.state) | {FEATURES: forms.inputs}
        for node in self.forward:
            if node.name not in boxes:
                boxes[node.name] = node.op.interval(*(boxes[i] for i in node.inputs))
        output = boxes[self.step_graph.output]
        low, high = output.lower[CLEAN][:, None], output.upper[CLEAN][:, None]
        positive = forms.coefficients.clamp(min=0.0)
        negative = forms.coefficients - positive
        lower = (positive * low + negative * high).sum(-1) + forms.constant
        upper = (positive * high + negative * low).sum(-1) + forms.constant
        largest = torch.maximum(low.abs(), high.abs())
        size = (forms.coefficients.abs() * largest).sum(-1) + forms.constant.abs()
        terms = 4 * forms.coefficients.shape[-1] + 16
        return Interval(lower, upper).widen(size * gamma(terms) + TINY)
