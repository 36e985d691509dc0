"""Moves of the features of one sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.core.arguments import is_at_least
from milp_agt.core.interval import Interval
from milp_agt.core.option_table import Count, Index, Key
from milp_agt.data.origin import Origin
from milp_agt.errors import InvalidThreatModelError
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
from milp_agt.threats.units import (
    Lengths,
    Numbers,
    Radius,
    RadiusIn,
    Rows,
    Units,
    norm_of,
    radii,
    radius_text,
)


@dataclass(frozen=True)
class FeatureMoves:
    """Moves of the features of one sample, a part of a threat; columns are positions in the flat sample.

    Linear bounds of whole numbers are exact in the norms inf and 0; in 1 and 2 they ignore this condition,
    which is sound.
    Numbers and lists may be arrays; a radius has shape (*shape), (N,) or (N, *shape).

    Attributes:
        radius: largest move: one number, one for each feature, for each sample, or for both; ``inf`` only
            with a ``domain`` and the norms inf and 0.
        norm: each feature within its radius (inf), ``move / radius`` at most 1 in the norm 1 or 2, or at most
            ``coordinates`` features that move (0).
        coordinates: features of a sample that may move, for the norm 0 alone, which needs it; a categorical
            group counts as one.
        domain: lowest and highest value, each one number or one for each feature, inside which poisoned
            features stay.
        integer: columns that move by whole numbers only.
        categorical: groups of one-hot columns, each of which may change to any other category.
        missing: the value that training reads where an entry is missing, or ``{ column = value }``: the
            adversary may blank entries (norms inf and 0).
        rows: the matrix A of further conditions ``A @ move <= b``, with ``row_limits``; kept by ``lp`` and
            above, left out by the others, as the result then says.
    """

    radius: Annotated[Radius, Key(Lengths)]
    _: KW_ONLY
    radius_in: RadiusIn = "model"
    norm: Annotated[str | float, Key(Literal["inf", "2", "1", "0", 2, 1, 0])] = "inf"
    coordinates: Annotated[int | None, Key(Count)] = None
    domain: Annotated[
        Sequence[Numbers] | None,
        Key(Annotated[list[float | list[float]], Field(min_length=2, max_length=2)]),
    ] = None
    integer: Annotated[Sequence[int], Key(list[Index])] = ()
    categorical: Annotated[Sequence[Sequence[int]], Key(list[list[Index]])] = ()
    missing: Annotated[float | Mapping[int, float] | None, Key(float | dict[str, float])] = None
    rows: Annotated[Rows | None, Key(Annotated[list[list[float]], Field(min_length=1)])] = None
    origin: Origin | None = field(default=None, repr=False, compare=False)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _units(self) -> Units:
        """Of radius, domain and missing."""
        return Units(self._name, self.radius_in, self.origin, "features")

    def _moves(self, features: Tensor, mask: Tensor) -> tuple[MoveSet, Interval | None]:
        """The moves of the samples in ``mask`` (N,), and the domain of the features, (*shape). Raises
        InvalidThreatModelError: contradictory options, or options that do not fit the data."""
        order = norm_of(self._name, self.norm)
        self._check_options(order)
        flat = features.flatten(1)
        unbounded = self.domain is not None and order in (0, math.inf)
        given = self._units.per_sample(self.radius, tuple(features.shape[1:]))
        radius = radii(self._name, given, features, unbounded)
        radius = self._units.to_model(radius, features, order).flatten(1)
        groups = self._groups(flat, mask)
        integer = self._columns("integer", self.integer, flat.shape[1])
        grouped = {column for group in groups for column in group}
        if grouped & set(integer):
            raise InvalidThreatModelError(
                f"{self._name} has integer and categorical columns",
                f"columns {sorted(grouped & set(integer))[:5]} in both",
                "name each column once",
            )
        self._whole_numbers(flat, mask, integer)
        limits = self._limits(features, mask)
        fills = self._fills(flat.shape[1], grouped)
        # Without a domain, moves that are equal for all samples are stored once.
        alike = limits is None and radius.stride(0) == 0
        ends = _ends(flat, radius[:1] if alike else radius, limits, integer)
        low, high = (end.expand(flat.shape) for end in ends)
        if limits is not None and not bool(torch.isfinite(high - low)[mask].all()):
            raise InvalidThreatModelError(
                f"{self._name} with an infinite radius needs a domain with finite ends",
                "a feature without a finite range",
                "give a finite radius, or finite ends to every feature",
            )
        # The columns that are no category's, and where they stand among themselves.
        alone = [c for c in range(flat.shape[1]) if c not in grouped]
        at = {column: position for position, column in enumerate(alone)}
        if grouped:
            low, high, radius = low[:, alone], high[:, alone], radius[:, alone]
        moves = _numeric(order, radius, low, high, tuple(at[c] for c in integer))
        if fills and isinstance(moves, Box):
            jumps = torch.zeros_like(low)
            for column, value in fills.items():
                jumps[:, at[column]] = value - flat[:, column]
            moves = BoxOrFill(moves, jumps)
        parts: list[MoveSet] = [moves] if alone else []
        columns = [tuple(alone)] if alone else []
        for group in groups:
            hot = torch.eye(len(group), dtype=flat.dtype)
            parts.append(Vertices(hot[None] - flat[:, None, list(group)]))
            columns.append(group)
        whole: MoveSet = Product(tuple(columns), tuple(parts)) if groups else moves
        if order == 0:
            whole = self._sparse(whole)
        if self.rows is not None:
            whole = self._halfspaces(whole, len(flat))
        return whole.only(mask), _reach(features, limits, fills)

    @property
    def _moved(self) -> str:
        """The possible changes of a poisoned sample's features, to follow "the features of ... "."""
        order = norm_of(self._name, self.norm)
        unit, beside = self._units.words(self.radius)
        size = radius_text(self.radius) + unit
        text = {
            math.inf: f"moved by at most {size} in every coordinate",
            0: f"moved in at most {self.coordinates} coordinates, by at most {size} in each",
        }.get(order, f"moved by at most {size} in the norm {order:g}")
        rows = () if self.rows is None else self.rows[0]
        extra = {
            "inside their domain": self.domain is not None,
            f"by whole numbers in {_count(self.integer, 'column')}": len(self.integer),
            f"{_count(self.categorical, 'categorical feature')} to any category": len(
                self.categorical
            ),
            "or replaced by the value that stands for a missing one": self.missing is not None,
            f"under {_count(rows, 'linear row')}": len(rows),
        }
        return ", ".join([text + beside, *(words for words, said in extra.items() if said)])

    def _check_options(self, order: float) -> None:
        self._units.check()
        if self.rows is not None and self._units.converts is not None:
            raise InvalidThreatModelError(
                f"{self._name} in raw units with rows=",
                "conditions on moves, which are those that training sees",
                "leave radius_in out, and give radius and rows in the units that training sees",
            )
        if (order == 0) != (self.coordinates is not None):
            raise InvalidThreatModelError(
                f"{self._name} in norm {self.norm!r}",
                "no 'coordinates'" if order == 0 else f"coordinates = {self.coordinates} beside it",
                "the norm 0 needs coordinates=, the count of features that may move; others have none",
            )
        if self.missing is not None and order in (1, 2):
            raise InvalidThreatModelError(
                f"{self._name} with missing values in norm {order:g}",
                "a norm that does not say what a missing value costs",
                "use norm 'inf', or norm 0, which counts it as one coordinate",
            )

    def _columns(self, what: str, given: Sequence[int], size: int) -> tuple[int, ...]:
        columns = list(given) if isinstance(given, Iterable) else [given]
        bad = [c for c in columns if not is_at_least(c, 0, whole=True) or c >= size]
        if bad or len(set(columns)) != len(columns):
            raise InvalidThreatModelError(
                f"{self._name} needs distinct {what} columns out of 0..{size - 1}",
                f"{columns[:8]!r:.60}",
                f"correct {what}=, a list of columns",
            )
        return tuple(int(c) for c in columns)

    def _groups(self, flat: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
        """The one-hot groups, checked to be disjoint and to have one 1 in each open sample."""
        listed = isinstance(self.categorical, Iterable)
        if not listed or not all(isinstance(group, Sequence) for group in self.categorical):
            raise InvalidThreatModelError(
                f"{self._name} needs a list of columns for each categorical group",
                f"categorical = {self.categorical!r:.60}",
                "give [[0, 1, 2]] for one feature with three categories",
            )
        every = [c for group in self.categorical for c in group]
        self._columns("categorical", every, flat.shape[1])
        groups = [tuple(int(c) for c in group) for group in self.categorical]
        for group in groups:
            values = flat[:, list(group)]
            one_hot = ((values == 0) | (values == 1)).all(1) & (values.sum(1) == 1)
            bad = (mask & ~one_hot).nonzero()[:, 0].tolist()
            if len(group) < 2 or bad:
                raise InvalidThreatModelError(
                    f"{self._name} needs one-hot columns in each categorical group",
                    f"columns {list(group)}, which are not one-hot in {len(bad)} samples "
                    f"{self._units.shown(bad)}",
                    "name the columns of one feature together, and leave them unscaled",
                )
        return groups

    def _whole_numbers(self, flat: Tensor, mask: Tensor, integer: tuple[int, ...]) -> None:
        values = flat[:, list(integer)]
        bad = (mask & (values != values.round()).any(1)).nonzero()[:, 0].tolist()
        if bad:
            raise InvalidThreatModelError(
                f"{self._name} needs whole numbers in integer columns",
                f"fractions in {len(bad)} samples {self._units.shown(bad)}",
                "drop these columns from integer=, and leave integer columns unscaled",
            )

    def _limits(self, features: Tensor, mask: Tensor) -> Interval | None:
        """The domain, (*shape)."""
        if self.domain is None:
            return None
        shape, asked = tuple(features.shape[1:]), f"{self._name} needs a domain (lowest, highest)"
        remedy = f"give two numbers, or two arrays of shape {shape}, with lowest <= highest"
        try:
            low, high = (torch.from_numpy(np.array(end, dtype=np.float64)) for end in self.domain)
        except (TypeError, ValueError) as error:
            raise InvalidThreatModelError(asked, str(error), remedy) from None
        for end in (low, high):
            if end.dim() and tuple(end.shape) != shape:
                raise InvalidThreatModelError(asked, f"shape {tuple(end.shape)}", remedy)
        if not bool((low <= high).all()):
            raise InvalidThreatModelError(asked, "an end that is crossed or not a number", remedy)
        low, high = self._units.ends(low, high)
        outside = ((features < low) | (features > high)).flatten(1).any(1)
        bad = (mask & outside).nonzero()[:, 0].tolist()
        if bad:
            raise InvalidThreatModelError(
                f"{self._name} keeps features inside their domain",
                f"{len(bad)} samples outside it before any poisoning: {self._units.shown(bad)}",
                "widen the domain, or clip the data",
            )
        return Interval(low.expand(shape), high.expand(shape))

    def _fills(self, size: int, grouped: set[int]) -> dict[int, float]:
        """The value of a missing entry, by column."""
        if self.missing is None:
            return {}
        if isinstance(self.missing, Mapping):
            fills = dict(self.missing)
            self._columns("missing", list(fills), size)
        else:
            fills = {column: self.missing for column in range(size) if column not in grouped}
        bad = [v for v in fills.values() if not is_at_least(v, -math.inf) or not math.isfinite(v)]
        if bad or grouped & set(fills):
            raise InvalidThreatModelError(
                f"{self._name} needs a finite value for missing entries of numeric columns",
                f"values {bad[:3]}, categorical columns {sorted(grouped & set(fills))[:5]}",
                "correct missing=; a category is free to change already",
            )
        return {column: self._units.fill(column, float(value)) for column, value in fills.items()}

    def _sparse(self, moves: MoveSet) -> Sparse:
        count = self.coordinates
        if not is_at_least(count, 1, whole=True) or count is None or count > moves.blocks:
            raise InvalidThreatModelError(
                f"{self._name} in norm 0 moves some of {moves.blocks} features",
                f"coordinates = {count}",
                f"give a count from 1 to {moves.blocks}",
            )
        return Sparse(moves, int(count))

    def _halfspaces(self, moves: MoveSet, count: int) -> Halfspaces:
        assert self.rows is not None
        asked = f"{self._name} needs rows (A, b) with A @ move <= b"
        remedy = (
            f"give A of shape (rows, {moves.size}), b of shape (rows,) or ({count}, rows), b >= 0"
        )
        try:
            matrix, limits = (np.asarray(part, dtype=np.float64) for part in self.rows)
            if limits.ndim == 2:
                limits = self._units.per_sample(limits, ())
        except (TypeError, ValueError) as error:
            raise InvalidThreatModelError(asked, str(error), remedy) from None
        fits = matrix.ndim == 2 and matrix.shape[1] == moves.size and len(matrix)
        if not fits or limits.shape not in ((len(matrix),), (count, len(matrix))):
            raise InvalidThreatModelError(
                asked, f"shapes {matrix.shape} and {limits.shape}", remedy
            )
        if not (np.isfinite(matrix).all() and np.isfinite(limits).all() and (limits >= 0).all()):
            raise InvalidThreatModelError(
                asked, "a limit below 0, which forbids no move at all, or no finite number", remedy
            )
        every = np.broadcast_to(limits, (count, len(matrix))).copy()
        return Halfspaces(moves, matrix, torch.from_numpy(every))


def _ends(
    flat: Tensor, radius: Tensor, limits: Interval | None, integer: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The least and largest move of each feature, (N, size): rounded outwards; whole if ``integer``."""
    low, high = -radius, radius
    if limits is not None:
        down, up = (
            torch.nextafter(end.flatten() - flat, torch.tensor(side, dtype=flat.dtype))
            for end, side in ((limits.lower, -torch.inf), (limits.upper, torch.inf))
        )
        at_low, at_high = flat == limits.lower.flatten(), flat == limits.upper.flatten()
        low = torch.maximum(low, torch.where(at_low, 0.0, down))
        high = torch.minimum(high, torch.where(at_high, 0.0, up))
    if integer:
        columns = list(integer)
        low, high = low.clone(), high.clone()
        low[:, columns], high[:, columns] = low[:, columns].ceil(), high[:, columns].floor()
    return low, high


def _numeric(
    order: float, radius: Tensor, low: Tensor, high: Tensor, whole: tuple[int, ...]
) -> MoveSet:
    """A ball in the norms 1 and 2, else a box."""
    if order not in (1, 2):
        return Box(low, high, whole)
    capped = bool(((low > -radius) | (high < radius)).any())
    return Ball(int(order), radius, low, high, capped, whole)


def _reach(features: Tensor, limits: Interval | None, fills: dict[int, float]) -> Interval | None:
    """The domain, extended to the values of missing entries."""
    if limits is None or not fills:
        return limits
    low, high = limits.lower.flatten().clone(), limits.upper.flatten().clone()
    for column, value in fills.items():
        low[column], high[column] = min(float(low[column]), value), max(float(high[column]), value)
    shape = features.shape[1:]
    return Interval(low.reshape(shape), high.reshape(shape))


def _count(items: Sized, what: str) -> str:
    return f"{len(items)} {what}{'s' if len(items) != 1 else ''}"
