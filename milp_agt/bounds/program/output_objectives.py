"""Objectives about the model after a window: forms of its outputs, and how many points one run can reach.

A test point is reached if all forms of one of its groups are <= 0 (all scores of safe classes are at most
that of one unsafe class, say). Binary z_g = 1 demands that of group g; their sum is maximised.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.bounds.program.state_bounds import Objectives, SolveOptions, minimise
from milp_agt.core.deadline import Deadline
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, Index, add
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import SolverUnavailableError
from milp_agt.solvers.solver import choose
from milp_agt.threats.poison import Poison


@dataclass(frozen=True)
class OutputForms:
    """Forms ``coefficients . f(x) + constant`` of outputs f at test inputs: (n, forms, outputs), (n, forms).

    ``inputs`` is the box of each test input, (1, n, *shape); a point where nobody touches it.
    """

    inputs: Interval
    coefficients: Tensor
    constant: Tensor

    def __len__(self) -> int:
        return len(self.coefficients)

    @staticmethod
    def of_outputs(features: Tensor, outputs: int) -> OutputForms:
        """The outputs themselves at features (n, *shape)."""
        eye = torch.eye(outputs, dtype=torch.float64, device=features.device)
        inputs, none = Interval.point(features.unsqueeze(0)), features.new_zeros(1, outputs)
        return OutputForms(
            inputs, eye.expand(len(features), -1, -1), none.expand(len(features), -1)
        )

    def part(self, points: Tensor) -> OutputForms:
        """The forms of some of the test points."""
        box = self.inputs.each(lambda end: end[:, points])
        return OutputForms(box, self.coefficients[points], self.constant[points])

    def at(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Values for outputs (models, n, outputs), (models, n, forms), and bounds of their rounding errors.

        Outputs are taken as the float64 run computes them, so only the rounding of the forms counts.
        """
        value = torch.einsum("nfo,mno->mnf", self.coefficients, found) + self.constant
        size = torch.einsum("nfo,mno->mnf", self.coefficients.abs(), found.abs())
        size = size + self.constant.abs()
        return value, gamma(2 * self.coefficients.shape[-1] + 16) * size + TINY

    def forms_of(self, outputs: Expression) -> Expression:
        """The forms of all test points as one flat expression of the outputs, rounding included."""
        weights = self.coefficients.detach().cpu().numpy()
        points, count, width = weights.shape
        blocks = sp.csr_matrix(sp.block_diag(list(weights), format="csr"))
        flat = outputs.reshape((points * width,)).apply(blocks, (points * count,))
        shift = self.constant.detach().cpu().numpy().reshape(-1)
        moved = add([flat, Expression.of(shift)])
        rounding = 2.0**-50 * (np.abs(shift) + np.abs(moved.constant))
        return moved.plus_error(rounding)

    def sums_of(self, outputs: Expression, largest: Tensor, weights: Tensor) -> Expression:
        """Weighted sums of the forms, one for each row of ``weights`` (rows, n, forms), rounding included.

        ``largest`` is the magnitude of the outputs, (n, outputs).
        """
        rows = weights.flatten(1)
        size = torch.einsum("nfo,no->nf", self.coefficients.abs(), largest) + self.constant.abs()
        error = gamma(2 * self.coefficients.numel() + 16) * (rows.abs() @ size.flatten()) + TINY
        linear_map = sp.csr_matrix(rows.cpu().numpy())
        summed = self.forms_of(outputs).apply(linear_map, (len(rows),))
        return summed.plus_error(error.cpu().numpy())


def sums_of_box(weights: Tensor, box: Interval) -> Tensor:
    """Lower ends of ``sum_i weights_i . form_i`` over a box of the forms, (choices, rows), rounded down.

    ``weights`` is (rows, n, forms), the box (choices, n, forms).
    """
    positive, negative = weights.clamp(min=0.0), weights.clamp(max=0.0)
    low = torch.einsum("rnf,cnf->cr", positive, box.lower)
    low = low + torch.einsum("rnf,cnf->cr", negative, box.upper)
    size = torch.einsum("rnf,cnf->cr", weights.abs(), box.magnitude)
    found = low - gamma(2 * weights[0].numel() + 16) * size - TINY
    return torch.nan_to_num(found, nan=-torch.inf)


