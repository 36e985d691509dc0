"""Mutants: a rule that is one per cent too tight must fail the checks of the contract tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from checks_debt import check_debt, debt_case
from checks_encoding import check_encoded_step, check_encoding, encode_operation
from checks_rules import (
    check_interval,
    check_leaf_boxes,
    check_poisoned_sum,
    check_relax,
    check_residual,
)
from checks_steps import (
    StepCase,
    check_step_interval,
    check_step_linear,
    check_update,
    check_walk_of_update,
    mlp,
    small_data,
    step_case,
)
from draws import TOL, all_instances, make_box, make_boxes, poison_of, univariate_instances
from instances import INSTANCES, Instance, per_sample
from torch import Tensor

import milp_agt as agt
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression
from milp_agt.core.interval import Interval
from milp_agt.engines import adversary, joint, linear
from milp_agt.engines.joint import Joint, Masks, PoisonedSum
from milp_agt.engines.program import window
from milp_agt.engines.relaxed import relax_step
from milp_agt.engines.step import Step
from milp_agt.formulations import optimiser_step, univariate
from milp_agt.moves import Box, Vertices
from milp_agt.poison import Poison
from milp_agt.training import Training

SHARE = TOL.mutant
SEEDS = range(6)


def is_caught(check: Callable[[int], object]) -> bool:
    """Does the check raise for one of the seeds?"""
    for seed in SEEDS:
        try:
            check(seed)
        except AssertionError:
            return True
    return False


def shrunk(box: Interval, ends: str = "both") -> Interval:
    """The box with one or both ends moved inwards by one per cent of its width."""
    move = SHARE * box.width
    return Interval(
        box.lower + move if ends != "upper" else box.lower,
        box.upper - move if ends != "lower" else box.upper,
    )


def moderate(instance: Instance, states: str, seed: int) -> tuple[Interval, ...]:
    rng = np.random.default_rng(seed)
    boxes = make_boxes(instance, ("straddle",), (states,), rng)
    if instance.domain == "exponent":
        boxes = tuple(Interval(0.2 * b.lower, 0.2 * b.upper) for b in boxes)
    return boxes


# --------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("ends", ["both", "lower", "upper"])
@pytest.mark.parametrize("instance", [i for i in all_instances() if i.has_interval], ids=str)
def test_interval_mutants(instance: Instance, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(instance.op).interval

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        check_interval(instance, moderate(instance, "nested", seed), rng, count=256)

    check(0)
    monkeypatch.setattr(
        type(instance.op), "interval", lambda op, *boxes: shrunk(original(op, *boxes), ends)
    )
    assert is_caught(check)


@pytest.mark.parametrize("state", [0, 1])
@pytest.mark.parametrize("instance", univariate_instances(), ids=str)
def test_interval_mutants_of_one_state(
    instance: Instance, state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one poisoning state is too tight."""
    original = type(instance.op).interval

    def mutant(op: Any, *boxes: Interval) -> Interval:
        box = original(op, *boxes)
        low, high = box.lower.clone(), box.upper.clone()
        small = shrunk(box)
        low[state], high[state] = small.lower[state], small.upper[state]
        return Interval(low, high)

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        check_interval(instance, moderate(instance, "nested", seed), rng, count=256)

    monkeypatch.setattr(type(instance.op), "interval", mutant)
    assert is_caught(check)


