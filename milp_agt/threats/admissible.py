"""Is a poisoned sample admitted? Answered in exact rational arithmetic, without any tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import singledispatch

import torch
from torch import Tensor

from milp_agt.threats.sets import (
    Ball,
    Box,
    BoxOrFill,
    Halfspaces,
    MoveSet,
    Product,
    Sparse,
    Vertices,
)


@singledispatch
def admits(moves: MoveSet, sample: int, nominal: Tensor, given: Tensor) -> bool:
    """Whether a sample (size,) of float64 may be ``given`` where it is ``nominal`` in the data as given.

    The exact difference ``given - nominal`` must satisfy every condition of the set. A jump to one of
    finitely many moves e (a class, a category, a missing value) is what the run computes, ``nominal + e``
    rounded to nearest.

    Raises:
        NotImplementedError: a kind of set that this function does not know; nothing is admitted by default.
    """
    raise NotImplementedError(type(moves).__name__)


def _exact(values: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in values.tolist()]


def _moves(nominal: Tensor, given: Tensor) -> list[Fraction]:
    return [b - a for a, b in zip(_exact(nominal), _exact(given), strict=True)]


def _between(
    moves: Sequence[Fraction], low: Tensor, high: Tensor, whole: tuple[int, ...]
) -> list[bool]:
    """Coordinate by coordinate."""
    ends = zip(moves, _exact(low), _exact(high), strict=True)
    return [
        below <= move <= above and (k not in whole or move.denominator == 1)
        for k, (move, below, above) in enumerate(ends)
    ]


@admits.register
def _box(moves: Box, sample: int, nominal: Tensor, given: Tensor) -> bool:
    exact = _moves(nominal, given)
    return all(_between(exact, moves.low[sample], moves.high[sample], moves.whole))


@admits.register
def _box_or_fill(moves: BoxOrFill, sample: int, nominal: Tensor, given: Tensor) -> bool:
    own, fill = moves.box, moves.fill[sample]
    inside = _between(_moves(nominal, given), own.low[sample], own.high[sample], own.whole)
    jumped = ((given == nominal + fill) & (fill != 0.0)).tolist()
    return all(a or b for a, b in zip(inside, jumped, strict=True))


@admits.register
def _ball(moves: Ball, sample: int, nominal: Tensor, given: Tensor) -> bool:
    exact = _moves(nominal, given)
    if not all(_between(exact, moves.low[sample], moves.high[sample], moves.whole)):
        return False
    pairs = list(zip(exact, _exact(moves.radius[sample]), strict=True))
    if any(move != 0 and radius == 0 for move, radius in pairs):
        return False
    total = sum(abs(move / radius) ** moves.order for move, radius in pairs if radius != 0)
    return total <= 1


@admits.register
def _sparse(moves: Sparse, sample: int, nominal: Tensor, given: Tensor) -> bool:
    blocks = moves.base.block_of[(given != nominal).to(moves.base.block_of.device)]
    few = len(blocks.unique()) <= moves.limit
    return few and admits(moves.base, sample, nominal, given)


@admits.register
def _vertices(moves: Vertices, sample: int, nominal: Tensor, given: Tensor) -> bool:
    reached = nominal + moves.points[sample]
    return bool((given == nominal).all()) or bool((reached == given).all(-1).any())


@admits.register
def _product(moves: Product, sample: int, nominal: Tensor, given: Tensor) -> bool:
    pairs = zip(moves.parts, map(list, moves.columns), strict=True)
    return all(admits(part, sample, nominal[own], given[own]) for part, own in pairs)


@admits.register
def _halfspaces(moves: Halfspaces, sample: int, nominal: Tensor, given: Tensor) -> bool:
    exact, limits = _moves(nominal, given), _exact(moves.limits[sample])
    rows = [[Fraction(c) for c in row] for row in moves.matrix.tolist()]
    sums = [sum((c * e for c, e in zip(row, exact, strict=True)), Fraction(0)) for row in rows]
    below = all(total <= limit for total, limit in zip(sums, limits, strict=True))
    return below and admits(moves.base, sample, nominal, given)


def fixed(moves: MoveSet, nominal: Tensor, given: Tensor) -> Tensor:
    """Mask of the coordinates that jump, and may not move by a little, (..., N, size) bool.

    ``given`` (..., N, size) are samples whose nominal values are (N, size).
    """
    mask = torch.zeros(given.shape, dtype=torch.bool, device=given.device)
    if isinstance(moves, Product):
        for part, columns in zip(moves.parts, map(list, moves.columns), strict=True):
            mask[..., columns] = fixed(part, nominal[..., columns], given[..., columns])
    elif isinstance(moves, (Sparse, Halfspaces)):
        mask = fixed(moves.base, nominal, given)
    elif isinstance(moves, BoxOrFill):
        mask = fixed(moves.box, nominal, given) | (given == nominal + moves.fill)
    elif isinstance(moves, (Box, Ball)):
        mask[..., list(moves.whole)] = True
    else:
        mask[:] = True
    return mask


def shrunk(moves: MoveSet, nominal: Tensor, given: Tensor, factor: float) -> Tensor:
    """``given`` (..., N, size) with its moves times ``factor`` < 1 and one float nearer to ``nominal``, but
    for jumps."""
    nearer = torch.nextafter(nominal + factor * (given - nominal), nominal.expand(given.shape))
    return torch.where(fixed(moves, nominal, given), given, nearer)
