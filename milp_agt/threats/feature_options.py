"""What may be said of the moves of features: the keys of a run file, and the arguments of threats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from milp_agt.core.option_table import Count, Index, Key
from milp_agt.data.origin import Origin
from milp_agt.threats.units import Lengths, Numbers, Radius, RadiusIn, Rows


@dataclass(frozen=True)
class FeatureOptions:
    """Numbers and lists may be arrays; a radius has shape (*shape), (N,) or (N, *shape).

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
    radius_in: RadiusIn = field(default="model", kw_only=True)
    norm: Annotated[str | float, Key(Literal["inf", "2", "1", "0", 2, 1, 0])] = field(
        default="inf", kw_only=True
    )
    coordinates: Annotated[int | None, Key(Count)] = field(default=None, kw_only=True)
    domain: Annotated[
        Sequence[Numbers] | None,
        Key(Annotated[list[float | list[float]], Field(min_length=2, max_length=2)]),
    ] = field(default=None, kw_only=True)
    integer: Annotated[Sequence[int], Key(list[Index])] = field(default=(), kw_only=True)
    categorical: Annotated[Sequence[Sequence[int]], Key(list[list[Index]])] = field(
        default=(), kw_only=True
    )
    missing: Annotated[float | Mapping[int, float] | None, Key(float | dict[str, float])] = field(
        default=None, kw_only=True
    )
    rows: Annotated[Rows | None, Key(Annotated[list[list[float]], Field(min_length=1)])] = field(
        default=None, kw_only=True
    )
    origin: Origin | None = field(default=None, kw_only=True, repr=False, compare=False)
