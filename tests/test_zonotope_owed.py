"""Second order that poisoned samples owe: no set of them pays too little, and one alone pays exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import Problem
from problems import problem
from torch import Tensor, nn
from zonotope_runs import ROUNDING, Passed, assert_generators, assert_in_boxes, attacks_of

from milp_agt import LabelPoisoning, Training
from milp_agt.bounds.zonotope import curves, owed, softmax, transformer
from milp_agt.bounds.zonotope.branching import branched
from milp_agt.bounds.zonotope.form import Form
from milp_agt.bounds.zonotope.owed import Shares, Split
from milp_agt.core.interval import Interval
from milp_agt.formulations.elu import Elu
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.sigmoid import Sigmoid

SAMPLES, GENERATORS, BUDGET = 2, 4, 2
SETS = [s for k in range(1, BUDGET + 1) for s in itertools.combinations(range(GENERATORS), k)]


def shares(seed: int, *shape: int) -> Shares:
    """Of nodes that ``GENERATORS`` samples move, of which ``BUDGET`` are poisoned."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator, dtype=torch.float64)

    ends = []
    for _ in range(2):
        base, each = 0.1 * draw(1, SAMPLES, *shape), draw(GENERATORS, SAMPLES, *shape)
        best = [each[[i for i in range(GENERATORS) if i != j]].amax(0) for j in range(GENERATORS)]
        ends.append((base, each, base + each + torch.stack(best)))
    return Shares(*(Interval(-low, high) for low, high in zip(*ends, strict=True)))


def signed(seed: int, *shape: int) -> Shares:
    """The same of samples that are poisoned alone and move for sure, to one side mostly."""
    plain = shares(seed, *shape)
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(plain.each.lower.shape, generator=generator, dtype=torch.float64)
    each = plain.each.each(lambda end: 0.05 * end + middle)
    base = plain.base.magnitude.expand(each.lower.shape)
    others = Interval(-base, base)
    return Shares(plain.base, each, each.plus(others), others)


def reached(known: Shares, chosen: tuple[int, ...]) -> Iterator[Tensor]:
    """Deviations under a set: fractions of its largest one on either side."""
    low = known.base.lower + known.each.lower[list(chosen)].sum(0)
    high = known.base.upper + known.each.upper[list(chosen)].sum(0)
    for share in torch.linspace(0.0, 1.0, 9, dtype=torch.float64):
        yield (low + share * (high - low))[0]


def paid(split: Split, chosen: tuple[int, ...]) -> Interval:
    """What a set may add, and rounding of the values that are held against it."""
    ends = (split.owed.lower, split.owed.upper)
    low, high = (end[list(chosen)].sum(0) for end in ends)
    return Interval(split.base.lower[0] + low, split.base.upper[0] + high).widen(1e-13)


def check_products() -> None:
    for letters in (("na", "nb", "nab"), ("na", "nab", "nb")):
        first, second = shares(0, 3), shares(1, *(3, 4)[2 - len(letters[1][1:]) :])
        split = owed.product(letters, first, second)
        for chosen in SETS:
            box = paid(split, chosen)
            for x, y in itertools.product(reached(first, chosen), reached(second, chosen)):
                assert box.contains(torch.einsum("{},{}->{}".format(*letters), x, y))
        one, two = (
            replace(s, each=s.total, base=Interval.point(0.0 * s.base.upper))
            for s in (first, second)
        )
        alone = owed.product(letters, one, two)
        exact = torch.einsum(
            "Z{},Z{}->Z{}".format(*letters), one.total.magnitude, two.total.magnitude
        )
        assert (alone.owed.upper >= exact).all()


