"""The interface of sets of moves: box, support function, best move, projection, program rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add


@dataclass(frozen=True)
class Rules:
    """How bounds treat a kind of set, for the support table.

    Attributes:
        moves: the moves that this kind describes.
        support: how exact the support function is (linear bounds).
        relaxed, exact: what programs keep, without and with integer columns (lp; milp and above).
    """

    moves: str
    support: str
    relaxed: str
    exact: str


class MoveSet(ABC):
    """The admissible moves ``e`` of samples 0..N-1, a set ``E_i`` for each, which contains "no move".

    A set is the product of *blocks*: groups of coordinates that move independently of each other.
    Coordinates of a sample are flat: moves have shape (..., N, size), coefficients (rows, N, size).
    """

    rules: ClassVar[Rules]

    @property
    @abstractmethod
    def lower(self) -> Tensor:
        """The least move of each coordinate, (N, size), <= 0."""

    @property
    @abstractmethod
    def upper(self) -> Tensor:
        """The largest move of each coordinate, (N, size), >= 0."""

    @property
    @abstractmethod
    def block_of(self) -> Tensor:
        """The block of each flat coordinate of a sample, (size,), numbered from 0."""

    @property
    def is_exact(self) -> bool:
        """Whether :meth:`support` is attained by an admissible move instead of only an upper bound."""
        return True

    @property
    def is_box(self) -> bool:
        """Whether the box around the set is the set (or its hull)."""
        return False

    @property
    def is_convex(self) -> bool:
        """Whether a fraction of an admissible move is admissible."""
        return True

    @abstractmethod
    def gains(self, coefficients: Tensor) -> Tensor:
        """``max over moves of c . e`` in each block, (rows, N, blocks), >= 0."""

    def support(self, coefficients: Tensor) -> Tensor:
        """The support function ``max over e in E_i of c_i . e``, or an upper bound of it, (rows, N).

        Exact up to rounding iff ``is_exact``. The caller must cover the rounding error of at most
        ``4 size`` operations on terms that sum to at most twice the result.
        """
        return self.gains(coefficients).sum(-1)

    @abstractmethod
    def radius_supports(self, radius: Tensor) -> Tensor:
        """``max over moves and |v| <= radius of v . e`` in each block, from radii (rows, N, size) >= 0.

        A bound on the increase of the support function if coefficients are only known up to a radius.
        """

    def radius_support(self, radius: Tensor) -> Tensor:
        """:meth:`radius_supports` over all blocks, (rows, N)."""
        return self.radius_supports(radius).sum(-1)

    @abstractmethod
    def maximise(self, coefficients: Tensor) -> Tensor:
        """An admissible move that attains the support function (if ``is_exact``), same shape."""

    @abstractmethod
    def project(self, moves: Tensor) -> Tensor:
        """An admissible move near each given one, (..., N, size); admissible moves do not change."""

    @abstractmethod
    def admits(self, sample: int, nominal: Tensor, given: Tensor) -> bool:
        """Whether a sample (size,) of float64 may be ``given`` where it is ``nominal`` in the data as given.

        Answered in rational arithmetic, without a tolerance: the exact difference must satisfy every
        condition of the set. A jump to one of finitely many moves e (a class, a category, a missing value) is
        what the run computes, ``nominal + e`` rounded to nearest.
        """

    @abstractmethod
    def jumps(self, nominal: Tensor, given: Tensor) -> Tensor:
        """Mask of the coordinates that may not move by a little, (..., N, size) bool.

        ``given`` (..., N, size) are samples whose nominal values are (N, size).
        """

    def shrunk(self, nominal: Tensor, given: Tensor, factor: float) -> Tensor:
        """``given`` with its moves times ``factor`` < 1 and a float nearer to ``nominal``, but for jumps."""
        nearer = torch.nextafter(nominal + factor * (given - nominal), nominal.expand(given.shape))
        return torch.where(self.jumps(nominal, given), given, nearer)

    @abstractmethod
    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The set with every tensor that has a sample axis replaced by its image."""

    @abstractmethod
    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        """Columns and rows of the moves in a program; the moves as an expression (N, size).

        ``gates`` (N, blocks) are expressions in [0, 1]: a block moves only if its gate is 1. Every
        admissible move with its gates satisfies the rows; if the rows are exact, relaxed gates give the
        convex hull.
        """

    def encode(self, encoder: Encoder, selection: Expression) -> Expression:
        """The moves of samples with the selection columns ``s_i``, (N,), as an expression (N, size)."""
        return self.add_to(encoder, spread(selection, self.blocks))

    def sample(self, generator: torch.Generator, count: int, corners: bool) -> Tensor:
        """Random admissible moves, (count, N, size): extreme ones, or drawn from the whole set."""
        shape = (count, *self.lower.shape)
        if corners:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            return self.maximise(drawn.to(self.lower))
        share = torch.rand(shape, generator=generator, dtype=torch.float64).to(self.lower)
        return self.project(self.lower + share * (self.upper - self.lower))

    def take(self, samples: Tensor) -> Self:
        """The sets of these samples, (n,)."""
        return self.on(lambda tensor: tensor[samples])

    def to(self, device: torch.device) -> Self:
        return self.on(lambda tensor: tensor.to(device))

    def only(self, mask: Tensor) -> Self:
        """The same sets for samples in ``mask`` (N,), and only "no move" for the others."""
        if bool(mask.all()):
            return self
        return self.on(
            lambda tensor: torch.where(mask.reshape(-1, *[1] * (tensor.dim() - 1)), tensor, 0.0)
        )

    @property
    def reach(self) -> Tensor:
        """The largest absolute move of each coordinate, (N, size)."""
        return torch.maximum(self.upper, -self.lower)

    @property
    def blocks(self) -> int:
        return int(self.block_of.max()) + 1 if self.block_of.numel() else 0

    @property
    def size(self) -> int:
        """Number of coordinates of one sample."""
        return self.lower.shape[-1]


