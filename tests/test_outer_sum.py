"""Sums of outer products: the box of the products made one by one, however they are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import every_pair

import milp_agt as agt
from milp_agt.bounds.adversary import sums
from milp_agt.bounds.adversary.sums import Masks, OuterSum, PoisonedSum
from milp_agt.bounds.interval import bound_propagation
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import Restriction
from milp_agt.formulations import interval_products
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.interval_products import (
    box_of_sums,
    corner_products,
    corner_sums,
    midpoint_radius,
)

SAMPLES, P, Q = 60, 4, 3
PRODUCT = Einsum("nh,nd->nhd")


def _operand(width: int, seed: int, states: int = 2) -> Interval:
    """Boxes of nested states, some of them nothing at all (units that are off)."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(SAMPLES, width)) * (rng.random((SAMPLES, width)) < 0.6)
    radius = np.sort(rng.exponential(0.3, size=(states, SAMPLES, width)), axis=0) * (centre != 0)
    return Interval(torch.from_numpy(centre - radius), torch.from_numpy(centre + radius))


def _masks(restricted: bool) -> Masks:
    if not restricted:
        return Masks()
    number = torch.arange(SAMPLES) % 5
    return Masks(number == 0, number == 1)


def _total(a: Interval, b: Interval, budget: int, masks: Masks, pieces: int) -> OuterSum:
    total = OuterSum(budget, SAMPLES)
    for part in np.array_split(np.arange(SAMPLES), pieces):
        at = torch.from_numpy(part)
        own = (Interval(box.lower[:, at], box.upper[:, at]) for box in (a, b))
        total.add(*own, Masks(*(m if m is None else m[at] for m in (masks.inside, masks.outside))))
    return total


@every_pair(
    held={"at once": 2**22, "piece by piece": 500},
    budget=[0, 1, 7, 36, 37, 60, 200],
    restricted={"all": False, "restricted": True},
)
def test_the_box_is_that_of_single_products(
    budget: int, restricted: bool, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "HELD", held)
    monkeypatch.setattr(sums, "AT_ONCE", 2 * SAMPLES if held == 500 else 2**16)
    a, b, masks = _operand(P, 1), _operand(Q, 2), _masks(restricted)
    inside = 0 if masks.inside is None else int(masks.inside.sum())
    known = PoisonedSum((budget + inside,), SAMPLES)
    known.add(PRODUCT.interval(a, b), masks)
    whole, size = known.result()
    for pieces in (1, 7):
        box, found = _total(a, b, budget + inside, masks, pieces).result()
        for ends, expected in ((box.lower, whole.lower), (box.upper, whole.upper), (found, size)):
            assert torch.allclose(ends, expected, rtol=1e-11, atol=1e-11)


def test_operands_with_one_state_and_without_an_axis() -> None:
    a, b = _operand(1, 3, states=1), _operand(Q, 4)
    flat = Interval(a.lower[..., 0], a.upper[..., 0])
    box, _ = _total(flat, b, 5, Masks(), 2).result()
    known = PoisonedSum((5,), SAMPLES)
    known.add(Einsum("n,nd->nd").interval(flat, b), Masks())
    assert box.lower.shape == (1, Q)
    assert torch.allclose(box.lower, known.result()[0].lower, rtol=1e-11, atol=1e-11)


def test_the_sum_holds_for_every_choice_and_is_reached() -> None:
    """Ends of all terms with the worst choice reach the box; mutants of one percent do not hold them."""
    a, b, budget = _operand(P, 5), _operand(Q, 6), 9
    ends = corner_products(
        Interval(a.lower[:, :, :, None], a.upper[:, :, :, None]),
        Interval(b.lower[:, :, None], b.upper[:, :, None]),
    )
    worst = (ends.upper[1] - ends.upper[0]).topk(budget, dim=0).values.sum(0)
    reached = ends.upper[0].sum(0) + worst
    box, _ = _total(a, b, budget, Masks(), 3).result()
    assert bool((box.upper[0] >= reached).all())
    assert torch.allclose(box.upper[0], reached, rtol=1e-12)
    fewer, _ = _total(a, b, budget - 1, Masks(), 3).result()
    assert bool((fewer.upper[0] < reached).all())


def test_blown_up_operands_give_the_whole_line() -> None:
    a, b = _operand(P, 7), _operand(Q, 8)
    a.upper[1, 3, 0] = torch.inf
    box, _ = _total(a, b, 2, Masks(), 1).result()
    assert not torch.isfinite(box.upper[0, 0]).any()
    assert not torch.isnan(box.lower).any()
    assert torch.isfinite(box.upper[0, 1:]).all()


def test_only_products_of_every_number_with_every_other_are_outer() -> None:
    outer = ["nh,nd->nhd", "nab,nc->nabc", "n,nd->nd"]
    others = ["na,na->na", "hd,nd->nh", "nh,hd->nd", "nop,nkp->nok", "nh,nd->ndh"]
    assert all(Einsum(equation).is_outer for equation in outer)
    assert not any(Einsum(equation).is_outer for equation in others)


@pytest.mark.parametrize("inside", [(), (2, 5)])
def test_a_run_is_that_of_single_products(
    inside: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 1))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
    training = agt.Training(loss="mse", learning_rate=0.1, epochs=3, batch_size=6)

    def state(fused: bool) -> dict[str, np.ndarray]:
        calls: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            honest = bound_propagation._outer_products

            def products(*arguments: object) -> object:
                found = honest(*arguments) if fused else {}  # type: ignore[arg-type]
                calls.extend(found)
                return found

            patch.setattr(bound_propagation, "_outer_products", products)
            result = agt.certify(
                model.double(),
                (x, y),
                training,
                agt.FeatureLabelPoisoning(3, 0.05, label_radius=0.1),
                relaxation="interval",
                restriction=Restriction(inside=frozenset(inside)),
            )
        assert bool(calls) == fused
        return result.reachable.upper

    ours, plain = state(True), state(False)
    for name, upper in plain.items():
        assert np.allclose(ours[name], upper, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [0, 2**25], ids=["two bounds", "exact"])
@pytest.mark.parametrize("equation", ["hd,nd->nh", "nh,hd->nd", "nop,nkp->nok"])
def test_sums_by_matrix_products_are_exact_but_for_size(
    equation: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(10)
    sizes = {"n": 7, "h": 4, "d": 6, "o": 3, "p": 5, "k": 2}
    op = Einsum(equation)

    def box(letters: str, spread: float) -> Interval:
        shape = (2 if "n" in letters else 1, *(sizes[x] for x in letters))
        centre = rng.normal(size=shape[1:])
        radius = np.sort(rng.exponential(spread, size=shape), axis=0)
        return Interval(torch.from_numpy(centre - radius), torch.from_numpy(centre + radius))

    for spread in (0.01, 0.3, 3.0):
        a, b = (box(letters, spread) for letters in op.letters[:2])
        exact, rump = corner_sums(op.letters, a, b), midpoint_radius(op.letters, a, b)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interval_products, "EXACT_PRODUCTS_LIMIT", limit)
            patch.setattr(interval_products, "THICK", 0)
            found = box_of_sums(op.letters, a, b)
        slack = 1e-12 * (1.0 + exact.magnitude)
        assert bool((found.lower <= exact.lower + slack).all())
        assert bool((found.upper >= exact.upper - slack).all())
        if limit:
            assert torch.allclose(found.lower, exact.lower, rtol=1e-12, atol=1e-12)
            assert torch.allclose(found.upper, exact.upper, rtol=1e-12, atol=1e-12)
        else:
            assert bool((found.width <= rump.width + slack).all())
