"""Mutants that whole runs notice: by brute force, or by attacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from attacks import Problem, assert_inside, assert_sound
from mutants import Check, Mutant, Wrong, nothing, one_less, times, unlisted
from problems import caught, problem
from separate_runs import check_separate_worst_case, check_sum, separately
from separate_runs import problem as separate
from torch import nn
from whole_runs import assert_form_meets_the_ball, share, truth
from whole_runs import problem as exchanged

import milp_agt as agt
from milp_agt.attacks import Search
from milp_agt.bounds.adversary import sums as of_terms
from milp_agt.bounds.adversary import worst_case
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.linear import window_bounds
from milp_agt.bounds.zonotope import engine, gradients, rows, sums, transformer
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.formulations import exchange
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.clip_factor import ClipFactor, Shorten
from milp_agt.formulations.exchange import Substitute
from milp_agt.formulations.sign import Sign
from milp_agt.threats.poison import Poison
from milp_agt.training.training import Training

CHARGES = (window_bounds.Intercepts, "_charges")


# ----------------------------------------------------------------------------------- two budgets


def _of_one_state(state: int) -> Wrong:
    def wrong(honest: Any) -> Any:
        def charged(*given: Any) -> Any:
            hurt = honest(*given).clone()
            hurt[..., state - 1] *= 0.99
            if state < 3:
                hurt[..., 2] = 0.0  # otherwise both at once hides that one alone is too cheap
            return hurt

        return charged

    return wrong


def _less_of_labels(honest: Any) -> Any:
    return lambda p, s: (honest(p, s)[0], honest(p, s)[1] - 1)


def _both_as_one(honest: Any) -> Any:
    """Whoever poisons features must poison the label of the same sample."""
    return lambda hurt, *given: honest(torch.stack([0 * hurt[0], 0 * hurt[1], hurt[2]]), *given)


def _features_alone(honest: Any) -> Any:
    def box(poison: Poison) -> Interval:
        found = honest(poison)
        lower, upper = found.lower.clone(), found.upper.clone()
        lower[2:], upper[2:] = lower[:1], upper[:1]
        return Interval(lower, upper)

    return box


def _features_only(honest: Any) -> Any:
    """Noise of a sample whose label is poisoned counts where its features are."""

    def rule(ends: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
        base, added = honest(ends, parts)
        return base, torch.cat([added[:1], 0.0 * added[1:]])

    return rule


def _separately_attacked(seed: int) -> None:
    case, test, labels = separate("mse", separately((1, 1), 0.05, loss="mse"), epochs=1)
    case = replace(case, model=nn.Sequential(nn.Linear(2, 2).double()))
    assert_sound(case, test, labels, relaxation=("linear", "interval", "zonotope")[seed])


def _charged_separately(seed: int) -> None:
    threat = separately((2, 1), 0.5)
    case, test, labels = separate("bce", threat, seed=seed, learning_rate=1.0)
    assert_sound(case, test, labels, attacks=64, in_torch=False)


def _given(budgets: tuple[int, int]) -> Check:
    return lambda seed: check_separate_worst_case(budgets, True, "dataset", UNRESTRICTED, seed)


TWO_BUDGETS = [
    *(
        Mutant(f"both budgets: {name} {budgets}", ((room, "worst_of_both"),), times(0.99), check, 8)
        for budgets in ((1, 1), (2, 1))
        for name, room, check in (
            ("worst case", worst_case, _given(budgets)),
            ("sum", of_terms, lambda seed, b=budgets: check_sum(seed, b, UNRESTRICTED)),
        )
    ),
    *(
        Mutant(f"both budgets: state {state}", ((worst_case, "_dev_separate"),),
               _of_one_state(state), _given((1, 1)), 16)
        for state in (1, 2, 3)
    ),
    *(
        Mutant(f"both budgets: {name}", ((room, rule),), wrong, _separately_attacked, 2)
        for name, room, rule, wrong in (
            ("budget of labels", Poison, "budgets_given", _less_of_labels),
            ("both as one", worst_case, "_worst_within_two", _both_as_one),
            ("box of labels", Poison, "label_box", _features_alone),
        )
    ),
    *(
        Mutant(f"both budgets: {name} of a zonotope", rules, wrong,
               lambda _: _separately_attacked(2), 1)
        for name, rules, wrong in (
            ("budgets", ((SampleGenerators, "_by_part"),), times(0.99)),
            ("noise", ((sums, "by_part"), (rows, "by_part")), _features_only),
        )
    ),
    Mutant("both budgets: charges", (CHARGES,), nothing, _charged_separately, 8),
]  # fmt: skip


# ------------------------------------------------------------------ whole samples that are exchanged


def _exchanged(kind: str, selections: str = "joint", level: str = "linear", **run: Any) -> Check:
    def check(_: int) -> None:
        case = exchanged(kind, 1, samples=5, epochs=1, **run)
        result, boxes = case.certify(relaxation=level, selections=selections)
        if kind == "removal" and selections == "enumerated":
            # The looser chains are right: look at the cases only.
            assert share(case, result) <= 1.0
        assert_inside(boxes, truth(case))

    return check


def _attacked(threat: Any, selections: str, **run: Any) -> Check:
    """Attacks of the library beside the certificate, which holds them inside itself."""
    search = Search(pool=128, restarts=2, rounds=1, iterations=3)

    def check(_: int) -> None:
        case, _, _ = problem("bce", "features", {"epochs": 1, "learning_rate": 0.4, **run}, ())
        replace(case, threat=threat).certify(attack=search, selections=selections)

    return check


def _emptied(level: str) -> Check:
    def check(_: int) -> None:
        case = exchanged("removal", 2, samples=3, batch_size=1, epochs=1)
        assert_inside(case.certify(relaxation=level)[1], truth(case))

    return check


class _ShortNorms:
    """Torch in which lengths are one per cent too short."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    class linalg:
        @staticmethod
        def vector_norm(tensor: torch.Tensor, dim: int) -> torch.Tensor:
            return 0.99 * torch.linalg.vector_norm(tensor, dim=dim)