class InBox(MoveSet):
    """Part of what sets inside a box ``low <= e <= high`` share, (N, size).

    Coordinates ``whole`` move by whole numbers, where ``low`` and ``high`` are whole.
    """

    low: Tensor
    high: Tensor
    whole: tuple[int, ...]

    @property
    def lower(self) -> Tensor:
        return self.low

    @property
    def upper(self) -> Tensor:
        return self.high

    @property
    def is_convex(self) -> bool:
        return not self.whole

    def boxed(self, moves: Tensor) -> Tensor:
        """The nearest moves in the box, fractions and all."""
        return torch.minimum(torch.maximum(moves, self.low), self.high)

    def inside(self, sample: int, moves: Sequence[Fraction]) -> list[bool]:
        """Coordinate by coordinate, and exactly: whether the moves of a sample lie in the box."""
        ends = zip(moves, exact(self.low[sample]), exact(self.high[sample]), strict=True)
        return [
            below <= move <= above and (k not in self.whole or move.denominator == 1)
            for k, (move, below, above) in enumerate(ends)
        ]

    def jumps(self, nominal: Tensor, given: Tensor) -> Tensor:
        mask = torch.zeros(given.shape, dtype=torch.bool, device=given.device)
        mask[..., list(self.whole)] = True
        return mask


@dataclass(frozen=True)
class OnBase(MoveSet):
    """Part of what sets share that admit some moves of another, ``base``, in one block."""

    base: MoveSet

    @property
    def lower(self) -> Tensor:
        return self.base.lower

    @property
    def upper(self) -> Tensor:
        return self.base.upper

    @property
    def block_of(self) -> Tensor:
        return one_block(self.base.lower)

    def jumps(self, nominal: Tensor, given: Tensor) -> Tensor:
        return self.base.jumps(nominal, given)


def spread(gates: Expression, count: int) -> Expression:
    """Gates (N, 1), or a selection (N,), for each of so many entries, (N, count)."""
    return gates.take(np.repeat(np.arange(gates.size), count).reshape(gates.size, count))


def one_block(like: Tensor) -> Tensor:
    """All coordinates in block 0; ``like`` is (N, size)."""
    return torch.zeros(like.shape[-1], dtype=torch.int64, device=like.device)


def extent(coefficients: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """How far each coordinate may go in the direction of its coefficient, >= 0."""
    return torch.where(coefficients >= 0, upper, -lower)


def truncated(moves: Tensor, whole: tuple[int, ...]) -> Tensor:
    """Moves with the coordinates ``whole`` rounded towards no move."""
    if not whole:
        return moves
    columns = list(whole)
    rounded = moves.clone()
    rounded[..., columns] = moves[..., columns].trunc()
    return rounded


def gated_columns(
    encoder: Encoder, lower: Array, upper: Array, gates: Expression, whole: tuple[int, ...] = ()
) -> Expression:
    """Columns ``lower g <= e <= upper g``, all of shape (N, size); ``whole`` coordinates are integer."""
    integer = np.zeros(lower.shape, dtype=bool)
    integer[:, list(whole)] = encoder.exact_phases
    moves = encoder.columns(lower, upper, integer=integer.reshape(-1))
    encoder.rows(add([moves, gates.scale(-upper)]), -np.inf, 0.0)
    encoder.rows(add([moves, gates.scale(-lower)]), 0.0, np.inf)
    return moves


def row_sums(matrix: Expression, weights: Array) -> Expression:
    """``sum_j weights_ij x_ij`` for an expression (N, size), as an expression (N,)."""
    count, size = weights.shape
    rows = np.repeat(np.arange(count), size)
    map_ = sp.csr_matrix(
        (weights.reshape(-1), (rows, np.arange(count * size))), shape=(count, count * size)
    )
    return matrix.apply(map_, (count,))


def placed_in(part: Expression, columns: npt.NDArray[np.int64], size: int) -> Expression:
    """An expression (N, k) as the ``columns`` of one of shape (N, size), 0 elsewhere."""
    samples, width = part.shape
    rows = (np.arange(samples)[:, None] * size + columns).reshape(-1)
    place = (np.ones(samples * width), (rows, np.arange(samples * width)))
    wide = sp.csr_matrix(place, shape=(samples * size, samples * width))
    return part.apply(wide, (samples, size))


def exact(values: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in values.tolist()]


def exact_moves(nominal: Tensor, given: Tensor) -> list[Fraction]:
    """The exact differences of two samples (size,)."""
    return [b - a for a, b in zip(exact(nominal), exact(given), strict=True)]
