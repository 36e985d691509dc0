"""Forged certificates, made anew by somebody who knows the format: none is PROVED."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import (
    MISSING,
    Arrays,
    Change,
    Claim,
    arr,
    at,
    certified,
    copied,
    forged,
    inward,
    put,
    seal,
    statement_in,
)

from milp_agt.checker import proof, steps
from milp_agt.checker.__main__ import in_words
from milp_agt.checker.affine import Pass
from milp_agt.checker.check import Outcome, Report, check
from milp_agt.checker.files import CLAIM, Rejected
from milp_agt.checker.forms import Form, Symbols
from milp_agt.checker.proof import all_choices, reached

HUGE = (10**400, -(10**400), 2**63, "1e999", "nan", "inf", float(10**300))
BALL = 'kind = "features"\nbudget = 1\nradius = 0.02\nnorm = 2'
RUNS: dict[str, dict[str, Any]] = {
    "regression": {  # batches, momentum, features and labels
        "training": "momentum = 0.5\nbatch_size = 120\nweight_decay = 0.01",
        "threat": 'kind = "both"\nbudget = 1\nradius = 0.001\nlabel_radius = 0.01',
        "loss": "mse",
        "data": "diabetes",
        "more_data": "standardise_targets = true",
        "layers": [10, 3, 1],
        "rate": 0.02,
        "epochs": 1,
        "properties": "",
    },
    "asked": {},  # two questions
    "ball": {
        "threat": BALL,
        "relaxation": "linear",
        "properties": "",
    },
    "listed": {
        "threat": 'kind = "labels"\nbudget = 1',
        "relaxation": "linear",
        "properties": '[[property]]\nkind = "accuracy"\n\n[[property]]\nkind = "loss"\n',
    },
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: certified(tmp_path_factory.mktemp(name), **run) for name, run in RUNS.items()}
    assert all(check(folder).outcome is Outcome.PROVED for folder in found.values())
    return found


def is_refused(report: Report) -> bool:
    return report.outcome is Outcome.REJECTED


def exchanged(claim: Claim, arrays: Arrays) -> None:
    entry = next(iter(claim["model"]["parameters"].values()))
    entry["lower"], entry["upper"] = entry["upper"], entry["lower"]


def swapped(claim: Claim, arrays: Arrays) -> None:
    arrays["lower_0.npy"], arrays["upper_0.npy"] = arrays["upper_0.npy"], arrays["lower_0.npy"]


def one_step_less(claim: Claim, arrays: Arrays) -> None:
    arrays["order.npy"] = arrays["order.npy"][: -arrays["sizes.npy"][-1]]
    for name in ("sizes.npy", "rates.npy", "dampening.npy"):
        arrays[name] = arrays[name][:-1]


def reordered(order: np.ndarray) -> np.ndarray:
    return np.concatenate([order[120:240], order[:120], order[240:]])


# Everything that makes the claim stronger, or the run another one.
FORGERIES: dict[str, dict[str, Change]] = {
    "regression": {
        "lower side one percent tighter": inward("lower"),
        "upper side one percent tighter": inward("upper"),
        "lower and upper swapped": swapped,
        "files of the sides exchanged": exchanged,
        "one entry of the box a point": at("upper_1.npy", 0, lambda v: v - 1.0),
        "a larger budget": put("threat/budget", 3),
        "a wider range of features": arr("features_upper.npy", lambda v: v + 0.001),
        "a wider range of labels": arr("labels_lower.npy", lambda v: v - 0.1),
        "a range without the sample": at("features_lower.npy", (3, 0), lambda v: v + 9),
        "other data": at("features.npy", (0, 0), lambda v: v + 1e-3),
        "other labels": at("labels.npy", (0, 0), lambda v: v + 1e-3),
        "another order of batches": arr("order.npy", reordered),
        "a sample twice in a batch": at("order.npy", 0, lambda v: 1),
        "a sample that is not there": at("order.npy", 0, lambda v: 10**6),
        "a negative sample": at("order.npy", 0, lambda v: -1),
        "a negative size": at("sizes.npy", 0, lambda v: -120),
        "a step less": one_step_less,
        "another rate": at("rates.npy", 2, lambda v: v * 1.01),
        "a negative rate": at("rates.npy", 2, lambda v: -v),
        "a rate that is no number": at("rates.npy", 2, lambda v: np.nan),
        "an infinite end": at("upper_0.npy", (0, 0), lambda v: np.inf),
        "huge features": arr("features.npy", lambda v: v * 1e300),
        "dampening": at("dampening.npy", 1, lambda v: 0.1),
        "less momentum": put("training/momentum", (0.25).hex()),
        "another weight decay": put("training/weight_decay", (0.02).hex()),
        "a penalty": put("training/l1", (0.1).hex()),
        "Nesterov's momentum": put("training/nesterov", True),
        "a projection": put("training/projection", {"low": "-0x1p-3", "high": "0x1p-3"}),
        "a projection upside down": put("training/projection", {"low": "0x1p0", "high": "-0x1p0"}),
        "a parameter without decay": put("training/undecayed", ["0.weight"]),
        "an unknown parameter without decay": put("training/undecayed", ["9.weight"]),
        "other initial parameters": at("initial_0.npy", (0, 0), lambda v: v + 1e-6),
        "another end of the nominal run": at("nominal_0.npy", (0, 0), lambda v: v + 1e-9),
        "another activation": put("model/layers/1", {"kind": "tanh"}),
        "no activation": put("model/layers/1", MISSING),
        "no layers": put("model/layers", []),
        "float32": put("arithmetic", "float32"),
        "bfloat16": put("arithmetic", "bfloat16"),
        "another loss": put("loss", "hinge"),
        "another method": put("method", "believe me"),
        "listed, with nothing listed": put("method", "listed"),
        "another format": put("format", "milp-agt certificate 9"),
        "no assumptions": put("assumptions", []),
        "an assumption more": put("assumptions", lambda old: [*old, "The claim holds."]),
        "an unknown key": lambda claim, arrays: claim.update(proved=True),
        "an unknown key inside": lambda claim, arrays: claim["threat"].update(exact=True),
        "an array too many": lambda claim, arrays: arrays.update({"more.npy": np.zeros(1)}),
        "another type of numbers": arr("lower_0.npy", lambda v: v.astype(np.float32)),
        "other bytes in a number": arr("lower_0.npy", lambda v: v.astype(">f8")),
        "columns first": arr("features.npy", np.asfortranarray),
        "another shape": arr("lower_0.npy", lambda v: v.T.copy()),
    },
    "asked": {
        "one point more": put("questions/0/least", lambda v: v + 1),
        "one point less possible": put("questions/0/most", lambda v: v - 1),
        "more points than there are": put("questions/0/least", 1000),
        "a fraction of a point": put("questions/0/least", lambda v: v + 0.5),
        "points without a class": arr("classes_0.npy", lambda v: v + 0.5),
        "no points": arr("points_0.npy", lambda v: v[:0]),
        "points of another width": arr("points_0.npy", lambda v: v[:, :1].copy()),
        "another kind": put("questions/0/kind", "robust"),
        "a threshold that is no number": put("questions/0/at_least", 0.5),
    },
    "ball": {
        "parts of batches": put("at_once", 25),
        "radii one percent larger": arr("radius.npy", lambda v: 1.01 * v),
        "a radius of 0": at("radius.npy", (0, 0), lambda v: 0.0),
        "a radius below 0": arr("radius.npy", lambda v: -v),
        "another norm": put("threat/ball/norm", 3),
        "the box around": lambda claim, arrays: (
            claim["threat"].update(ball=None),
            arrays.pop("radius.npy"),
            claim["files"].pop("radius.npy"),
        ),
    },
    "listed": {
        "a larger budget": put("threat/budget", 2),
        "a choice that is no class": arr("choices.npy", lambda v: v + 0.5),
        "choices for fewer samples": arr("choices.npy", lambda v: v[1:].copy()),
        "counted in every batch": put("threat/counted", "in every batch"),
        "parts of batches": put("at_once", 2),
        "poisoned anew": put("threat/poisoned", "anew in every step"),
        "removed, with choices": put("threat/removed", True),
        "removed, if you like": put("threat/removed", "maybe"),
        "more data sets than can be listed": put("threat/budget", 20),
        "a tighter box": inward("upper"),
    },
}


@pytest.mark.parametrize(("run", "name"), [(run, n) for run, own in FORGERIES.items() for n in own])
def test_forged_certificates_are_rejected(
    intact: dict[str, Path], tmp_path: Path, run: str, name: str
) -> None:
    report = check(forged(intact[run], tmp_path / "forged", FORGERIES[run][name]))
    assert is_refused(report), report.items


WEAKER: dict[str, tuple[str, Change, Outcome]] = {
    "a wider box": ("regression", arr("upper_0.npy", lambda v: v + 1.0), Outcome.PROVED),
    "smaller moves": ("regression", arr("features_upper.npy", lambda v: v - 5e-4), Outcome.PROVED),
    "a higher threshold": ("asked", put("questions/0/at_least", (0.999).hex()), Outcome.NOT_PROVED),
}


@pytest.mark.parametrize("name", WEAKER)
def test_the_forger_can_make_sound_ones(intact: dict[str, Path], tmp_path: Path, name: str) -> None:
    """What is weaker than what was proved is still proved: those above are rejected for the right reason."""
    run, change, outcome = WEAKER[name]
    assert check(forged(intact[run], tmp_path / "forged", change)).outcome is outcome


@pytest.mark.parametrize(
    "changes",
    [
        (
            arr("features_upper.npy", lambda v: v - 0.0005),
            arr("features_lower.npy", lambda v: v + 0.0005),
        ),
        (put("words/1", "The adversary: anybody."),),
    ],
    ids=["a smaller threat", "braver words"],
)
def test_words_follow_the_data(
    intact: dict[str, Path], tmp_path: Path, changes: tuple[Change, ...]
) -> None:
    """A smaller threat cannot be sold as the one that the words describe."""
    assert is_refused(check(forged(intact["regression"], tmp_path / "f", *changes, words=False)))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "velocity of 2.bias",  # the velocity of 2.bias would stand in its place
        "w.\nThe claim: of every such model, 30 of 30 test points are classified right.",
        "w, which is all",
        "\ud800",
    ],
)
@pytest.mark.parametrize("old", ["0.weight", "0.bias"])
def test_names_of_parameters_say_nothing(
    intact: dict[str, Path], tmp_path: Path, name: str, old: str
) -> None:
    def change(claim: Claim, arrays: Arrays) -> None:
        own = claim["model"]["parameters"]
        own[name] = own.pop(old)
        for layer in claim["model"]["layers"]:
            layer |= {key: name for key in ("weight", "bias") if layer.get(key) == old}
        claim["training"]["undecayed"] = [name]

    report = check(forged(intact["regression"], tmp_path / "forged", change))
    assert is_refused(report)
    assert "no plain name" in report.items[0].detail
    assert in_words(report).isascii()


def test_names_of_what_is_not_covered_are_printed_on_one_line(
    intact: dict[str, Path], tmp_path: Path
) -> None:
    change = put("not_covered", ["\ud800\x1b[2J\nPROVED"])
    report = check(forged(intact["asked"], tmp_path / "forged", change))
    assert report.outcome is Outcome.NOT_COVERED
    printed = in_words(report)
    assert all(line.isprintable() for line in printed.split("\n"))
    assert "\x1b" not in printed
    assert "PROVED" not in printed.splitlines()
    assert printed.encode()


def only_the_first(claim: Claim, arrays: Arrays) -> None:
    for side in ("lower", "upper"):
        arrays[f"features_{side}.npy"][1:] = arrays["features.npy"][1:]


def upwards(claim: Claim, arrays: Arrays) -> None:
    arrays["features_lower.npy"] = arrays["features.npy"]


SOME = "features moved by at most 0 to 0.02, as stored for each."
REACHES: dict[str, tuple[tuple[Change, ...], str]] = {
    "only the first": ((only_the_first,), SOME),
    "upwards": ((upwards,), SOME),
    "far, but closed": (
        (at("features_upper.npy", 0, lambda v: v + 100.0), at("open.npy", 0, lambda v: 0)),
        "every feature moved by at most 0.02.",
    ),
}


@pytest.mark.parametrize("name", REACHES)
def test_words_tell_how_far_the_least_sample_moves(
    intact: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """What samples that are not open may do is not sold as what the adversary does."""
    changes, said = REACHES[name]
    report = check(forged(intact["asked"], tmp_path / "forged", *changes))
    assert report.outcome is Outcome.PROVED
    assert report.words[1].endswith(said), report.words[1]


def test_labels_of_classes_move_to_classes(intact: dict[str, Path], tmp_path: Path) -> None:
    """The gradients of hinge and cross entropy are those of classes, not of what lies between."""

    def moved(share: float) -> Change:
        def change(claim: Claim, arrays: Arrays) -> None:
            y = arrays["labels.npy"]
            arrays["labels_lower.npy"], arrays["labels_upper.npy"] = share * y, y.copy()
            claim["threat"]["labels"] = {"lower": "labels_lower.npy", "upper": "labels_upper.npy"}

        return change

    report = check(forged(intact["asked"], tmp_path / "between", moved(0.7)))
    assert is_refused(report)
    assert "no classes" in report.items[0].detail
    report = check(forged(intact["asked"], tmp_path / "classes", moved(1.0)))
    assert report.outcome is Outcome.PROVED


def test_questions_on_the_training_data_are_about_the_training_data(tmp_path: Path) -> None:
    asked = '[[property]]\nkind = "accuracy"\non = "train"\n'
    base = certified(tmp_path / "run", properties=asked)
    assert check(base).outcome is Outcome.PROVED

    def easy(claim: Claim, arrays: Arrays) -> None:
        for name in ("points_0.npy", "classes_0.npy"):
            arrays[name] = np.repeat(arrays[name][:1], len(arrays[name]), 0)
        count = len(arrays["points_0.npy"])
        claim["questions"][0] |= {"least": count, "most": count}

    report = check(forged(base, tmp_path / "forged", easy))
    assert is_refused(report)
    assert "not those of the training data" in report.items[0].detail


@pytest.mark.parametrize("method", ["interval", "affine"])
def test_factors_beyond_all_floats_are_rejected(
    intact: dict[str, Path], tmp_path: Path, method: str
) -> None:
    changes = (
        put("method", method),
        put("training/weight_decay", (1e300).hex()),
        arr("rates.npy", lambda v: np.full_like(v, 1e300)),
    )
    assert is_refused(check(forged(intact["regression"], tmp_path / method, *changes)))


SMALL = {"epochs": 2, "relaxation": "linear", "properties": ""}
ANEW = 'kind = "features"\nbudget = 2\nradius = 0.02\nstatic = false'
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "curved": (Pass, SMALL | {"activation": "tanh"}),
    "times": (Pass, SMALL | {"activation": "sigmoid"}),
    "kinked": (Pass, SMALL | {"loss": "hinge"}),
    "support": (Symbols, SMALL | {"threat": BALL}),
    "largest": (steps, SMALL | {"threat": ANEW}),
}


@pytest.mark.parametrize("rule", RULES)
def test_an_engine_that_is_too_tight_is_rejected(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checker with a rule one percent too tight would prove, and claims; what others prove."""
    owner, run = RULES[rule]
    original = getattr(owner, rule)

    def tight(*given: Any) -> Any:
        found = original(*given)
        if isinstance(found, tuple):
            return *found[:2], narrow(found[2])
        return narrow(found) if isinstance(found, Form) else 0.99 * found

    def narrow(form: Form) -> Form:
        return replace(form, low=0.99 * form.low, high=0.99 * form.high)

    base = certified(tmp_path / "run", **run)
    parts = put("at_once", 7 if rule == "largest" else 0)
    for is_tight in (False, True):
        with monkeypatch.context() as patched:
            if is_tight:
                patched.setattr(owner, rule, tight)
            given = replace(statement_in(base), method="affine", at_once=7 * (rule == "largest"))
            boxes = reached(given)[0].boxes

        def change(claim: Claim, arrays: Arrays, boxes: Any = boxes) -> None:
            claim["method"] = "affine"
            for number, key in enumerate(claim["model"]["parameters"]):
                arrays[f"lower_{number}.npy"] = boxes[key].lo[0]
                arrays[f"upper_{number}.npy"] = boxes[key].hi[0]

        report = check(forged(base, tmp_path / "forged", change, parts))
        assert report.outcome is (Outcome.REJECTED if is_tight else Outcome.PROVED), report.items


