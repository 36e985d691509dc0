"""A training run in words, with every option of the optimiser: part of the claim of a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from milp_agt.training.training import Clipping, Training, UpdateRule


def run_in_words(training: Training, steps: int) -> str:
    """Optimiser, batches, schedule and clipping of a run of so many steps. Raises InvalidInputError: see
    :meth:`Training.update_rules`."""
    loss, rules = training.objective, training.update_rules(steps)
    options = "".join(f", {name}={value!r}" for name, value in loss.options.items())
    parts = [
        f"torch.optim.SGD(lr={float(training.learning_rate)!r}, "
        f"momentum={float(training.momentum)!r}, dampening=0, "
        f"weight_decay={float(training.weight_decay)!r}, nesterov={bool(training.nesterov)}) "
        f"on the mean over each batch of the loss '{loss.key}', {loss.formula}{options}",
        _batches(training, steps),
        _rates(training, rules),
        _clipping(training.clipping),
    ]
    totals = sorted({rule.clip_total for rule in rules if rule.clip_total is not None})
    if totals:
        always = all(rule.clip_total == totals[0] for rule in rules)
        parts.append(
            f"the gradient of the batch is scaled down to the 2-norm {', '.join(map(repr, totals))} over all "
            f"parameters, as clip_grad_norm_ does{'' if always else ', in some steps'}"
        )
    for group, rule in rules[0].groups if rules else ():
        varies = len({r.of(group.names[0]).rate for r in rules}) > 1
        parts.append(
            f"the parameters {', '.join(group.names)} with a learning rate of {rule.rate:g}"
            f"{' in the first step' if varies else ''}, momentum {rule.momentum:g}, weight decay "
            f"{rule.weight_decay:g} and nesterov={rule.nesterov}"
        )
    if training.l1:
        parts.append(f"a penalty of {float(training.l1)!r} times the sum of |parameters|")
    if training.projection is not None:
        low, high = training.projection
        parts.append(
            f"every parameter clamped to [{float(low)!r}, {float(high)!r}] after each step"
        )
    return "; ".join(parts)


def _batches(training: Training, steps: int) -> str:
    if training.batches is not None:
        epochs = training.recorded_epochs
        made = "" if epochs is None else f" in {_count(len(epochs), 'epoch')}"
        return f"{_count(steps, 'recorded batch', 'recorded batches')}{made}"
    begin = _count(int(training.epochs), "epoch")
    if training.batch_size is None and training.shuffle_seed is None:
        return f"{begin} of the full data set as one batch"
    size = "the full data set" if training.batch_size is None else f"{training.batch_size} samples"
    order = "in the order of the data"
    if training.shuffle_seed is not None:
        order = f"shuffled in each epoch by numpy's default_rng({training.shuffle_seed})"
    return f"{begin} in batches of {size} (the last of an epoch may be smaller), {order}"


def _rates(training: Training, rules: Sequence[UpdateRule]) -> str:
    rates = [rule.rate for rule in rules]
    ends = f"from {rates[0]:g} in the first step to {rates[-1]:g} in the last" if rates else ""
    if training.schedule is None:
        told = "the learning rate is constant"
        if len(set(rates)) > 1:
            told = f"a learning rate read off the optimiser in every step, {ends}"
        names = ("momentum", "weight_decay", "nesterov", "dampening")
        moved = [each for each in names if len({getattr(rule, each) for rule in rules}) > 1]
        return told + (f"; {', '.join(moved)} read off it as well" if moved else "")
    if isinstance(training.schedule, (Sequence, np.ndarray)):
        return f"a learning rate given for every step, {ends}"
    schedule: Any = training.schedule  # of a class of the user's own, perhaps
    shown = [each.name for each in fields(schedule)] if is_dataclass(schedule) else ["unit"]
    options = ", ".join(f"{name}={getattr(schedule, name)!r}" for name in shown)
    return f"learning rate by {type(schedule).__name__}({options}), {ends}"


def _clipping(clipping: Clipping | None) -> str:
    if clipping is None:
        return "gradients are not clipped"
    what, other = (
        f"the gradient of every single sample is scaled down to the 2-norm {clipping.bound!r}",
        "clip_grad_norm_, which clips the gradient of the whole batch",
    )
    if clipping.mode == "clamp":
        what, other = (
            f"every coordinate of the gradient of every single sample is clamped to +-{clipping.bound!r}",
            "clip_grad_value_, which clamps the gradient of the whole batch and is not supported",
        )
    return f"{what} before the mean over the batch (that is not {other})"


def _count(number: int, word: str, words: str | None = None) -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"
