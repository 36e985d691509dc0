"""Poisoned runs through plain torch: autograd on the module itself, ``torch.optim.SGD``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from milp_agt.attacks.unrolled import Poisoning, State, Unrolled
from milp_agt.errors import SoundnessError
from milp_agt.formulations.loss import Loss
from milp_agt.tracing import FEATURES, StepGraph

# Two orders of summation of one run may differ so much, relative to 1 + the largest parameter.
TOLERANCE = 1e-8


@dataclass(frozen=True)
class ModuleModels:
    """Trained copies of a module, as :class:`milp_agt.attacks.trained.Models`.

    ``state`` holds stacked parameters by name, (attacks, *shape).
    """

    step_graph: StepGraph
    state: State

    @property
    def parameters(self) -> Tensor:
        return torch.cat([self.state[n].flatten(1) for n in self.step_graph.parameters], 1)

    def outputs(self, features: Tensor) -> Tensor:
        module = self.step_graph.model
        own = features.dim() > 1 + len(self.step_graph.graph[FEATURES].shape)

        def of_one(state: State, x: Tensor) -> Tensor:
            found: Tensor = functional_call(module, state, (x,))
            return found

        found: Tensor = vmap(of_one, in_dims=(0, 0 if own else None))(self.state, features)
        return found


def replay(unrolled: Unrolled, poisoning: Poisoning) -> State:
    """The trained parameters by name, (attacks, *shape).

    Gradients come from torch's own autograd on the module, and ``torch.optim.SGD`` takes the steps,
    for all attacks at once on stacked parameters.
    """
    graph = unrolled.step_graph
    module = graph.model.double().to(poisoning.labels[0].device)
    start = {n: v for n, v in unrolled.start(len(poisoning)).items() if n in graph.parameters}
    stacked = {n: nn.Parameter(v.clone()) for n, v in start.items()}
    first = unrolled.updates[0]
    optimiser = torch.optim.SGD(
        stacked.values(),
        lr=first.rate,
        momentum=first.momentum,
        weight_decay=first.weight_decay,
        nesterov=first.nesterov,
    )
    loss = mean_loss(graph.loss)

    def of_one(state: State, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(module, state, (x,)), y)

    gradients = vmap(grad(of_one))
    for step, update in enumerate(unrolled.updates):
        optimiser.param_groups[0]["lr"] = update.rate
        x, y = unrolled.batch_data(poisoning, step)
        found = gradients({n: v.detach() for n, v in stacked.items()}, x, y)
        for name, parameter in stacked.items():
            parameter.grad = found[name]
        optimiser.step()
    return {n: v.detach() for n, v in stacked.items()}


def confirm(replayed: State, expected: State) -> None:
    """See that two computations of the same runs agree up to rounding.

    Raises:
        SoundnessError: they differ by more than ``TOLERANCE``.
    """
    for name, value in replayed.items():
        size = 1.0 + value.abs().flatten(1).amax(1)
        apart = ((value - expected[name]).abs().flatten(1).amax(1) / size).max()
        if not float(apart) <= TOLERANCE:
            raise SoundnessError(
                "An attack must reach the same model when it is trained again in plain torch",
                f"'{name}' differs by {float(apart):.3g} of its size",
                "please report this run",
            )


def mean_loss(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as a user of torch writes it, on outputs (n, outputs) and encoded labels (n, width)."""
    known: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mse": functional.mse_loss,
        "bce": functional.binary_cross_entropy_with_logits,
        "cross_entropy": lambda out, y: functional.cross_entropy(out, y.argmax(-1)),
        # relu, not clamp: torch's clamp has slope 1 at the kink, the library's hinge has slope 0.
        "hinge": lambda out, y: functional.relu(1.0 - (2.0 * y - 1.0) * out).mean(),
    }
    return known.get(loss.key, lambda out, y: loss.value(out, y).mean())
