"""Rules of hybrid zonotopes one by one: softmax, multipliers, order reduction; and mutants of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import problem, tiny
from torch import Tensor
from zonotope_runs import Passed, assert_generators, assert_in_boxes, attacks_of

import milp_agt as agt
from milp_agt.bounds.zonotope import candidates, dual, products, softmax, state, transformer
from milp_agt.bounds.zonotope.ascent import ascend, start
from milp_agt.bounds.zonotope.dual import Multipliers, bound, prices_of
from milp_agt.bounds.zonotope.form import Form
from milp_agt.bounds.zonotope.rows import Slots
from milp_agt.core.interval import Interval
from milp_agt.errors import SoundnessError


def check_softmax(seed: int) -> None:
    """Probabilities of logits in a box around points lie within their form."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    probability = torch.cat([torch.tensor([0.2113, 0.7887, 0.5, 0.03, 0.97]), draw(20)])
    others = torch.full((25, 2), 0.5, dtype=torch.float64)
    others[5:, 0] = draw(20)
    others[:, 1] = 1.0 - others[:, 0]
    p = torch.cat([probability[:, None], (1.0 - probability)[:, None] * others], 1)
    logits = p.log()
    widest = torch.where(torch.arange(25) < 15, 0.01, 2.0 * draw(25)).double()
    zero = torch.zeros(2, *logits.shape, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 25, 3)
    form = Form(logits, Interval(zero, zero), logits.abs() + widest[:, None], on_state=eye)
    pairs = [(j, k) for j in range(3) for k in range(3) if k != j]
    away = widest[None, :, None].expand(2, 25, len(pairs))
    found = softmax.softmax_form(form, Interval(-away, away))
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3)), dtype=torch.float64)
    moves = torch.cat([corners, draw(40, 3)])[:, None] * widest[:, None]
    exact = torch.softmax(logits + moves, -1)
    assert found.on_state is not None
    linear = found.centre + torch.einsum("knc,ank->anc", found.on_state, moves)
    assert (exact - linear <= found.rest.upper[1]).all()
    assert (exact - linear >= found.rest.lower[1]).all()


@pytest.mark.parametrize("seed", range(3))
def test_softmax_lies_within_its_form(seed: int) -> None:
    check_softmax(seed)


@pytest.mark.parametrize("name", ["_rising", "_falling"])
def test_a_curvature_one_per_cent_too_small_is_caught(monkeypatch, name: str) -> None:
    honest = getattr(softmax, name)
    monkeypatch.setattr(softmax, name, lambda p: 0.99 * honest(p))
    with pytest.raises(AssertionError):
        check_softmax(0)


def check_runs() -> None:
    """Small runs with flips of own and of other samples, generator by generator."""
    for seed in range(3):
        for budget, radius in ((1, 0.1), (2, 0.05)):
            case, _, _ = problem(
                "bce", "features", {"epochs": 5}, (4,), seed=seed, radius=radius, budget=budget
            )
            passed = Passed.of(case)
            for attacks in attacks_of(passed, seed, 32):
                assert_in_boxes(passed, attacks)
                assert_generators(passed, attacks)


def is_caught(check: Callable[[], None] = check_runs) -> bool:
    try:
        check()
    except (AssertionError, SoundnessError):
        return True
    return False


def test_honest_rules_are_not_caught() -> None:
    assert not is_caught()


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_margin_that_is_off_by_one_per_cent_is_caught(monkeypatch, factor: float) -> None:
    honest = candidates._with_rows

    def off(*arguments: Any, **options: Any) -> Any:
        flips = honest(*arguments, **options)
        return replace(flips, margin=factor * flips.margin)

    monkeypatch.setattr(candidates, "_with_rows", off)
    assert is_caught()


def test_a_charge_that_is_forgotten_is_caught(monkeypatch) -> None:
    def free(*arguments: Any) -> Any:
        rest, charge = products_times_flips(*arguments)
        return rest, torch.zeros_like(charge)

    products_times_flips = products._times_flips
    monkeypatch.setattr(products, "_times_flips", free)
    assert is_caught()


