"""Real poisoned training runs, many at once: random, corner and gradient attacks, and torch replays.

Everything here is an attack that the threat model admits, so whatever it reaches must lie inside
every bound, without any tolerance.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.attacks.corners import SingleGains, corners_of
from milp_agt.attacks.goals import TrainedModels
from milp_agt.attacks.moves import Selector, merged, random_poisoning, steepest, stepped
from milp_agt.attacks.replay import clipped_mean as clipped_mean
from milp_agt.attacks.replay import confirm, state_dict_of
from milp_agt.attacks.replay import per_sample_gradients as gradients_in_torch
from milp_agt.attacks.replay import replay as train_in_torch
from milp_agt.attacks.unrolled import Poisoning, State, Unrolled
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.certification.result import Result
from milp_agt.core.reachable import ReachableSet
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.formulations.loss import get_loss
from milp_agt.properties.models import ReachableModels
from milp_agt.training import inputs
from milp_agt.training.tracing import trace
from milp_agt.training.training import Training

torch.set_num_threads(1)

Box = Mapping[str, tuple[Any, Any]]


def network(
    sizes: Sequence[int],
    activation: type[nn.Module] = nn.ReLU,
    seed: int = 0,
    bias: bool = True,
    scale: float = 1.0,
) -> nn.Sequential:
    """A float64 multilayer perceptron with these widths."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for first, second in itertools.pairwise(sizes):
        layers += [nn.Linear(first, second, bias=bias), activation()]
    model = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


@dataclass(frozen=True)
class Problem:
    """One certification problem: a model, its data, the run and the threat."""

    model: nn.Module
    features: Tensor
    labels: Tensor
    training: Training
    threat: Any
    initial: Box | None = None
    restriction: Restriction = UNRESTRICTED

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.features, self.labels

    def certify(self, **options: Any) -> tuple[Result, list[ReachableSet]]:
        """The result and the reachable set after every step; linear forms by themselves unless asked."""
        boxes: list[ReachableSet] = []
        if options.get("relaxation", "linear") == "linear":
            options.setdefault("carried", "none")  # what a zonotope adds has tests of its own
        options.setdefault("selections", "joint")
        options.setdefault("refute", "none")  # attacks on these runs are those of the tests
        result = agt.certify(
            self.model,
            self.data,
            self.training,
            self.threat,
            initial=self.initial,
            restriction=self.restriction,
            on_step=lambda result, _index, _steps: boxes.append(result.reachable),
            **options,
        )
        return result, boxes


@dataclass(frozen=True)
class Attacks:
    """Poisoned runs with the states that they start from."""

    unrolled: Unrolled
    poisoning: Poisoning
    start: State

    @property
    def features(self) -> list[Tensor]:
        """Features of every step, (attacks, batch, *shape)."""
        return [self._batch(t)[0] for t in range(len(self.unrolled.batches))]

    @property
    def labels(self) -> list[Tensor]:
        """Encoded labels of every step, (attacks, batch, width)."""
        return [self._batch(t)[1] for t in range(len(self.unrolled.batches))]

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.unrolled.batch(self.poisoning, step)[:2]


