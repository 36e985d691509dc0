"""One backward pass of a loop, held against the pass of the model alone and against the step graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from milp_agt.bounds.step import NodeOrder
from milp_agt.errors import SoundnessError, UnsupportedOperationError
from milp_agt.formulations.loss import LossFunction
from milp_agt.recording.backward import (
    difference,
    gradients,
    is_reached_by_reshapes,
    largest_difference,
    meaning,
)
from milp_agt.recording.losses import LossCall
from milp_agt.recording.origins import DATA, FRESH, MODEL, ROUNDED, Origins
from milp_agt.recording.rows import DataRows
from milp_agt.training import inputs
from milp_agt.training.tracing import FEATURES, LABELS, StepGraph, trace

ASKED = "Every step of a recorded run must be one that the graph of its model knows"
# Two float64 evaluations of one gradient, by other orders of summation.
CLOSE = 1e-9
# Each rounds a scalar and a product, for which the optimiser's step has room in its rounding.
MOST_SCALINGS = 2


@dataclass(frozen=True)
class RecordedForward:
    """One call of the model: what it was given, what came out, and at which node of torch's graph."""

    features: Tensor
    output: Tensor
    node: Any
    autocast: bool
    saved_tensors_hooked: bool


@dataclass(frozen=True)
class Pass:
    """A backward pass that is the one of the model and its loss on some samples.

    Attributes:
        samples: rows of the data set.
        scale: number by which the mean loss of these samples was multiplied.
        gradients: what the model alone gives at these parameters, in their own precision.
        weight: by what the sum over these samples is divided, if not by their number.
        is_from_outside: whether features or labels are neither the loader's nor taken from its arrays.
    """

    samples: tuple[int, ...]
    scale: float
    gradients: Mapping[str, Tensor]
    is_from_outside: bool = False
    weight: float | None = None


def differs(found: str, remedy: str) -> UnsupportedOperationError:
    """A run that is not what the graph of its steps says."""
    return UnsupportedOperationError(ASKED, found, remedy)


