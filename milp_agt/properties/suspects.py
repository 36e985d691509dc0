"""Which samples carry the bound: how far each of them alone can push the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.engines.cases import Enumerated
from milp_agt.engines.linear import influence, rows_at_once
from milp_agt.engines.walker import Forms
from milp_agt.errors import InvalidInputError
from milp_agt.properties.models import Models, Reached


@dataclass(frozen=True)
class Suspect:
    """A training sample and what it is worth to the adversary.

    Attributes:
        sample: its index in the data set.
        width: mean over the trainable parameters of the width that the certificate grants to this
            sample alone. Enumerated selections: the hull of its cases and of the clean run. Bounded
            jointly: what the forms of both ends of the parameter owe to it (``dev_i``).
        share: ``width`` divided by the mean width of the reachable set.
    """

    sample: int
    width: float
    share: float


def suspects(models: Models, count: int) -> tuple[Suspect, ...]:
    """The ``count`` samples that carry the bound, the heaviest first; those that can do nothing are
    left out.

    Raises:
        InvalidInputError: a result without the steps that led to it (loaded, or interval bounds).
    """
    if not all(reached.window for reached in models.reached):
        raise InvalidInputError(
            "Which samples carry the bound was asked",
            "a result that keeps no linear forms (loaded from a file, or relaxation 'interval')",
            "ask the result of certify(..., relaxation='linear') itself",
        )
    widths = torch.stack([_widths(models, reached) for reached in models.reached]).amax(0)
    whole = torch.cat([models.state[n].width.flatten() for n in models.step_graph.parameters])
    mean = float(whole.mean())
    order = widths.argsort(descending=True)[:count].tolist()
    return tuple(
        Suspect(i, float(widths[i]), float(widths[i]) / mean) for i in order if widths[i] > 0
    )


def _widths(models: Models, reached: Reached) -> Tensor:
    """The width that is granted to each sample, (N,)."""
    if isinstance(reached.exposure, Enumerated):
        return _of_cases(models, reached, reached.exposure)
    names = models.step_graph.parameters
    total = sum(reached.state[name].lower.numel() for name in names)
    rows = torch.eye(total, dtype=torch.float64, device=models.poison.features.device)
    worth = torch.zeros(len(models.poison.features), dtype=torch.float64, device=rows.device)
    size = rows_at_once(models.schedule, reached.window)
    for part in torch.cat([rows, -rows]).split(size):
        start = Forms.start(_on_parameters(models, reached, part))
        owed = influence(
            models.step_graph, models.schedule, reached.window, reached.exposure, start
        )
        worth = worth + owed.sum(0)
    return worth / total


def _on_parameters(models: Models, reached: Reached, rows: Tensor) -> dict[str, Tensor]:
    """Coefficients on the state from flat ones on the parameters, (rows, count)."""
    names = models.step_graph.parameters
    sizes = [reached.state[name].lower[0].numel() for name in names]
    parts = dict(zip(names, rows.split(sizes, 1), strict=True))
    return {
        name: parts[name].reshape(len(rows), *box.lower.shape[1:])
        if name in parts
        else rows.new_zeros(len(rows), *box.lower.shape[1:])
        for name, box in reached.state.items()
    }


def _of_cases(models: Models, reached: Reached, exposure: Enumerated) -> Tensor:
    """The widest hull of a case that holds the sample with case 0, the clean run."""
    names = models.step_graph.parameters
    low = torch.cat([reached.state[n].lower.flatten(1) for n in names], 1)
    high = torch.cat([reached.state[n].upper.flatten(1) for n in names], 1)
    width = (torch.maximum(high, high[:1]) - torch.minimum(low, low[:1])).mean(1)
    return (exposure.mask[1:] * width[1:, None]).amax(0)
