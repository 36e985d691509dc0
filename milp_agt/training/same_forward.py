"""The traced graph held against the user's own forward, on the data, before anything is certified."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from milp_agt.core.graph import evaluate
from milp_agt.errors import UnsupportedOperationError
from milp_agt.training.tracing import FEATURES, StepGraph

# Relative to the largest entry: two float64 computations of one function differ by far less.
TOLERANCE = 1e-8
# Samples at once, and gradients of so many samples one by one.
CHUNK, SINGLE = 256, 32


def check_forward(step_graph: StepGraph, model: nn.Module, features: Tensor) -> None:
    """See that outputs and gradients are those of the model itself, for models with a forward of their own.

    Outputs of all samples, in batches and (some) one by one, so that samples that depend on each other
    are found; gradients of the sum of all outputs, and of the outputs weighted at random. Raises
    UnsupportedOperationError: they differ, by more than two computations in float64 do.
    """
    if not step_graph.own_forward:
        return
    own = copy.deepcopy(model).double()
    trained = {n: p for n, p in own.named_parameters() if n in step_graph.parameters}
    nodes = step_graph.graph.needed_for([step_graph.output])
    leaves = {n: p.detach().double().requires_grad_() for n, p in step_graph.initial.items()}

    def traced(x: Tensor) -> Tensor:
        values = evaluate(nodes, {**leaves, FEATURES: x})
        return values[step_graph.output]

    gradient: Callable[..., tuple[Tensor | None, ...]] = partial(
        torch.autograd.grad, retain_graph=True, allow_unused=True
    )
    generator = torch.Generator().manual_seed(0)
    parts = [*features.split(CHUNK), *features[:SINGLE].split(1)]
    with torch.enable_grad():
        for x in parts:
            expected, found = own(x), traced(x)
            _same("output", found, expected)
            weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
            for weight in (torch.ones_like(weights), weights):
                theirs = gradient((weight * expected).sum(), [trained[n] for n in leaves])
                ours = gradient((weight * found).sum(), [*leaves.values()])
                for name, mine, other in zip(leaves, ours, theirs, strict=True):
                    zero = torch.zeros_like(leaves[name])
                    both = (zero if g is None else g for g in (mine, other))
                    _same(f"gradient of '{name}'", *both)


def _same(what: str, found: Tensor, expected: Tensor) -> None:
    apart = float("inf")
    if found.shape == expected.shape:
        size = 1.0 + float(expected.detach().abs().max())
        apart = float((found.detach() - expected.detach()).abs().max()) / size
    if not apart <= TOLERANCE:
        raise UnsupportedOperationError(
            "The graph of a model must compute what its own forward computes",
            f"the {what} differs by {apart:.3g} of its size, shapes {tuple(found.shape)} and "
            f"{tuple(expected.shape)}",
            "let the forward depend on its input and its parameters alone, change no tensor in place "
            "that is used again, and treat every sample alike",
        )