class Twin:
    """Copies of a model that stand beside it and are called without anything that surrounds it.

    Attributes:
        initial: the model as it was, with those parameters frozen that no optimiser trains.
        rows: the samples.
        trained: names of the trained parameters.
        step_graph: the graph of a step, once a first batch has told shape and loss.
    """

    def __init__(self, model: nn.Module, rows: DataRows, trained: tuple[str, ...]) -> None:
        self.rows, self.trained = rows, trained
        self.initial = copy.deepcopy(model)
        for name, parameter in self.initial.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in trained)
        self.step_graph: StepGraph | None = None
        self._twin = copy.deepcopy(model)
        self._double = copy.deepcopy(model).double()
        self._order: NodeOrder | None = None
        self._labels = torch.empty(0)

    def examine(
        self,
        model: nn.Module,
        forwards: list[RecordedForward],
        losses: list[LossCall],
        root: Tensor,
        origins: Origins,
    ) -> Pass:
        """See that a backward pass from ``root`` is the model's own on samples of the data set.

        Raises:
            UnsupportedOperationError: anything else, by name.
            SoundnessError: the step graph does not give the gradients of torch.
        """
        call = self._loss_of(losses, root)
        for found, remedy in call.differences():
            raise differs(f"a loss with {found} at {call.at}", remedy)
        if call.scalings > MOST_SCALINGS:
            raise differs(
                f"a loss that was multiplied {call.scalings} times", "multiply it by one number"
            )
        forward = self._forward_of(forwards, call)
        _check_origin("features", origins.of(forward.features))
        of_labels = origins.of(call.target)
        # Classes are whole numbers, however they are kept.
        if of_labels != ROUNDED or call.key == "mse":
            _check_origin("labels", of_labels)
        for each in call.weights:
            _check_origin("weights of the loss", origins.of(each))
        samples = self.rows.locate(forward.features, call.target)
        if self.step_graph is None:
            self._trace(forward.features.shape[1:], call.loss)
        assert self.step_graph is not None
        if call.loss != self.step_graph.loss:
            raise differs(
                f"another loss than in the first step, '{call.key}' with {call.loss.options or 'no options'}",
                "train on one loss",
            )
        own = self._gradients(self._twin, model, forward, call)
        self._check_graph(model, forward, call, samples)
        known = {origins.of(forward.features), of_labels} <= {DATA, ROUNDED}
        return Pass(samples, call.scale, own, not known, self._weight(samples))

    def _weight(self, samples: tuple[int, ...]) -> float | None:
        """By what the sum over samples is divided, if not by their number."""
        assert self.step_graph is not None
        found = self.step_graph.loss.divisor(self._labels[list(samples)])
        return None if found is None else float(found)

    @staticmethod
    def _loss_of(losses: list[LossCall], root: Tensor) -> LossCall:
        for call in losses:
            if call.node is root.grad_fn:
                return call
        if root.grad_fn is None:
            raise differs("a backward pass from a tensor without a graph", "call loss.backward()")
        raise differs(
            f"a backward pass that does not begin at a known loss: {meaning(root.grad_fn)}",
            "call backward() on what the loss function gives, and keep penalties to weight_decay= of "
            "the optimiser",
        )

    @staticmethod
    def _forward_of(forwards: list[RecordedForward], call: LossCall) -> RecordedForward:
        between = [(f, is_reached_by_reshapes(call.start, f.node)) for f in reversed(forwards)]
        forward = next((forward for forward, node in between if node is None), None)
        if not between:
            raise differs(
                "a loss on outputs of something else than the model",
                "call the module that agt.record was given",
            )
        if forward is None:
            raise differs(
                f"an operation between the model's output and its loss: {meaning(between[0][1])}",
                "make it a layer of the model, or leave it out",
            )
        if forward.output.numel() != call.prediction.numel():
            raise differs("a loss on some of the model's outputs", "use all of them")
        if forward.autocast:
            raise differs(
                "a model that was called under autocast (mixed precision)",
                "train in float32 or float64 throughout",
            )
        if forward.saved_tensors_hooked:
            raise differs(
                "hooks on the tensors that are saved for the backward pass",
                "leave torch.autograd.graph.saved_tensors_hooks out",
            )
        return forward

    def _trace(self, shape: tuple[int, ...], loss: LossFunction) -> None:
        self.step_graph = trace(self.initial, loss, tuple(shape))
        self._order = NodeOrder.of(self.step_graph)
        self._labels = inputs.labels_of(
            self.rows.labels, len(self.rows), self.step_graph.loss, self.step_graph.outputs
        )

    def _gradients(
        self, twin: nn.Module, model: nn.Module, forward: RecordedForward, call: LossCall
    ) -> dict[str, Tensor]:
        """Gradients of the model alone; its graph of operations must be that of the user's pass."""
        _copy_values(model, twin)
        with torch.enable_grad():
            output: Tensor = twin(forward.features)
            loss = call.scale * call.again(output.reshape(call.prediction.shape))
        names = {id(p): name for name, p in model.named_parameters()}
        twins = {id(p): name for name, p in twin.named_parameters()}
        found = difference(forward.node, output.grad_fn, names, twins)
        if found is not None:
            raise differs(
                f"a call of the model that does more than the model: {found}",
                "leave it out, or make it a layer of the model",
            )
        return gradients(twin, loss, self.trained)

    def _check_graph(
        self, model: nn.Module, forward: RecordedForward, call: LossCall, samples: tuple[int, ...]
    ) -> None:
        """The step graph gives the gradients of torch, both in float64."""
        assert self.step_graph is not None
        assert self._order is not None
        _copy_values(model, self._double)
        with torch.enable_grad():
            output = self._double(forward.features.double())
            prediction = output.reshape(call.prediction.shape)
            target = call.target.double() if call.target.is_floating_point() else call.target
            options = {
                n: v.double() if isinstance(v, Tensor) else v for n, v in call.options.items()
            }
            loss = replace(call, target=target, options=options).again(prediction)
        expected = gradients(self._double, loss, self.trained)
        values = dict(self._double.named_parameters())
        leaves: dict[str, Any] = {n: values[n].detach().cpu() for n in self.step_graph.parameters}
        index = torch.tensor(samples)
        leaves[FEATURES] = self.rows.features[index].double()
        leaves[LABELS] = self._labels[index]
        with torch.no_grad():
            nodes = self._order.values(leaves)
        divisor = self._weight(samples) or len(samples)
        own = {name: nodes[node] / divisor for name, node in self.step_graph.gradients.items()}
        torchs = {name: expected[name].cpu() for name in own}
        worst, apart, size = largest_difference(own, torchs)
        features = 1.0 + float(leaves[FEATURES].abs().max())
        if not apart <= CLOSE * size + 1e-12 * features:
            raise SoundnessError(
                "The graph of a step must give the gradients of torch",
                f"'{worst}' differs by {apart:.3g}, where gradients are up to {size:.3g}",
                "please report this run",
            )


def _check_origin(what: str, origin: str | None) -> None:
    """See that a batch was taken from the samples, and not computed from them."""
    if origin == MODEL:
        raise differs(
            f"{what} that were computed or chosen with the model (hard examples, pseudo-labels, "
            "adversarial training)",
            "choose them before the recording, whatever the values of the data",
        )
    if origin not in (None, DATA, FRESH):
        raise differs(
            f"{what} that were computed or chosen inside the loop, by {origin} (data augmentation, noise, a "
            "filter, another code): poisoned data may come out as others",
            "do it in the data set, before the recording, or make it a layer of the model",
        )


def _copy_values(source: nn.Module, target: nn.Module) -> None:
    """Parameters, buffers and modes of one model in its copy."""
    with torch.no_grad():
        for parameter, own in zip(source.parameters(), target.parameters(), strict=True):
            own.copy_(parameter)
        for buffer, kept in zip(source.buffers(), target.buffers(), strict=True):
            kept.copy_(buffer)
    for layer, copied in zip(source.modules(), target.modules(), strict=True):
        copied.training = layer.training
