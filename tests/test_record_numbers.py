"""Numbers that were read from tensors: floats and ints in every way, and they report comparisons."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest

from milp_agt.recording.watched_numbers import is_watched, watched


def _number(value: object) -> tuple[object, list[int]]:
    seen: list[int] = []
    return watched(value, lambda: seen.append(1)), seen


@pytest.mark.parametrize("value", [0.75, 3])
def test_they_are_the_numbers_that_they_are(value: float) -> None:
    x, seen = _number(value)
    assert isinstance(x, type(value))
    assert f"{x:.3f}" == f"{value:.3f}"
    assert json.dumps([x]) == json.dumps([value])
    assert f"{x}" == f"{value}"
    assert hash(x) == hash(value)
    for copied in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), copy.copy(x)):
        assert type(copied) is type(value)
        assert copied == value
    assert not seen


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: 2 * x / 3,
        lambda x: -(abs(x) ** 2),
        lambda x: round(x, 1),
        lambda x: sum([x, x]) / 2,
        lambda x: x // 2 % 5,
    ],
)
@pytest.mark.parametrize("value", [0.75, 3])
def test_arithmetic_gives_the_same_and_keeps_the_watch(compute, value: float) -> None:
    x, seen = _number(value)
    found = compute(x)
    assert is_watched(found)
    assert not seen
    assert float(found) == float(compute(value))
    assert type(found).__mro__[1] is type(compute(value))


@pytest.mark.parametrize(
    "decide",
    [
        lambda x: x < 1,
        lambda x: 1 < x,  # noqa: SIM300
        lambda x: x >= 0.5,
        lambda x: x == 1,
        lambda x: x != 1,
        lambda x: bool(x),
        lambda x: not x,
        lambda x: min(x, 1),
        lambda x: max([0, x]),
        lambda x: sorted([2, x]),
        lambda x: 0 < x + 1 < 10,
        lambda x: x in (1, 2),
        lambda x: float(x),
        lambda x: int(x),
        lambda x: math.floor(x),
        lambda x: divmod(x, 1),
        lambda x: divmod(1, x),
        lambda x: x.as_integer_ratio(),
        lambda x: round(float(x) + x),
    ],
)
@pytest.mark.parametrize("value", [0.75, 3])
def test_every_comparison_is_reported_and_right(decide, value: float) -> None:
    x, seen = _number(value)
    found = decide(x)
    assert seen
    plain = decide(value)
    assert np.array_equal(np.asarray(found), np.asarray(plain))


def test_numpy_and_whole_numbers_lose_the_watch_and_say_so() -> None:
    x, seen = _number(0.75)
    assert np.mean([x]) == 0.75
    assert seen
    for convert in (lambda x: list(range(round(4 * x))), lambda x: np.asarray([x])):
        x, seen = _number(0.75)
        convert(x)
        assert seen


def test_other_things_are_left_as_they_are() -> None:
    for value in (True, "text", None):
        assert _number(value)[0] is value