@pytest.mark.parametrize("instance", univariate_instances(), ids=str)
def test_residual_mutants(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too tight and too loose extremes of ``f(x) - m x`` are both caught."""
    original = type(instance.op).residual

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        box = make_box(per_sample(2), ("straddle",), "single", rng, instance.domain)
        check_residual(instance, box.lower[0].flatten().numpy(), box.upper[0].flatten().numpy())

    for share in (SHARE, -SHARE):

        def mutant(op: Any, slope: Any, box: Interval, share: float = share) -> Interval:
            found = original(op, slope, box)
            return Interval(found.lower + share * found.width, found.upper)

        with monkeypatch.context() as patch:
            patch.setattr(type(instance.op), "residual", mutant)
            assert is_caught(check)


# ------------------------------------------------------------------------------------ linear bounds


@dataclass(frozen=True)
class MutantPlanes:
    """Linear bounds with one thing wrong."""

    planes: Any
    kind: str

    @property
    def magnitude(self) -> Tensor:
        return self.planes.magnitude

    def _offset(self, end: str) -> Tensor | None:
        lower, upper = self.planes.lower, self.planes.upper
        if lower is None or upper is None:
            return None
        offset = lower if end == "lower" else upper
        if self.kind == "charge":
            return offset[:1].expand(offset.shape)
        if self.kind != end:
            return offset
        gap = upper - lower
        gap = torch.where(gap > 1e-6 * self.magnitude, gap, self.magnitude)
        return offset + SHARE * gap if end == "lower" else offset - SHARE * gap

    @property
    def lower(self) -> Tensor | None:
        return self._offset("lower")

    @property
    def upper(self) -> Tensor | None:
        return self._offset("upper")

    def pull(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        pulled = self.planes.pull(coefficients)
        if self.kind == "slope":
            return ((1.0 + SHARE) * pulled[0], *pulled[1:])
        return pulled


def _linear_mutants() -> list[Any]:
    cases = []
    for instance in all_instances():
        planes = instance.op.relax(*moderate(instance, "nested", 0))
        kinds = ["slope"]
        if planes.lower is not None:
            kinds += ["lower", "upper"]
            # The identity has no charge to drop.
            if planes.lower.shape[0] > 1 and instance.label != "relu-1.0":
                kinds.append("charge")
        cases += [pytest.param(instance, k, id=f"{instance}-{k}") for k in kinds]
    return cases


@pytest.mark.parametrize(("instance", "kind"), _linear_mutants())
def test_linear_mutants(instance: Instance, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(instance.op).relax

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        check_relax(instance, moderate(instance, "nested", seed), rng, count=128)

    check(0)
    monkeypatch.setattr(
        type(instance.op), "relax", lambda op, *boxes: MutantPlanes(original(op, *boxes), kind)
    )
    assert is_caught(check)


# ---------------------------------------------------------------------------------------- encodings


class MutantEncoder(Encoder):
    """An encoder that makes one thing one per cent too tight, once ``armed``."""

    armed = False

    def __init__(self, exact_phases: bool, kind: str, only: int | None = None) -> None:
        super().__init__(exact_phases)
        self.kind, self.only, self.calls = kind, only, 0

    def columns(self, lower: Array, upper: Array, integer: bool = False) -> Expression:
        if self.armed and self.kind == "columns":
            move = SHARE * (np.asarray(upper) - np.asarray(lower))
            lower, upper = np.asarray(lower) + move, np.asarray(upper) - move
        return super().columns(lower, upper, integer)

    def rows(
        self,
        expression: Expression,
        lower: Array | float,
        upper: Array | float,
        lazy: bool = False,
    ) -> None:
        if self.armed and self.kind == "rows":
            self.calls += 1
            if self.only in (None, self.calls):
                move = SHARE * self._reach(expression)
                lower, upper = lower + move, upper - move
        super().rows(expression, lower, upper, lazy)

    def at_least(self, expression: Expression, offsets: Tensor, lazy: bool = False) -> None:
        dropped = self.armed and self.kind == "charge"
        super().at_least(expression, offsets[:1] if dropped else offsets, lazy)

    def spread(self, expression: Expression, offsets: Interval) -> Expression:
        if self.armed and self.kind == "charge":
            offsets = offsets.clean
        elif self.armed and self.kind == "spread":
            offsets = shrunk(offsets)
        return super().spread(expression, offsets)

    def _reach(self, expression: Expression) -> Array:
        """How far the expression can move within the bounds of its columns."""
        width = np.concatenate(self._upper) - np.concatenate(self._lower)
        matrix = abs(sp.csr_matrix(expression.matrix))
        return (matrix @ width[: matrix.shape[1]]).reshape(expression.shape)


def _encoding_mutants() -> list[Any]:
    cases = []
    for instance in all_instances():
        boxes = moderate(instance, "nested", 0)
        inputs = encode_operation(replace(instance, op=_Nothing()), boxes, exact=False).program.size
        size = encode_operation(instance, boxes, exact=False).program.size
        kinds = ["output"]
        if size["columns"] > inputs["columns"]:
            kinds.append("columns")
        if size["rows"] > inputs["rows"]:
            kinds.append("rows")
            if any(s.batched for s in instance.inputs):
                kinds.append("charge")
        cases += [pytest.param(instance, k, id=f"{instance}-{k}") for k in kinds]
    return cases


class _Nothing:
    """Encodes its first input as it is."""

    @staticmethod
    def encode(encoder: Encoder, inputs: Sequence[Expression], ranges: object) -> Expression:
        return inputs[0]


@pytest.mark.parametrize(("instance", "kind"), _encoding_mutants())
def test_encoding_mutants(instance: Instance, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(instance.op).encode
    if kind == "output":

        def mutant(op: Any, *args: Any) -> Expression:
            out = original(op, *args)
            return Expression((1.0 - SHARE) * out.matrix, out.constant, out.error, out.shape)

        monkeypatch.setattr(type(instance.op), "encode", mutant)

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        boxes = moderate(instance, "nested", seed)
        check_encoding(instance, boxes, False, rng, encoder=MutantEncoder(False, kind))

    assert is_caught(check)


def _blocks() -> list[Any]:
    cases = []
    quick = ("relu-0.0", "step", "sigmoid", "elementwise")
    elementwise = [i for i in INSTANCES["bilinear"] if i.label == "elementwise"]
    for instance in [*univariate_instances(), *elementwise]:
        for states in ("single", "nested"):
            for exact in (False, True) if instance.op.key in ("relu", "step") else (False,):
                slow = instance.label not in quick and states == "nested"
                marks = [pytest.mark.slow] if slow else []
                name = f"{instance}-{states}-{'milp' if exact else 'lp'}"
                cases.append(pytest.param(instance, states, exact, marks=marks, id=name))
    return cases


@pytest.mark.parametrize(("instance", "states", "exact"), _blocks())
def test_every_block_of_rows_has_a_mutant(instance: Instance, states: str, exact: bool) -> None:
    """Each block of rows alone, one per cent too tight, is caught: none of them is slack."""
    counter = MutantEncoder(exact, "rows", only=0)
    encode_operation(instance, moderate(instance, states, 0), exact, counter)
    survivors = []
    for block in range(1, counter.calls + 1):

        def check(seed: int, block: int = block) -> None:
            rng = np.random.default_rng(seed)
            boxes = moderate(instance, states, seed)
            encoder = MutantEncoder(exact, "rows", only=block)
            check_encoding(instance, boxes, exact, rng, count=6, encoder=encoder)

        if not is_caught(check):
            survivors.append(block)
    assert survivors == []


# ------------------------------------------------------------------- sums, debts, leaves, updates


def _terms(seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    parts = [make_box(per_sample(2), ("straddle",), "nested", rng) for _ in range(2)]
    return Interval(
        torch.cat([p.lower for p in parts], 1)[:, :4], torch.cat([p.upper for p in parts], 1)[:, :4]
    )


@pytest.mark.parametrize("kind", ["shrunk", "budget", "clean"])
def test_poisoned_sum_mutants(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result, add = PoisonedSum.result, PoisonedSum.add

    def check(seed: int) -> None:
        check_poisoned_sum(_terms(seed), 2, Masks(), 2, np.random.default_rng(seed))

    check(0)
    if kind == "shrunk":

        def narrow(total: PoisonedSum, inside: int = 0) -> tuple[Interval, Tensor]:
            box, size = result(total, inside)
            return shrunk(box), size

        monkeypatch.setattr(PoisonedSum, "result", narrow)
    elif kind == "budget":
        worst = joint.worst_sum
        monkeypatch.setattr(joint, "worst_sum", lambda hurt, k: worst(hurt, k - 1))
    else:
        monkeypatch.setattr(
            PoisonedSum, "add", lambda total, terms, masks: add(total, terms.clean, masks)
        )
    assert is_caught(check)


@pytest.mark.parametrize("kind", ["worst", "budget", "charges", "support", "labels"])
@pytest.mark.parametrize("per_batch", [False, True], ids=["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_debt_mutants(
    static: bool, per_batch: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0))

    def check(seed: int) -> None:
        check_debt(debt_case(poison_of(2, static, per_batch, "xv"), batches, 3, seed), tight=False)

    check(0)
    worst_sum, dev, support = adversary.worst_sum, adversary._dev, Poison.support
    if kind == "worst":
        monkeypatch.setattr(adversary, "worst_sum", lambda h, k: (1.0 - SHARE) * worst_sum(h, k))
    elif kind == "budget":
        monkeypatch.setattr(adversary, "worst_sum", lambda h, k: worst_sum(h, k - 1))
    elif kind == "charges":

        def without(poison: Poison, x: Any, y: Any, charges: Tensor | None) -> Tensor | None:
            return dev(poison, x, y, None if x is None else torch.zeros_like(charges))

        monkeypatch.setattr(adversary, "_dev", without)
    elif kind == "support":
        monkeypatch.setattr(Poison, "support", lambda p, x, y: (1.0 - SHARE) * support(p, x, y))
    else:
        monkeypatch.setattr(Poison, "support", lambda p, x, y: support(p, x, None))
    assert is_caught(check)


@pytest.mark.parametrize("leaf", ["feature_box", "label_box"])
@pytest.mark.parametrize("what", ["xr", "xv"])
def test_leaf_mutants(what: str, leaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(Poison, leaf)
    check_leaf_boxes(poison_of(2, True, False, what))
    monkeypatch.setattr(Poison, leaf, lambda poison: shrunk(original(poison)))
    with pytest.raises(AssertionError):
        check_leaf_boxes(poison_of(2, True, False, what))


def _case(labels: bool = False, loss: str = "mse", budget: int = 2) -> StepCase:
    """One output, no hidden layer: without poison, linear bounds of a step are exact for mse."""
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}
    training = Training(loss=loss, learning_rate=0.4, **options)
    data = small_data(4, 2, 0 if loss == "mse" else 2, seed=1)
    threat: Any = agt.FeaturePoisoning(budget=budget, radius=0.2)
    if labels:
        threat = agt.LabelPoisoning(budget=budget, radius=0.3 if loss == "mse" else None)
    return step_case(mlp(2, 1), data, training, threat, width=0.05)


def _step_checks() -> dict[str, Callable[[StepCase, int], object]]:
    return {
        "interval": lambda case, seed: check_update(case, np.random.default_rng(seed)),
        "walk": lambda case, seed: check_walk_of_update(case, np.random.default_rng(seed)),
        "lp": lambda case, seed: check_encoded_step(
            case, False, np.random.default_rng(seed), count=2
        ),
    }


@pytest.mark.parametrize("which", ["theta_scalars", "velocity_scalars"])
@pytest.mark.parametrize("engine", _step_checks())
def test_update_mutants(engine: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scalar of the optimiser is one per cent too small, in one engine after the other."""
    case = _case(budget=0 if engine == "walk" else 2)
    check = _step_checks()[engine]
    check(case, 0)
    original = getattr(Step, which).fget
    for position in range(3):

        def mutant(step: Step, position: int = position) -> tuple[float, ...]:
            scalars = list(original(step))
            scalars[position] *= 1.0 - SHARE
            return tuple(scalars)

        with monkeypatch.context() as patch:
            patch.setattr(Step, which, property(mutant))
            relaxed = relax_step(
                case.schedule, case.state, case.step, case.relaxed.ranges, Joint(case.poison)
            )
            wrong = replace(case, relaxed=relaxed)
            assert is_caught(lambda seed, c=wrong: check(c, seed)), f"{engine}, scalar {position}"


def test_interval_update_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = optimiser_step.OptimiserStep.interval
    case = _case()
    monkeypatch.setattr(
        optimiser_step.OptimiserStep, "interval", lambda *args: shrunk(honest(*args))
    )
    assert is_caught(lambda seed: check_update(case, np.random.default_rng(seed), count=256))


def test_rounding_of_the_update_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the widening by gamma, float64 steps leave the box."""
    monkeypatch.setattr(joint, "gamma", lambda k: 0.0)
    monkeypatch.setattr(optimiser_step, "gamma", lambda k: 0.0)

    def check(seed: int) -> None:
        data = small_data(4, 2, 0, seed=seed)
        training = Training(loss="mse", learning_rate=0.1, weight_decay=0.3)
        threat = agt.FeaturePoisoning(budget=0, radius=0.0)
        case = step_case(mlp(2, 3, 1, seed=seed), data, training, threat, width=0.0)
        check_update(case, np.random.default_rng(seed))
        check_step_interval(case, np.random.default_rng(seed), count=2)

    assert is_caught(check)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_dropped_charges_of_a_walk(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk forgets what a poisoned sample does to the planes."""
    case = _case(loss=loss)

    def check(seed: int) -> None:
        check_walk_of_update(case, np.random.default_rng(seed), count=128)

    check(0)
    charges = linear.Offsets._charges
    monkeypatch.setattr(
        linear.Offsets, "_charges", lambda own, *args: torch.zeros_like(charges(own, *args))
    )
    assert is_caught(check)


@pytest.mark.parametrize("labels", [False, True], ids=["features", "labels"])
def test_walk_without_adversary(labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(labels)

    def check(seed: int) -> None:
        check_step_linear(case, np.random.default_rng(seed))

    check(0)
    monkeypatch.setattr(Poison, "support", lambda poison, x, y: torch.zeros(()))
    monkeypatch.setattr(
        linear.Offsets, "_charges", lambda own, c, *args: c.new_zeros(len(c), case.step.size, 1)
    )
    assert is_caught(check)


def test_linear_state_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the walk: a box of states that is one per cent too small."""
    case = _case(labels=True)
    concretise = linear.Forms.concretise

    def mutant(forms: linear.Forms, state: dict[str, Interval], debt: Any) -> Tensor:
        return concretise(forms, {n: shrunk(b) for n, b in state.items()}, debt)

    monkeypatch.setattr(linear.Forms, "concretise", mutant)
    assert is_caught(lambda seed: check_step_linear(case, np.random.default_rng(seed), count=4096))


@pytest.mark.parametrize("kind", ["budget", "features", "vertices", "box"])
def test_moves_mutants(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adversary's columns and rows of a program are one per cent too small."""
    loss = "bce" if kind == "vertices" else "mse"
    case = _case(labels=kind in ("vertices", "box"), loss=loss)

    def check(seed: int) -> None:
        check_encoded_step(case, False, np.random.default_rng(seed), count=2)

    check(0)
    moves = window.Moves
    if kind == "budget":
        limit = moves._limit

        def tight(own: Any, selected: Sequence[Expression]) -> None:
            poison = own.poison
            own.poison = replace(poison, budget=poison.budget - 1)
            limit(own, selected)
            own.poison = poison

        monkeypatch.setattr(moves, "_limit", tight)
    else:
        kinds: type[Box] | type[Vertices] = Vertices if kind == "vertices" else Box
        original = kinds.add_to

        def narrow(own: Any, encoder: Encoder, gates: Expression) -> Expression:
            return original(own.on(lambda tensor: (1.0 - SHARE) * tensor), encoder, gates)

        monkeypatch.setattr(kinds, "add_to", narrow)
    assert is_caught(check)


def test_rounding_of_planes_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the widening of elementary functions, values leave their interval."""
    monkeypatch.setattr(univariate, "UNIT_ROUNDOFF", 0.0)
    monkeypatch.setattr(univariate, "TINY", 0.0)

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for instance in INSTANCES["sigmoid"] + INSTANCES["tanh"] + INSTANCES["exponential"]:
            boxes = make_boxes(instance, ("point", "adjacent"), ("single",), rng)
            check_interval(instance, boxes, rng)

    assert is_caught(check)
