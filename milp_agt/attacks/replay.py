"""Poisoned runs through plain torch: autograd on the module itself, steps of ``torch.optim.SGD``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim.sgd import sgd

from milp_agt.attacks.goals import TrainedModels
from milp_agt.attacks.unrolled import Poisoning, State, Unrolled
from milp_agt.bounds.step import clipped_total
from milp_agt.errors import SoundnessError
from milp_agt.training.tracing import FEATURES, StepGraph
from milp_agt.training.training import ClipMode, UpdateRule

MeanLoss = Callable[[Tensor, Tensor], Tensor]

# Two orders of summation of one run may differ so much, relative to 1 + the largest parameter.
TOLERANCE = 1e-8


class ModuleModels(TrainedModels):
    """Trained copies of a module, evaluated by the module itself."""

    def outputs(self, features: Tensor) -> Tensor:
        module = _copy(self.step_graph, features.device)
        own = features.dim() > 1 + len(self.step_graph.graph[FEATURES].shape)

        def of_one(state: State, x: Tensor) -> Tensor:
            found: Tensor = functional_call(module, state, (x,))
            return found

        found: Tensor = vmap(of_one, in_dims=(0, 0 if own else None))(dict(self.state), features)
        return found


def replay(unrolled: Unrolled, data: Poisoning, start: State | None = None) -> Iterator[State]:
    """The parameters by name after every step, (attacks, *shape).

    Gradients come from torch's own autograd on the module, and the steps are those of ``torch.optim.SGD``,
    for all attacks at once on stacked parameters.
    """
    graph = unrolled.step_graph
    begin = unrolled.start(len(data)) if start is None else start
    stacked = {n: nn.Parameter(begin[n].detach().clone()) for n in graph.parameters}
    optimiser = PlainSteps(stacked)
    absences = data.there is not None
    gradients = _mean_gradients(graph, data.labels.device, absences)
    for step, update in enumerate(unrolled.updates):
        x, y, there = unrolled.batch(data, step)
        before = optimiser.snapshot() if absences else {}
        there = torch.ones_like(y[..., 0]) if there is None else there
        found = gradients({n: v.detach() for n, v in stacked.items()}, x, y, there)
        if update.clip_total is not None:
            found = clipped_total(found, update.clip_total, 1)
        for name, parameter in stacked.items():
            parameter.grad = found[name].contiguous()
        optimiser.step(update)
        optimiser.restore(before, there.sum(1) == 0)
        yield {n: v.detach().clone() for n, v in stacked.items()}


class PlainSteps:
    """Steps of ``torch.optim.SGD`` on named parameters, with the rules, penalty and projection of each.

    They are taken by ``torch.optim.sgd.sgd``, which is what the class calls: the class imports torch's
    compiler, which takes longer than most attacks.
    """

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self.named = named
        self.velocity: dict[str, Tensor | None] = dict.fromkeys(named)

    def step(self, update: UpdateRule) -> None:
        """Take a step along the gradients that the parameters hold."""
        if update.l1:
            sizes = [p.abs().sum() for p in self.named.values()]
            (update.l1 * torch.stack(sizes).sum()).backward()
        for name, parameter in self.named.items():
            rule, velocity = update.of(name), [self.velocity[name]]
            with torch.no_grad():
                if parameter.grad is not None:
                    sgd(
                        [parameter],
                        [parameter.grad],
                        velocity,
                        weight_decay=rule.weight_decay,
                        momentum=rule.momentum,
                        lr=rule.rate,
                        dampening=rule.dampening,
                        nesterov=rule.nesterov,
                        maximize=False,
                    )
                if rule.momentum:
                    self.velocity[name] = velocity[0]
                if update.projection is not None:
                    parameter.clamp_(*update.projection)

    def snapshot(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameters and momentum buffers; a buffer that is not there yet counts as 0."""
        found = {}
        for name, parameter in self.named.items():
            buffer = self.velocity[name]
            old = torch.zeros_like(parameter) if buffer is None else buffer.clone()
            found[name] = parameter.detach().clone(), old.detach()
        return found

    def restore(self, before: Mapping[str, tuple[Tensor, Tensor]], empty: Tensor) -> None:
        """Take the step back for the attacks in a mask: their batch was empty."""
        for name, kept in before.items():
            parameter = self.named[name]
            at = empty.reshape(-1, *[1] * (parameter.dim() - 1))
            with torch.no_grad():
                for now, old in zip((parameter, self.velocity[name]), kept, strict=True):
                    if now is not None:
                        now.copy_(torch.where(at, old, now))


