"""Real poisoned training runs, many at once: random, corner and gradient attacks, and torch replays.

Everything here is an attack that the threat model admits, so whatever it reaches must lie inside
every bound, without any tolerance.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import milp_agt as agt
from milp_agt import inputs
from milp_agt.core.evaluate import evaluate
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.engines.step import Schedule, step_at_points, velocity_of
from milp_agt.reachable import ReachableSet
from milp_agt.result import Result
from milp_agt.tracing import FEATURES, trace
from milp_agt.training import Training

torch.set_num_threads(1)

State = dict[str, Tensor]
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
        """The result and the reachable set after every step."""
        boxes: list[ReachableSet] = []
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
    """Poisoned data of every step, (attacks, batch, ...), with the state that training starts from."""

    start: State
    features: list[Tensor]
    labels: list[Tensor]


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
        self.schedule = Schedule.of(self.step_graph)
        encoded = inputs.labels_of(problem.labels, len(x), self.loss, self.outputs)
        self.poison = problem.threat.bind(x, encoded, self.loss)
        self.batches = [torch.from_numpy(b) for b in problem.training.batch_order(len(x))]
        self.updates = problem.training.update_rules(len(self.batches))
        self.member = torch.zeros(len(self.batches), len(x), dtype=torch.bool)
        for t, batch in enumerate(self.batches):
            self.member[t, batch] = True

    @property
    def static(self) -> bool:
        return bool(self.poison.static)

    def start(self, attacks: int, generator: torch.Generator) -> State:
        """Initial states; random points and corners of the box of theta_0 where there is one."""
        state: State = {}
        given = self.problem.initial or {}
        for name, value in self.step_graph.initial.items():
            state[name] = value.expand(attacks, *value.shape)
            if name in given:
                low, high = (torch.as_tensor(np.asarray(end)) for end in given[name])
                share = torch.rand(
                    (attacks, *value.shape), generator=generator, dtype=torch.float64
                )
                share[::2] = share[::2].round()
                inside = torch.where(share == 1.0, high, low + share * (high - low))
                state[name] = torch.minimum(torch.maximum(inside, low), high)
        if self.problem.training.momentum > 0:
            for name in self.step_graph.parameters:
                state[velocity_of(name)] = torch.zeros_like(state[name])
        return state

    def run(self, attacks: Attacks) -> list[State]:
        """The states after every step."""
        state, states = attacks.start, []
        for x, y, update in zip(attacks.features, attacks.labels, self.updates, strict=True):
            state = step_at_points(self.step_graph, self.schedule, state, x, y, update)
            states.append(state)
        return states

    def outputs_at(self, state: State, features: Tensor) -> Tensor:
        """Outputs of the trained models on test points, (attacks, n, outputs)."""
        count = len(next(iter(state.values())))
        leaves = {n: state[n] for n in self.step_graph.parameters}
        nodes = self.step_graph.graph.needed_for([self.step_graph.output])
        return evaluate(nodes, leaves | {FEATURES: features.expand(count, *features.shape)})[
            self.step_graph.output
        ]

    def selections(self, scores: Tensor, members: Tensor) -> Tensor:
        """Greedy poisoned sets by falling score, (attacks, N), within the budget of every batch.

        ``members`` (groups, N) are the groups in which the budget counts.
        """
        restriction = self.problem.restriction
        scores = scores.clone()
        scores[:, sorted(restriction.inside)] = torch.inf
        allowed = self.poison.open.clone()
        allowed[sorted(restriction.outside)] = False
        chosen = torch.zeros(scores.shape, dtype=torch.bool)
        counts = torch.zeros(len(scores), len(members), dtype=torch.int64)
        rows = torch.arange(len(scores))
        for sample in scores.argsort(dim=1, descending=True).unbind(1):
            groups = members[:, sample].T
            fits = ((counts + groups <= self.poison.budget) | ~groups).all(1) & allowed[sample]
            counts += groups * fits[:, None]
            chosen[rows, sample] = fits
        return chosen

    def _groups(self, step: int | None = None) -> Tensor:
        if not self.poison.per_batch:
            return torch.ones(1, len(self.poison.features), dtype=torch.bool)
        return self.member if step is None else self.member[step : step + 1]

    def selections_of_run(self, scores: list[Tensor]) -> list[Tensor]:
        """The poisoned set of every step from scores (attacks, N) of every step."""
        if self.static or not self.poison.per_batch:
            return [self.selections(sum(scores[1:], scores[0]), self._groups())] * len(self.batches)
        return [self.selections(s, self._groups(t)) for t, s in enumerate(scores)]

    def random(self, attacks: int, generator: torch.Generator, corners: bool) -> Attacks:
        """Random poisonings: at full strength, or uniform."""
        count = len(self.poison.features)
        steps = range(1 if self.static else len(self.batches))
        draws = [torch.rand(attacks, count, generator=generator) for _ in self.batches]
        chosen = self.selections_of_run(draws)
        moves = [self.poison.sample_moves(generator, chosen[t], corners) for t in steps]
        if self.static:
            moves = moves * len(self.batches)
        return Attacks(
            self.start(attacks, generator),
            [x[:, b] for (x, _), b in zip(moves, self.batches, strict=True)],
            [y[:, b] for (_, y), b in zip(moves, self.batches, strict=True)],
        )

    def by_gradient(
        self,
        objective: Callable[[State], Tensor],
        attacks: int,
        generator: torch.Generator,
        iterations: int = 4,
    ) -> Iterator[Attacks]:
        """Ascent on ``objective`` (attacks,) through the unrolled run; every iterate is an attack.

        The perturbed samples are those of the largest first-order gain; features go to the corner
        that the gradient names (every other iterate: a step towards it), labels to the best move.
        """
        attack = self.random(attacks, generator, corners=True)
        for iteration in range(iterations):
            x = [v.detach().clone().requires_grad_() for v in attack.features]
            y = [v.detach().clone().requires_grad_() for v in attack.labels]
            final = self.run(Attacks(attack.start, x, y))[-1]
            total = objective(final).sum()
            pulls = torch.autograd.grad(total, [*x, *y], allow_unused=True)
            zeros = [
                torch.zeros_like(v) if g is None else g
                for v, g in zip([*x, *y], pulls, strict=True)
            ]
            zeros = [torch.nan_to_num(g) for g in zeros]
            attack = self._ascend(attack, zeros[: len(x)], zeros[len(x) :], iteration)
            yield attack

    def _ascend(
        self, attack: Attacks, on_x: list[Tensor], on_y: list[Tensor], iteration: int
    ) -> Attacks:
        poison, count = self.poison, len(attack.features[0])
        full_x = [self._scattered(g, b) for g, b in zip(on_x, self.batches, strict=True)]
        full_y = [self._scattered(g, b) for g, b in zip(on_y, self.batches, strict=True)]
        if self.static:
            full_x = [sum(full_x[1:], full_x[0])] * len(full_x)
            full_y = [sum(full_y[1:], full_y[0])] * len(full_y)
        moves = [poison.steepest(gx, gy) for gx, gy in zip(full_x, full_y, strict=True)]
        chosen = self.selections_of_run([m.feature_gain + m.label_gain for m in moves])
        features, labels = [], []
        for move, mask, batch, old in zip(
            moves, chosen, self.batches, attack.features, strict=True
        ):
            picked = mask[:, batch]
            at = picked.reshape(*picked.shape, *[1] * (move.features.dim() - 2))
            nominal_x = poison.features[batch].expand(count, -1, *poison.features.shape[1:])
            nominal_y = poison.labels[batch].expand(count, -1, *poison.labels.shape[1:])
            target = move.features[:, batch]
            if iteration % 2:
                target, _ = poison.take(batch).project(0.5 * target + 0.5 * old, nominal_y)
            features.append(torch.where(at, target, nominal_x))
            labels.append(torch.where(picked[..., None], move.labels[:, batch], nominal_y))
        return Attacks(attack.start, features, labels)

    def _scattered(self, gradient: Tensor, batch: Tensor) -> Tensor:
        shape = (gradient.shape[0], len(self.poison.features), *gradient.shape[2:])
        return gradient.new_zeros(shape).index_copy(1, batch, gradient)

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
        """Random, corner and gradient attacks."""
        yield self.random(attacks, generator, corners=False)
        yield self.random(attacks, generator, corners=True)
        objective, rows = self.objectives(test, test_labels, largest, generator)
        yield from self.by_gradient(objective, rows, generator, iterations)


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
        return Certified(
            result,
            test,
            labels,
            loss,
            result.accuracy(test, labels),
            result.margins(test, labels),
            result.stable(test),
        )


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
    if name == "mse":
        return functional.mse_loss(outputs, encoded)
    if name == "bce":
        return functional.binary_cross_entropy_with_logits(outputs, encoded)
    if name == "cross_entropy":
        return functional.cross_entropy(outputs, encoded.argmax(-1))
    # relu, not clamp: torch's clamp has slope 1 at the kink, the library's hinge has slope 0.
    return functional.relu(1.0 - (2.0 * encoded - 1.0) * outputs).mean()


def per_sample_gradients(model: nn.Module, loss: str, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of every sample by torch.func, (n, *shape) for each trainable parameter."""
    model = copy.deepcopy(model)  # functional_call does not restore a module that is used twice
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}

    def of_one(parameters: State, features: Tensor, label: Tensor) -> Tensor:
        out = torch.func.functional_call(model, {**parameters, **fixed}, (features[None],))
        return torch_loss(loss, out, label[None])

    return torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))(trained, x, y)


