"""Arguments of the wrong kind: one error in three parts each, never a bare traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network

import milp_agt as agt
from milp_agt.errors import InvalidInputError

DATA = agt.load_dataset("moons", samples=8, test_fraction=0.25, seed=0)
RUN: dict[str, Any] = {
    "model": network((2, 2, 2)),
    "data": (DATA.x_train, DATA.y_train),
    "training": agt.Training(loss="cross_entropy", learning_rate=0.1, epochs=1),
    "threat": agt.FeaturePoisoning(1, 0.01),
}
RESULT = agt.certify(**RUN, relaxation="interval")
POINTS = (DATA.x_test, DATA.y_test)


def _certify(threat: Any) -> Any:
    return agt.certify(**(RUN | {"threat": threat}), relaxation="interval")


def _ask(result: Any) -> dict[str, Any]:
    return {"accuracy": result.accuracy(*POINTS)}


def _holds(result: Any) -> dict[str, bool]:
    return {"half": result.accuracy(*POINTS).lower >= 0.5}


SWEEP = {"certify": _certify, "threat": RUN["threat"], "ask": _ask, "budgets": [1]}
LARGEST = {
    "certify": _certify,
    "threat": RUN["threat"],
    "holds": _holds,
    "radii": (1e-3, 1e-2),
}
COMPARE = RUN | {"relaxations": ("interval",)}
REPORT = {"result": RESULT, "dataset": DATA, "folder": "nowhere"}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "certify": (
        agt.certify,
        RUN,
        {
            "on_step": (3, "x"),
            "recorder": (3, np.arange(2)),
            "checkpoint": (3, [1]),
            "solve_limits": (3, "x", np.arange(2)),
            "window": (True, 0, 1.5),
            "program_window": (True, "x"),
            "relaxation": (3, np.arange(2)),
            "inner_bounds": (3, np.arange(2)),
            "selections": (3, np.arange(2)),
            "device": (3, np.arange(2)),
        },
    ),
    "attack": (
        agt.attack,
        RUN,
        {"objective": (3, "accuracy", torch.ones(2)), "search": (3,), "device": (np.arange(2),)},
    ),
    "compare": (
        agt.compare,
        COMPARE,
        {
            "data": (3, "", {}),
            "training": (3, None),
            "threat": (3, None),
            "relaxations": (3, "linear", [3]),
            "windows": (3, [None]),
            "solvers": (3, "highs", [3]),
            "on_row": (3,),
        },
    ),
    "sweep": (
        agt.sweep,
        SWEEP,
        {
            "certify": (3,),
            "ask": (3,),
            "threat": (3, agt.FeaturePoisoning),
            "budgets": (3, "12", ["1"]),
            "radii": (0.1, "x", [None]),
            "on_cell": (3,),
        },
    ),
    "largest": (
        agt.largest,
        LARGEST,
        {
            "certify": (3,),
            "holds": (3,),
            "threat": (3,),
            "radii": (3, "x", (1.0,), ("a", "b")),
            "precision": ("x", np.arange(2)),
            "on_trial": (3,),
        },
    ),
    "report": (
        agt.report,
        REPORT,
        {"result": (3,), "dataset": (3,), "folder": (3,), "properties": (3, "x", [1])},
    ),
    "load": (agt.load, {"path": "nowhere"}, {"path": (3, None)}),
    "save": (RESULT.save, {"path": "nowhere"}, {"path": (3, None, "")}),
    "functional": (RESULT.functional, {}, {"coefficients": (3, [1])}),
    "contains": (RESULT.reachable.contains, {}, {"state_dict": (3, torch.ones(2))}),
}
CASES = [
    pytest.param(call, name, value, id=f"{call}-{name}-{type(value).__name__}-{number}")
    for call, (_, _, wrong) in CALLS.items()
    for name, values in wrong.items()
    for number, value in enumerate(values)
]


@pytest.mark.parametrize(("call", "name", "value"), CASES)
def test_an_argument_of_the_wrong_kind_is_refused(
    call: str, name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, good, _ = CALLS[call]
    with pytest.raises(InvalidInputError) as caught:
        function(**(good | {name: value}))
    assert caught.value.asked
    assert caught.value.found
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())
