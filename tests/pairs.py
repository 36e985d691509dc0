"""Parameters of which every pair meets: a few rows in place of the full product."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Param = type(pytest.param())


def covering(rows: list[tuple[int, ...]]) -> list[int]:
    """Which of these rows hold all pairs of values (by their places) that the rows hold together.

    Greedy: the row with most pairs that are still missing, the first of several.
    """
    pairs = [set(itertools.combinations(enumerate(row), 2)) or {row} for row in rows]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(range(len(rows)), key=lambda r: len(pairs[r] & missing))
        missing -= pairs[best]
        chosen.append(best)
    return chosen


def in_turn(rows: list[tuple[int, ...]]) -> list[int]:
    """Rows with all values of the first axis, beside which rows of the other axes take turns."""
    others = sorted({row[1:] for row in rows})
    return [
        n for n, (first, *rest) in enumerate(rows) if others[first % len(others)] == tuple(rest)
    ]


def every_value(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Like ``every_pair``, but quick is one row for each value of the first axis, the longest.

    The others take turns beside it: each of their values has one, and pairs of them may have none.
    """
    return _parametrized(axes, in_turn)


def every_pair(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrises over the product of the axes; rows that add no pair are marked slow.

    A dictionary gives the names that its values have in the names of tests. A value may be a
    ``pytest.param``: its marks go to all of its rows, and slow ones stand for no pair of others.
    """
    return _parametrized(axes, covering)


def _parametrized(
    axes: dict[str, Iterable[Any]], thinned: Callable[[list[tuple[int, ...]]], list[int]]
) -> pytest.MarkDecorator:
    named = [
        [pytest.param(v, id=str(k)) for k, v in axis.items()] if isinstance(axis, dict) else axis
        for axis in axes.values()
    ]
    places, rows = [], []
    for row in itertools.product(*(enumerate(axis) for axis in named)):
        params = [v if isinstance(v, Param) else pytest.param(v) for _, v in row]
        marks = [mark for p in params for mark in p.marks]
        name = "-".join(p.id or getattr(p.values[0], "__name__", str(p.values[0])) for p in params)
        rows.append(([p.values[0] for p in params], marks, name))
        places.append(tuple(place for place, _ in row))
    fast = [n for n, (_, marks, _) in enumerate(rows) if all(m.name != "slow" for m in marks)]
    quick = {fast[n] for n in thinned([places[n] for n in fast])}
    return pytest.mark.parametrize(
        tuple(axes),
        [
            pytest.param(
                *values, marks=marks + ([pytest.mark.slow] if n not in quick else []), id=name
            )
            for n, (values, marks, name) in enumerate(rows)
        ],
    )
