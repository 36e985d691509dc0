"""Bounds through training: backward bound propagation through the steps of a window, and of those before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import AdversaryModel, OnMoves, WorstCase
from milp_agt.bounds.forms import Forms, count_of, entry_boxes, forms_in_pieces
from milp_agt.bounds.linear.backward import BackwardPass, SampleForms, sample_forms
from milp_agt.bounds.linear.linearized_step import (
    HasIntercepts,
    Intercepts,
    LinearizedStep,
    SampleChunk,
    per_sample,
)
from milp_agt.bounds.passes import Passes
from milp_agt.bounds.step import NodeOrder, State
from milp_agt.core.graph import BackwardSlopes, LinearBounds, Node, boxes_of
from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.rounding import gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.einsum import Ends
from milp_agt.formulations.exchange import Substitute
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, SELECTION, StepGraph


@dataclass(frozen=True)
class PastStep:
    """Lower bounds of every signed entry of the state after a step: of ``theta_p``, then of ``-theta_p``.

    Entry e is at least ``coefficients[e] . state + constant[e]``, errors of all relaxations and the worst
    case of the step subtracted, entry by entry, as if each had its own adversary. A form c of the new state
    with ``c+ = max(c, 0)`` and ``c- = max(-c, 0)`` is then at least ``c+ . (bounds of theta) + c- . (bounds
    of -theta)``: no sample is needed any more, and forms at the beginning of their window go on to earlier
    boxes by matrix products, so that boxes in between do not add up effects that cancel. The loss: the
    errors of one node, of second order in the width of the state, enter all entries with one sign only.

    Attributes:
        index: of the step.
        state: boxes before it.
        coefficients: on that state, (2 P, *shape) each, for P numbers of the state.
        constant: for each case, (2 P, cases or 1).
        magnitude: (2 P,), and operations: rounding as in :class:`Forms`.
    """

    index: int
    state: Mapping[str, Interval]
    coefficients: Mapping[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    operations: float

    def carried(self, forms: Forms) -> Forms:
        """Carry forms on the state after the step to forms on the state before it."""
        on_new = torch.cat([forms.coefficients[name].flatten(1) for name in self.coefficients], 1)
        weights = torch.cat([on_new.clamp(min=0.0), (-on_new).clamp(min=0.0)], 1)
        return Forms(
            {
                name: (weights @ on.flatten(1)).reshape(len(weights), *on.shape[1:])
                for name, on in self.coefficients.items()
            },
            forms.constant + weights @ self.constant,
            forms.magnitude + weights @ self.magnitude,
            forms.operations + self.operations + 2.0 * len(self.magnitude) + 64.0,
        )


class Collected:
    """The forms of a past step while its signed entries pass backward, some at a time."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Forms]] = []

    def keep(self, ends: Tensor, forms: Forms) -> None:
        """Store the forms of these signed entries on the state before the step, worst case subtracted."""
        self._parts.append((ends, forms))

    def past(self, index: int, state: Mapping[str, Interval]) -> PastStep:
        """The step from a state in these boxes."""
        order = torch.cat([ends for ends, _ in self._parts]).argsort()
        forms = [found for _, found in self._parts]
        coefficients = {
            name: torch.cat([own.coefficients[name] for own in forms])[order] for name in state
        }
        magnitude = torch.cat([own.magnitude for own in forms])[order]
        for name, on in coefficients.items():
            # Sums of entries cancel; their rounding grows with the terms, not with the result.
            magnitude = magnitude + on.flatten(1).abs() @ state[name].magnitude.amax(0).flatten()
        constant = torch.cat([own.constant for own in forms])[order]
        operations = max(own.operations for own in forms)
        return PastStep(index, state, coefficients, constant, magnitude, operations)