ROOMS = (
    ("interval", "joint"),
    ("zonotope", "joint"),
    ("linear", "joint"),
    ("linear", "enumerated"),
)
WHOLE = [
    *(
        Mutant(f"exchange: others, {kind}, {level}, {selections}", ((Substitute, "others"),),
               times(0.99), _exchanged(kind, selections, level, clip_mode="clamp"), 1)
        for kind in ("substitution", "insertion")
        for level, selections in ROOMS
        if (kind, selections) != ("insertion", "enumerated")
    ),
    *(
        # 0.8: the mean over n in place of n - k.
        Mutant(f"exchange: {rule} times {factor}", ((exchange, rule),), times(factor),
               unlisted(_exchanged("removal", selections)), 1)
        for rule, selections in (("_least_mean", "joint"), ("_mean_of_case", "enumerated"))
        for factor in (0.8, 0.99)
    ),
    Mutant("exchange: nobody in a zonotope", ((transformer, "selection_box"),),
           lambda honest: lambda *given: honest(*given).each(torch.zeros_like),
           _exchanged("removal", level="zonotope"), 1),
    Mutant("exchange: skipped step of a zonotope", ((engine, "unless_emptied"),),
           lambda _: lambda zonotope, *ends: zonotope, _emptied("zonotope"), 1),
    Mutant("exchange: mean of the others, attacked", ((exchange, "_mean_of_case"),), times(0.99),
           unlisted(_attacked(agt.Removal(1), "enumerated")), 1),
    Mutant("exchange: new gradient, attacked", ((Substitute, "others"),), times(0.99),
           unlisted(_attacked(agt.Substitution(1), "joint", clip=0.2, clip_mode="clamp")), 1),
    Mutant("exchange: ball", ((window_bounds, "torch"),), lambda _: _ShortNorms(),
           lambda _: assert_form_meets_the_ball("substitution", "norm"), 1),
    Mutant("exchange: skipped step", ((Joint, "emptied"),), lambda _: lambda own, step: None,
           _emptied("linear"), 1),
]  # fmt: skip


# ---------------------------------------------------------------------------------- attacked runs


def _regression(_: int) -> None:
    run = {"epochs": 1, "learning_rate": 0.1}
    case, test, labels = problem("mse", "labels", run, (), outputs=1, radius=0.05, budget=2)
    _, boxes = case.certify(relaxation="linear")
    assert not caught(case, boxes, test, labels)


