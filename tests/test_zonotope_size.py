"""Zonotopes of larger runs within memory: pieces of a batch, symbols of samples, summed charges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import problem
from torch import nn
from zonotope_runs import Passed, assert_generators, assert_in_boxes, attacks_of

import milp_agt as agt
from milp_agt.bounds.step import Step
from milp_agt.bounds.zonotope import curves, folding, pieces, state
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.local import Local
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.bounds.zonotope.transformer import Transformer
from milp_agt.bounds.zonotope.work import Work
from milp_agt.core.graph import evaluate
from milp_agt.training.tracing import FEATURES, LABELS

RUNS = [
    ("cross_entropy", "features", {"epochs": 3, "clip": 0.4}, (4, 3), {}),
    ("cross_entropy", "labels", {"epochs": 2, "batch_size": 5}, (4,), {"budget": 1}),
    ("bce", "features", {"epochs": 4, "momentum": 0.5}, (4,), {"outputs": 1}),
]


def passed(run: Any, radius: float = 0.1) -> Passed:
    loss, kind, training, hidden, options = run
    options = {key: value for key, value in options.items() if key != "outputs"}
    return Passed.of(problem(loss, kind, training, hidden, radius=radius, **options)[0])


def width(found: Passed) -> float:
    return sum(float(box.width.sum()) for box in found.last.state().values())


@pytest.mark.parametrize("run", RUNS)
def test_a_batch_in_pieces_is_the_batch(monkeypatch, run: Any) -> None:
    whole = passed(run)
    monkeypatch.setattr(pieces, "SHARE", 2**50)  # a sample at a time
    monkeypatch.setattr(state, "MANY", 0)
    found = passed(run)
    for attacks in attacks_of(found):
        assert_in_boxes(found, attacks)
        assert_generators(found, attacks)
    assert found.last.zonotope.flips.count >= whole.last.zonotope.flips.count
    assert 0.99 * width(whole) <= width(found)


def test_samples_have_generators_from_the_step_before_the_one_that_meets_them(monkeypatch) -> None:
    found = passed(RUNS[1])
    counts = [reached.zonotope.samples.count for reached in found.sets]
    assert counts[0] < counts[1] == counts[-1]
    monkeypatch.setattr(SampleGenerators, "until", lambda self, index: self)
    every = passed(RUNS[1])
    assert every.sets[0].zonotope.samples.count == counts[-1]
    assert width(found) == pytest.approx(width(every), rel=1e-9)


def test_what_noise_of_a_sample_moves_is_the_sum_over_its_sources() -> None:
    """``Phi^+ up + Phi^- down`` of every coordinate, held against rows of the same directions."""
    found = passed(RUNS[0]).last.zonotope
    terms = found.terms()
    ends = found.coordinates(slice(0, found.size), terms)
    rows = found.spread(torch.eye(found.size, dtype=torch.float64), terms)
    for name in ("on_moves", "on_bend", "charge", "below", "above", "down", "up"):
        torch.testing.assert_close(getattr(ends, name), getattr(rows, name), rtol=1e-11, atol=1e-18)
    both = ends.both()
    torch.testing.assert_close(both.up, torch.cat([rows.up, rows.down]), rtol=1e-11, atol=1e-18)
    assert bool((ends.up != ends.down).any())


@pytest.mark.parametrize("run", RUNS)
def test_flips_that_memory_has_no_room_for_are_noise(monkeypatch, run: Any) -> None:
    monkeypatch.setattr(Work, "of", staticmethod(without_rows(Work.of)))
    whole = passed(run)
    monkeypatch.setattr(folding, "FLIPS_SHARE", 2**50)
    found = passed(run)
    for attacks in attacks_of(found):
        assert_in_boxes(found, attacks)
    assert found.last.zonotope.flips.count < whole.last.zonotope.flips.count
    assert 0.999 * width(whole) <= width(found)


def without_rows(honest: Any) -> Any:
    return lambda *given: replace(honest(*given), most_rows=0, most_limits=0)


def test_what_a_flip_adds_as_noise_is_what_its_generators_reach(monkeypatch) -> None:
    """Both ends of every coordinate, at ``phi = 0``, and at ``phi = 1`` with rho = 0 and U."""
    monkeypatch.setattr(Work, "of", staticmethod(without_rows(Work.of)))
    zonotope = passed(RUNS[0]).last.zonotope
    flips, kept = zonotope.flips, folding.with_flips(zonotope, 1)
    corners = torch.stack(
        [
            torch.zeros_like(zonotope.on_phase),
            zonotope.on_phase,
            zonotope.on_phase + flips.largest * zonotope.on_bend,
        ]
    )
    gone = torch.tensor(
        [not bool((kept.flips.place == place).all(1).any()) for place in flips.place]
    )
    alone = gone & flips.alone
    assert int(gone.sum()) == flips.count - 1
    assert alone.any()
    assert (gone & ~flips.alone).any()
    for end, every, own in ((-corners.amin(0), "below", "down"), (corners.amax(0), "above", "up")):
        more = getattr(kept.noise, every)[-1] - getattr(zonotope.noise, every)[-1]
        torch.testing.assert_close(more, end[:, gone & ~alone].sum(1), rtol=1e-9, atol=1e-12)
        more = (getattr(kept.noise, own)[-1] - getattr(zonotope.noise, own)[-1]).sum(1)
        torch.testing.assert_close(more, end[:, alone].sum(1), rtol=1e-9, atol=1e-12)


def test_pieces_whose_units_are_all_off_leave_others_their_moves(monkeypatch) -> None:
    """In closed form: v relu(w x + b) + c at w = v = c = 1, b = 0, x = -1 and 1, targets 0. The unit is off
    at one sample, and c becomes 1 - 0.1 (1 + 2 + d) for moves d of the other."""
    monkeypatch.setattr(pieces, "SHARE", 2**50)
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (1.0, 0.0, 1.0, 1.0), strict=True):
            parameter.fill_(value)
    for x in ([[-1.0], [1.0]], [[1.0], [-1.0]]):
        data = torch.tensor(x, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
        training = agt.Training("mse", learning_rate=0.1)
        threat = agt.FeaturePoisoning(1, 0.2)
        found = agt.certify(net, data, training, threat, relaxation="zonotope", refute="none")
        box = found.reachable
        assert box.lower["2.bias"].item() == pytest.approx(0.68, abs=1e-9)
        assert box.upper["2.bias"].item() == pytest.approx(0.72, abs=1e-9)


def test_a_net_of_few_parameters_has_no_symbols() -> None:
    """A node with as many elements as the net has parameters follows these themselves."""
    net = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(0.5)
    data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([1, 1])
    training = agt.Training("hinge", learning_rate=0.1)
    threat = agt.FeaturePoisoning(1, 0.2)
    found = agt.certify(net, data, training, threat, relaxation="zonotope", refute="none")
    # Both samples are inside their margin, whatever moves: w = 0.5 + 0.05 (1 - 1 +- 0.2).
    assert found.reachable.lower["weight"].item() == pytest.approx(0.49, abs=1e-9)
    assert found.reachable.upper["weight"].item() == pytest.approx(0.51, abs=1e-9)


@pytest.mark.parametrize("run", RUNS)
def test_symbols_carry_derivatives(monkeypatch, run: Any) -> None:
    """Coefficients on the state are the derivatives at the centre, and move as far as their sizes say."""
    monkeypatch.setattr(curves, "straighter", lambda op, centre, _: op.derivative(centre))
    found = passed(run)
    before, replay = found.sets[1], found.replay
    own = torch.as_tensor(replay.batches[1 % len(replay.batches)])
    step = Step(1, own, replay.poison.take(own), replay.updates[1], False)
    zonotope, layout = before.zonotope, before.layout
    before = replace(before, effort=replace(before.effort, candidates=0))
    work = Work.of(zonotope, 1, len(own))
    taken = Transformer(before, step, work, Flips.none(zonotope.samples), 1.0)
    taken.leaves()
    for node in before.schedule.before:
        if node.name not in taken.forms:
            taken.take(node)
    radius, checked = torch.rand(layout.parameters, dtype=torch.float64), 0

    def values(flat: torch.Tensor) -> dict[str, torch.Tensor]:
        leaves = {
            name: flat[part].reshape(layout.shapes[name])
            for name, part in layout.slices.items()
            if part.start < layout.parameters
        }
        leaves |= {FEATURES: step.poison.features, LABELS: step.poison.labels}
        return evaluate(before.schedule.before, leaves)

    centre = zonotope.centre[: layout.parameters]
    for node in before.schedule.before:
        form = taken.forms.get(node.name)
        if form is None or not isinstance(form.on_state, Local) or form.centre.numel() > 400:
            continue
        exact = torch.autograd.functional.jacobian(
            lambda flat, n=node: values(flat)[n.name], centre
        )
        exact = exact.reshape(len(own), -1, layout.parameters)
        size = exact.shape[1]
        every = torch.arange(len(own) * size)
        rows = form.on_state.rows(every // size, every % size).reshape(exact.shape)
        torch.testing.assert_close(rows, exact, rtol=1e-9, atol=1e-11)
        total = form.on_state.summed().reshape(layout.parameters, -1).T
        torch.testing.assert_close(total, exact.sum(0), rtol=1e-9, atol=1e-11)
        reach = form.on_state.reach(radius).reshape(len(own), -1)
        assert (reach >= (exact.abs() @ radius) * (1 - 1e-12)).all()
        checked += 1
    assert checked >= 4


def test_summed_charges_are_no_smaller(monkeypatch) -> None:
    zonotope = passed(("bce", "features", {"epochs": 4}, (4,), {})).last.zonotope
    terms = zonotope.terms()
    rows = torch.randn(20, zonotope.size, dtype=torch.float64)
    rows = torch.cat([rows, torch.eye(zonotope.size, dtype=torch.float64)])
    exact = zonotope.spread(rows, terms, many=True)
    assert torch.equal(exact.up, zonotope.spread(rows, terms).up)
    monkeypatch.setattr(state, "MANY", 0)
    summed = zonotope.spread(rows, terms, many=True)
    assert (summed.up >= exact.up).all()
    assert (summed.down >= exact.down).all()
    # One coordinate with one group of noise: nothing is lost, so that 1 % less would be too little.
    worst = torch.maximum(exact.up, exact.down)
    assert float((summed.up - worst).min()) <= 0.005 * float(worst.max())
    assert not (0.99 * summed.up >= worst).all()


@pytest.mark.parametrize("run", RUNS)
def test_moves_without_generators_are_noise_of_their_samples(monkeypatch, run: Any) -> None:
    """After one step boxes lose nothing, so that noise 1 % too small would show there."""
    kept = passed(run)
    monkeypatch.setattr(state, "MOVES_SHARE", 2**50)
    found = passed(run)
    assert not kept.last.zonotope.is_folded
    assert found.last.zonotope.is_folded
    for attacks in attacks_of(found):
        assert_in_boxes(found, attacks)
        assert_generators(found, attacks)
    assert width(found) >= (1 - 1e-6) * width(kept)


@pytest.mark.parametrize("kind", ["features", "removal"])
def test_no_generators_of_samples_that_no_first_step_meets(monkeypatch, kind: str) -> None:
    """Steps before the first sample that can be poisoned have nobody's moves to fold."""
    batches, open_ = [[0, 1], [2, 3], [2, 4]], [2, 4]
    case = problem("bce", "features", training={"batches": batches, "epochs": 1})[0]
    threat = agt.FeaturePoisoning(1, 0.1, samples=open_)
    if kind == "removal":
        threat = agt.Removal(1, samples=open_)
    run = case.model, (case.features, case.labels), case.training, threat
    kept = agt.certify(*run, relaxation="zonotope").reachable
    monkeypatch.setattr(state, "MOVES_SHARE", 2**50)
    found = agt.certify(*run, relaxation="zonotope").reachable
    for name, low in found.lower.items():
        assert (low <= kept.lower[name] + 1e-12).all()
        assert (kept.upper[name] <= found.upper[name] + 1e-12).all()


