"""The walk: strips change nothing, sums of products lose nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import Problem, Replay, network

import milp_agt as agt
from milp_agt.bounds import forms
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.linear import backward, linearized_step, window_bounds
from milp_agt.bounds.linear.backward import Strip
from milp_agt.bounds.linear.linearized_step import Intercepts
from milp_agt.certification import planning
from milp_agt.certification.recorder import MemoryRecorder

LOSSES = {"bce": 1, "cross_entropy": 2, "three": 3, "mse": 1}


def problem(loss: str = "cross_entropy", hidden: tuple[int, ...] = (5,), **run: Any) -> Problem:
    generator = torch.Generator().manual_seed(1)
    name = "cross_entropy" if loss == "three" else loss
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(max(LOSSES[loss], 2), (9,), generator=generator)
    moved = 0.05 if loss == "mse" else None
    if loss == "mse":
        y = torch.randn(9, 1, generator=generator, dtype=torch.float64)
    threat = agt.FeatureLabelPoisoning(2, 0.03, moved)
    training = agt.Training(loss=name, **({"learning_rate": 0.3, "epochs": 3} | run))
    return Problem(network((2, *hidden, LOSSES[loss]), seed=3), x, y, training, threat)


def recorded(case: Problem, **options: Any) -> tuple[MemoryRecorder, Any]:
    recorder = MemoryRecorder()
    result, _ = case.certify(recorder=recorder, inner_bounds="interval", **options)
    return recorder, result


@pytest.mark.parametrize("hidden", [(6,), pytest.param((5, 4), marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss", LOSSES)
def test_strips_change_nothing(loss, hidden, monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem(loss, hidden, momentum=0.4)
    monkeypatch.setattr(planning, "ROWS_AT_ONCE", 3)
    stripped, _ = recorded(case)
    used = []
    honest = Strip.of
    monkeypatch.setattr(Strip, "of", staticmethod(lambda on: used.append(honest(on))))
    dense, _ = recorded(case)
    assert any(strip is not None for strip in used)
    for narrow, full in zip(stripped.states["linear"], dense.states["linear"], strict=True):
        for name, box in narrow.items():
            assert torch.allclose(box.lower, full[name].lower, rtol=1e-12, atol=1e-14)
            assert torch.allclose(box.upper, full[name].upper, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_strip_is_where_coefficients_are(axis: int) -> None:
    on = torch.zeros(3, 4, 5, dtype=torch.float64)
    on.select(axis, 2)[:] = 1.0
    strip = Strip.of(on)
    assert (strip.axis, strip.index.tolist(), strip.extent) == (axis, [2], on.shape[axis])
    assert torch.equal(strip.fill(strip.cut(on)), on)
    assert Strip.of(torch.ones_like(on)) is None
    assert Strip.of(torch.ones(3, dtype=torch.float64)) is None


def of_sums(step: linearized_step.LinearizedStep) -> list[Intercepts]:
    offsets = (own for sample_chunk in step.chunks for own in sample_chunk.offsets.values())
    return [own for own in offsets if not own.batched]


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_sums_of_products_are_as_tight_as_the_products(
    selections: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = problem("mse")
    summed, _ = recorded(case, selections=selections)
    chain = list(summed.steps)[-1]
    assert of_sums(summed.steps[chain][-1])
    monkeypatch.setattr(Intercepts, "over_samples", lambda own: own)
    single, _ = recorded(case, selections=selections)
    for few, many in zip(summed.states[chain], single.states[chain], strict=True):
        for name, box in few.items():
            assert torch.allclose(box.lower, many[name].lower, rtol=1e-12, atol=1e-14)
            assert torch.allclose(box.upper, many[name].upper, rtol=1e-12, atol=1e-14)


TERMS = ("above", "everywhere")


@pytest.mark.parametrize("part", ["lower", "upper", *TERMS, "size"])
def test_mutants_of_sums_of_products_are_found(part: str) -> None:
    """Every part counts: 5 % off, and the bounds of the same step are others."""
    case = problem("mse")
    recorder, _ = recorded(case)
    step, run = recorder.steps["linear"][-1], Replay(case)
    honest = window_bounds.bound_state(run.schedule, [step], Joint(run.poison), 64)

    def off(own: Any) -> Any:
        if own.batched:
            return own
        if part in TERMS:
            terms = zip(TERMS, own.charges, strict=True)
            return replace(own, charges=tuple(0.95 * t if n == part else t for n, t in terms))
        return replace(own, **{part: 0.95 * getattr(own, part)})

    chunks = tuple(
        replace(f, offsets={name: off(own) for name, own in f.offsets.items()}) for f in step.chunks
    )
    mutant = replace(step, chunks=chunks)
    wrong = window_bounds.bound_state(run.schedule, [mutant], Joint(run.poison), 64)
    same = (
        torch.equal(box.lower, wrong[n].lower) and torch.equal(box.upper, wrong[n].upper)
        for n, box in honest.items()
    )
    assert not all(same)


def test_rows_come_by_units_and_every_row_once() -> None:
    shapes = [torch.Size(s) for s in ((6, 9), (6,), (2, 6), (2,), ())]
    total = sum(shape.numel() for shape in shapes)
    units = list(forms._units(shapes))
    assert sorted(torch.cat(units).tolist()) == list(range(2 * total))
    # A unit of the layer: 9 weights, a bias, and a weight for each of 2 outputs, from both sides.
    assert [len(u) for u in units] == [2 * 12] * 6 + [2] * 2 + [2]
    for chunk in (5, 24, 64):
        pieces = list(forms._packed(iter(units), chunk))
        assert torch.equal(torch.cat(pieces), torch.cat(units))
        assert max(map(len, pieces)) <= chunk
    assert len(next(iter(forms._packed(iter(units), 64)))) == 48


def test_strips_of_the_same_units_meet_without_being_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights into and out of one unit share a piece; where their coefficients meet, strips stay."""
    monkeypatch.setattr(planning, "ROWS_AT_ONCE", 8)
    met: list[str] = []
    add_coefficients = backward.BackwardPass._add_coefficients

    def meeting(
        self: backward.BackwardPass, name: str, on: torch.Tensor, strip: Strip | None
    ) -> None:
        if name in self.strips and strip is not None:
            met.append(name)
            assert strip.fits(self.strips[name])
        add_coefficients(self, name, on, strip)

    monkeypatch.setattr(backward.BackwardPass, "_add_coefficients", meeting)
    recorded(problem("mse", (12,)))
    assert met
