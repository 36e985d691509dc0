"""Runs drawn at random, and what they once found, each as a case of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from milp_agt.core.encoder import Encoder
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.univariate import Univariate
from milp_agt.solvers import Capability, available_solvers, get_solver

EXACT = [n for n in available_solvers() if Capability.FUNCTIONS in get_solver(n).capabilities]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("op", "low", "high"),
    [(Sigmoid(), -1000.0, 50.0), (Tanh(), 0.0, 1000.0), (Exponential(), -1000.0, -900.0)],
    ids=lambda value: getattr(value, "key", None),
)
def test_no_argument_of_a_function_is_cut_off(
    op: Univariate, low: float, high: float, name: str
) -> None:
    """A sigmoid on [-1000, 50] was bounded for z >= -59.6 only, where SCIP's infinity begins."""
    encoder = Encoder(True, exact_products=True)
    ends = (np.array([low]), np.array([high]))
    z = encoder.columns(*ends)
    box = Interval(*(torch.from_numpy(end).unsqueeze(0) for end in ends))
    op.encode(encoder, (z,), (box,))
    program = encoder.finish()
    session = get_solver(name).open(program)
    for sign, end in ((1.0, low), (-1.0, high)):
        objective = np.zeros(program.lower.size)
        objective[0] = sign
        bound = session.minimise(objective, Limits(time=20.0)).dual_bound
        assert bound is not None
        assert bound <= sign * end
    session.close()