def clipped_mean(gradients: State, clip: float, mode: str) -> State:
    """The mean of ``g_i min(1, clip / |g_i|)``, or of ``g_i`` clamped, from its definition."""
    if mode == "clamp":
        return {n: g.clamp(-clip, clip).mean(0) for n, g in gradients.items()}
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
    factor = (clip / torch.linalg.vector_norm(flat, dim=1)).clamp(max=1.0)
    return {
        n: torch.stack([f * own for f, own in zip(factor, g, strict=True)]).mean(0)
        for n, g in gradients.items()
    }


def set_clipped_gradients(model: nn.Module, run: Training, x: Tensor, y: Tensor) -> None:
    assert run.clipping is not None
    gradients = per_sample_gradients(model, run.loss, x, y)
    mean = clipped_mean(gradients, run.clipping.bound, run.clipping.mode)
    for name, parameter in model.named_parameters():
        if name in mean:
            parameter.grad = mean[name]


def train_in_torch(replay: Replay, attacks: Attacks, which: int) -> list[dict[str, Tensor]]:
    """One attack through plain torch.nn and torch.optim.SGD: the state dict after every step."""
    model = copy.deepcopy(replay.problem.model).double()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name in replay.step_graph.parameters:
            own[name].copy_(attacks.start[name][which])
    run = replay.problem.training
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=run.learning_rate,
        momentum=run.momentum,
        nesterov=run.nesterov,
        weight_decay=run.weight_decay,
    )
    states = []
    for x, y, update in zip(attacks.features, attacks.labels, replay.updates, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = update.rate
        optimiser.zero_grad()
        if run.clipping is None:
            torch_loss(run.loss, model(x[which].detach()), y[which].detach()).backward()
        else:
            set_clipped_gradients(model, run, x[which].detach(), y[which].detach())
        optimiser.step()
        states.append({n: v.detach().clone() for n, v in model.state_dict().items()})
    return states


def assert_torch_agrees(
    replay: Replay, attacks: Attacks, boxes: Sequence[ReachableSet], which: Sequence[int]
) -> None:
    """Plain torch reaches what the replay reaches, and lies inside every reachable set as well."""
    states = replay.run(attacks)
    for attack in which:
        for t, trained in enumerate(train_in_torch(replay, attacks, attack)):
            assert boxes[t].contains(trained), f"torch run {attack} at step {t + 1}"
            for name in replay.step_graph.parameters:
                own = states[t][name][attack].detach()
                size = 1.0 + float(own.abs().max())
                assert float((trained[name] - own).abs().max()) <= 1e-9 * size, (name, t)


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