def _mean_gradients(
    graph: StepGraph, device: torch.device, absences: bool
) -> Callable[[State, Tensor, Tensor, Tensor], State]:
    """The clipped mean gradients of one batch for many models; with ``absences`` over who is there."""
    module, loss, clipping = _copy(graph, device), graph.loss.plain, graph.clipping

    def outputs(state: State, x: Tensor) -> Tensor:
        found: Tensor = functional_call(module, state, (x,))
        return found

    # Not by torch.func.grad where nothing needs it: it imports torch's compiler, which takes longer than
    # most attacks.
    plain = clipping is None and not absences and graph.loss.options.get("class_weights") is None

    def of_all(state: State, x: Tensor, y: Tensor) -> State:
        free = {n: v.requires_grad_() for n, v in state.items()}
        found = vmap(outputs)(free, x).flatten(0, 1)
        total = len(x) * loss(found, y.flatten(0, 1))  # of means over equally many samples
        ends = torch.autograd.grad(total, tuple(free.values()), materialize_grads=True)
        return dict(zip(free, ends, strict=True))

    def of_batch(state: State, x: Tensor, y: Tensor) -> Tensor:
        return loss(outputs(state, x), y)

    def of_one(state: State, x: Tensor, y: Tensor, there: Tensor) -> State:
        if clipping is None and not absences:
            whole: State = grad(of_batch)(state, x, y)
            return whole
        each = per_sample_gradients(module, loss, state, x, y)
        if clipping is not None:
            each = clipped(each, clipping.bound, clipping.mode)
        if not absences:
            return {n: g.mean(0) for n, g in each.items()}
        share = there / there.sum().clamp(min=1.0)
        return {n: torch.tensordot(share, g, 1) for n, g in each.items()}

    return lambda state, x, y, there: (
        of_all(state, x, y) if plain else vmap(of_one)(state, x, y, there)
    )


def per_sample_gradients(
    module: nn.Module, loss: MeanLoss, state: State, x: Tensor, y: Tensor
) -> State:
    """The gradient of the loss of every sample by torch.func, (n, *shape) for each parameter in ``state``."""

    def of_sample(parameters: State, features: Tensor, label: Tensor) -> Tensor:
        return loss(functional_call(module, parameters, (features[None],)), label[None])

    found: State = vmap(grad(of_sample), in_dims=(None, 0, 0))(state, x, y)
    return found


def clipped_mean(gradients: State, bound: float, mode: ClipMode) -> State:
    """The mean of :func:`clipped` over the samples."""
    return {n: g.mean(0) for n, g in clipped(gradients, bound, mode).items()}


def clipped(gradients: State, bound: float, mode: ClipMode) -> State:
    """``g_i min(1, bound / |g_i|)``, or ``g_i`` clamped, for samples (n, *shape)."""
    if mode == "clamp":
        return {n: g.clamp(-bound, bound) for n, g in gradients.items()}
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
    factor = (bound / torch.linalg.vector_norm(flat, dim=1)).clamp(max=1.0)
    return {n: factor.reshape(-1, *[1] * (g.dim() - 1)) * g for n, g in gradients.items()}


def _copy(graph: StepGraph, device: torch.device) -> nn.Module:
    """The module, copied: functional_call does not restore one that is used twice."""
    return copy.deepcopy(graph.model).double().to(device)


def state_dict_of(step_graph: StepGraph, state: State, attack: int) -> dict[str, Tensor]:
    """One of many stacked models as a ``state_dict()``: frozen and shared parameters included."""
    trained = {n: state[n][attack].cpu() for n in step_graph.parameters} | dict(step_graph.frozen)
    return trained | {alias: trained[name] for alias, name in step_graph.aliases.items()}


def confirm(replayed: State, expected: State) -> None:
    """See that two computations of the same runs agree up to rounding. Raises SoundnessError: they differ
    by more than ``TOLERANCE``."""
    for name, value in replayed.items():
        size = 1.0 + value.abs().flatten(1).amax(1)
        apart = ((value - expected[name]).abs().flatten(1).amax(1) / size).max()
        if not float(apart) <= TOLERANCE:
            raise SoundnessError(
                "An attack must reach the same model when it is trained again in plain torch",
                f"'{name}' differs by {float(apart):.3g} of its size",
                "please report this run",
            )
