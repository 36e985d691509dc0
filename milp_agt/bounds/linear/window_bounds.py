"""Bounds through training: backward bound propagation through the steps of a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
) -> Tensor:
    """Lower bounds of forms on the state after the window, (rows, cases).

    The forms go back step by step. At every stop they are concretised on the box before that step,
    and the best bound counts.
    """
    perturbation = adversary.open_worst_case(forms.rows)
    best: Tensor | None = None
    for relaxed in reversed(window):
        forms = propagate_backward(schedule, relaxed, forms, perturbation)
        bound = forms.concretise(relaxed.state, perturbation.worst_case())
        best = bound if best is None else torch.maximum(best, bound)
    assert best is not None
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
) -> State:
    """Boxes of the state after the window: each entry bounded from both sides, ``chunk`` rows at once.

    ``passes`` remembers over the steps how many rows fit into memory.
    """
    passes = passes or Passes()
    state = window[-1].state
    device = adversary.poison.features.device
    bounds = torch.empty(adversary.cases, count_of(state), dtype=torch.float64, device=device)
    for part, forms in forms_in_pieces(state, passes.limit(chunk)):

        def bound(own: Tensor, forms: Forms = forms) -> Tensor:
            some = forms if len(own) == forms.rows else forms.part(own)
            return bound_forms(schedule, window, some, adversary)

        for own, low in passes.run(torch.arange(len(part), device=device), chunk, bound):
            bounds[:, part[own]] = low.T
    return entry_boxes(state, bounds)
