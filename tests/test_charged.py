"""Errors charged to samples: every rule holds for every set of poisoned samples, attacks stay inside."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_cases
import torch
from attacks import Problem, Replay, assert_inside
from draws import all_instances
from instances import Instance
from test_cases import MOVED, THREATS, problem
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.adversary import charged
from milp_agt.bounds.adversary.box_algebra import AddedInfluences
from milp_agt.core.influence import Influence, worst_of
from milp_agt.core.interval import Interval
from milp_agt.core.planes import LinearBounds
from milp_agt.formulations import bilinear, charges
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.heaviside import Heaviside
from milp_agt.formulations.linear_map import LinearPlanes
from milp_agt.formulations.product_planes import BilinearPlanes
from milp_agt.formulations.run_rounding import RoundedPlanes
from milp_agt.formulations.sum_samples import SumSamples

COLUMNS, BUDGET, SAMPLES = 5, 3, 3
CHARGED = "linear, charged to samples"
INSTANCES = [i for i in all_instances() if i.op.has_influence]
SEEDS = range(12)


# ------------------------------------------------------------------------------------- influences


def random_influence(instance: Instance, at: int, rng: np.random.Generator) -> Influence:
    """A base that is a point in places, and influences of very different sizes, many of them 0."""
    signature = instance.inputs[at]
    shape = (SAMPLES, *signature.shape) if signature.batched else signature.shape
    centre = rng.normal(size=shape) * rng.choice([0.02, 1.0], size=shape)
    radius = np.where(rng.random(shape) < 0.5, 0.0, 0.1 * rng.random(shape))
    moves = rng.exponential(size=(2, COLUMNS, *shape)) * rng.choice(
        [0.0, 1e-9, 0.05, 0.6], size=(2, COLUMNS, *shape)
    )
    if instance.domain == "positive":
        centre, moves = np.abs(centre) + 0.6, 0.1 * moves
    if instance.domain == "exponent":
        centre = 0.5 * centre
    base = Interval(torch.tensor((centre - radius)[None]), torch.tensor((centre + radius)[None]))
    own = torch.tensor([2, -1, 0]) if signature.batched else None
    return Influence(base, torch.tensor(moves[0]), torch.tensor(moves[1]), BUDGET, own)


def points_of(
    influence: Influence, chosen: tuple[int, ...], count: int, rng: np.random.Generator
) -> Tensor:
    """Points, (count, [n], *shape), that the set ``chosen`` can reach; many of them corners."""
    base, picked = influence.base, list(chosen)
    share = _corners(rng, (count, *base.lower.shape[1:]))
    points = base.lower + share * (base.upper - base.lower)
    side = torch.from_numpy(rng.choice([-1.0, 1.0], size=share.shape))
    reached = torch.zeros_like(points)
    for j in picked:
        part = _corners(rng, tuple(share.shape))
        reached = reached + part * torch.where(side > 0, influence.up[j], -influence.down[j])
    return points + reached * (1.0 - 1e-13)


def _corners(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    share = rng.random(shape)
    return torch.from_numpy(np.where(rng.random(shape) < 0.7, np.round(share), share))


def ends(columns: Interval, chosen: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The ends that a set may reach, by the definition of influences."""
    own = Influence.of(columns, BUDGET, None)
    picked = list(chosen)
    return (
        own.base.lower[0] - own.down[picked].sum(0),
        own.base.upper[0] + own.up[picked].sum(0),
    )


def sets() -> list[tuple[int, ...]]:
    return [s for k in (0, 1, BUDGET) for s in itertools.combinations(range(COLUMNS), k)]


def check_image(instance: Instance, seed: int) -> None:
    """No value leaves the image, whoever is poisoned."""
    rng = np.random.default_rng(seed)
    inputs = [random_influence(instance, j, rng) for j in range(len(instance.inputs))]
    image = instance.op.influence(*inputs).columns()
    for chosen in sets():
        values = instance.op.value(*(points_of(i, chosen, 128, rng) for i in inputs))
        low, high = ends(image, chosen)
        assert bool((low <= values).all())
        assert bool((values <= high).all())