# Counts are integers: a bound is rounded down, after adding an allowance for the solver's tolerances.
COUNT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Reach:
    """The ways to reach some points.

    Attributes:
        way: for each form, flat over (n, forms), the number of its group among all groups.
        point: the point of each group, (groups,).
        points: the number of points.
        columns: the binary of each group, once encoded.
    """

    way: Index
    point: Index
    points: int
    columns: Expression | None = None

    @staticmethod
    def of(groups: Tensor) -> Reach:
        """From the groups of the forms of each point, (n, forms)."""
        names = groups.cpu().numpy()
        own = names + np.arange(len(names))[:, None] * (names.max(initial=0) + 1)
        known, way = np.unique(own, return_inverse=True)
        return Reach(way.reshape(-1), known // (names.max(initial=0) + 1), len(names))

    def able(self, lower: Tensor) -> Tensor:
        """Mask (choices, groups) of the groups that lower bounds of the forms (choices, n, forms) allow."""
        over = (lower > 0.0).flatten(1).to(torch.int8)
        index = torch.from_numpy(self.way).to(over.device).expand(over.shape)
        groups = over.new_zeros(len(over), len(self.point))
        return groups.scatter_reduce(1, index, over, "amax") == 0

    def counts(self, able: Tensor) -> Array:
        """How many points have an allowed group, (choices,)."""
        index = torch.from_numpy(self.point).to(able.device).expand(able.shape)
        points = torch.zeros(len(able), self.points, dtype=torch.int8, device=able.device)
        hit = points.scatter_reduce(1, index, able.to(torch.int8), "amax")
        return np.asarray(hit.sum(1).cpu().numpy(), dtype=np.float64)

    def opened(self, encoder: Encoder, able: Tensor | None = None) -> Reach:
        """A copy with new binary columns and at most one way for each point.

        ``able`` is a mask of the groups that may be reached, all of them by default.
        """
        encoder.selection = None
        encoder.origin = "collective"
        count = len(self.point)
        upper = np.ones(count) if able is None else able.cpu().numpy().astype(np.float64)
        columns = encoder.columns(np.zeros(count), upper, integer=True)
        one = sp.csr_matrix((np.ones(count), (self.point, np.arange(count))))
        encoder.rows(columns.apply(one, (one.shape[0],)), -np.inf, 1.0)
        return Reach(self.way, self.point, self.points, columns)

    def encode(
        self,
        encoder: Encoder,
        forms: Expression,
        upper: Tensor,
        able: Tensor | None = None,
    ) -> Reach:
        """Rows ``form <= upper (1 - z)`` for all forms of every group.

        ``forms`` and their upper bounds ``upper`` are flat over (n, forms). A form that is never above 0
        demands nothing.
        """
        opened = self.opened(encoder, able)
        assert opened.columns is not None
        largest = np.maximum(upper.cpu().numpy().reshape(-1), 0.0)
        on = opened.columns.take(self.way).scale(largest)
        encoder.rows(add([forms, on]), -np.inf, largest)
        return opened

    @property
    def total(self) -> Expression:
        """Minus the number of ways taken, to be minimised."""
        assert self.columns is not None
        count = len(self.point)
        return self.columns.apply(sp.csr_matrix(-np.ones((1, count))), (1,))

    def most(self, encoder: Encoder, options: SolveOptions) -> int:
        """The dual bound of the number of points, at most the number of all points."""
        objectives = Objectives.of(encoder.finish(), self.total, np.ones(1))
        solved = minimise(objectives, counting(options))
        return int(counted(solved.bounds, self.points)[0])


def counting(options: SolveOptions) -> SolveOptions:
    """The options for a count, which gets the time of one solve for all its programs."""
    if options.limits.time is None or options.deadline is not None:
        return options
    return replace(options, deadline=time.monotonic() + options.limits.time)


def counted(bounds: Array, points: int) -> Array:
    """Counts from lower bounds of their negatives; all points where nothing is proved."""
    known = np.where(np.isnan(bounds), -np.inf, bounds)
    return np.minimum(np.floor(-known + COUNT_TOLERANCE), float(points))


def most_by_selection(
    base: Tensor,
    dev: Tensor,
    groups: Tensor,
    poison: Poison,
    inside: frozenset[int],
    outside: frozenset[int],
    deadline: Deadline | None = None,
) -> int:
    """How many points one set of poisoned samples can reach.

    Every form is at least ``base - sum_{i in S} dev_i`` for the set S of poisoned samples, so a group
    can be reached only if ``sum_{i in S} dev_i >= base`` for all of its forms. With one sample to
    choose, each is tried; otherwise a program has a binary for each sample. Without a capable solver
    every point counts.

    Args:
        base, dev: (n, forms) and (n, forms, N), see :meth:`Models.by_sample`.
        groups: of the forms of each point, (n, forms).
        inside, outside: samples known to be poisoned, and known not to be.
        deadline: when the program ends; its dual bound by then counts.
    """
    reach = Reach.of(groups)
    # NaN proves nothing.
    worth = torch.where(torch.isnan(dev), torch.inf, dev).flatten(0, 1).cpu().numpy()
    least = torch.where(torch.isnan(base), -torch.inf, base).flatten().cpu().numpy()
    free = poison.open.cpu().numpy().copy()
    free[sorted(outside)] = False
    if poison.budget == 1 and not inside:
        return _most_of_one(reach, least, worth[:, free])
    try:
        solver = choose(None)
    except SolverUnavailableError:
        return reach.points
    encoder = Encoder(exact_phases=True)
    opened = reach.opened(encoder)
    assert opened.columns is not None
    known = np.isin(np.arange(len(free)), sorted(inside))
    chosen = encoder.columns(known.astype(np.float64), (free | known).astype(np.float64), True)
    encoder.rows(
        chosen.apply(sp.csr_matrix(np.ones((1, len(free)))), (1,)), -np.inf, float(poison.budget)
    )
    asks = np.flatnonzero(least > 0.0)
    # Rounded up, and capped at 1: the share with which one sample alone reaches the form.
    finite = np.isfinite(least[asks, None])  # no samples can reach a form with an infinite base
    ratio = np.divide(worth[asks], least[asks, None], where=finite, out=np.zeros_like(worth[asks]))
    part = np.minimum(ratio * (1.0 + 2.0**-40), 1.0)
    paid = chosen.apply(sp.csr_matrix(part), (len(asks),))
    ways = opened.columns.take(reach.way[asks]).scale(-1.0)
    encoder.rows(add([paid, ways]), 0.0, np.inf)
    at = None if deadline is None else deadline.at
    return opened.most(encoder, SolveOptions(solver, deadline=at))


def _most_of_one(reach: Reach, least: Array, worth: Array) -> int:
    """The most points that one sample, or none, can reach."""
    alone = np.concatenate([np.zeros((len(least), 1)), worth], 1) * (1.0 + 2.0**-40)
    able = torch.from_numpy(alone >= least[:, None])
    ways = torch.ones(len(reach.point), able.shape[1], dtype=torch.bool)
    index = torch.from_numpy(reach.way)[:, None].expand(able.shape)
    ways = ways.to(torch.int8).scatter_reduce(0, index, able.to(torch.int8), "amin")
    hit = torch.zeros(reach.points, able.shape[1], dtype=torch.int8)
    at = torch.from_numpy(reach.point)[:, None].expand(ways.shape)
    return int(hit.scatter_reduce(0, at, ways, "amax").sum(0).max())