def check_multipliers() -> None:
    """Whatever the multipliers, no run goes further in any direction than its bound."""
    for budget, radius in ((1, 0.05), (2, 0.05), (1, 0.1), (2, 0.1)):
        case = tiny(agt.FeaturePoisoning(budget, radius), epochs=6)
        passed = Passed.of(case)
        zonotope, bounds = passed.last.zonotope, passed.last.bounds
        samples, flips = zonotope.samples, zonotope.flips
        assert flips.rows
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(60, zonotope.size, generator=generator, dtype=torch.float64)
        rows = torch.cat([drawn, torch.eye(zonotope.size).double()])
        spread = zonotope.spread(rows, bounds.terms)
        directions = spread.towards(torch.ones(len(rows), dtype=torch.float64))
        begun = start(directions, flips, samples)
        shared, _ = bounds.shared(rows)
        best = ascend(directions, flips, samples, begun, 40)
        tried = [begun, shared, best, Multipliers.none(len(rows), flips)]
        most = prices_of(directions, flips).amax()
        for scale in (0.1, 1.0, 10.0):
            for row in range(3):
                drawn_rows, drawn_limits = (
                    torch.rand(part.shape, generator=generator).to(part) * scale * most
                    for part in (begun.rows, begun.limits)
                )
                only = torch.tensor([row == 0, row == 1]).double()[:, None, None]
                limits = drawn_limits if row == 2 else 0.0 * drawn_limits
                tried.append(Multipliers.of(only * drawn_rows, limits, flips))
        totals = [bound(directions, flips, alpha, samples).total(samples) for alpha in tried]
        # Ascent compares values in float32, before their rounding is charged.
        assert (totals[2] <= totals[0] * (1.0 + 1e-5) + 1e-9).all()
        by_box = rows.clamp(min=0.0) @ bounds.above + (-rows).clamp(min=0.0) @ bounds.below
        assert (totals[1] <= by_box * (1.0 + 1e-9)).all()
        for attacks in attacks_of(passed):
            final = passed.replay.run(attacks)[-1]
            value = torch.cat([final[name].flatten(1) for name in passed.last.layout.slices], 1)
            moved = (value - zonotope.centre) @ rows.T
            for total in totals:
                assert (moved <= total + 1e-12).all()


def test_any_multipliers_bound_a_direction() -> None:
    check_multipliers()


@pytest.mark.parametrize("row", [0, 1])
def test_a_multiplier_with_the_wrong_sign_is_caught(monkeypatch, row: int) -> None:
    """The moves of C1, or the margin of C2, enter with the other sign."""
    honest = dual.gathered

    def wrong(d: Any, flips: Any, rows: Tensor, samples: Any, more: Any = None) -> Any:
        if not flips.rows or more is not None:
            return honest(d, flips, rows, samples, more)
        share = 2.0 * rows[row] / (flips.least, flips.beyond)[row]
        if row == 0:
            moved = (share @ flips.on_moves.flatten(1)).reshape(d.on_moves.shape)
            return honest(replace(d, on_moves=d.on_moves - moved), flips, rows, samples)
        return honest(replace(d, base=d.base - share @ flips.margin), flips, rows, samples)

    monkeypatch.setattr(dual, "gathered", wrong)
    assert is_caught(check_multipliers)


@pytest.mark.parametrize("row", range(2))
def test_a_multiplier_whose_row_is_not_paid_is_caught(monkeypatch, row: int) -> None:
    """A row lowers the price of its flip, and costs nothing."""
    honest = dual.gathered

    def wrong(d: Any, flips: Any, rows: Tensor, samples: Any, more: Any = None) -> Any:
        if not flips.rows or more is not None:
            return honest(d, flips, rows, samples, more)
        cheaper = d.on_phase.clone()
        cheaper[:, flips.column] -= rows[row]
        return honest(replace(d, on_phase=cheaper), flips, torch.zeros_like(rows), samples)

    monkeypatch.setattr(dual, "gathered", wrong)
    assert is_caught(check_multipliers)


def test_limits_that_nobody_pays_are_caught(monkeypatch) -> None:
    honest = dual.closed

    def wrong(opened: Any, flips: Any, alpha: Multipliers) -> Any:
        return honest(opened, flips, replace(alpha, paid=torch.zeros_like(alpha.paid)))

    monkeypatch.setattr(dual, "closed", wrong)
    assert is_caught(check_multipliers)