def check_planes(instance: Instance, seed: int) -> None:
    """No value leaves the planes, whoever is poisoned; rounding of this check aside."""
    rng = np.random.default_rng(seed)
    inputs = [random_influence(instance, j, rng) for j in range(len(instance.inputs))]
    planes = instance.op.relax_influence(*inputs)
    if planes.lower is None or planes.upper is None:
        return
    offsets = Interval(planes.lower, planes.upper)
    for chosen in sets():
        points = [points_of(i, chosen, 128, rng) for i in inputs]
        values = instance.op.value(*points)
        apart = len(offsets.lower) > 1
        low, high = ends(offsets, chosen) if apart else (planes.lower[0], planes.upper[0])
        below, above = _planes_at(instance, planes, points)
        slack = 1e-13 * (1.0 + planes.magnitude)
        assert bool((below + low <= values + slack).all())
        assert bool((values - slack <= above + high).all())


def _planes_at(
    instance: Instance, planes: LinearBounds, points: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The linear parts of the lower and of the upper plane."""
    if isinstance(planes, BilinearPlanes):
        op = instance.op
        assert isinstance(op, Einsum)
        linear = op.value(points[0], planes.centre_b) + op.value(planes.centre_a, points[1])
        return linear, linear
    if isinstance(planes, LinearPlanes):
        assert planes.lower is not None
        value = instance.op.value(*points) - planes.lower[0]
        return value, value
    if isinstance(planes, RoundedPlanes):
        return points[0], points[0]
    return planes.slope_lower * points[0], planes.slope_upper * points[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_images_hold_for_every_set(instance: Instance) -> None:
    for seed in SEEDS:
        check_image(instance, seed)


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_planes_hold_for_every_set(instance: Instance) -> None:
    for seed in SEEDS:
        check_planes(instance, seed)


def test_operations_of_networks_have_influences() -> None:
    keys = {i.op.key for i in INSTANCES}
    assert {"relu", "step", "sigmoid", "tanh", "exponential", "reciprocal", "quadratic"} <= keys
    assert {"bilinear", "combine", "affine", "reshape", "sum_samples", "optimiser_step"} <= keys


def test_an_operation_without_the_rule_says_so() -> None:
    sign = next(i for i in all_instances() if i.op.key == "sign")
    with pytest.raises(agt.errors.UnsupportedOperationError) as refusal:
        sign.op.influence(random_influence(sign, 0, np.random.default_rng(0)))
    assert "'sign'" in str(refusal.value)
    assert "no such rule" in str(refusal.value)
    assert "selections=" in str(refusal.value)


@pytest.mark.parametrize("budget", [1, 2, 3, 7])
def test_reach_and_worst_against_all_sets(budget: int) -> None:
    rng = np.random.default_rng(0)
    moves = torch.tensor(rng.choice([0.0, 0.5, 1.0, 3.0], size=(5, 40)) * rng.random((5, 40)))
    own = Influence(Interval.point(torch.zeros(1, 40).double()), moves, moves, budget)
    sets = [s for k in range(budget + 1) for s in itertools.combinations(range(5), min(k, 5))]
    totals = {s: moves[list(s)].sum(0) for s in sets}
    worst = torch.stack(list(totals.values())).amax(0)
    assert bool((own.worst(moves) >= worst).all())
    assert torch.allclose(own.worst(moves), worst, rtol=1e-13)
    for j in range(5):
        reach = torch.stack([t for s, t in totals.items() if j in s]).amax(0)
        assert bool((own.reach(moves)[j] >= reach).all())
        assert torch.allclose(own.reach(moves)[j], reach, rtol=1e-13)


def test_influences_meet_by_their_hulls() -> None:
    def influence(base: float, *moves: float) -> Influence:
        column = torch.tensor(moves).double().reshape(-1, 1)
        return Influence(Interval.point(torch.full((1, 1), base).double()), column, column, 1)

    tight, wide = influence(0.5, 1.0, 0.0), influence(0.0, 0.0, 1.7)
    met = wide.better(tight)
    assert torch.equal(met.up, tight.up)  # 1.5 is less than 1.7 ...
    assert torch.equal(met.down, tight.down)  # ... and -0.5 more than -1.7
    assert met.hull().contains(torch.tensor([[-0.5], [1.5]]).double())


def test_a_flip_is_charged_by_the_distance_to_the_kink() -> None:
    """``min(1, I / m)`` for samples that can take part in it; absorbed where that sums up to more."""

    def step(budget: int, *moves: float) -> Influence:
        down = torch.tensor(moves).double().unsqueeze(1)
        base = Interval.point(torch.tensor([[1.0]]).double())
        return Heaviside().influence(Influence(base, down, torch.zeros_like(down), budget))

    alone = step(1, 1.2, 0.6, 0.1)
    assert alone.down[:, 0].tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert alone.base.lower.item() == pytest.approx(1.0)
    together = step(2, 0.75, 0.25, 0.125)
    assert together.down[:, 0].tolist() == pytest.approx([0.75, 0.25, 0.0])
    many = step(2, 0.6, 0.5, 0.5)
    assert many.down[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert many.base.lower.item() == pytest.approx(0.0, abs=1e-12)


# ------------------------------------------------------------------------------------- whole runs


SOME: list[Any] = [
    *itertools.product(("bce", "cross_entropy", "hinge"), ("two", "both", "two labels")),
    ("bce", "adaptive"),
    *(("mse", name) for name in MOVED),
]


@pytest.mark.parametrize(("loss", "name"), SOME)
def test_attacks_stay_inside(loss: str, name: str) -> None:
    threat = MOVED[name] if loss == "mse" else THREATS[name]
    case = problem(threat, loss, momentum=0.3, weight_decay=0.01)
    assert_holds_attacks(case, inner_bounds="linear")


@pytest.mark.parametrize("inner", ["interval", "linear"])
@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": 4, "shuffle_seed": 3}])
def test_attacks_on_mini_batches_stay_inside(inner: str, options: dict[str, Any]) -> None:
    case = problem(agt.FeatureLabelPoisoning(3, 0.05), epochs=2, **options)
    assert_holds_attacks(case, window=2, inner_bounds=inner)


@pytest.mark.parametrize("radius", [0.01, 0.2, 1.0])
def test_attacks_of_any_size_stay_inside(radius: float) -> None:
    """From no flip at all to flips everywhere."""
    case = problem(agt.FeaturePoisoning(2, radius), hidden=(3, 2), epochs=4)
    assert_holds_attacks(case)


@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_moves_in_other_norms(norm: float) -> None:
    assert_holds_attacks(problem(agt.FeaturePoisoning(2, 0.05, norm=norm)))


def test_a_start_box() -> None:
    case = problem(THREATS["both"])
    start = {
        name: (value.detach().numpy() - 0.01, value.detach().numpy() + 0.01)
        for name, value in case.model.state_dict().items()
    }
    assert_holds_attacks(replace(case, initial=start))


def assert_holds_attacks(case: Problem, **options: Any) -> None:
    test_cases.assert_holds_attacks(case, "charged", CHARGED, **options)


def moons(budget: int, radius: float, epochs: int) -> Problem:
    generator = torch.Generator().manual_seed(1)
    angle = 3.14159 * torch.rand(24, generator=generator, dtype=torch.float64)
    y = torch.arange(24) % 2
    x = torch.stack([torch.cos(angle) + y, torch.sin(angle) * (1 - 2 * y) + 0.3 * y], 1)
    case = problem(agt.FeaturePoisoning(budget, radius), hidden=(4,), epochs=epochs)
    return replace(case, features=x, labels=y)


@pytest.mark.usefixtures("linear_alone")
def test_flips_paid_by_one_set_are_tighter() -> None:
    """Where steps become ambiguous, one set of samples cannot flip all of them."""
    case = moons(3, 0.02, 10)
    widths = {
        kind: case.certify(selections=kind)[0].reachable.mean_width for kind in ("joint", "charged")
    }
    assert widths["charged"] < 0.8 * widths["joint"]


@pytest.mark.usefixtures("linear_alone")
def test_charges_are_carried_unasked_where_a_list_is_too_long() -> None:
    case = moons(8, 0.01, 2)
    result = agt.certify(case.model, case.data, case.training, case.threat)
    assert CHARGED in result.steps[-1].chains
    assert any("charged to the samples" in note for note in result.notes)


@pytest.mark.usefixtures("linear_alone")
def test_a_time_limit_pays_for_linear_inner_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milp_agt.certification.selection_plan.MOST_LISTED", 1)
    monkeypatch.setattr(
        "milp_agt.certification.selection_plan._Work.charging",
        lambda work, columns, inner: 100.0 if inner else 10.0,
    )
    case = moons(8, 0.05, 2)
    widths = []
    for limit, is_dear in ((None, True), (150.0, True), (250.0, False)):
        result = agt.certify(case.model, case.data, case.training, case.threat, time_limit=limit)
        assert any("linear ones would take about 100 s" in n for n in result.notes) == is_dear
        widths.append(result.reachable.mean_width)
    assert widths[0] == widths[1] > widths[2]


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Any) -> None:
    case = moons(3, 0.01, 4)

    def run(folder: Any, stop: int | None = None) -> Any:
        def on_step(_result: Any, index: int, _steps: int) -> None:
            if index == stop:
                raise KeyboardInterrupt

        return agt.certify(
            case.model,
            case.data,
            case.training,
            case.threat,
            selections="charged",
            checkpoint=folder,
            on_step=on_step,
        )

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=2)
    again = run(tmp_path / "cut")
    for name in whole.reachable.lower:
        assert np.array_equal(whole.reachable.lower[name], again.reachable.lower[name])
        assert np.array_equal(whole.reachable.upper[name], again.reachable.upper[name])


@pytest.mark.parametrize(
    ("threat", "run", "found"),
    [
        (agt.FeaturePoisoning(1, 0.05, scope="batch"), {}, "a budget in each batch"),
        (agt.Substitution(1), {"clip": 0.1}, "whole samples"),
        (agt.FeaturePoisoning(1, 0.05), {"l1": 0.01}, "operation 'sign'"),
        (agt.FeaturePoisoning(1, 0.05), {"projection": (-1.0, 1.0)}, "operation 'clip'"),
    ],
)
def test_what_cannot_be_charged_is_refused(threat: Any, run: dict[str, Any], found: str) -> None:
    with pytest.raises(agt.errors.InvalidInputError) as refusal:
        problem(threat, **run).certify(selections="charged")
    assert "charged to samples" in str(refusal.value)
    assert found in str(refusal.value)
    assert "selections='joint'" in str(refusal.value)


# ---------------------------------------------------------------------------------------- mutants


def caught(check: Any, instances: list[Instance]) -> bool:
    for instance, seed in itertools.product(instances, SEEDS):
        try:
            check(instance, seed)
        except AssertionError:
            return True
    return False


def of_key(*keys: str) -> list[Instance]:
    return [i for i in INSTANCES if i.op.key in keys]


@pytest.mark.parametrize("check", [check_image, check_planes])
@pytest.mark.parametrize("key", ["step", "relu", "sigmoid", "exponential", "quadratic"])
def test_charges_one_per_cent_too_small_are_found(
    key: str, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = charges._times
    monkeypatch.setattr(charges, "_times", lambda slope, move: 0.99 * honest(slope, move))
    assert caught(check, of_key(key))


@pytest.mark.parametrize("check", [check_image, check_planes])
def test_products_one_per_cent_too_small_are_found(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = bilinear.charge_of
    monkeypatch.setattr(bilinear, "charge_of", lambda influence: 0.99 * honest(influence))
    assert caught(check, of_key("bilinear"))


def test_a_reach_that_forgets_the_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Influence, "reach", lambda _self, influences: influences)
    assert caught(check_image, of_key("bilinear", "quadratic"))


def test_sums_one_per_cent_too_small_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = SumSamples.influence

    def less(self: SumSamples, *inputs: Influence) -> Influence:
        found = honest(self, *inputs)
        return replace(found, up=0.99 * found.up)

    monkeypatch.setattr(SumSamples, "influence", less)
    assert caught(check_image, of_key("sum_samples"))


@pytest.mark.parametrize("what", ["worst case", "one only", "hull"])
def test_mutants_of_whole_runs_are_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that is 1 % too tight lets an attack out, and so does one that lets a single sample act."""
    case = problem(agt.FeaturePoisoning(2, 1e-3), samples=3, epochs=1)
    assert_holds_strong_attacks(case)
    if what == "worst case":
        honest = charged._ColumnWorstCase.worst_case
        monkeypatch.setattr(
            charged._ColumnWorstCase, "worst_case", lambda self: 0.99 * honest(self)
        )
    else:
        monkeypatch.setattr(
            AddedInfluences,
            "hull",
            lambda self, box: _less(self._of(box)) if what == "hull" else box,
        )
    with pytest.raises((AssertionError, agt.errors.SoundnessError)):
        assert_holds_strong_attacks(case)


def _less(own: Influence) -> Interval:
    return replace(own, down=0.99 * own.down, up=0.99 * own.up).hull()


def assert_holds_strong_attacks(case: Problem) -> None:
    _, boxes = case.certify(selections="charged")
    replay = Replay(case)
    generator = torch.Generator().manual_seed(3)
    for attack in replay.all(generator, case.features, case.labels, 200, 4, largest=50):
        assert_inside(boxes, replay.run(attack))


def test_a_budget_of_all_samples_takes_them_all() -> None:
    moves = torch.tensor([[1.0], [2.0]]).double()
    assert float(worst_of(moves, 2)) >= 3.0
    assert float(worst_of(moves, 0)) == 0.0
