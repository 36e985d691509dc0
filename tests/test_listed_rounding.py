"""What rounding grows to in listed runs: spectra of Hessians, and norms of errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from listed_runs import CASES
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.listed import dense
from milp_agt.bounds.listed.dense import ErrorNorm
from milp_agt.formulations.loss import get_loss


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_growth_is_that_of_the_worst_error(momentum: float, nesterov: bool) -> None:
    """Against the norm of the matrix of the whole step, which ends of the spectrum attain."""
    training = agt.Training(
        "bce",
        0.3,
        epochs=4,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=0.01,
    )
    rules = training.update_rules(4)
    lows, highs = (
        torch.tensor([-0.5, -0.4, -0.2, -0.1]).double(),
        torch.tensor([3.0, 2.0, 4.0, 1.0]).double(),
    )
    norms = ErrorNorm.fitted(lows, highs, rules)
    generator = torch.Generator().manual_seed(0)
    for low, high, rule, before, after in zip(lows, highs, rules, norms, norms[1:], strict=False):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
        values = (
            torch.tensor([float(low), float(high), 0.3], dtype=torch.float64) + rule.weight_decay
        )
        values[0] -= rule.weight_decay
        hessian = turn @ torch.diag(values) @ turn.T
        eye = torch.eye(3, dtype=torch.float64)
        _, b, c = rule.theta_from
        _, m, k = rule.velocity_from
        step = torch.cat(
            [torch.cat([eye + c * hessian, b * eye], 1), torch.cat([k * hessian, m * eye], 1)]
        )
        if momentum == 0.0:
            exact = torch.linalg.matrix_norm(eye + c * hessian, 2)
        else:
            exact = torch.linalg.matrix_norm(
                _root(after, eye) @ step @ torch.linalg.inv(_root(before, eye)), 2
            )
        bound = before.growth(low[None], high[None], rule, after)
        assert float(exact) <= float(bound) <= 1.0001 * float(exact)
        error = torch.randn(6, generator=generator, dtype=torch.float64)
        size = (_root(before, eye) @ error).norm()
        assert error[:3].norm() <= before.per_parameter * size
        assert error[3:].norm() <= before.of_velocity * size
        assert size <= before.of_sizes(error[:3].norm(), error[3:].norm())


def _root(norm: ErrorNorm, eye: Tensor) -> Tensor:
    """K with ``|K (e, u)|`` the norm."""
    zero = 0.0 * eye
    first = torch.cat([eye, norm.tilt * norm.scale * eye], 1)
    return torch.cat([first, torch.cat([zero, norm.root * norm.scale * eye], 1)])


@pytest.mark.parametrize(
    "name", ["two flips", "three classes, momentum", "three flips", "least squares"]
)
def test_spectra_hold_those_of_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the points of all runs, and at points as far as they may be off."""
    case, _, _ = CASES[name]
    checked = []
    inner = dense.DenseNet.bounds

    def checking(
        net: Any, state: Any, values: Any, sizes: Any, shares: Any, near: Any, *rest: Any
    ) -> Any:
        near = near + 1e-3
        found = inner(net, state, values, sizes, shares, near, *rest)
        names = net.step_graph.parameters
        generator = torch.Generator().manual_seed(len(checked))
        row = int(torch.randint(len(near), (1,), generator=generator))
        own = {n: state[n][row] for n in names}
        sizes_of = [own[n].numel() for n in names]
        centre = torch.cat([own[n].flatten() for n in names])
        x, y = values["features"], values["labels"][row]
        x = x if x.dim() == 2 else x[row]
        share = shares[row if len(shares) > 1 else 0]
        phases = values[net.phases][row] if net.phases else None

        def loss(flat: Tensor) -> Tensor:
            parts = dict(zip(names, flat.split(sizes_of), strict=True))
            weight, bias = (parts[n].reshape(own[n].shape) for n in net.last)
            hidden = x
            if net.first:
                w, b = (parts[n].reshape(own[n].shape) for n in net.first)
                hidden = phases * (x @ w.T + b)  # phases as at the point
            each = get_loss(case.training.loss).value(hidden @ weight.T + bias, y)
            return (each * share).sum()

        off = torch.randn(len(centre), generator=generator, dtype=torch.float64)
        for point in (centre, centre + off / off.norm() * 0.999e-3):
            spectrum = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, point))
            assert float(found[0].least[row]) <= float(spectrum[0]) + 1e-12
            assert float(spectrum[-1]) <= float(found[0].greatest[row]) + 1e-12
            slope = torch.autograd.functional.jacobian(loss, point)
            assert float(slope.norm()) <= float(found[0].size[row])
        checked.append(float(found[0].greatest[row] / spectrum[-1]))
        return found

    monkeypatch.setattr(dense.DenseNet, "bounds", checking)
    case.certify()
    assert len(checked) > 4
    assert min(checked) < 6.0  # not far from what there is