def _classifier(seed: int) -> None:
    run = {"epochs": 4, "learning_rate": 1.0}
    case, test, labels = problem("bce", "features", run, (4,), seed=seed, radius=0.5)
    _, boxes = case.certify(relaxation="linear")
    assert not caught(case, boxes, test, labels)


def _clipped_in_all(_: int) -> None:
    run = {"clip_total": 0.1, "epochs": 1, "learning_rate": 1.0}
    case, test, labels = problem("mse", "features", run, (), radius=0.3, budget=6)
    _, boxes = case.certify(relaxation="zonotope")
    assert not caught(case, boxes, test, labels)


def _without_rest(honest: Any) -> Any:
    return lambda mean, factor, along, rest: honest(mean, factor, along, 0.0 * rest)


def _turned_gradient(_: int) -> None:
    """A moved feature turns the gradient of one weight to the full norm."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    nn.init.constant_(model[0].weight, 0.5)
    x = torch.tensor([[0.5], [1.0], [-1.0], [0.7]], dtype=torch.float64)
    run = Training(loss="bce", learning_rate=0.3, clip=0.1)
    case = Problem(model, x, torch.tensor([0, 1, 1, 0]), run, agt.FeaturePoisoning(2, 5.0))
    _, boxes = case.certify(relaxation="interval")
    assert not caught(case, boxes, x, case.labels)


def _capped(honest: Any) -> Any:
    def tight(self: Shorten, *operands: Interval) -> Interval:
        box, cap = honest(self, *operands), 0.99 * self.cap
        return Interval(box.lower.clamp(-cap, cap), box.upper.clamp(-cap, cap))

    return tight


def _penalised(level: str) -> Check:
    """Far from 0 the penalty is a constant, which must be there in full."""

    def check(_: int) -> None:
        run = {"l1": 5.0, "epochs": 1, "learning_rate": 0.1}
        case, _, _ = problem("bce", "features", run, (), radius=1e-6)
        case.certify(relaxation=level, carried="none")

    return check


def _projected(_: int) -> None:
    """Forms of later steps must see the clamp: its planes without their offsets cut runs off."""
    free, test, labels = problem("mse", "labels", {"epochs": 1}, (), outputs=1)
    middle = float(free.certify(relaxation="linear")[0].reachable.nominal["0.bias"].item())
    run = {"projection": (-10.0, middle), "epochs": 3}
    case, _, _ = problem("mse", "labels", run, (), outputs=1)
    _, boxes = case.certify(relaxation="linear")
    assert not caught(case, boxes, test, labels)


def _blind(honest: Any) -> Any:
    def residual(self: Clip, slope: Any, box: Interval) -> Interval:
        found = honest(self, slope, box)
        centre = 0.5 * (found.lower + found.upper)
        return Interval(centre, centre)

    return residual


def _clipped_in_total(level: str) -> Check:
    def check(_: int) -> None:
        run = {"clip_total": 0.3, "momentum": 0.5, "weight_decay": 0.1, "learning_rate": 0.5}
        case, _, _ = problem("cross_entropy", "features", run, (3,), nn.Tanh, radius=1e-6, budget=1)
        case.certify(relaxation=level)

    return check


ATTACKED = [
    Mutant("attacked: budget", ((worst_case, "worst_sum"), (of_terms, "worst_sum")), one_less,
           _regression, 1),
    Mutant("attacked: charges", (CHARGES,), nothing, _classifier),
    Mutant("total norm: rest", ((gradients, "_mapped"),), _without_rest, _clipped_in_all, 1),
    Mutant("total norm: whole gradients", ((engine, "shortened"),),
           lambda honest: lambda mean, box, clip: honest(mean, box, 0.99 * clip),
           _clipped_in_total("zonotope"), 1),
    Mutant("clipping: cap", ((Shorten, "interval"),), _capped, _turned_gradient, 1),
    *(
        Mutant(f"penalty: {level}", ((Sign, "interval"), (Sign, "residual")), times(0.99),
               _penalised(level), 1)
        for level in ("interval", "linear")
    ),
    Mutant("projection: planes", ((Clip, "residual"),), _blind, _projected, 1),
    *(
        Mutant(f"clip_total: factor times {factor}", ((ClipFactor, "interval"),), times(factor),
               _clipped_in_total("interval"), 1)
        for factor in (0.99, 1.01)
    ),
]  # fmt: skip