class Replay:
    """Training runs on poisoned data, vectorised over attacks, without any bound in it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        x = problem.features.to(torch.float64)
        self.step_graph = trace(
            problem.model, problem.training.loss, tuple(x.shape[1:]), problem.training.clipping
        )
        self.loss = self.step_graph.loss
        self.outputs = self.step_graph.outputs
        encoded = inputs.labels_of(problem.labels, len(x), self.loss, self.outputs)
        self.poison = problem.threat.bind(x, encoded, self.loss)
        self.unrolled = Unrolled.of(self.step_graph, problem.training, self.poison)
        self.schedule = self.unrolled.schedule
        self.batches, self.updates = list(self.unrolled.batches), self.unrolled.updates
        self.selector = Selector(self.unrolled, problem.restriction)

    @property
    def static(self) -> bool:
        return bool(self.poison.static)

    def start(self, attacks: int, generator: torch.Generator) -> State:
        """Initial states; random points and corners of the box of theta_0 where there is one."""
        state = self.unrolled.start(attacks)
        for name, ends in (self.problem.initial or {}).items():
            low, high = (torch.as_tensor(np.asarray(end)) for end in ends)
            share = torch.rand(state[name].shape, generator=generator, dtype=torch.float64)
            share[::2] = share[::2].round()
            inside = torch.where(share == 1.0, high, low + share * (high - low))
            state[name] = torch.minimum(torch.maximum(inside, low), high)
        return state

    def run(self, attacks: Attacks) -> list[State]:
        """The states after every step."""
        return self.unrolled.path(attacks.poisoning, attacks.start)

    def outputs_at(self, state: State, features: Tensor) -> Tensor:
        """Outputs of the trained models on test points, (attacks, n, outputs)."""
        return TrainedModels(self.step_graph, state).outputs(features)

    def random(self, attacks: int, generator: torch.Generator, corners: bool) -> Attacks:
        """Random poisonings: at full strength, or uniform."""
        drawn = random_poisoning(self.selector, attacks, generator, corners)
        return Attacks(self.unrolled, drawn, self.start(attacks, generator))

    def by_gradient(
        self,
        objective: Callable[[State], Tensor],
        attacks: int,
        generator: torch.Generator,
        iterations: int = 4,
    ) -> Iterator[Attacks]:
        """Ascent on ``objective`` (attacks,) through the unrolled run; every iterate is an attack.

        The poisoned samples are those of the largest first-order gain, at the moves that the gradient
        names; every other iterate is a step towards them.
        """
        attack = self.random(attacks, generator, corners=True)
        nominal = self.unrolled.nominal(attacks)
        for iteration in range(iterations):
            _, gradient = self.unrolled.gradient(attack.poisoning, objective, attack.start)
            target, gain = steepest(self.unrolled, gradient)
            if iteration % 2:
                target = stepped(self.unrolled, attack.poisoning, target, 0.5)
            data = merged(self.selector.choose(gain), target, nominal)
            attack = Attacks(self.unrolled, data, attack.start)
            yield attack

    def by_units(self, attacks: int, generator: torch.Generator, largest: int) -> Iterator[Attacks]:
        """Samples by themselves at moves that flip their units, and the best of them together.

        Together for both ends of at most ``largest`` parameters, drawn at random. Nothing where features
        do not move.
        """
        corners = corners_of(self.selector, attacks, 2**24, generator)
        if corners is None:
            return
        picked = torch.randperm(self.step_graph.parameter_count, generator=generator)[:largest]
        aims = torch.arange(2 * len(picked))
        table = SingleGains.of(self.unrolled, corners, aims)
        start = self.start(1, generator)

        def attacking(masks: Tensor, target: Poisoning) -> Attacks:
            count = len(target)
            same = {n: v.expand(count, *v.shape[1:]) for n, v in start.items()}
            return Attacks(self.unrolled, merged(masks, target, self.unrolled.nominal(count)), same)

        def reached(attack: Attacks) -> Tensor:
            final = self.run(attack)[-1]
            flat = torch.cat([final[n].flatten(1) for n in self.step_graph.parameters], 1)
            return torch.cat([flat[:, picked], -flat[:, picked]], 1).T

        everyone = torch.arange(len(corners))
        alone = self.selector.choose(table.alone(everyone))
        single = attacking(alone, corners.data.unpacked(self.unrolled))
        yield single
        nobody = torch.zeros_like(alone[:1])
        nominal = attacking(nobody, self.unrolled.nominal(1))
        table.note(everyone, reached(single) - reached(nominal))
        yield attacking(self.selector.choose(table.worth(aims)), table.at_best(aims))

    def objectives(
        self, test: Tensor, test_labels: Tensor, largest: int, generator: torch.Generator
    ) -> tuple[Callable[[State], Tensor], int]:
        """+-parameters and +-margins of test points, one for each attack; returns their count.

        At most ``largest`` parameters are aimed at, drawn at random.
        """
        names = self.step_graph.parameters
        total = self.step_graph.parameter_count
        picked = torch.randperm(total, generator=generator)[:largest]
        coefficients, _ = self.loss.forms(
            inputs.labels_of(test_labels, len(test), self.loss, self.outputs), self.outputs
        )
        rows = 2 * (len(picked) + len(test))
        signs = torch.ones(rows, dtype=torch.float64)
        signs[1::2] = -1.0

        def objective(state: State) -> Tensor:
            flat = torch.cat([state[n].flatten(1) for n in names], 1)
            index = torch.arange(2 * len(picked))
            aimed = flat[index, picked.repeat_interleave(2)]
            out = self.outputs_at({n: v[2 * len(picked) :] for n, v in state.items()}, test)
            point = torch.arange(len(test)).repeat_interleave(2)
            margins = (coefficients[point, 0] * out[torch.arange(len(point)), point]).sum(-1)
            return signs * torch.cat([aimed, margins])

        return objective, rows

    def all(
        self,
        generator: torch.Generator,
        test: Tensor,
        test_labels: Tensor,
        attacks: int = 64,
        iterations: int = 4,
        largest: int = 12,
    ) -> Iterator[Attacks]:
        """Random, corner and gradient attacks, and flips of the samples' own units."""
        yield self.random(attacks, generator, corners=False)
        yield self.random(attacks, generator, corners=True)
        objective, rows = self.objectives(test, test_labels, largest, generator)
        yield from self.by_gradient(objective, rows, generator, iterations)
        yield from self.by_units(attacks, generator, largest)


def with_all_ranges(
    models: ReachableModels, steps: Sequence[LinearizedStep]
) -> list[LinearizedStep]:
    """Steps of a linear chain, which keeps some ranges only, with those that programs need."""
    joint = Joint(models.poison)
    return [
        replace(
            r, ranges=bound_propagation.completed(models.schedule, r.state, r.step, joint, r.ranges)
        )
        for r in steps
    ]


