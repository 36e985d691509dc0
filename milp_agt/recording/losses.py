"""The losses of torch that the library knows, and the options that change them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from milp_agt.errors import UnsupportedOperationError
from milp_agt.formulations.loss import LossFunction, get_loss

# The function of torch that computes a loss -> the name of the loss here.
FUNCTIONS: dict[Callable[..., Any], str] = {
    functional.cross_entropy: "cross_entropy",
    functional.binary_cross_entropy_with_logits: "bce",
    functional.mse_loss: "mse",
}
_MODULES: dict[type[nn.Module], str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.BCEWithLogitsLoss: "bce",
    nn.MSELoss: "mse",
}
_INSTEAD = {
    "BCELoss": "take the last Sigmoid off the model and use nn.BCEWithLogitsLoss()",
    "NLLLoss": "take the last LogSoftmax off the model and use nn.CrossEntropyLoss()",
    "binary_cross_entropy": "take the last Sigmoid off the model and use "
    "F.binary_cross_entropy_with_logits",
    "nll_loss": "take the last log_softmax off the model and use F.cross_entropy",
}


@dataclass(frozen=True)
class LossCall:
    """One call of a loss: what it was given, with which options, and what came out.

    Attributes:
        start, node: of torch's graph, where the outputs and where the loss stood at the time of the
            call; operations in place move tensors on to other nodes.
        scale: number by which the loss was multiplied afterwards, in ``scalings`` operations.
    """

    key: str
    prediction: Tensor
    target: Tensor
    options: Mapping[str, Any]
    start: Any
    node: Any
    at: str
    scale: float = 1.0
    scalings: int = 0

    def again(self, prediction: Tensor) -> Tensor:
        """The loss of other outputs on the same target."""
        function = next(f for f, key in FUNCTIONS.items() if key == self.key)
        found: Tensor = function(prediction, self.target, **self.options)
        return found

    @property
    def loss(self) -> LossFunction:
        """The loss that was called, with the options that are in its gradient."""
        weights, positive = self.options.get("weight"), self.options.get("pos_weight")
        return get_loss(self.key).configured(
            label_smoothing=float(self.options.get("label_smoothing", 0.0)),
            class_weights=None if weights is None else tuple(weights.double().tolist()),
            positive_weight=None if positive is None else float(positive),
        )

    @property
    def weights(self) -> list[Tensor]:
        """Tensors among the options."""
        given = (self.options.get("weight"), self.options.get("pos_weight"))
        return [each for each in given if each is not None]

    def differences(self) -> Iterator[tuple[str, str]]:
        """Options and shapes with which this is another loss: what was found, what to do."""
        options = {name: value for name, value in self.options.items() if value is not None}
        outputs, targets = tuple(self.prediction.shape), tuple(self.target.shape)
        if "weight" in options and self.key != "cross_entropy":
            yield "weights of single samples (weight=)", "leave weight= out"
        if "pos_weight" in options and options["pos_weight"].numel() != 1:
            yield "several weights of positive classes (pos_weight=)", "train on one logit"
        reduction = options.get("reduction", "mean")
        if reduction != "mean" or options.keys() & {"size_average", "reduce"}:
            yield (
                f"reduction = {self.options.get('reduction')!r}",
                "use reduction='mean', and scale the learning rate",
            )
        if self.key != "cross_entropy":
            if outputs != targets:
                yield (
                    f"outputs of shape {outputs} and targets of {targets}, which are broadcast",
                    "give both one shape",
                )
        elif self.target.is_floating_point():
            yield "targets that are probabilities", "give classes, (n,) whole numbers"
        elif len(outputs) != 2:
            yield f"outputs of shape {outputs}", "give outputs (n, classes)"
        elif options.get("ignore_index", -100) >= 0:
            yield "labels that are left out (ignore_index)", "drop these samples"


def loss_call(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor, at: str
) -> LossCall:
    """The call of one of :data:`FUNCTIONS`, its arguments by name."""
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    prediction, target = bound.pop("input"), bound.pop("target")
    key, start = FUNCTIONS[function], prediction.grad_fn
    return LossCall(key, prediction, target, bound, start, result.grad_fn, at)


def loss_of(loss: object) -> str | None:
    """Name of the loss that a user hands over; None for a function of their own.

    Raises:
        UnsupportedOperationError: a loss of torch that has no rule here, or no loss at all.
    """
    if type(loss) in _MODULES:
        return _MODULES[type(loss)]  # type: ignore[index]
    if isinstance(loss, str) and loss in _MODULES.values():
        return loss
    if callable(loss) and loss in FUNCTIONS:
        return FUNCTIONS[loss]
    made = type(loss) if isinstance(loss, nn.Module) else loss
    name = getattr(made, "__name__", "")
    of_torch = str(getattr(made, "__module__", "")).startswith("torch.")
    if not callable(loss) or name in _INSTEAD or of_torch:
        raise UnsupportedOperationError(
            "A run was to be recorded with its loss",
            f"{name or type(loss).__name__}, which has no rule",
            _INSTEAD.get(
                name,
                "use one of nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss and their functions",
            ),
        )
    return None


def shares_storage(one: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors lie in the same memory."""
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
