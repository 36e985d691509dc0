"""Products of two deviations as differences of squares: exact where both move together, never too small."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import problem
from torch import Tensor
from zonotope_runs import Passed, assert_generators, assert_in_boxes, attacks_of

from milp_agt.bounds.zonotope import pairs
from milp_agt.bounds.zonotope.form import Form
from milp_agt.bounds.zonotope.local import PLAIN, Local
from milp_agt.bounds.zonotope.pairs import Factor, product
from milp_agt.core.interval import Interval
from milp_agt.formulations.einsum import Letters, einsum
from milp_agt.formulations.interval_products import box_of_products

STATE, SAMPLES = 4, 3
RUNS = [
    ("bce", "features", {"epochs": 6}, (4,), {"budget": 2}),
    ("cross_entropy", "features", {"epochs": 3, "momentum": 0.5}, (4, 3), {}),
    ("cross_entropy", "labels", {"epochs": 3, "batch_size": 5}, (4,), {}),
]


def factor(on_state: Tensor, letters: str) -> Factor:
    """A node that coordinates within [-1, 1] move, (p, n, *shape), or a parameter, (p, *shape)."""
    zero = torch.zeros_like(on_state[0])
    states = 2 if letters.startswith("n") else 1
    own = Local({PLAIN: on_state}, STATE) if states == 2 else on_state
    radius = on_state.abs().sum(0)
    away = radius if states == 2 else radius.expand(SAMPLES, *radius.shape)
    form = Form(zero, Interval.point(zero.expand(states, *zero.shape)), radius, own)
    away = away.expand(2, *away.shape)
    return Factor(form, Interval(-away, away), letters if states == 2 else "n" + letters)


def reach(form: Form, at: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(form.on_state, Local)
    found = form.on_state.rows(torch.arange(len(at)), torch.zeros_like(at)).abs().sum(1)
    return found.expand(2, -1), found.expand(2, -1)


def box_of(first: Factor, second: Factor, out: str, most: int = 10**6) -> Interval:
    found = product((first.letters, second.letters, out), first, second, most, reach)
    assert found is not None
    return found


def check_products() -> None:
    """All corners of the coordinates, on sums over an index and on products of parameters with nodes."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=STATE)), dtype=torch.float64)
    for letters in (("na", "nb", "nab"), ("na", "ab", "nb"), ("ab", "nb", "na")):
        shapes = [
            [SAMPLES if x == "n" else {"a": 3, "b": 4}[x] for x in own] for own in letters[:2]
        ]
        drawn = [torch.randn(STATE, *s, generator=generator, dtype=torch.float64) for s in shapes]
        first, second = (factor(on, own) for on, own in zip(drawn, letters, strict=False))
        found = box_of(first, second, letters[2])
        ranges = (first.letters, second.letters, letters[2])
        plain = box_of_products(ranges, first.away, second.away)
        values = [
            torch.einsum("cp,p...->c...", corners, on) if own.startswith("n")
            else torch.einsum("cp,p...->c...", corners, on)[:, None].expand(-1, SAMPLES, *on.shape[1:])
            for on, own in zip(drawn, letters, strict=False)
        ]  # fmt: skip
        true = einsum(ranges, *values)
        assert (true <= found.upper[1] + 1e-12).all()
        assert (true >= found.lower[0] - 1e-12).all()
        assert (found.width < plain.width).all()


def check_twins() -> None:
    """Of factors that move as one the square is never negative, and reaches the product of the ranges."""
    generator = torch.Generator().manual_seed(1)
    on_state = torch.randn(STATE, SAMPLES, 4, generator=generator, dtype=torch.float64)
    radius = on_state.abs().sum(0)
    node = factor(on_state, "na")
    found = box_of(node, factor(-on_state, "nb"), "nab")
    square = radius.square()
    assert (found.lower[0].diagonal(dim1=1, dim2=2) <= -square).all()
    assert (found.upper[0].diagonal(dim1=1, dim2=2) <= 1e-12 * square).all()


def everywhere(patch: pytest.MonkeyPatch) -> None:
    for name, value in (("NOISY", -1.0), ("SHARE", 1), ("FEWEST", 1)):
        patch.setattr(pairs, name, value)


def test_products_lie_within_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    check_products()
    check_twins()


def test_ranges_one_per_cent_too_small_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    honest = reach
    monkeypatch.setitem(
        globals(), "reach", lambda form, at: tuple(0.99 * end for end in honest(form, at))
    )
    with pytest.raises(AssertionError):
        check_twins()


def test_only_the_largest_are_bounded_so(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    on_state = torch.ones(STATE, SAMPLES, 2, dtype=torch.float64) * torch.tensor([1.0, 3.0])
    first, second = factor(on_state, "na"), factor(on_state, "nb")
    letters: Letters = ("na", "nb", "nab")
    some, plain = (
        box_of(first, second, "nab", SAMPLES),
        box_of_products(letters, first.away, second.away),
    )
    changed = (some.lower > plain.lower)[0]
    assert changed[:, 1, 1].all()
    assert int(changed.sum()) == SAMPLES
    assert product(letters, first, second, 0, reach) is None
    constant = Factor(Form.constant(torch.ones(SAMPLES, 2).double(), 2), second.away, "nb")
    assert product(letters, first, constant, 9, reach) is None


def test_noise_may_depend_on_who_is_poisoned_where_ranges_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of flips that are no symbols any more, in a node whose range is one for both."""
    everywhere(monkeypatch)
    generator = torch.Generator().manual_seed(2)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=STATE)), dtype=torch.float64)
    factors, values = [], []
    for letters, size in (("na", 3), ("nb", 4)):
        on_state = torch.randn(STATE, SAMPLES, size, generator=generator, dtype=torch.float64)
        plain = factor(on_state, letters)
        noise = torch.stack([torch.zeros_like(on_state[0]), torch.ones_like(on_state[0])])
        form = replace(plain.form, rest=Interval(-noise, noise))
        factors.append(Factor(form, plain.away.widen(noise).each(lambda end: end[1:]), letters))
        values.append(torch.einsum("cp,pna->cna", corners, on_state))

    def wider(form: Form, at: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(end + form.rest.upper for end in reach(form, at))

    found = product(("na", "nb", "nab"), *factors, 10**6, wider)
    assert found is not None
    assert found.lower.shape == (2, SAMPLES, 3, 4)
    for state, noise in ((0, 0.0), (1, -1.0), (1, 1.0)):
        true = torch.einsum("cna,cnb->cnab", values[0] + noise, values[1] + noise)
        assert ((found.lower[state] <= true) & (true <= found.upper[state])).all()


@pytest.mark.parametrize("run", RUNS)
def test_runs_lie_within_narrower_sets(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    loss, kind, training, hidden, options = run
    case, _, _ = problem(loss, kind, training, hidden, radius=0.1, **options)
    plain = Passed.of(case)
    everywhere(monkeypatch)
    found = Passed.of(case)
    for attacks in attacks_of(found):
        assert_in_boxes(found, attacks)
        assert_generators(found, attacks)
    widths = [sum(float(b.width.sum()) for b in p.last.state().values()) for p in (plain, found)]
    assert widths[1] < 0.999 * widths[0]
