"""The distance between a linear bound and the nominal value, split into each node's share.

A backward pass replaces nodes by their inputs, ``c . v >= sum_j back_j(c) . u_j + intercept(c)``. At a
run inside all ranges, with values ``v*`` and ``u*``, one replacement costs

    c . v* - sum_j back_j(c) . u_j* - intercept(c)  >=  0,

and these gaps telescope: together with the worst case of the form, its range over the box where the
pass stops, and the subtracted rounding, they add up to the distance between the value of the form in
that run and its bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.backward import BackwardPass
from milp_agt.bounds.linear.linearized_step import LinearizedStep, SampleChunk
from milp_agt.bounds.linear.window_bounds import propagate_backward
from milp_agt.bounds.step import NodeOrder, Step, step_at_points
from milp_agt.core.graph import Cause, Node, evaluate
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION, StepGraph

Values = Mapping[str, Tensor]  # by node, (1 or cases, [n], *shape)


@dataclass(frozen=True)
class Account:
    """How much each sample can lower some forms: directly, and through the charges of relaxations.

    Attributes:
        worth: by cause, (rows, N); in addition to :attr:`Gaps.gaps`, which hold for clean samples.
        groups: (N,); at most ``budget`` samples of one group are poisoned, none of group -1.
    """

    worth: dict[Cause, Tensor]
    groups: Tensor


@dataclass(frozen=True)
class Gaps:
    """Forms of the state after a window, bounded from below at the best stop of their backward pass.

    For every row and case ``reference - bound`` is the sum of ``gaps`` and ``worst_case``.

    Attributes:
        reference: value in the run from the middle of the window's first box on data as given, or
            with the labels of the case, (rows, cases).
        bound: (rows, cases).
        worst_case: over the poisoned samples, (rows, cases).
        gaps: by cause, (rows, cases) each, >= 0.
        accounts: the share of each sample in the worst case; several if every batch has its own selection.
    """

    reference: Tensor
    bound: Tensor
    worst_case: Tensor
    gaps: dict[Cause, Tensor]
    accounts: tuple[Account, ...]


@dataclass(frozen=True)
class Window:
    """A window with a run through it: the values of all nodes are known at every step.

    Backward passes visit every node, so that the cost of each is known.
    """

    step_graph: StepGraph
    schedule: NodeOrder
    steps: Sequence[LinearizedStep]
    adversary: AdversaryModel
    path: Sequence[dict[str, Tensor]]  # the state before every step and after the last

    @staticmethod
    def of(
        step_graph: StepGraph,
        schedule: NodeOrder,
        steps: Sequence[LinearizedStep],
        adversary: AdversaryModel,
    ) -> Window:
        """The run starts in the middle of the first box; it is the nominal run if that box is a point."""
        state = {name: box.centre for name, box in steps[0].state.items()}
        path = [state]
        for relaxed in steps:
            data = adversary.nominal(relaxed.step)
            state = step_at_points(
                step_graph, schedule, state, data[FEATURES], data[LABELS], relaxed.step.update
            )
            path.append(state)
        nodes = [replace(relaxed, cuts=(), composed=None) for relaxed in steps]
        return Window(step_graph, schedule, nodes, adversary, path)

    def values(self, number: int) -> Values:
        """Values of all nodes of a step, including those of the update."""
        relaxed = self.steps[number]
        data = self.adversary.nominal(relaxed.step)
        leaves = {**self.path[number], **data}
        leaves[SELECTION] = torch.zeros_like(data[LABELS][..., :1])
        known = evaluate(self.schedule.all, leaves)
        update = relaxed.update
        return evaluate((*update.nodes, *update.projections.values()), known)

    def gaps(self, forms: Forms) -> Gaps:
        """Bound forms on the state after the window and split each bound by cause."""
        recorder = _GapRecorder(self, forms.rows)
        reference = _at(forms, self.path[-1])
        best: Gaps | None = None
        for number in reversed(range(len(self.steps))):
            relaxed = self.steps[number]
            recorder.enter(relaxed.step, self.values(number))
            forms = propagate_backward(
                self.schedule, relaxed, forms, recorder, recorder.backward_pass
            )
            here = self._stop(forms, recorder, number, reference)
            best = here if best is None else _better(best, here)
        assert best is not None
        return best

    def _stop(self, forms: Forms, recorder: _GapRecorder, number: int, reference: Tensor) -> Gaps:
        """The gaps of a backward pass that stops before a step."""
        state = self.steps[number].state
        worst_case = recorder.worst_case()
        bound = forms.concretise(state, worst_case)
        lowest = forms.constant
        for name, coefficient in forms.coefficients.items():
            flat, box = coefficient.flatten(1), state[name]
            positive = flat.clamp(min=0.0)
            lowest = lowest + positive @ box.lower.flatten(1).T
            lowest = lowest + (flat - positive) @ box.upper.flatten(1).T
        gaps = dict(recorder.gaps)
        gaps[Cause.START] = _at(forms, self.path[number]) - lowest
        gaps[Cause.ROUNDING] = gaps.get(Cause.ROUNDING, 0.0) + (lowest - worst_case - bound)
        shape = bound.shape
        return Gaps(
            reference.expand(shape),
            bound,
            worst_case.expand(shape),
            {cause: gap.expand(shape) for cause, gap in gaps.items()},
            recorder.accounts(),
        )


def _at(forms: Forms, state: Values) -> Tensor:
    """The values of forms at one state for each case, (rows, cases)."""
    value = forms.constant
    for name, coefficient in forms.coefficients.items():
        value = value + coefficient.flatten(1) @ state[name].flatten(1).T
    return value


def _better(old: Gaps, new: Gaps) -> Gaps:
    """The gaps of the better bound, for each row and case."""
    better = (new.bound > old.bound).expand(new.bound.shape)

    def pick(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(better if first.shape == better.shape else better[:, :1], second, first)

    zero = torch.zeros_like(new.bound)
    accounts = []
    for number, account in enumerate(new.accounts):
        known = old.accounts[number].worth if number < len(old.accounts) else {}
        worth = {c: pick(known.get(c, torch.zeros_like(w)), w) for c, w in account.worth.items()}
        accounts.append(Account(worth, account.groups))
    return Gaps(
        new.reference,
        pick(old.bound, new.bound),
        pick(old.worst_case, new.worst_case),
        {c: pick(old.gaps.get(c, zero), gap) for c, gap in new.gaps.items()},
        tuple(accounts),
    )


class _GapRecorder:
    """A worst case that also records the cost of each node and the samples charged; for one budget."""

    def __init__(self, window: Window, rows: int) -> None:
        self.gaps: dict[Cause, Tensor] = {}
        self._adversary, self._poison = window.adversary, window.adversary.poison
        self._batched = {n.name for n in window.schedule.before if n.batched}
        self._worst_case = self._adversary.open_worst_case(rows)
        self._direct = self._adversary.open_worst_case(rows)
        features = self._poison.features
        self._nothing = torch.zeros(
            rows, len(features), dtype=torch.float64, device=features.device
        )
        self._groups = torch.full((len(features),), -1, device=features.device)
        self._charges: dict[Cause, Tensor] = {}
        self._closed: list[Account] = []
        self._step: Step | None = None
        self._values: Values = {}

    def enter(self, step: Step, values: Values) -> None:
        """Start the backward pass through this step."""
        self._step, self._values = step, values

    def backward_pass(self, sample_chunk: SampleChunk, *arguments: Any) -> BackwardPass:
        """A backward pass that reports every node to this recorder."""
        return _RecordingPass(self, sample_chunk, *arguments)

    def note(self, node: Node, sample_chunk: SampleChunk, coefficient: Tensor) -> None:
        """Record the cost of replacing a node, and its charges."""
        cause = node.op.cause
        constant, _, charges = sample_chunk.offsets[node.name].apply(coefficient)
        gap = self._value(node.name, coefficient, sample_chunk)
        on_inputs = sample_chunk.planes[node.name].backward(coefficient)
        for name, own in zip(node.inputs, on_inputs, strict=True):
            if own is not None:
                gap = gap - self._value(name, own, sample_chunk)
        if constant is not None:
            gap = gap - constant
        self.gaps[cause] = self.gaps.get(cause, 0.0) + gap
        if charges is not None:
            assert self._step is not None
            samples = self._step.samples[sample_chunk.samples]
            charged = torch.where(sample_chunk.poison.open, charges[..., 0], 0.0)
            known = self._charges.get(cause, self._nothing)
            self._charges[cause] = known.index_add(1, samples, charged)

    def _value(self, name: str, coefficient: Tensor, sample_chunk: SampleChunk) -> Tensor:
        """``c . v*`` in every case, (rows, 1 or cases)."""
        value = self._values[name]
        if value.dim() < coefficient.dim():  # a constant
            value = value.unsqueeze(0)
        if name in self._batched:
            if sample_chunk.samples.stop:
                value = value[:, sample_chunk.samples]
            coefficient = coefficient.expand(-1, *value.shape[1:])
        return coefficient.flatten(1) @ value.flatten(1).T

    def add(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        self._worst_case.add(step, features, labels, charges)
        if not self._poison.static and self._poison.per_batch:
            self._close(step, features, labels)
            return
        self._direct.add(step, features, labels, None)
        new = step.samples[self._groups[step.samples] < 0]
        # A sample belongs to the first batch that the pass meets it in, as in PerSampleWorstCase.
        self._groups = self._groups.index_fill(0, new, step.index if self._poison.per_batch else 0)

    def _close(self, step: Step, features: Tensor | None, labels: Tensor | None) -> None:
        """Close the account of a step that has its own selection."""
        direct = self._adversary.open_worst_case(len(self._nothing))
        direct.add(step, features, labels, None)
        groups = torch.full_like(self._groups, -1).index_fill(0, step.samples, 0)
        self._closed.append(
            Account({Cause.MOVES: direct.sample_influences(), **self._charges}, groups)
        )
        self._charges = {}

    def accounts(self) -> tuple[Account, ...]:
        if self._adversary.cases > 1:
            return ()  # a case takes all its members; there is nothing to choose
        if self._closed:
            return tuple(self._closed)
        worth = {Cause.MOVES: self._direct.sample_influences(), **self._charges}
        return (Account(worth, self._groups),)

    def add_own(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        self._worst_case.add_own(step, features, labels, charges)

    def worst_case(self) -> Tensor:
        return self._worst_case.worst_case()

    def sample_influences(self) -> Tensor:
        return self._worst_case.sample_influences()

    def worst_case_given(self, own: Tensor) -> Tensor:
        return self._worst_case.worst_case_given(own)


class _RecordingPass(BackwardPass):
    """A backward pass that reports every node to a recorder before replacing it."""

    def __init__(self, recorder: _GapRecorder, sample_chunk: SampleChunk, *arguments: Any) -> None:
        super().__init__(sample_chunk, *arguments)
        self._recorder = recorder

    def replace(self, node: Node) -> None:
        strip = self.strips.pop(node.name, None)
        if strip is not None:
            self.pending[node.name] = strip.fill(self.pending[node.name])
        if node.name in self.pending and node.name in self.sample_chunk.planes:
            self._recorder.note(node, self.sample_chunk, self.pending[node.name])
        super().replace(node)