def regained(
    schedule: NodeOrder, relaxed: LinearizedStep, on_terms: Mapping[str, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """How much less an exchanged gradient can lower forms than its box allows.

    For coefficients c on the gradients of a sample, of all parameters together, the intercepts of a box
    ``[-b, b]`` allow ``-s_i b |c|_1``; the ball of radius b allows at most ``-s_i b |c|_2``. The
    coefficients are the same for all samples of the batch, because only the sums read the terms.

    Returns:
        An amount to add to the constants of the forms, (rows, cases), and one to subtract from the
        charges of the samples, (rows, n, 1); None for 0.
    """
    nodes = [n for n in schedule.before if isinstance(n.op, Substitute) and n.op.ball]
    flat = [on_terms[n.name].flatten(1) for n in nodes if n.name in on_terms]
    if not flat:
        return None, None
    op = nodes[0].op
    assert isinstance(op, Substitute)
    coefficients = torch.cat(flat, 1)
    longest = coefficients.abs().sum(1)
    gap = longest - torch.linalg.vector_norm(coefficients, dim=1)
    rounding = gamma(8 * coefficients.shape[1] + 64) * longest
    saved = (op.bound * (gap - rounding)).clamp(min=0.0)
    chosen = relaxed.ranges.boxes[SELECTION].upper.squeeze(-1)
    cases = len(next(iter(relaxed.state.values())).lower)
    if cases > 1 or len(chosen) == 1:
        # The sum of the shares of n samples, rounded down.
        share = chosen.sum(1) * (1.0 - gamma(chosen.shape[1] + 8))
        return saved.unsqueeze(1) * share, None
    charged = (chosen[POISONED] - chosen[CLEAN]).clamp(min=0.0)
    return None, (saved.unsqueeze(1) * charged).unsqueeze(-1)


# Elements of one coefficient tensor of a backward pass: small enough for a processor's cache.
CACHED_ELEMENTS = 2**18


def propagate_backward(
    schedule: NodeOrder,
    relaxed: LinearizedStep,
    forms: Forms,
    perturbation: WorstCase,
) -> Forms:
    """Propagate forms on the state after a step to forms on the state before it.

    Every node is replaced by its lower or upper plane according to the sign of its coefficient. The
    clean intercepts go into the constant; their difference to the poisoned intercepts is charged to
    the sample (one slope, two intercepts).
    """
    step = relaxed.step
    shared = _through_update(relaxed, forms)
    before = {name: shared.pending.pop(name) for name in relaxed.state}
    shared.strip()
    for node in reversed((*schedule.sums, *schedule.after)):
        shared.replace(node)
    constant, magnitude = shared.constant, shared.magnitude
    more, fewer_charges = regained(schedule, relaxed, shared.coefficients())
    if more is not None:
        constant = constant + more
    pieces = []
    for sample_chunk in relaxed.chunks:
        chunk_pass = BackwardPass(
            sample_chunk, constant, magnitude, dict(shared.pending), shared.strips
        )
        for node in reversed(schedule.before):
            if node.batched:
                chunk_pass.replace(node)
        constant, magnitude = chunk_pass.constant, chunk_pass.magnitude
        for name, total in chunk_pass.coefficients().items():
            before[name] = before[name] + total if name in before else total
        pieces.append(chunk_pass)
    rest = BackwardPass(relaxed.shared, constant, magnitude, before)
    for node in reversed(schedule.before):
        if not node.batched and node.name not in relaxed.state:
            rest.replace(node)
    if not step.poison.is_clean:
        on = OnMoves.joined([piece.moves for piece in pieces])
        if on.charges is not None and fewer_charges is not None:
            on = replace(on, charges=on.charges - fewer_charges)
        if step.poison.feature_moves is None:
            on = replace(on, features=None)
        perturbation.add(step, on)
    return Forms(
        {name: rest.pending[name] for name in relaxed.state},
        rest.constant,
        rest.magnitude,
        forms.operations + _operations(schedule, relaxed),
    )


def _operations(schedule: NodeOrder, relaxed: LinearizedStep) -> float:
    """Bound on the chain of roundings that one step adds to any number of a backward pass.

    The longest sum is over all elements of one node; every replacement adds a few operations.
    """
    samples, update = relaxed.step.size, relaxed.update
    largest = max(n.signature.size * (samples if n.batched else 1) for n in schedule.all)
    nodes = len(schedule.all) + len(update.nodes) + len(update.projections)
    return 2.0 * largest + 16.0 * nodes + 64.0


def _through_update(relaxed: LinearizedStep, forms: Forms) -> BackwardPass:
    """Forms on the new state as forms on the old one and on the summed gradients."""
    on_new = {relaxed.new(name): c for name, c in forms.coefficients.items()}
    update_pass = BackwardPass(relaxed.shared, forms.constant, forms.magnitude, on_new)
    for node in (*relaxed.update.projections.values(), *reversed(relaxed.update.nodes)):
        update_pass.replace(node)
    return update_pass


def forms_of_outputs(
    step_graph: StepGraph,
    nodes: Sequence[Node],
    state: State,
    features: Interval,
    coefficients: Tensor,
    ends: Ends | None = None,
) -> SampleForms:
    """Forms on the parameters that bound forms of the outputs of test points from below.

    Over a box of inputs with centre x and radius r, ``c . x'`` is at least ``c . x - |c| . r``. This
    support is subtracted here, point by point, because no training step shares these inputs.

    Args:
        nodes: the forward pass, in topological order.
        state: box of the parameters on which the linear bounds must hold.
        features: boxes of the inputs, (1, n, *shape); points if inputs are not perturbed.
        coefficients: on the model's outputs, (forms, n, outputs).
        ends: planes of products with parameters that are exact at ends of ranges, where there is one case;
            None for planes through centres.
    """
    leaves = dict(state) | {FEATURES: features}
    boxes = boxes_of(nodes, leaves)
    batched = {node.name for node in nodes if node.batched}
    cases = len(next(iter(state.values())).lower)
    planes: dict[str, BackwardSlopes] = {}
    offsets: dict[str, HasIntercepts] = {}
    for node in nodes:
        if node.name in leaves:
            continue
        inputs = [boxes[name] for name in node.inputs]
        shared = [k for k, name in enumerate(node.inputs) if name not in batched]
        one = isinstance(node.op, Einsum) and node.batched and len(shared) == cases == 1
        if ends is not None and one:
            assert isinstance(node.op, Einsum)
            at_ends = node.op.relax_at_ends(ends, shared[0], *inputs)
            planes[node.name], offsets[node.name] = at_ends, at_ends
        else:
            found: LinearBounds = node.op.relax(*inputs)
            planes[node.name], offsets[node.name] = found, Intercepts.of(found, True, cases)
    centre = features.centre[CLEAN]
    radius = torch.maximum(features.upper[CLEAN] - centre, centre - features.lower[CLEAN])
    radius = torch.where(radius > 0, torch.nextafter(radius, radius + torch.inf), radius)
    clean = Poison.none(centre, centre.new_zeros(len(centre), step_graph.outputs))
    sample_chunk = SampleChunk(
        slice(0, len(centre)),
        clean,
        planes,
        offsets,
        {FEATURES: centre.abs() + radius},
        {FEATURES: centre.unsqueeze(0)},
    )
    forward = [n for n in nodes if n.batched]
    forms = sample_forms(forward, sample_chunk, step_graph.output, coefficients)
    moved = forms.moves.features
    if moved is not None:
        forms.constant = forms.constant - per_sample(moved.abs(), radius.unsqueeze(0))
    return forms


def rows_at_once(schedule: NodeOrder, window: Sequence[LinearizedStep]) -> int:
    """Rows of dense coefficients whose tensors stay in the processor's cache."""
    summed = {n.inputs[0] for n in schedule.sums}  # one coefficient for all samples
    sizes = [n.signature.size for n in schedule.before if n.batched and n.name not in summed]
    widest = max(sizes, default=1)
    samples = max((f.samples.stop - f.samples.start for r in window for f in r.chunks), default=1)
    return max(8, CACHED_ELEMENTS // (widest * samples))


def bound_forms(
    schedule: NodeOrder,
    window: Sequence[LinearizedStep],
    forms: Forms,
    adversary: AdversaryModel,
    past: Sequence[PastStep] = (),
    newest: Callable[[Forms], None] | None = None,
) -> Tensor:
    """Lower bounds of forms on the state after the window, (rows, cases).

    The forms go back step by step. At every stop they are concretised on the box before that step,
    and the best bound counts. From the first step of the window they go on through the ``past``, the
    steps right before it. ``newest`` receives the forms on the state before the last step, minus their
    worst case there.
    """
    perturbation = adversary.open_worst_case(forms.rows)
    best: Tensor | None = None
    worst_case = torch.zeros_like(forms.constant)
    for relaxed in reversed(window):
        forms = propagate_backward(schedule, relaxed, forms, perturbation)
        worst_case = perturbation.worst_case()
        bound = forms.concretise(relaxed.state, worst_case)
        if best is None and newest is not None:
            newest(forms.paying(worst_case))
        best = bound if best is None else torch.maximum(best, bound)
    assert best is not None
    if past:
        forms = forms.paying(worst_case)
    for before in reversed(past):
        forms = before.carried(forms)
        bound = forms.concretise(before.state, torch.zeros_like(worst_case))
        best = torch.maximum(best, bound)
    return best


def influence(
    schedule: NodeOrder,
    window: Sequence[LinearizedStep],
    adversary: AdversaryModel,
    forms: Forms,
) -> Tensor:
    """How much each sample alone can lower forms on the state after the window, (rows, N)."""
    perturbation = adversary.open_worst_case(forms.rows)
    for relaxed in reversed(window):
        forms = propagate_backward(schedule, relaxed, forms, perturbation)
    return perturbation.sample_influences()


def bound_by_sample(
    schedule: NodeOrder,
    window: Sequence[LinearizedStep],
    forms: Forms,
    adversary: AdversaryModel,
) -> tuple[Tensor, Tensor]:
    """Bounds of forms on the state after the window as a function of the poisoned samples.

    For every set S of samples that the adversary may choose for the whole run (a budget for the data
    set), each form is at least ``base - sum_{i in S} dev_i``. Rounding is covered.

    Returns:
        ``base`` (rows,) and ``dev`` (rows, N), at the stop with the best bound over all S.
    """
    perturbation = adversary.open_worst_case(forms.rows)
    best = forms.magnitude.new_full((forms.rows, 1), -torch.inf)
    base, dev = best[:, 0], perturbation.sample_influences()
    for relaxed in reversed(window):
        forms = propagate_backward(schedule, relaxed, forms, perturbation)
        worst_case = perturbation.worst_case()
        bound = forms.concretise(relaxed.state, worst_case)
        free = (bound + worst_case - 2.0**-50 * (bound.abs() + worst_case))[:, 0]
        wins = (bound > best) & torch.isfinite(worst_case)
        best = torch.where(wins, bound, best)
        base = torch.where(wins[:, 0], free, base)
        dev = torch.where(wins, perturbation.sample_influences(), dev)
    return base, dev


def bound_state(
    schedule: NodeOrder,
    window: Sequence[LinearizedStep],
    adversary: AdversaryModel,
    chunk: int,
    passes: Passes | None = None,
    past: Sequence[PastStep] = (),
    collected: Collected | None = None,
) -> State:
    """Boxes of the state after the window: each entry bounded from both sides, ``chunk`` rows at once.

    ``passes`` remembers over the steps how many rows fit into memory. ``collected`` keeps the forms of
    all signed entries on the state before the last step, minus their worst case there.
    """
    passes = passes or Passes()
    state = window[-1].state
    device = adversary.poison.features.device
    bounds = torch.empty(adversary.cases, count_of(state), dtype=torch.float64, device=device)
    for part, forms in forms_in_pieces(state, passes.limit(chunk)):

        def bound(own: Tensor, forms: Forms = forms) -> tuple[Tensor, list[Forms]]:
            some = forms if len(own) == forms.rows else forms.part(own)
            paid: list[Forms] = []
            newest = None if collected is None else paid.append
            return bound_forms(schedule, window, some, adversary, past, newest), paid

        for own, (low, paid) in passes.run(torch.arange(len(part), device=device), chunk, bound):
            bounds[:, part[own]] = low.T
            for forms_before in paid:
                assert collected is not None
                collected.keep(part[own], forms_before)
    return entry_boxes(state, bounds)
