"""Arguments of the wrong kind: one error in three parts each, never a bare traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from refusals import refused

import milp_agt as agt
from milp_agt.errors import InvalidInputError, InvalidThreatModelError

DATA = agt.load_dataset("moons", samples=8, test_fraction=0.25, seed=0)
RUN: dict[str, Any] = {
    "model": network((2, 2, 2)),
    "data": (DATA.x_train, DATA.y_train),
    "training": agt.Training(loss="cross_entropy", learning_rate=0.1, epochs=1),
    "threat": agt.FeaturePoisoning(1, 0.01),
}
SEARCH = agt.Search(pool=4, enumerate=4, restarts=1, rounds=0, iterations=1)
RESULT = agt.certify(**RUN, relaxation="interval", attack=SEARCH)
POINTS = (DATA.x_test, DATA.y_test)


def _certify(threat: Any) -> Any:
    return agt.certify(**(RUN | {"threat": threat}), relaxation="interval")


def _ask(result: Any) -> dict[str, Any]:
    return {"accuracy": result.accuracy(*POINTS)}


def _holds(result: Any) -> dict[str, bool]:
    return {"half": result.accuracy(*POINTS).lower >= 0.5}


def _run_with(threat: type[Any]) -> Callable[..., Any]:
    """Certify a threat with these options: they are checked when it meets the data."""
    return lambda **options: _certify(threat(**options))


def _backdoor_by(trigger: type[Any]) -> Callable[..., Any]:
    return lambda **options: RESULT.backdoor(*POINTS, trigger=trigger(**options))


def _attacked_at(objective: type[Any]) -> Callable[..., Any]:
    attack = RESULT.attack
    assert attack is not None
    return lambda **options: attack.towards(objective(**options))


ARRAY, RAGGED = np.arange(3.0), [[1], [2, 3]]
THREAT = {
    "scope": (ARRAY, 3),
    "static": (ARRAY, 1),
    "samples": (3, "x", RAGGED),
    "budget": (1.5, ARRAY, True),
}
FEATURES = THREAT | {"integer": (3, RAGGED), "categorical": (3, [3]), "radius": (RAGGED, "x", None)}
SWEEP = {"certify": _certify, "threat": RUN["threat"], "ask": _ask, "budgets": [1]}
LARGEST = {"certify": _certify, "threat": RUN["threat"], "holds": _holds, "radii": (1e-3, 1e-2)}
COMPARE = RUN | {"relaxations": ("interval",)}
REPORT = {"result": RESULT, "dataset": DATA, "folder": "nowhere"}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "certify": (agt.certify, RUN, {"on_step": (3, "x"), "recorder": (3, np.arange(2)),
        "checkpoint": (3, [1]), "solve_limits": (3, "x", np.arange(2)), "window": (True, 0, 1.5),
        "program_window": (True, "x"), "relaxation": (3, np.arange(2)),
        "inner_bounds": (3, np.arange(2)), "selections": (3, np.arange(2)),
        "device": (3, np.arange(2))}),
    "attack": (agt.attack, RUN, {"objective": (3, "accuracy", torch.ones(2)), "search": (3,),
        "device": (np.arange(2),)}),
    "compare": (agt.compare, COMPARE, {"data": (3, "", {}), "training": (3, None),
        "threat": (3, None), "relaxations": (3, "linear", [3]),
        "windows": (3, [None], ["a"], [0], [True]), "program_window": (-1, np.arange(3.0)),
        "solvers": (3, "highs", [3], {}), "on_row": (3,)}),
    "sweep": (agt.sweep, SWEEP, {"certify": (3,), "ask": (3,), "threat": (3, agt.FeaturePoisoning),
        "budgets": (3, "12", ["1"]), "radii": (0.1, "x", [None]), "on_cell": (3,)}),
    "largest": (agt.largest, LARGEST, {"certify": (3,), "holds": (3,), "threat": (3,),
        "radii": (3, "x", (1.0,), ("a", "b")), "precision": ("x", np.arange(2))}),
    "report": (agt.report, REPORT, {"result": (3,), "dataset": (3,), "folder": (3,),
        "properties": (3, "x", [1]), "suspects": (1, np.arange(3.0))}),
    "load": (agt.load, {"path": "nowhere"}, {"path": (3, None)}),
    "save": (RESULT.save, {"path": "nowhere"}, {"path": (3, None, "")}),
    "limits": (agt.Limits, {}, {"time": (-1.0, float("nan"), "x", True, ARRAY),
        "gap": (-1.0, float("nan"), None, "x"), "nodes": (-1, 1.5, "x", True)}),
    "training": (agt.Training, {"loss": "mse", "momentum": 0.5, "clip": 1.0},
        {"loss": (3, [], None), "nesterov": (ARRAY, 1, None), "shuffle_seed": (ARRAY, True, -1),
        "clip_mode": (ARRAY, 3), "optimizer": (ARRAY, 3), "momentum": (np.complex64(1), ARRAY)}),
    "milestones": (agt.Milestones, {"at": [1]}, {"at": (3, "x", [1.5]), "unit": (ARRAY, 3)}),
    "features": (_run_with(agt.FeaturePoisoning), {"budget": 1, "radius": 0.1}, FEATURES),
    "labels": (_run_with(agt.LabelPoisoning), {"budget": 1},
               THREAT | {"target": (object(), "x", 1.5, RAGGED)}),
    "removal": (_run_with(agt.Removal), {"budget": 1}, {"scope": (ARRAY,), "budget": ("x",)}),
    "patch": (_backdoor_by(agt.PatchTrigger), {"coordinates": [0], "values": 1.0},
              {"coordinates": (3, RAGGED, "x"), "values": ("x", RAGGED)}),
    "backdoor": (lambda **named: RESULT.backdoor(*POINTS, **named), {},
        {"trigger": (3, agt.BallTrigger), "radius": ("x", RAGGED)}),
    "groups": (lambda groups: RESULT.accuracy(*POINTS, groups=groups), {}, {"groups": (RAGGED, 3)}),
    "dataset": (agt.Dataset.of, {"x_train": DATA.x_train, "y_train": DATA.y_train},
        {"x_train": (RAGGED, 3, None), "y_train": (RAGGED, 3), "name": (3, None),
        "description": (3, ARRAY), "feature_names": (3, "ab", [1, 2]), "task": (3, ARRAY, "x")}),
    "load_dataset": (agt.load_dataset, {"name_or_path": "moons", "samples": 8},
        {"name_or_path": (3, None), "samples": ("x", 2.5, float("nan"), ARRAY, True),
        "noise": ("x", ARRAY), "test_fraction": ("x", ARRAY), "seed": (1.5, "x", ARRAY, True),
        "standardise": (1, ARRAY), "standardise_targets": (0, ARRAY), "pca": ("x", 1.5, 0, ARRAY),
        "task": (3, "x", ARRAY)}),
    "against": (RESULT.against,
                {"objective": agt.attacks.Accuracy(*POINTS), "bounds": RESULT.accuracy(*POINTS)},
                {"objective": (3, agt.attacks.Accuracy), "bounds": (3, "x", (0.0, 1.0))}),
    "attacked": (RESULT.attacked, {}, {"attacker": (3, None)}),
    "aim-functional": (_attacked_at(agt.attacks.Functional), {},
        {"coefficients": (3, {"0.bias": RAGGED}, {"0.bias": ["x", "y"]}, {})}),
    "aim-parameter": (_attacked_at(agt.attacks.Parameter), {"name": "0.bias", "index": (0,)},
        {"index": (3, "x", (1.5,), (9,)), "name": (3, "bias")}),
    "aim-backdoor": (_attacked_at(agt.attacks.Backdoor),
        {"features": POINTS[0], "labels": POINTS[1], "trigger": agt.BallTrigger(0.1)},
        {"trigger": (3, agt.BallTrigger), "target": ("x", 7)}),
    "aim-accuracy": (_attacked_at(agt.attacks.Accuracy),
        {"features": POINTS[0], "labels": POINTS[1]}, {"direction": (3, ARRAY, "up")}),
    "functional": (RESULT.functional, {}, {"coefficients": (3, [1])}),
    "contains": (RESULT.reachable.contains, {}, {"state_dict": (3, torch.ones(2))}),
}  # fmt: skip
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
    with refused(kind=(InvalidInputError, InvalidThreatModelError)):
        function(**(good | {name: value}))
    assert not list(tmp_path.iterdir())


def test_scalars_of_numpy_are_taken_for_what_they_are() -> None:
    """Single precision of a rate must not leak into bounds, nor a whole number stop a run."""
    single = np.float32
    plain = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.25}
    given = {name: single(value) for name, value in plain.items()}
    exact = {name: float(value) for name, value in given.items()}
    boxes = []
    for options in (given, exact, {"learning_rate": 1, "momentum": 1, "weight_decay": 1}):
        training = agt.Training(loss="cross_entropy", **options)
        result = agt.certify(**(RUN | {"training": training}), relaxation="linear")
        boxes.append(np.concatenate([v.reshape(-1) for v in result.reachable.upper.values()]))
    assert (boxes[0] == boxes[1]).all()