def check_residuals() -> None:
    for op, seed in itertools.product((Exponential(), Sigmoid(), Elu(1.0)), range(2)):
        known = shares(seed, 3)
        centre = torch.linspace(-1.0, 1.0, SAMPLES * 3, dtype=torch.float64).reshape(SAMPLES, 3)
        for slope in (op.derivative(centre), op.derivative(centre + 0.3)):
            split = curves.off_line(op, slope, centre, known)
            for chosen in SETS:
                box = paid(split, chosen)
                for d in reached(known, chosen):
                    assert box.contains(op.value(centre + d) - op.value(centre) - slope * d)
            # Each of them may be the only one who pays, and moves a sample as far as its total.
            alone = split.owed.widen(1e-13)
            for share in torch.linspace(0.0, 1.0, 9, dtype=torch.float64):
                d = known.total.lower + share * known.total.width
                assert alone.contains(op.value(centre + d) - op.value(centre) - slope * d)


def check_softmax() -> None:
    """One sample alone owes the second order of all that it does."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    zero = torch.zeros(2, *logits.shape, dtype=torch.float64)
    form = Form(logits, Interval(zero, zero), logits.abs())
    known = shares(0, 6)
    known = replace(known, each=known.total, base=Interval.point(0.0 * known.base.upper))
    seen: list[Split] = []

    def owing(whole: Interval, split: Split | None) -> tuple[Interval, None]:
        assert split is not None
        seen.append(split)
        return whole, None

    for i in range(GENERATORS):
        low, high = known.total.lower[[i, i]], known.total.upper[[i, i]]
        rest = softmax.softmax_form(form, Interval(low, high), known, owing).rest
        assert (seen[-1].owed.upper[i] >= rest.upper[1] - 1e-12).all()
        assert (seen[-1].owed.lower[i] <= rest.lower[1] + 1e-12).all()


def check_signed() -> None:
    """Products and residuals of samples that move for sure; those of one alone are nearly numbers."""
    op = Sigmoid()
    centre = torch.linspace(-1.0, 1.0, SAMPLES * 3, dtype=torch.float64).reshape(SAMPLES, 3)
    first, second = signed(0, 3), signed(1, 3)
    product = owed.product(("na", "na", "na"), first, second)
    slope = op.derivative(centre)
    residual = curves.off_line(op, slope, centre, first)
    for chosen in [(), *((i,) for i in range(GENERATORS))]:
        for x, y in itertools.product(reached(first, chosen), reached(second, chosen)):
            assert paid(product, chosen).contains(x * y)
            off = op.value(centre + x) - op.value(centre) - slope * x
            assert paid(residual, chosen).contains(off)
    assert (product.owed.lower > 0.0).any()
    assert (residual.owed.upper < 0.0).any()


CHECKS = {
    "product": check_products,
    "off_line": check_residuals,
    "_second_order": check_softmax,
}
ROOMS = {"product": owed, "off_line": curves, "_second_order": softmax}


@pytest.mark.parametrize("check", [*CHECKS.values(), check_signed])
def test_no_set_is_charged_too_little(check: Any) -> None:
    check()


@pytest.mark.parametrize("known", [shares(2, 4), signed(2, 4)], ids=["sizes", "signed"])
def test_numbers_lie_apart_as_far_as_the_furthest_of_their_ends(known: Shares) -> None:
    apart = known.apart()
    for name in ("base", "each", "total", "others"):
        box, found = getattr(known, name), getattr(apart, name)
        if box is None:
            assert found is None
            continue
        low, high = box.lower, box.upper
        for j in range(4):
            rest = [k for k in range(4) if k != j]
            far = torch.maximum(high[..., rest] - low[..., [j]], high[..., [j]] - low[..., rest])
            assert bool((found.upper[..., j] >= far.amax(-1)).all())
            assert torch.allclose(found.upper[..., j], far.amax(-1), rtol=1e-14)
            assert torch.equal(found.lower, -found.upper)


@pytest.mark.parametrize(("room", "name"), [(owed, "product"), (curves, "off_line")])
def test_one_per_cent_of_a_signed_width_less_is_caught(
    monkeypatch: pytest.MonkeyPatch, room: Any, name: str
) -> None:
    honest = getattr(room, name)

    def less(*given: Any) -> Split:
        found: Split = honest(*given)
        cut = 0.01 * found.owed.width
        return replace(
            found, base=found.base.each(lambda end: 0.0 * end), owed=found.owed.widen(-cut)
        )

    monkeypatch.setattr(room, name, less)
    with pytest.raises(AssertionError):
        check_signed()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_one_label_leaves_little_but_the_runs_themselves(activation: Any) -> None:
    case, _, _ = problem("bce", "labels", {"epochs": 8}, (4,), budget=1, activation=activation)
    passed = Passed.of(case)
    runs = attacks_of(passed, 0, 256)
    for attacks in runs:
        assert_in_boxes(passed, attacks)
        assert_generators(passed, attacks)


def test_a_sample_poisoned_anew_may_stay_as_it_is_in_some_steps() -> None:
    """A tree knows that a sample is poisoned in some step, not in which of them."""
    generator = torch.Generator().manual_seed(2)
    x = 2.0 * torch.randn(30, 2, generator=generator, dtype=torch.float64)
    x[6:] = 0.0  # nothing is learnt from these
    y = torch.randint(2, (30,), generator=generator)
    torch.manual_seed(2)
    layers = nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False)
    batches = [[0], [3, 4, 5], [0, *range(6, 30)]]
    training = Training("cross_entropy", learning_rate=1.0, batches=batches)
    threat = LabelPoisoning(1, samples=[0, 5], static=False)
    passed = Passed.of(Problem(nn.Sequential(*layers).double(), x, y, training, threat))
    zonotope, bounds = passed.last.zonotope, passed.last.bounds
    rows = torch.randn(500, zonotope.size, generator=generator, dtype=torch.float64)
    found = branched(zonotope, bounds, rows, rows.new_full((500,), -torch.inf), 60.0)
    assert not found.limited
    attacks = passed.replay.random(64, generator, corners=True)
    state = passed.replay.run(attacks)[-1]
    runs = torch.cat([state[name].flatten(1) for name in passed.last.layout.slices], 1)
    most = (rows @ (runs - zonotope.centre).T).amax(1)
    assert (most <= found.most + ROUNDING).all()


@pytest.mark.parametrize("name", CHECKS)
def test_one_per_cent_less_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    room = ROOMS[name]
    honest = getattr(room, name)

    def less(*given: Any) -> Any:
        found = honest(*given)
        if isinstance(found, Tensor):
            return 0.99 * found
        if isinstance(found, Interval):
            return found if given[1] is given[2] else found.each(lambda end: 0.99 * end)
        return replace(found, owed=found.owed.each(lambda end: 0.99 * end))

    monkeypatch.setattr(room, name, less)
    with pytest.raises(AssertionError):
        CHECKS[name]()


RUNS = [
    ("cross_entropy", "labels", {"epochs": 4}, (4, 3), {}),
    ("cross_entropy", "both", {"epochs": 3, "momentum": 0.5}, (4,), {"activation": nn.Tanh}),
    ("bce", "features", {"epochs": 5}, (4,), {"budget": 2, "radius": 0.3}),
]


@pytest.mark.parametrize("run", RUNS)
def test_real_runs_lie_within_what_is_owed(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Whatever it costs: second order is owed in all nodes."""
    loss, kind, options, hidden, more = run
    monkeypatch.setattr(owed, "LESS", 1e9)
    taken: list[Interval | None] = []
    honest = owed.owing

    def owing(*given: Any) -> Any:
        found = honest(*given)
        taken.append(found[1])
        return found

    monkeypatch.setattr(transformer, "owing", owing)
    case, _, _ = problem(loss, kind, options, hidden, **more)
    passed = Passed.of(case)
    assert any(each is not None for each in taken)
    for attacks in attacks_of(passed, 0, 64):
        assert_in_boxes(passed, attacks)
        assert_generators(passed, attacks)