def outside(box: ReachableSet, state: State) -> list[str]:
    """Names of parameters of which some attack lies outside the box; no tolerance."""
    escaped = []
    for name, value in state.items():
        if name in box.lower:
            array = value.detach().numpy()
            if not ((box.lower[name] <= array) & (array <= box.upper[name])).all():
                excess = float(np.maximum(box.lower[name] - array, array - box.upper[name]).max())
                escaped.append(f"{name} by {excess:.3e} at size {float(np.abs(array).max()):.3e}")
    return escaped


def assert_inside(boxes: Sequence[ReachableSet], states: Sequence[State]) -> None:
    """No attack leaves the reachable set of any step."""
    for t, (box, state) in enumerate(zip(boxes, states, strict=True)):
        escaped = outside(box, state)
        assert not escaped, f"step {t + 1}: {escaped}"


@dataclass(frozen=True)
class Certified:
    """The bounds of a result on test points, asked once."""

    result: Result
    test: Tensor
    labels: Tensor
    loss: agt.Bounds
    accuracy: agt.Bounds | None
    margins: tuple[Any, Any] | None
    stable: agt.Bounds | None

    @staticmethod
    def of(result: Result, test: Tensor, labels: Tensor) -> Certified:
        loss = result.loss(test, labels)
        if result.models.step_graph.loss.key == "mse":
            return Certified(result, test, labels, loss, None, None, None)
        asked = result.accuracy(test, labels), result.margins(test, labels), result.stable(test)
        return Certified(result, test, labels, loss, *asked)


def assert_properties(replay: Replay, certified: Certified, state: State) -> None:
    """No trained model leaves the certified loss, accuracy, margins and stability."""
    out = replay.outputs_at(state, certified.test).detach()
    encoded = inputs.labels_of(certified.labels, len(certified.test), replay.loss, replay.outputs)
    losses = replay.loss.value(out, encoded.expand(len(out), *encoded.shape)).mean(-1)
    assert certified.loss.lower <= float(losses.min())
    assert float(losses.max()) <= certified.loss.upper
    if certified.accuracy is None or certified.margins is None or certified.stable is None:
        return
    coefficients, constant = replay.loss.forms(encoded, replay.outputs)
    margins = torch.einsum("nfo,ano->anf", coefficients, out) + constant
    smallest = margins.amin(-1).numpy()
    assert (certified.margins[0] <= smallest).all()
    assert (smallest <= certified.margins[1]).all()
    right = (margins > 0).all(-1).double().mean(-1)
    assert certified.accuracy.lower <= float(right.min())
    assert float(right.max()) <= certified.accuracy.upper
    nominal = certified.result.models.outputs(certified.test)
    if replay.outputs > 1:
        same = out.argmax(-1) == nominal.argmax(-1)
    else:
        same = (out[..., 0] > 0) == (nominal[:, 0] > 0)
    assert certified.stable.lower <= float(same.double().mean(-1).min())


def torch_loss(name: str, outputs: Tensor, encoded: Tensor) -> Tensor:
    """The mean loss as a user of torch writes it, on encoded labels."""
    return get_loss(name).plain(outputs, encoded)


def per_sample_gradients(model: nn.Module, loss: str, x: Tensor, y: Tensor) -> State:
    """The gradient of every sample by torch.func, (n, *shape) for each trainable parameter."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return gradients_in_torch(copy.deepcopy(model), get_loss(loss).plain, trained, x, y)


def assert_torch_agrees(
    replay: Replay, attacks: Attacks, boxes: Sequence[ReachableSet], which: Sequence[int]
) -> None:
    """Plain torch reaches what the unrolled run reaches, and lies inside every reachable set as well."""
    rows = torch.tensor(which)
    start = {name: value[rows] for name, value in attacks.start.items()}
    in_torch = train_in_torch(replay.unrolled, attacks.poisoning.rows(rows), start)
    for t, (trained, state) in enumerate(zip(in_torch, replay.run(attacks), strict=True)):
        confirm(trained, {name: value.detach()[rows] for name, value in state.items()})
        for row, attack in enumerate(which):
            inside = boxes[t].contains(state_dict_of(replay.step_graph, trained, row))
            assert inside, f"torch run {attack} at step {t + 1}"


def assert_sound(
    problem: Problem,
    test: Tensor,
    test_labels: Tensor,
    *,
    seed: int = 0,
    attacks: int = 48,
    iterations: int = 3,
    in_torch: bool = True,
    **options: Any,
) -> Result:
    """Certify, then attack: no run leaves any reachable set or any certified property."""
    result, boxes = problem.certify(**options)
    replay = Replay(problem)
    certified = Certified.of(result, test, test_labels)
    generator = torch.Generator().manual_seed(seed)
    for attack in replay.all(generator, test, test_labels, attacks, iterations):
        states = replay.run(attack)
        assert_inside(boxes, states)
        assert_properties(replay, certified, states[-1])
    if in_torch:
        assert_torch_agrees(replay, attack, boxes, [0, 1])
    return result
