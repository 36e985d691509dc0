"""What a certificate can say of a run, and by which method; what it cannot is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from milp_agt.certification.result import Result
from milp_agt.checker.proof import all_choices
from milp_agt.checker.statement import Statement
from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.sets import Ball, Vertices
from milp_agt.training.training import Training, UpdateRule

MOST_LISTED = 20_000  # plain runs that a checker is asked to take

Layers = list[dict[str, Any]]
Labels = np.ndarray[Any, np.dtype[np.float64]]
# What the checker has rules for, by the type of the layer; None has no effect.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], dict[str, Any] | None]] = {
    nn.ReLU: lambda layer: {"kind": "relu"},
    nn.LeakyReLU: lambda layer: {"kind": "leaky_relu", "slope": float(layer.negative_slope).hex()},
    nn.Sigmoid: lambda layer: {"kind": "sigmoid"},
    nn.Tanh: lambda layer: {"kind": "tanh"},
    nn.Flatten: lambda layer: None,
    nn.Identity: lambda layer: None,
    nn.Dropout: lambda layer: None,
}
CHECKED = 20.0  # seconds that a check may take on one core
# Products (of bounds or of coefficients) in a second of it.
RATES = {"interval": 1e7, "listed": 1e7, "affine": 1.5e7, "leaf": 4e7}
MOST_LEAVES = 1024
PART = 25  # samples of a batch at once, where all of them are too many
LOSSES = ("cross_entropy", "bce", "hinge", "mse")


def layers_of(model: nn.Module, prefix: str = "") -> tuple[Layers, list[str]]:
    """The layers of a model as a certificate names them, and those that the checker has no rules for."""
    if type(model) is nn.Sequential:
        found: Layers = []
        unknown: list[str] = []
        for name, child in model.named_children():
            own, missing = layers_of(child, f"{prefix}{name}.")
            found, unknown = found + own, unknown + missing
        return found, unknown
    if type(model) is nn.Linear:
        bias = None if model.bias is None else f"{prefix}bias"
        return [{"kind": "dense", "weight": f"{prefix}weight", "bias": bias}], []
    if type(model) in _ACTIVATIONS:
        layer = _ACTIVATIONS[type(model)](model)
        return ([] if layer is None else [layer]), []
    return [], [f"layer {type(model).__name__}"]


def listed(poison: Poison) -> tuple[bool, Labels | None] | None:
    """How all data sets of a threat are listed: whether samples are left out, else every label that one may
    have, (N, choices, width). None where they cannot be, or are too many."""
    if not poison.static or poison.per_batch or poison.label_quota is not None:
        return None
    moves, other, choices = poison.label_moves, 1, None
    if isinstance(moves, Vertices) and poison.feature_moves is None:
        labels = poison.labels.cpu().numpy()
        points = np.concatenate([np.zeros_like(labels)[:, None], moves.points.cpu().numpy()], 1)
        choices, other = labels[:, None] + points, points.shape[1] - 1
    elif poison.whole is not Whole.REMOVED:
        return None
    samples = int(poison.open.sum())
    count = sum(math.comb(samples, k) * other**k for k in range(poison.budget + 1))
    return (choices is None, choices) if count <= MOST_LISTED else None


def methods_of(poison: Poison) -> tuple[str, ...]:
    """The methods of the checker for a threat; none where :func:`barred` says why."""
    if barred(poison):
        return ()
    return ("interval", "affine") if listed(poison) is None else ("listed",)


def larger(poison: Poison) -> str:
    """What a certificate states in place of a threat that the checker has no exact form of."""
    moves = poison.feature_moves
    if poison.label_quota is not None:
        return "both budgets together, of either kind of change"
    return "" if moves is None or moves.is_box or isinstance(moves, Ball) else "the box around them"


def barred(poison: Poison) -> list[str]:
    """What the checker has no rules for in a threat, by name."""
    whole = poison.whole is not None and listed(poison) is None
    return ["threats to whole samples that cannot be listed"] if whole else []


def affordable(stated: Statement, method: str, seconds: float = CHECKED) -> bool:
    """Whether a check by a method is predicted to take at most some seconds."""
    most = seconds * RATES[method]
    problem, poisoned = stated.problem, stated.poisoned
    count = sum(values.size for values in stated.initial.values())
    seen, steps = sum(map(len, problem.batches)), len(problem.batches)
    if method == "interval":
        return seen * count <= most
    if method == "listed":
        runs = sum(1 for _ in all_choices(stated))
        calls = runs * steps * (50 if stated.choices is None else 1)  # one by one
        return runs * seen * count <= 10 * most and calls <= 5e4 * seconds
    slots = stated.at_once or (seen if stated.anew else int(poisoned.open.sum()))
    return of_forms(stated, slots) <= most


def of_forms(stated: Statement, slots: int) -> float:
    """Products of a check by affine forms with so many samples that may be poisoned."""
    problem, box = stated.problem, stated.poisoned.samples
    count = sum(values.size for values in stated.initial.values())
    seen, steps = sum(map(len, problem.batches)), len(problem.batches)
    moved = sum(int((part.lo < part.hi).any((0, 1)).sum()) for part in (box.x, box.y))
    states = 2 if any(rule.momentum for rule in problem.rules) else 1
    # Noise, by slots; of parts of batches no slots stay, and half of it on average.
    noise = states * count * steps * (0.5 if stated.at_once else 1 + slots / 40)
    symbols = moved * slots + noise
    widths = [stated.initial[layer.weight].shape[0] for layer in problem.layers if layer.weight]
    return float((seen * max(*widths, widths[-1] ** 2, 1) + count * steps) * symbols)


def leaves_of(stated: Statement, seconds: float = CHECKED) -> int:
    """How many leaves a tree may have: as many as are predicted to be checked in the time of one check."""
    if stated.anew or stated.poisoned.budget != 1:
        return 0
    return min(MOST_LEAVES, int(seconds * RATES["leaf"] / max(1.0, of_forms(stated, 1))))


def missing(training: Training, result: Result) -> list[str]:
    """What stands in the way of a certificate, by name; empty where nothing does."""
    graph, poison = result.models.step_graph, result.models.poison
    layers, found = layers_of(graph.model)
    if not found and (not layers or {layers[0]["kind"], layers[-1]["kind"]} != {"dense"}):
        found.append("a model that does not begin and end with a dense layer")
    rules, bounded = training.update_rules(result.total_steps), result.settings.get("certify", {})
    reasons = {
        "parameters that do not train, or that layers share": bool(graph.frozen or graph.aliases),
        "clipping of the gradient of each sample": graph.clipping is not None,
        f"loss {graph.loss.key}": graph.loss.key not in LOSSES,
        "initial parameters in boxes": bool(bounded.get("initial")),
        "a restriction to a part of the threat": bool(bounded.get("restriction")),
        "a run that was cut off": len(result.steps) < result.total_steps,
        f"options of the loss ({', '.join(graph.loss.options)})": bool(graph.loss.options),
        "clipping of the total norm": training.clips_total,
        "momentum, decay or groups that change from step to step": _changes(rules),
        "groups of parameters with more of their own than no decay": undecayed(
            rules[0], graph.parameters
        )
        is None,
        "a rate, momentum or decay that is negative": any(
            min(r.rate, r.momentum, r.weight_decay, r.l1) < 0 for r in rules
        ),
    }
    found += [*barred(poison), *(what for what, holds in reasons.items() if holds)]
    ends = [*result.reachable.lower.values(), *result.reachable.upper.values()]
    if not all(np.isfinite(end).all() for end in ends):
        found.append("bounds that are infinite")
    return found


def undecayed(rule: UpdateRule, names: Sequence[str]) -> list[str] | None:
    """Parameters that decay leaves alone; None where some differ from the others in more than that."""
    plain = replace(rule, groups=())
    apart = [name for name in names if replace(rule.of(name), groups=()) != plain]
    alike = all(rule.of(name) == replace(plain, weight_decay=0.0) for name in apart)
    return sorted(apart) if alike else None


def _changes(rules: Sequence[UpdateRule]) -> bool:
    """Whether more than rates and dampening differ between steps."""
    kept = {
        replace(
            rule,
            rate=0.0,
            dampening=0.0,
            groups=tuple(
                (group, replace(own, rate=own.rate - rule.rate, dampening=0.0))
                for group, own in rule.groups
            ),
        )
        for rule in rules
    }
    return len(kept) > 1
