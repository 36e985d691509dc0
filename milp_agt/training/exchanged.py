"""Threats to whole samples in the graph of a step: exchange nodes between gradients and their sums."""

from __future__ import annotations

from dataclasses import replace

import torch

from milp_agt.core.rounding import gamma
from milp_agt.errors import InvalidThreatModelError, UnsupportedOperationError
from milp_agt.formulations.exchange import Exchange, Remove, Substitute
from milp_agt.formulations.leaves import SelectionLeaf
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Poison, Whole
from milp_agt.training.clipping import per_sample
from milp_agt.training.tracing import SELECTION, StepGraph
from milp_agt.training.training import Training


def with_exchanges(step_graph: StepGraph, poison: Poison) -> StepGraph:
    """The step graph under a threat to whole samples; unchanged under any other.

    An exchange node is put between the gradient of each sample (clipped, if there is clipping) and the
    sum over the batch, see :mod:`milp_agt.formulations.exchange`. It adds one entry for each sample and
    parameter. Raises InvalidThreatModelError: new samples whose gradients are not bounded by clipping;
    UnsupportedOperationError: a gradient that is not a linear function of sums over the samples.
    """
    if poison.whole is None:
        return step_graph
    op: Exchange = Remove(poison.budget)
    if poison.whole is not Whole.REMOVED:
        check_clipping(step_graph, poison)
        clipping = step_graph.clipping
        assert clipping is not None
        # Clipped gradients respect the bound up to the rounding of norm, root and quotient.
        ball = clipping.mode == "norm"
        slack = gamma(4 * step_graph.parameter_count + 64) if ball else 0.0
        op = Substitute(poison.budget, clipping.bound * (1.0 + slack), ball)
    return _with(step_graph, op, "exchanged")


def _with(step_graph: StepGraph, op: Exchange, word: str) -> StepGraph:
    """An exchange node between the gradients of samples and their sums."""
    graph, sums = step_graph.graph, {}
    if SELECTION not in graph:
        graph.add(SelectionLeaf((1,)), name=SELECTION)
    selection = graph[SELECTION]
    for name, gradient in step_graph.gradients.items():
        own = per_sample(graph, graph[gradient])
        exchanged = graph.add(op, own, selection, name=f"{name}:{word}")
        sums[name] = graph.add(SumSamples(len(own.shape)), exchanged).name
    return replace(step_graph, gradients=sums)


def check_clipping(step_graph: StepGraph, poison: Poison) -> None:
    """Refuse new samples that clipping does not bound. Raises InvalidThreatModelError: training without
    clipping."""
    new = poison.whole in (Whole.SUBSTITUTED, Whole.INSERTED)
    if new and poison.whole is not None and step_graph.clipping is None:
        raise InvalidThreatModelError(
            f"Samples may be {poison.whole.value} without limit on what they are",
            "training without gradient clipping: the gradient of one such sample can be as large as "
            "the adversary likes, and no bound is finite",
            "set clip= in Training, or bound the changes with FeaturePoisoning or LabelPoisoning",
        )


def check_batches(step_graph: StepGraph, training: Training, poison: Poison) -> None:
    """Refuse what depends on a whole batch where the adversary changes more of it than there is a rule for.

    Raises UnsupportedOperationError: class weights under a threat to labels or to whole samples; clipping
    of the total norm under one to whole samples; dampening, where the first step may be skipped.
    """
    if poison.whole is Whole.REMOVED and _first_undampened(training, poison):
        raise UnsupportedOperationError(
            "A run with dampening was to be trained without some samples",
            "a first batch that may lose all of them: torch does not dampen the first step that is taken, "
            "which is then another one",
            "leave out dampening, or let a sample of the first batch stay (samples=, or a smaller budget)",
        )
    if training.clips_total and poison.whole is not None:
        raise UnsupportedOperationError(
            "The norm of the gradient of a batch is clipped (clip_total)",
            f"a threat under which whole samples are {poison.whole.value}",
            "leave clip_total out, or bound FeaturePoisoning or LabelPoisoning",
        )
    weighted = "class_weights" in step_graph.loss.options
    if weighted and (poison.label_moves is not None or poison.whole is not None):
        raise UnsupportedOperationError(
            "Every batch is divided by the sum of the weights of its labels (class_weights)",
            "a threat under which labels may be poisoned, so that no divisor is fixed",
            "leave class_weights out, or bound FeaturePoisoning",
        )


def _first_undampened(training: Training, poison: Poison) -> bool:
    """Whether removals may skip the first step of a run that dampens others."""
    batches = training.batch_order(len(poison.open))
    rules = training.update_rules(len(batches))
    dampened = any(own.dampening for rule in rules for own in (rule, *(r for _, r in rule.groups)))
    return (
        dampened
        and len(batches[0]) <= poison.budget
        and bool(poison.open.cpu()[torch.as_tensor(batches[0])].all())
    )


def with_absences(step_graph: StepGraph) -> StepGraph:
    """The step graph of runs without some samples, for points only; ``SELECTION`` is 1 for absent ones.

    The sums are over the present samples; the caller divides by their number.
    """
    return _with(step_graph, Substitute(0, 0.0), "present")