def test_noise_in_place_of_moves_is_no_larger_than_they_are(monkeypatch) -> None:
    """Without flips boxes lose nothing in the first step, so that noise 1 % too small would show there."""
    kept = passed(RUNS[2], 0.005)
    monkeypatch.setattr(state, "MOVES_SHARE", 2**50)
    found = passed(RUNS[2], 0.005)
    first = [p.sets[1].zonotope.flips.count for p in (kept, found)]
    assert first == [0, 0]
    for name, box in kept.sets[1].state().items():
        torch.testing.assert_close(found.sets[1].state()[name].width, box.width, rtol=1e-6, atol=0)


class Tied(nn.Module):
    """A layer that is used twice; what it makes of the data is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 1)
        nn.init.constant_(self.first.bias, -9.0)

    def forward(self, x: Any) -> Any:
        return self.last(torch.tanh(self.first(torch.relu(self.first(x)))))


def test_a_layer_used_twice_of_which_one_use_moves_nothing() -> None:
    torch.manual_seed(0)
    model, data = Tied().double(), (torch.randn(2, 2).double(), torch.arange(2))
    training = agt.Training("hinge", 0.1, batches=[[0], [1]])
    threat = agt.FeaturePoisoning(1, 0.01)
    found, boxed = (
        agt.certify(model, data, training, threat, relaxation=level).reachable
        for level in ("zonotope", "interval")
    )
    assert found.mean_width <= boxed.mean_width