def test_a_threshold_one_per_cent_too_small_is_caught(monkeypatch) -> None:
    honest = candidates._limited

    def less(*arguments: Any) -> Any:
        flips = honest(*arguments)
        return replace(flips, threshold=0.99 * flips.threshold)

    monkeypatch.setattr(candidates, "_limited", less)
    assert is_caught()


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_samples_that_a_limit_leaves_out_are_in_no_set_that_flips(budget: int) -> None:
    case = tiny(agt.FeaturePoisoning(budget, 0.1), epochs=1)
    samples = Passed.of(case).last.zonotope.samples
    generator = torch.Generator().manual_seed(0)
    threshold = 0.9 * torch.rand(40, samples.count, generator=generator).double()
    threshold[20:] = threshold[20:].clamp(min=0.1) ** 2 * 1.2
    kept = candidates._of_teams(threshold, samples)
    assert budget == 3 or (kept < threshold).any()
    for size in range(budget + 1):
        for team in itertools.combinations(range(samples.count), size):
            flips = threshold[:, team].sum(1) >= 1.0
            assert torch.equal(kept[flips][:, team], threshold[flips][:, team])


def test_second_order_terms_that_are_forgotten_are_caught(monkeypatch) -> None:
    monkeypatch.setattr(products, "_second_order", lambda *arguments: (None, None))
    assert is_caught()


def test_residuals_that_are_forgotten_are_caught(monkeypatch) -> None:
    honest = transformer.curved

    def straight(*given: Any) -> Form:
        form = honest(*given)
        rest = Interval(0.0 * form.rest.lower, 0.0 * form.rest.upper)
        return replace(form, rest=rest, owed=None)

    monkeypatch.setattr(transformer, "curved", straight)
    assert is_caught()


def test_noise_that_is_not_carried_on_is_caught(monkeypatch) -> None:
    monkeypatch.setattr(state.Noise, "carried", lambda self, jacobian: self)
    assert is_caught()


def test_order_reduction_holds_all_runs(monkeypatch) -> None:
    case, _, _ = problem("bce", "features", {"epochs": 10}, (4,), radius=0.05)
    whole = Passed.of(case)
    monkeypatch.setattr(state, "GROUPS", 3)
    monkeypatch.setattr(state, "NEWEST", 1)
    merged = Passed.of(case)
    assert len(merged.last.zonotope.noise) == 3 < len(whole.last.zonotope.noise)
    for attacks in attacks_of(merged):
        assert_in_boxes(merged, attacks)
        assert_generators(merged, attacks)
    widths = [sum(float(b.width.sum()) for b in p.last.state().values()) for p in (whole, merged)]
    assert widths[0] <= widths[1] * (1.0 + 1e-9) <= 3.0 * widths[0]


def test_own_flips_move_a_node_as_far_as_the_best_of_them_and_no_further() -> None:
    generator = torch.Generator().manual_seed(0)
    draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    count, samples, elements = 3, 2, 2
    numbers = torch.arange(count * samples).reshape(count, samples)
    possible = (torch.rand(2, count, samples, **draw) < 0.8) * 1.0
    slots = Slots(numbers, numbers, torch.rand(2, count, samples, **draw), possible)
    phase, bend = torch.randn(2, count, samples, elements, **draw)
    charge = torch.rand(count, samples, elements, **draw)
    zero = torch.zeros(2, samples, elements, dtype=torch.float64)
    form = Form(zero[0], Interval(zero, zero), zero[0], on_phase=phase, on_bend=bend, charge=charge)
    found = slots.moved(form)
    assert found is not None
    for most, sign in zip(found, (-1.0, 1.0), strict=True):
        moved = sign * phase + charge + (sign * bend).clamp(min=0.0) * slots.largest[..., None]
        moved = moved * possible[..., None]
        chosen = itertools.product((0.0, 1.0), repeat=count)
        values = [torch.einsum("k,sknd->snd", moved.new_tensor(c), moved) for c in chosen]
        assert torch.allclose(most, torch.stack(values).amax(0), rtol=1e-14)
