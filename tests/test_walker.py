"""Shortcuts of the walk: strips change nothing, and jumps at a cut hold every attack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import Problem, Replay, assert_sound, network

import milp_agt as agt
from milp_agt.bounds import signed_entries
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.linear import backward, linearized_step, window_bounds
from milp_agt.bounds.linear.backward import Strip
from milp_agt.bounds.linear.composed import ComposedHead
from milp_agt.bounds.linear.intercepts import Intercepts, SummedIntercepts
from milp_agt.certification import planning
from milp_agt.certification.recorder import MemoryRecorder

LOSSES = {"bce": 1, "cross_entropy": 2, "three": 3, "mse": 1}


def problem(loss: str, hidden: tuple[int, ...] = (6,), **run: Any) -> Problem:
    generator = torch.Generator().manual_seed(1)
    outputs = LOSSES[loss]
    name = "cross_entropy" if loss == "three" else loss
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(max(outputs, 2), (7,), generator=generator)
    threat: Any = agt.FeatureLabelPoisoning(2, 0.03)
    if loss == "mse":
        y = torch.randn(7, 1, generator=generator, dtype=torch.float64)
        threat = agt.FeatureLabelPoisoning(2, 0.03, 0.05)
    training = agt.Training(loss=name, **({"learning_rate": 0.3, "epochs": 3} | run))
    return Problem(network((2, *hidden, outputs), seed=3), x, y, training, threat)


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
    assert strip is not None
    assert (strip.axis, strip.index.tolist(), strip.extent) == (axis, [2], on.shape[axis])
    assert torch.equal(strip.fill(strip.cut(on)), on)
    assert Strip.of(torch.ones_like(on)) is None
    assert Strip.of(torch.ones(3, dtype=torch.float64)) is None


def with_cuts(monkeypatch: pytest.MonkeyPatch) -> list[ComposedHead]:
    """Every network counts as large."""
    monkeypatch.setattr(planning, "THREADED_ELEMENTS", 0)
    monkeypatch.setattr(planning, "SAMPLES_OF_UNITS", 3)
    monkeypatch.setattr(planning, "_pays", lambda *given: False)  # walks visit their nodes
    taken: list[ComposedHead] = []
    replace_by_head = backward.BackwardPass._replace_by_head

    def spy(self: backward.BackwardPass, cut: ComposedHead, coefficient: torch.Tensor) -> None:
        taken.append(cut)
        replace_by_head(self, cut, coefficient)

    monkeypatch.setattr(backward.BackwardPass, "_replace_by_head", spy)
    return taken


@pytest.mark.parametrize(
    ("loss", "hidden"), [*((loss, (4,)) for loss in LOSSES), ("bce", (3, 3)), ("three", (3, 3))]
)
def test_attacks_stay_inside_with_cuts(
    loss: str, hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = with_cuts(monkeypatch)
    case = problem(loss, hidden, weight_decay=0.01)
    test, labels = case.features + 0.1, case.labels
    assert_sound(case, test, labels, in_torch=False, inner_bounds="interval")
    assert taken
    outputs = {"bce": 1, "cross_entropy": 1, "three": 3, "mse": 1}[loss]
    assert taken[0].columns == 2 * outputs * 3


def test_enumerated_cases_take_cuts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = with_cuts(monkeypatch)
    case = problem("bce")
    assert_sound(case, case.features, case.labels, selections="enumerated")
    weights = (torch.ones(1, cut.columns, dtype=torch.float64) for cut in taken)
    constants = [cut.combined(own)[1] for cut, own in zip(taken, weights, strict=True)]
    assert any(constant.shape[1] > 1 for constant in constants)


def test_where_nothing_is_ambiguous_a_cut_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without relu phases in doubt the walk to the outputs is the same for every row."""
    case = problem("mse", hidden=())
    _, whole = recorded(case)
    taken = with_cuts(monkeypatch)
    _, cut = recorded(case)
    assert taken
    assert cut.reachable.mean_width == pytest.approx(whole.reachable.mean_width, rel=1e-6)


@pytest.mark.parametrize("part", ["constant", "coefficients", "charges", "features"])
def test_mutants_of_a_cut_are_found(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of a cut counts: 5 % off, the bounds of the same step are others."""
    with_cuts(monkeypatch)
    case = problem("bce", epochs=2)
    recorder, _ = recorded(case)
    step = recorder.steps["linear"][-1]
    run = Replay(case)
    honest = window_bounds.bound_state(run.schedule, [step], Joint(run.poison), 64)
    cuts = []
    for one in step.cuts:
        numbers = sum(shape.numel() for shape in one.shapes.values())
        rows = {"coefficients": slice(0, numbers), "constant": slice(numbers, -1)}
        if part in rows:
            forms = one.forms.clone()
            forms[rows[part]] *= 0.95
            cuts.append(replace(one, forms=forms))
        else:
            cuts.append(replace(one, **{part: 0.95 * getattr(one, part)}))
    wrong = window_bounds.bound_state(
        run.schedule, [replace(step, cuts=tuple(cuts))], Joint(run.poison), 64
    )
    assert any(not torch.equal(honest[n].lower, wrong[n].lower) for n in honest)


def of_sums(step: linearized_step.LinearizedStep) -> list[SummedIntercepts]:
    offsets = (own for sample_chunk in step.chunks for own in sample_chunk.offsets.values())
    return [own for own in offsets if isinstance(own, SummedIntercepts)]


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_sums_of_products_are_as_tight_as_the_products(
    selections: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = problem("mse")
    summed, _ = recorded(case, selections=selections)
    chain = list(summed.steps)[-1]
    assert of_sums(summed.steps[chain][-1])
    keep = staticmethod(lambda planes, cases: Intercepts.of(planes, True, cases))
    monkeypatch.setattr(linearized_step.SummedIntercepts, "of", keep)
    single, _ = recorded(case, selections=selections)
    for few, many in zip(summed.states[chain], single.states[chain], strict=True):
        for name, box in few.items():
            assert torch.allclose(box.lower, many[name].lower, rtol=1e-12, atol=1e-14)
            assert torch.allclose(box.upper, many[name].upper, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("part", ["lower", "upper", "above", "everywhere", "size"])
def test_mutants_of_sums_of_products_are_found(part: str) -> None:
    """Every part counts: 5 % off, and the bounds of the same step are others."""
    case = problem("mse")
    recorder, _ = recorded(case)
    step, run = recorder.steps["linear"][-1], Replay(case)
    honest = window_bounds.bound_state(run.schedule, [step], Joint(run.poison), 64)

    def off(own: Any) -> Any:
        if not isinstance(own, SummedIntercepts):
            return own
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
    units = list(signed_entries._units(shapes))
    assert sorted(torch.cat(units).tolist()) == list(range(2 * total))
    # A unit of the layer: 9 weights, a bias, and a weight for each of 2 outputs, from both sides.
    assert [len(u) for u in units] == [2 * 12] * 6 + [2] * 2 + [2]
    for chunk, enough in ((5, 5), (24, 16), (64, 16), (64, 64)):
        pieces = list(signed_entries._packed(iter(units), chunk, enough))
        assert torch.equal(torch.cat(pieces), torch.cat(units))
        assert max(map(len, pieces)) <= chunk
    assert len(next(iter(signed_entries._packed(iter(units), 64, 16)))) == 24
    assert len(next(iter(signed_entries._packed(iter(units), 64, 64)))) == 48


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
