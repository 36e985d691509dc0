"""All reachable models at once: bounds of forms of their outputs and of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.cells.plan import TreePlan
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.window_bounds import (
    bound_forms,
    forms_of_outputs,
    rows_at_once,
)
from milp_agt.bounds.passes import in_passes
from milp_agt.bounds.program import FinalWindow, Incumbents, OutputForms
from milp_agt.bounds.step import NodeOrder, State, union
from milp_agt.core.deadline import Deadline
from milp_agt.core.graph import Node, boxes_of, evaluate
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.einsum import Ends
from milp_agt.properties.last_forms import least_of_forms, on_state
from milp_agt.properties.reached import Reached
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, StepGraph

# Test points, forms of the parameters, and numbers of all their coefficients that share one pass.
POINTS_AT_ONCE, ROWS_AT_ONCE = 64, 256
LATE = 256  # points by intervals alone
NUMBERS_AT_ONCE = 2**23
# Seconds after the end of its time that a question may spend on the boxes of the parameters.
GRACE = 0.5
Watch = Callable[[int, int], None]  # told how many test points of how many are bounded


@dataclass(frozen=True)
class ReachableModels:
    """All that is known of the reachable models: every one lies in a case of ``reached``.

    ``program`` holds every run through its window; None where the run was not bounded by programs.
    ``beside`` is a set that holds every reachable model as well, found in another way: bounds over it and
    over ``reached`` are met. ``rows`` is the most rows of a walk that memory has room for; None for no
    limit. ``watch`` is told how a question gets on. ``box`` holds the parameters. Questions end by the
    ``deadline``, or each after ``seconds``: what is not bounded by then has bounds from boxes.
    """

    step_graph: StepGraph
    schedule: NodeOrder
    nominal: dict[str, Tensor]
    reached: Sequence[Reached]
    program: FinalWindow | None = None
    rows: int | None = None
    beside: Reached | None = None
    watch: Watch | None = None
    box: State | None = None
    deadline: Deadline | None = None
    seconds: float | None = None
    tree: TreePlan | None = None  # searches what all bounds leave open

    @classmethod
    def in_box(cls, step_graph: StepGraph, nominal: Mapping[str, Tensor], box: State) -> Self:
        """The models in one box of parameters, of which nothing else is known."""
        nothing = torch.zeros(0, *step_graph.graph[FEATURES].shape, dtype=torch.float64)
        poison = Poison.none(nothing, torch.zeros(0, step_graph.outputs, dtype=torch.float64))
        reached = (Reached(box, (), Joint(poison)),)
        return cls(step_graph, NodeOrder.of(step_graph), dict(nominal), reached)

    @classmethod
    def at(cls, step_graph: StepGraph, nominal: Mapping[str, Tensor]) -> Self:
        """The one model with these parameters, (*shape) each."""
        point = {n: Interval.point(nominal[n].unsqueeze(0)) for n in step_graph.parameters}
        return cls.in_box(step_graph, nominal, point)

    @property
    def poison(self) -> Poison:
        return self.reached[0].adversary.poison

    @property
    def asked_now(self) -> ReachableModels:
        """The same for a question that is asked now, with its deadline."""
        if self.deadline is not None or self.seconds is None:
            return self
        return replace(self, deadline=Deadline.within(self.seconds))

    def is_late(self, grace: float = 0.0) -> bool:
        """Whether the time of the question, and so many seconds more, are over."""
        return self.deadline is not None and self.deadline.is_over(grace)

    @property
    def state(self) -> State:
        """One box that holds the parameters in all cases, (1, *shape) each."""
        return self.box or union([r.boxes for r in self.reached])

    @property
    def forward(self) -> tuple[Node, ...]:
        return self.step_graph.graph.needed_for([self.step_graph.output])

    def parameter_rows(self, reached: Reached) -> Tensor:
        """Flat coefficients of the lower ends of all parameters, then of the upper ones."""
        total = sum(reached.state[name].lower[0].numel() for name in self.step_graph.parameters)
        rows = torch.eye(total, dtype=torch.float64, device=self.poison.features.device)
        return torch.cat([rows, -rows])

    def on_parameters(self, reached: Reached, rows: Tensor) -> dict[str, Tensor]:
        """Coefficients on the state from flat ones on the parameters, (rows, count)."""
        names = self.step_graph.parameters
        sizes = [reached.state[name].lower[0].numel() for name in names]
        parts = dict(zip(names, rows.split(sizes, 1), strict=True))
        named = {
            name: part.reshape(len(rows), *reached.state[name].lower.shape[1:])
            for name, part in parts.items()
        }
        return on_state(reached.state, named)

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
            exhaustive: each reachable model belongs to one of them. Where the run was bounded by
            programs, cases are met with the form as an objective on top of the last ones.
        """
        bounds = self._bounded(self.reached, forms, self.beside)
        if self.program is None:
            return bounds
        solved = self.program.by(self.deadline).bound(forms, bounds)
        return bounds.meet(solved, "a form of the outputs by linear forms and by program")

    def bound_in_box(self, forms: OutputForms) -> Interval:
        """The same from the boxes of the parameters alone, by intervals and linear forms: no walk.

        Points that are not reached within ``GRACE`` seconds after the deadline have bounds by intervals.
        """
        if any(all(box.is_whole for box in r.state.values()) for r in self.reached):
            return Interval.point(self.at_nominal(forms).unsqueeze(0)).forgotten()
        bare = [replace(r, window=(), past=(), forward=None, rows=None) for r in self.reached]
        return self._bounded(bare, forms, grace=GRACE)

    def refine(self, forms: OutputForms, known: Interval, points: Tensor) -> Interval:
        """Bounds ``known`` from boxes, with those of some points as :meth:`bound` has them."""
        if len(points) == 0 or (
            self.program is None and not any(r.keeps_forms for r in self.everywhere)
        ):
            return known
        found = self.bound(forms.part(points))
        return Interval(
            known.lower.index_copy(1, points, found.lower),
            known.upper.index_copy(1, points, found.upper),
        )

    @property
    def everywhere(self) -> Sequence[Reached]:
        """All that is known: ``reached``, and what is ``beside`` it."""
        return self.reached if self.beside is None else (*self.reached, self.beside)

    @property
    def incumbents(self) -> tuple[Sequence[Incumbents], ...]:
        """What programs had their adversaries do, for the final state and the questions so far."""
        asked = () if self.program is None else self.program.incumbents
        on_rows = [r.rows.incumbents for r in self.everywhere if r.rows is not None]
        return (*asked, *(window for own in on_rows for window in own))

    def _bounded(
        self,
        where: Sequence[Reached],
        forms: OutputForms,
        beside: Reached | None = None,
        grace: float = 0.0,
    ) -> Interval:
        """Bounds by intervals and, until the deadline, by linear forms and met with those over ``beside``."""
        found: list[Interval] = []
        walked = any(reached.keeps_forms for reached in where)
        for part in self.parts(forms):
            some = forms.part(part)
            if self.is_late(grace):  # many at once: no form holds numbers of all parameters
                for rest in torch.arange(int(part[0]), len(forms), device=part.device).split(LATE):
                    own = forms.part(rest)
                    found.append(Interval.joined([self._by_intervals(r, own) for r in where]))
                break
            box = Interval.joined([self._bound_piece(reached, some) for reached in where])
            if beside is not None:
                wider = self._bound_piece(beside, some).expand_states(len(box.lower))
                box = box.meet(wider, "a form of the outputs by two chains")
            found.append(box)
            if walked and self.watch is not None:
                self.watch(int(part[-1]) + 1, len(forms))
        return Interval.joined(found, 1)

    def parts(self, forms: OutputForms) -> Sequence[Tensor]:
        """Positions of points whose forms are bounded at once: few where they have many coefficients."""
        numbers = 2 * forms.coefficients[0, :, 0].numel() * self.step_graph.parameter_count
        size = max(1, min(POINTS_AT_ONCE, NUMBERS_AT_ONCE // max(1, numbers)))
        return list(torch.arange(len(forms), device=forms.constant.device).split(size))

    def rows_at_once(self, window: Sequence[LinearizedStep]) -> int:
        """Rows that share a walk through a window: as many as are fast and fit into memory."""
        fast = rows_at_once(self.schedule, window)
        return fast if self.rows is None else min(fast, self.rows)

    def bound_sums(self, forms: OutputForms, weights: Tensor, known: Interval) -> Tensor:
        """Lower bounds of ``sum_i weights_i . form_i`` over all reachable models, (cases, rows).

        The points face one and the same model: the sums are forms of the parameters, walked through the
        window as one, so that what cancels between points does. Where the run was bounded by programs
        they are objectives on top of the last ones, too.

        Args:
            weights: (rows, n, forms).
            known: bounds of the forms of single points, as :meth:`bound` gives them.
        """
        found = [self._walked(r, self._summed(r, forms, weights)).T for r in self.everywhere]
        walked = torch.cat(found[: len(self.reached)])
        if self.beside is not None:
            walked = torch.maximum(walked, found[-1])
        if self.program is None:
            return walked
        nominal = self.at_nominal(forms)
        solved = self.program.by(self.deadline).bound_sums(forms, weights, known, nominal)
        return torch.maximum(walked, solved)

    def _summed(self, reached: Reached, forms: OutputForms, weights: Tensor) -> Forms:
        """Forms on the state that are at most the weighted sums."""
        total: Forms | None = None
        for part in self.parts(forms):
            some, own = forms.part(part), weights[:, part]
            on_outputs = torch.einsum("rnf,nfo->rno", own, some.coefficients)
            each = forms_of_outputs(
                self.step_graph, self.forward, reached.state, some.inputs, on_outputs
            )
            shifts = (own * some.constant).flatten(1)
            terms = torch.einsum("rnf,nfo->rno", own.abs(), some.coefficients.abs())
            cancelled = (terms / on_outputs.abs()).nan_to_num(nan=1.0, posinf=torch.inf)
            piece = Forms(
                {name: on.sum(1) for name, on in each.coefficients.items()},
                each.constant.sum(1) + shifts.sum(1, keepdim=True),
                each.magnitude.sum(1) * cancelled.flatten(1).amax(1) + shifts.abs().sum(1),
                each.operations,
            )
            total = piece if total is None else total.plus(piece)
        assert total is not None
        return Forms(
            on_state(reached.state, total.coefficients),
            total.constant,
            total.magnitude,
            total.operations + 2.0 * forms.coefficients.numel(),
        )

    def bound_parameters(self, coefficients: Mapping[str, Tensor]) -> Interval:
        """Bounds of forms of the parameters, (cases, rows); coefficients (rows, *shape) each."""
        parts = torch.arange(len(next(iter(coefficients.values())))).split(ROWS_AT_ONCE)
        some = [{name: c[part] for name, c in coefficients.items()} for part in parts]
        found = [
            Interval.joined([self._bound_rows(r, own) for own in some], 1) for r in self.everywhere
        ]
        bounds = Interval.joined(found[: len(self.reached)])
        if self.beside is not None:
            wider = found[-1].expand_states(len(bounds.lower))
            bounds = bounds.meet(wider, "a functional of the parameters by two chains")
        if self.program is None:
            return bounds
        solved = self.program.by(self.deadline).bound_parameters(coefficients, bounds)
        what = "a functional of the parameters by linear forms and by program"
        return bounds.meet(solved, what)

    def _bound_rows(self, reached: Reached, coefficients: Mapping[str, Tensor]) -> Interval:
        both = {n: torch.cat([c, -c]) for n, c in coefficients.items()}
        low, high = self._walked(reached, Forms.start(on_state(reached.state, both))).T.chunk(2, 1)
        return Interval(low, -high)

    def _walked(self, reached: Reached, start: Forms) -> Tensor:
        """The best lower bounds of forms of the final state, (rows, cases): on its box, or through
        the window."""
        best = start.concretise(reached.state, torch.zeros_like(start.constant))
        if reached.forward is not None and not self.is_late():
            found = least_of_forms(
                reached.forward, start, reached.state, reached.rows, self.deadline
            )
            return torch.maximum(best, found)
        if not reached.window:
            return best

        def bound(rows: Tensor) -> Tensor:
            if self.is_late():
                return best.new_full((len(rows), best.shape[1]), -torch.inf)
            return bound_forms(
                self.schedule,
                reached.window,
                start.part(rows.to(best.device)),
                reached.adversary,
                reached.past,
            )

        pieces = in_passes(start.rows, self.rows_at_once(reached.window), bound)
        return torch.maximum(best, torch.cat(pieces))

    def _bound_piece(self, reached: Reached, forms: OutputForms) -> Interval:
        """Bounds for one group of cases, (cases, n, forms)."""
        boxed = self._by_intervals(reached, forms)
        if reached.single_runs and forms.inputs.is_point:
            return boxed
        walked = both_ends(self._walked(reached, self.rows_of(reached, forms)), len(forms))
        return boxed.meet(walked, "a form of the outputs by intervals and by linear forms")

    def rows_of(self, reached: Reached, forms: OutputForms) -> Forms:
        """Forms on the state that are at most each of the forms, then at most their opposites.

        Over a zonotope each is the best of several by a bound without a search.
        """
        best = self._rows_of(reached, forms, None)
        if reached.forward is None:
            return best
        most = least_of_forms(reached.forward, best, reached.state, searching=False)
        for ends in Ends:
            rows = self._rows_of(reached, forms, ends)
            found = least_of_forms(reached.forward, rows, reached.state, searching=False)
            best = rows.where((found > most)[:, 0], best)
            most = torch.maximum(found, most)
        return best

    def _rows_of(self, reached: Reached, forms: OutputForms, ends: Ends | None) -> Forms:
        coefficients, constant = forms.coefficients, forms.constant
        both = torch.cat([coefficients, -coefficients], 1).transpose(0, 1)
        own = forms_of_outputs(
            self.step_graph, self.forward, reached.state, forms.inputs, both, ends
        )
        own.constant = own.constant + torch.cat([constant, -constant], 1).T.unsqueeze(-1)
        own.magnitude = own.magnitude + torch.cat([constant, constant], 1).T.abs()
        rows = torch.arange(own.magnitude.numel(), device=constant.device)
        return own.rows(rows, reached.state)

    @property
    def carried(self) -> Sequence[Reached]:
        """Zonotopes that together hold every reachable model; empty where there are none."""
        if self.beside is not None and self.beside.forward is not None:
            return (self.beside,)
        return self.reached if all(r.forward is not None for r in self.reached) else ()

    def _by_intervals(self, reached: Reached, forms: OutputForms) -> Interval:
        leaves = dict(reached.boxes) | {FEATURES: forms.inputs}
        boxes = boxes_of(self.forward, leaves)
        output = boxes[self.step_graph.output]
        low, high = output.lower[:, :, None], output.upper[:, :, None]
        positive = forms.coefficients.clamp(min=0.0)
        negative = forms.coefficients - positive
        lower = (positive * low + negative * high).sum(-1) + forms.constant
        upper = (positive * high + negative * low).sum(-1) + forms.constant
        largest = torch.maximum(low.abs(), high.abs())
        size = (forms.coefficients.abs() * largest).sum(-1) + forms.constant.abs()
        terms = 4 * forms.coefficients.shape[-1] + 16
        found = Interval(lower, upper).widen(size * gamma(terms) + TINY)
        if reached.gathered is None or not forms.inputs.is_point:
            return found
        joint = reached.gathered.forms(self.forward, leaves, forms.coefficients, forms.constant)
        return found.meet(joint, "a form of the outputs by boxes and by sums")


def both_ends(low: Tensor, points: int) -> Interval:
    """Bounds (cases, n, forms) from lower ones (rows, cases) of forms and of their opposites."""
    lower, upper = low.T.reshape(low.shape[1], -1, points).transpose(1, 2).chunk(2, 2)
    return Interval(lower, -upper)
