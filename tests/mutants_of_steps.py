"""Mutants of sums, worst cases, and of the step that every run is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from checks_encoding import check_encoded_step
from checks_rules import check_interval, check_leaf_boxes, check_poisoned_sum
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
from checks_worst_case import check_worst_case, worst_case_problem
from draws import make_box, make_boxes, poison_of
from instances import INSTANCES, per_sample
from mutants import SHARE, Check, Mutant, Wrong, nothing, one_less, shrink, shrunk, times

import milp_agt as agt
from milp_agt.bounds.adversary import sums, worst_case
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.adversary.sums import Masks, PoisonedSum
from milp_agt.bounds.linear import window_bounds
from milp_agt.bounds.linear.linearized_step import linearize_step
from milp_agt.bounds.program import window
from milp_agt.bounds.step import Step
from milp_agt.core.interval import Interval
from milp_agt.formulations import optimiser_step, univariate
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Box, Vertices
from milp_agt.training.training import Training

# ------------------------------------------------------------- sums and worst cases of one budget


def _sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [make_box(per_sample(2), ("straddle",), "nested", rng) for _ in range(2)]
    ends = (torch.cat([getattr(p, end) for p in parts], 1)[:, :4] for end in ("lower", "upper"))
    check_poisoned_sum(Interval(*ends), 2, Masks(), 2, np.random.default_rng(seed))


def _worst_cases(static: bool, per_batch: bool) -> Check:
    poison, batches = poison_of(2, static, per_batch, "xv"), ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0))
    return lambda seed: check_worst_case(worst_case_problem(poison, batches, 3, seed), tight=False)


def _leaves(what: str) -> Check:
    return lambda _: check_leaf_boxes(poison_of(2, True, False, what))


def _narrow_sum(honest: Any) -> Any:
    def result(total: PoisonedSum) -> Any:
        box, size = honest(total)
        return shrunk(box), size

    return result


def _without_charges(honest: Any) -> Any:
    def dev(poison: Poison, on: Any) -> Any:
        free = None if on.features is None else torch.zeros_like(on.charges)
        return honest(poison, replace(on, charges=free))

    return dev


WORST: dict[str, tuple[Any, str, Wrong]] = {
    "worst": (worst_case, "worst_sum", times(1.0 - SHARE)),
    "budget": (worst_case, "worst_sum", one_less),
    "charges": (worst_case, "_dev", _without_charges),
    "support": (Poison, "support", times(1.0 - SHARE)),
    "labels": (Poison, "support", lambda honest: lambda p, x, y: honest(p, x, None)),
}
ONE_BUDGET = [
    Mutant("sum: shrunk", ((PoisonedSum, "result"),), _narrow_sum, _sums),
    Mutant("sum: budget", ((sums, "worst_sum"),), one_less, _sums),
    Mutant(
        "sum: clean",
        ((PoisonedSum, "add"),),
        lambda honest: lambda total, terms, masks: honest(total, terms.clean, masks),
        _sums,
    ),
    *(
        Mutant(f"worst case: {name}-{static}-{batch}", ((room, rule),), wrong,
               _worst_cases(static == "static", batch == "batch"))
        for name, (room, rule, wrong) in WORST.items()
        for static in ("static", "adaptive")
        for batch in ("dataset", "batch")
    ),
    *(
        Mutant(f"{leaf}-{what}", ((Poison, leaf),), shrink, _leaves(what), 1)
        for leaf in ("feature_box", "label_box")
        for what in ("xr", "xv")
    ),
]  # fmt: skip


# ----------------------------------------------------------------------------- the step of a run


def _case(labels: bool = False, loss: str = "mse", budget: int = 2) -> StepCase:
    """One output, no hidden layer: without poison, linear bounds of a step are exact for mse."""
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}
    training = Training(loss=loss, learning_rate=0.4, **options)
    data = small_data(4, 2, 0 if loss == "mse" else 2, seed=1)
    threat: Any = agt.FeaturePoisoning(budget=budget, radius=0.2)
    if labels:
        threat = agt.LabelPoisoning(budget=budget, radius=0.3 if loss == "mse" else None)
    return step_case(mlp(2, 1), data, training, threat, width=0.05)


Engine = Callable[[StepCase, np.random.Generator], object]
ENGINES: dict[str, Engine] = {
    "interval": check_update,
    "walk": check_walk_of_update,
    "lp": lambda case, rng: check_encoded_step(case, False, rng, count=2),
}


def _step(engine: Engine, **options: Any) -> Check:
    """The check of one engine, with planes made anew: by the wrong rule where there is one."""

    def check(seed: int) -> None:
        case = _case(**options)
        ranges = case.relaxed.ranges
        own = linearize_step(case.schedule, case.state, case.step, ranges, Joint(case.poison))
        engine(replace(case, relaxed=own), np.random.default_rng(seed))

    return check


def _scalar(position: int) -> Wrong:
    def wrong(honest: property) -> property:
        def scalars(step: Step) -> tuple[float, ...]:
            found = list(honest.fget(step))  # type: ignore[misc]
            found[position] *= 1.0 - SHARE
            return tuple(found)

        return property(scalars)

    return wrong


def _rounded_steps(seed: int) -> None:
    training = Training(loss="mse", learning_rate=0.1, weight_decay=0.3)
    threat = agt.FeaturePoisoning(budget=0, radius=0.0)
    data = small_data(4, 2, 0, seed=seed)
    case = step_case(mlp(2, 3, 1, seed=seed), data, training, threat, width=0.0)
    check_update(case, np.random.default_rng(seed))
    check_step_interval(case, np.random.default_rng(seed), count=2)


def _elementary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for instance in INSTANCES["sigmoid"] + INSTANCES["tanh"] + INSTANCES["exponential"]:
        check_interval(instance, make_boxes(instance, ("point", "adjacent"), ("single",), rng), rng)


def _tight_limit(honest: Any) -> Any:
    def limit(own: Any, selected: Any) -> None:
        poison = own.poison
        own.poison = replace(poison, budget=poison.budget - 1)
        honest(own, selected)
        own.poison = poison

    return limit


def _narrow_moves(honest: Any) -> Any:
    return lambda own, *given: honest(own.on(lambda tensor: (1.0 - SHARE) * tensor), *given)


CHARGES = (window_bounds.Intercepts, "_charges")
UPDATES = [
    *(
        Mutant(f"update: {name}, {which}[{position}]", ((Step, which),), _scalar(position),
               _step(engine, budget=0 if name == "walk" else 2))
        for name, engine in ENGINES.items()
        for which in ("theta_scalars", "velocity_scalars")
        for position in range(3)
    ),
    Mutant("update: box", ((optimiser_step.OptimiserStep, "interval"),), shrink,
           _step(lambda case, rng: check_update(case, rng, count=256))),
    Mutant("update: rounding", ((sums, "gamma"), (optimiser_step, "gamma")),
           lambda _: lambda k: 0.0, _rounded_steps),
    Mutant("functions: rounding", ((univariate, "UNIT_ROUNDOFF"), (univariate, "TINY")),
           lambda _: 0.0, _elementary),
    *(
        Mutant(f"pass: charges, {loss}", (CHARGES,), nothing,
               _step(lambda case, rng: check_walk_of_update(case, rng, count=128), loss=loss))
        for loss in ("mse", "bce")
    ),
    *(
        Mutant(f"pass: adversary, {name}", ((Poison, "support"), CHARGES),
               lambda honest: lambda own, c, *given: torch.zeros_like(honest(own, c, *given)),
               _step(check_step_linear, labels=labels))
        for name, labels in (("features", False), ("labels", True))
    ),
    Mutant(
        "pass: state", ((window_bounds.Forms, "concretise"),),
        lambda honest: lambda forms, state, perturbation: honest(
            forms, {n: shrunk(b) for n, b in state.items()}, perturbation
        ),
        _step(lambda case, rng: check_step_linear(case, rng, count=4096), labels=True),
    ),
    Mutant("moves: budget", ((window.MoveColumns, "_limit"),), _tight_limit,
           _step(ENGINES["lp"])),
    Mutant("moves: features", ((Box, "add_to"),), _narrow_moves, _step(ENGINES["lp"])),
    Mutant("moves: box", ((Box, "add_to"),), _narrow_moves, _step(ENGINES["lp"], labels=True)),
    Mutant("moves: vertices", ((Vertices, "add_to"),), _narrow_moves,
           _step(ENGINES["lp"], labels=True, loss="bce")),
]  # fmt: skip
