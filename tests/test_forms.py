"""Linear forms of the outputs decide what a loss says: its bounds, and who is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draws import TOL
from same_run import LOSSES, data_for

from milp_agt.core.interval import Interval
from milp_agt.formulations.loss import get_loss


@pytest.mark.parametrize("name", LOSSES)
def test_forms_decide_loss_and_correctness(name: str) -> None:
    """``of_forms`` at the forms' own values is the loss; margins are positive iff all is right."""
    loss, outputs = LOSSES[name]
    rule = get_loss(loss)
    rng = np.random.default_rng(1)
    f = torch.from_numpy(2.0 * rng.normal(size=(40, outputs)))
    _, raw = data_for(loss, outputs, samples=40)
    labels = rule.encode(raw, outputs)
    coefficients, constants = rule.forms(labels, outputs)
    forms = torch.einsum("nko,no->nk", coefficients.expand(40, -1, -1), f) + constants
    point = rule.of_forms(Interval.point(forms))
    expected = rule.value(f, labels)
    assert torch.allclose(point.lower, expected, atol=TOL.torch)
    assert torch.allclose(point.upper, expected, atol=TOL.torch)
    if rule.is_classification:
        predicted = (f[:, 0] > 0).long() if outputs == 1 else f.argmax(-1)
        assert torch.equal((forms > 0).all(-1), predicted == raw)
    else:
        assert torch.allclose(forms, f - labels)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_bounds_from_boxes_of_forms(name: str) -> None:
    loss, outputs = LOSSES[name]
    rule = get_loss(loss)
    rng = np.random.default_rng(2)
    count = rule.forms(rule.encode(data_for(loss, outputs)[1], outputs), outputs)[0].shape[1]
    low = torch.from_numpy(3.0 * rng.normal(size=(20, count)))
    high = low + torch.from_numpy(3.0 * rng.random((20, count)))
    bound = rule.of_forms(Interval(low, high))
    assert bound.lower.shape == (20,)
    for _ in range(50):
        pick = low + (high - low) * torch.from_numpy(rng.random((20, count))).round()
        value = rule.of_forms(Interval.point(pick))
        assert bool((bound.lower <= value.lower + 1e-15).all())
        assert bool((value.upper <= bound.upper + 1e-15).all())
