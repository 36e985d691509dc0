"""Questions that cannot be asked: one clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from refusals import refused
from test_questions import certified

import milp_agt as agt

WRONG: list[tuple[str, Any, tuple[str, str, str]]] = [
    ("class", lambda r, x, y: r.targeted(x, 3), ("classes of the model", "[3]", "0 to 2")),
    ("count", lambda r, x, y: r.targeted(x, y[:2]), ("9 test points", "shape (2,)", "for each")),
    ("sets", lambda r, x, y: r.targeted(x, [{1}]), ("9 test points", "1 sets", "one set")),
    ("set", lambda r, x, y: r.targeted(x, [{7}] * 9), ("classes", "[7]", "0 to 2")),
    ("real", lambda r, x, y: r.targeted(x, 0.5), ("9 test points", "float64", "one class")),
    ("none", lambda r, x, y: r.backdoor(x, y), ("one trigger", "neither", "radius=0.05")),
    ("two", lambda r, x, y: r.backdoor(x, y, 0.1, trigger=agt.BallTrigger(0.1)),
     ("one trigger", "both", "BallTrigger")),
    ("target", lambda r, x, y: r.backdoor(x, y, 0.1, target=3), ("class", "target 3", "0 to 2")),
    ("bool", lambda r, x, y: r.backdoor(x, y, 0.1, target=True), ("class", "True", "0 to 2")),
    ("own", lambda r, x, y: r.backdoor(x[y == 1], y[y == 1], 0.1, target=1),
     ("class 1", "all of class 1", "other")),
    ("negative", lambda r, x, y: r.backdoor(x, y, -0.1), ("radius", "-0.1", ">= 0")),
    ("radii", lambda r, x, y: r.backdoor(x, y, [0.1, 0.2]),
     ("coordinate (3,)", "shape (2,)", "match")),
    ("mask", lambda r, x, y: r.backdoor(x, y, trigger=agt.PatchTrigger(np.ones(4, bool), 1.0)),
     ("shape (3,)", "(4,)", "match")),
    ("position", lambda r, x, y: r.backdoor(x, y, trigger=agt.FreeTrigger([3], 0.0, 1.0)),
     ("0..2", "[3]", "correct")),
    ("empty",
     lambda r, x, y: r.backdoor(x, y, trigger=agt.FreeTrigger(np.zeros(3, bool), 0.0, 1.0)),
     ("one coordinate", "none", "name")),
    ("order", lambda r, x, y: r.backdoor(x, y, trigger=agt.FreeTrigger([0], 1.0, 0.0)),
     ("low <= high", "low in [1, 1]", "correct")),
    ("domain", lambda r, x, y: r.backdoor(x, y, trigger=agt.BallTrigger(0.1, low=9.0)),
     ("domain", "outside", "widen")),
    ("patch", lambda r, x, y: r.backdoor(x, y, trigger=agt.PatchTrigger([0], np.nan)),
     ("finite", "nan", "correct")),
    ("text", lambda r, x, y: r.backdoor(x, y, trigger=agt.BallTrigger("far")),
     ("numbers", "far", "one number")),
    ("groups", lambda r, x, y: r.accuracy(x, y, groups=["a"]),
     ("9 test points", "shape (1,)", "(9,)")),
    ("name", lambda r, x, y: r.functional({"w": np.ones(3)}), ("'w'", "0.weight", "state_dict")),
    ("shape", lambda r, x, y: r.functional({"0.bias": np.ones(3)}),
     ("'0.bias'", "shape (3,)", "match")),
    ("rows", lambda r, x, y: r.functional({"0.bias": np.ones((3, 4)), "2.bias": np.ones((2, 3))}),
     ("one count of rows", "[2, 3]", "row")),
    ("nothing", lambda r, x, y: r.functional({}), ("rows", "no coefficients", "name")),
]  # fmt: skip


@pytest.mark.parametrize(("_name", "question", "parts"), WRONG, ids=[w[0] for w in WRONG])
def test_bad_input_is_one_clear_error(_name: str, question: Any, parts: tuple[str, ...]) -> None:
    result, _, _, x, y = certified("cross_entropy", "features")
    with refused(*parts, kind=agt.MilpAgtError):
        question(result, x, y)


def test_regression_has_targets_and_no_backdoor() -> None:
    result, _, _, x, y = certified("mse", "features")
    with pytest.raises(agt.MilpAgtError, match="question about a classifier"):
        result.backdoor(x, y, 0.1)
    with pytest.raises(agt.MilpAgtError, match=r"shape \(2,\)"):
        result.targeted(x, (0.0, 1.0))
    with pytest.raises(agt.MilpAgtError, match="low <= high"):
        result.targeted(x, np.broadcast_to([1.0, 0.0], (len(x), 2, 2)))