def test_lists_beyond_counting_are_rejected(intact: dict[str, Path]) -> None:
    """Their number has more digits than Python prints, and takes long to find."""
    given, many = statement_in(intact["listed"]), 40_000
    poisoned = replace(given.poisoned, open=np.ones(many, bool), budget=many)
    with pytest.raises(Rejected, match="data sets"):
        next(all_choices(replace(given, poisoned=poisoned, choices=None)))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a claim, tables and lists included."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


def test_every_field_is_read_with_suspicion(intact: dict[str, Path], tmp_path: Path) -> None:
    """Each field of the claim left out, of another type, huge: one clear answer, never PROVED."""
    original = json.loads((intact["listed"] / CLAIM).read_bytes())
    copy = copied(intact["listed"], tmp_path / "copy")
    rng = np.random.default_rng(1)
    tried = 0
    for path in leaves(original):
        if path[0] == "versions" or (path[0] == "files" and len(path) > 2):
            continue
        for value in ("", *rng.choice(np.array([None, [], {}, -1, 1.5, *HUGE], dtype=object), 2)):
            claim = json.loads(json.dumps(original))
            inside = claim
            for key in path[:-1]:
                inside = inside[key]
            if value == "" and rng.random() < 0.5:
                del inside[path[-1]]
            else:
                inside[path[-1]] = value
            if claim == original:
                continue
            seal(copy, json.dumps(claim).encode())
            # Thresholds and what is not covered may be left out: then less is claimed.
            weaker = path[-1] in ("at_least", "at_most") and value is None
            assert weaker or check(copy).outcome is not Outcome.PROVED, (path, value)
            tried += 1
    assert tried > 100


@pytest.mark.parametrize("error", [MemoryError(), BrokenProcessPool("a process died")])
def test_what_a_machine_cannot_do_proves_nothing(
    intact: dict[str, Path], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(proof, "reached", fails)
    report = check(next(iter(intact.values())), jobs=2)
    assert report.outcome is Outcome.NOT_PROVED
    assert report.items[-1].detail == (str(error) or "no memory")
