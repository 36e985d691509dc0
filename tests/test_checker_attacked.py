"""Damaged and forged certificates: none is PROVED, and nothing in them is executed or followed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import certified, copied, forged, seal, stated

from milp_agt.checker import affine, forms, functions, layers, training
from milp_agt.checker.__main__ import in_words
from milp_agt.checker.boxes import Box, Unbounded
from milp_agt.checker.check import Outcome, Report, check
from milp_agt.checker.files import CLAIM, SEAL, Rejected
from milp_agt.checker.proof import all_choices

DAMAGED = 1000
HUGE = (10**400, -(10**400), 2**63, "1e999", "nan", "inf", float(10**300))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proved certificate with batches, momentum and two questions."""
    found = certified(
        tmp_path_factory.mktemp("intact"),
        training="momentum = 0.5\nbatch_size = 120\nweight_decay = 0.01",
        threat='kind = "both"\nbudget = 1\nradius = 0.001\nlabel_radius = 0.01',
        loss="mse",
        data="diabetes",
        more_data="standardise_targets = true",
        layers=[10, 3, 1],
        rate=0.02,
        epochs=1,
        properties="",
    )
    assert check(found).outcome is Outcome.PROVED
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = certified(tmp_path_factory.mktemp("asked"))
    assert check(found).outcome is Outcome.PROVED
    return found


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = certified(
        tmp_path_factory.mktemp("listed"),
        threat='kind = "labels"\nbudget = 1',
        relaxation="linear",
        properties='[[property]]\nkind = "accuracy"\n\n[[property]]\nkind = "loss"\n',
    )
    assert check(found).outcome is Outcome.PROVED
    return found


def is_refused(report: Report) -> bool:
    return report.outcome is Outcome.REJECTED


def test_a_thousand_damaged_certificates_are_rejected(asked: Path, tmp_path: Path) -> None:
    """Flipped bits, cut, doubled and swapped files: hashes find all of them."""
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in asked.iterdir())
    copy = copied(asked, tmp_path / "copy")
    for _ in range(DAMAGED):
        name = names[rng.integers(len(names))]
        data = bytearray((asked / name).read_bytes())
        how = rng.integers(4)
        if how < 2:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif how == 2:
            data = data[: rng.integers(len(data))]
        else:
            data += data[: 1 + rng.integers(len(data))]
        (copy / name).write_bytes(data)
        assert is_refused(check(copy)), (name, how)
        (copy / name).write_bytes((asked / name).read_bytes())
    assert check(copy).outcome is Outcome.PROVED


# --------------------------------------------------------------- by somebody who knows the format

Change = Callable[[dict[str, Any], dict[str, np.ndarray]], object]


def inward(side: str, share: float) -> Change:
    def change(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        low, high = arrays["lower_0.npy"], arrays["upper_0.npy"]
        moved = share * (high - low)
        arrays[f"{side}_0.npy"] = low + moved if side == "lower" else high - moved

    return change


def in_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def changed(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = change(arrays[name].copy())

    return changed


def at(place: Any, value: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value(values[place])
        return values

    return change


def option(table: str, key: str, value: Any) -> Change:
    return lambda claim, arrays: claim[table].__setitem__(key, value)


def swapped(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    arrays["lower_0.npy"], arrays["upper_0.npy"] = arrays["upper_0.npy"], arrays["lower_0.npy"]


def sides_exchanged(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    entry = next(iter(claim["model"]["parameters"].values()))
    entry["lower"], entry["upper"] = entry["upper"], entry["lower"]


def one_step_less(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    sizes = arrays["sizes.npy"]
    arrays["order.npy"] = arrays["order.npy"][: -sizes[-1]]
    for name in ("sizes", "rates", "dampening"):
        arrays[f"{name}.npy"] = arrays[f"{name}.npy"][:-1]


# Everything that makes the claim stronger, or the run another one.
FORGERIES: dict[str, Change] = {
    "lower side one percent tighter": inward("lower", 0.01),
    "upper side one percent tighter": inward("upper", 0.01),
    "lower and upper swapped": swapped,
    "files of the sides exchanged": sides_exchanged,
    "one entry of the box a point": in_array("upper_1.npy", at(0, lambda v: v - 1.0)),
    "a larger budget": option("threat", "budget", 3),
    "a wider range of features": in_array("features_upper.npy", lambda v: v + 0.001),
    "a wider range of labels": in_array("labels_lower.npy", lambda v: v - 0.1),
    "a range that leaves the sample out": in_array(
        "features_lower.npy", at((3, 0), lambda v: v + 9)
    ),
    "other data": in_array("features.npy", at((0, 0), lambda v: v + 1e-3)),
    "other labels": in_array("labels.npy", at((0, 0), lambda v: v + 1e-3)),
    "another order of batches": in_array(
        "order.npy", lambda v: np.concatenate([v[120:240], v[:120], v[240:]])
    ),
    "a sample twice in a batch": in_array("order.npy", at(0, lambda v: 1)),
    "a sample that is not there": in_array("order.npy", at(0, lambda v: 10**6)),
    "a negative sample": in_array("order.npy", at(0, lambda v: -1)),
    "a negative size": in_array("sizes.npy", at(0, lambda v: -120)),
    "a step less": one_step_less,
    "another rate": in_array("rates.npy", at(2, lambda v: v * 1.01)),
    "a negative rate": in_array("rates.npy", at(2, lambda v: -v)),
    "a rate that is no number": in_array("rates.npy", at(2, lambda v: np.nan)),
    "an infinite end": in_array("upper_0.npy", at((0, 0), lambda v: np.inf)),
    "huge features": in_array("features.npy", lambda v: v * 1e300),
    "dampening": in_array("dampening.npy", at(1, lambda v: 0.1)),
    "less momentum": option("training", "momentum", (0.25).hex()),
    "another weight decay": option("training", "weight_decay", (0.02).hex()),
    "a penalty": option("training", "l1", (0.1).hex()),
    "Nesterov's momentum": option("training", "nesterov", True),
    "a projection": option("training", "projection", {"low": (-0.1).hex(), "high": (0.1).hex()}),
    "a projection upside down": option(
        "training", "projection", {"low": "0x1p0", "high": "-0x1p0"}
    ),
    "a parameter without decay": option("training", "undecayed", ["0.weight"]),
    "an unknown parameter without decay": option("training", "undecayed", ["9.weight"]),
    "other initial parameters": in_array("initial_0.npy", at((0, 0), lambda v: v + 1e-6)),
    "another end of the nominal run": in_array("nominal_0.npy", at((0, 0), lambda v: v + 1e-9)),
    "another activation": lambda claim, arrays: claim["model"]["layers"].__setitem__(
        1, {"kind": "tanh"}
    ),
    "no activation": lambda claim, arrays: claim["model"]["layers"].pop(1),
    "no layers": lambda claim, arrays: claim["model"]["layers"].clear(),
    "float32": lambda claim, arrays: claim.__setitem__("arithmetic", "float32"),
    "bfloat16": lambda claim, arrays: claim.__setitem__("arithmetic", "bfloat16"),
    "another loss": lambda claim, arrays: claim.__setitem__("loss", "hinge"),
    "another method": lambda claim, arrays: claim.__setitem__("method", "believe me"),
    "listed, with nothing listed": lambda claim, arrays: claim.__setitem__("method", "listed"),
    "another format": lambda claim, arrays: claim.__setitem__("format", "milp-agt certificate 9"),
    "no assumptions": lambda claim, arrays: claim.__setitem__("assumptions", []),
    "an assumption more": lambda claim, arrays: claim["assumptions"].append("The claim holds."),
    "an unknown key": lambda claim, arrays: claim.__setitem__("proved", True),
    "an unknown key inside": option("threat", "exact", True),
    "an array too many": lambda claim, arrays: arrays.__setitem__("more.npy", np.zeros(1)),
    "another type of numbers": in_array("lower_0.npy", lambda v: v.astype(np.float32)),
    "other bytes in a number": in_array("lower_0.npy", lambda v: v.astype(">f8")),
    "columns first": in_array("features.npy", np.asfortranarray),
    "another shape": in_array("lower_0.npy", lambda v: v.T.copy()),
}


def _possible(certificate: Path, folder: Path, change: Change) -> Path:
    """With words that fit, where the forger can make any; else with the old ones."""
    try:
        return forged(certificate, folder, change)
    except Exception:
        return forged(certificate, folder, change, words=False)


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_certificates_are_rejected(intact: Path, tmp_path: Path, name: str) -> None:
    report = check(_possible(intact, tmp_path / "forged", FORGERIES[name]))
    assert is_refused(report), (name, report.items)


def test_the_forger_can_make_proved_certificates(intact: Path, tmp_path: Path) -> None:
    """What is weaker than what was proved is still proved: the tests above reject for the right reason."""
    wider = in_array("upper_0.npy", lambda v: v + 1.0)
    assert check(forged(intact, tmp_path / "wider", wider)).outcome is Outcome.PROVED
    smaller = in_array("features_upper.npy", lambda v: v - 0.0005)
    assert check(forged(intact, tmp_path / "smaller", smaller)).outcome is Outcome.PROVED


def test_words_follow_the_data(intact: Path, tmp_path: Path) -> None:
    """A smaller threat or a wider box cannot be sold as the one that the words describe."""

    def smaller(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["features_upper.npy"] = arrays["features_upper.npy"] - 0.0005
        arrays["features_lower.npy"] = arrays["features_lower.npy"] + 0.0005

    assert is_refused(check(forged(intact, tmp_path / "a", smaller, words=False)))
    braver = forged(
        intact,
        tmp_path / "b",
        lambda claim, arrays: claim["words"].__setitem__(1, "The adversary: anybody."),
        words=False,
    )
    assert is_refused(check(braver))


def _renamed(claim: dict[str, Any], old: str, new: str) -> None:
    own = claim["model"]["parameters"]
    own[new] = own.pop(old)
    for layer in claim["model"]["layers"]:
        for key in ("weight", "bias"):
            if layer.get(key) == old:
                layer[key] = new


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
def test_names_of_parameters_say_nothing(intact: Path, tmp_path: Path, name: str, old: str) -> None:
    def change(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        _renamed(claim, old, name)
        claim["training"]["undecayed"] = [name]

    report = check(_possible(intact, tmp_path / "forged", change))
    assert is_refused(report)
    assert "no plain name" in report.items[0].detail
    assert in_words(report).isascii()


def test_names_of_what_is_not_covered_are_printed_on_one_line(asked: Path, tmp_path: Path) -> None:
    def change(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        claim["not_covered"] = ["\ud800\x1b[2J\nPROVED"]

    report = check(forged(asked, tmp_path / "forged", change))
    assert report.outcome is Outcome.NOT_COVERED
    printed = in_words(report)
    assert all(line.isprintable() for line in printed.split("\n"))
    assert "\x1b" not in printed
    assert "PROVED" not in printed.splitlines()
    assert printed.encode()


def test_words_tell_how_far_the_least_sample_moves(asked: Path, tmp_path: Path) -> None:
    """What samples that are not open may do is not sold as what the adversary does."""

    def only_the_first(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        for side in ("lower", "upper"):
            arrays[f"features_{side}.npy"][1:] = arrays["features.npy"][1:]

    def closed(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["features_upper.npy"][0] += 100.0
        arrays["open.npy"][0] = 0

    def upwards(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["features_lower.npy"] = arrays["features.npy"]

    for name, change, said in (
        ("first", only_the_first, "features moved by at most 0 to 0.02, as stored for each."),
        ("closed", closed, "every feature moved by at most 0.02."),
        ("upwards", upwards, "features moved by at most 0 to 0.02, as stored for each."),
    ):
        report = check(forged(asked, tmp_path / name, change))
        assert report.outcome is Outcome.PROVED
        assert report.words[1].endswith(said), report.words[1]


def test_labels_of_classes_move_to_classes(asked: Path, tmp_path: Path) -> None:
    """The gradients of hinge and cross entropy are those of classes, not of what lies between."""

    def change(share: float) -> Change:
        def changed(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
            y = arrays["labels.npy"]
            arrays["labels_lower.npy"], arrays["labels_upper.npy"] = share * y, y.copy()
            claim["threat"]["labels"] = {"lower": "labels_lower.npy", "upper": "labels_upper.npy"}

        return changed

    report = check(_possible(asked, tmp_path / "between", change(0.7)))
    assert is_refused(report)
    assert "no classes" in report.items[0].detail
    report = check(forged(asked, tmp_path / "classes", change(1.0)))
    assert report.outcome is Outcome.PROVED


def test_factors_beyond_all_floats_are_rejected(intact: Path, tmp_path: Path) -> None:
    for method in ("interval", "affine"):

        def change(claim: dict[str, Any], arrays: dict[str, np.ndarray], of: str = method) -> None:
            claim["method"] = of
            claim["training"]["weight_decay"] = (1e300).hex()
            arrays["rates.npy"] = np.full_like(arrays["rates.npy"], 1e300)

        assert is_refused(check(forged(intact, tmp_path / method, change)))


def test_factors_that_underflow_prove_nothing() -> None:
    with pytest.raises(Unbounded):
        affine._near(Fraction(1, 2**1070))
    assert affine._near(Fraction(0)) == 0.0


def test_lists_beyond_counting_are_rejected(listed: Path) -> None:
    """Their number has more digits than Python prints, and takes long to find."""
    claim = json.loads((listed / CLAIM).read_bytes())
    given = stated(claim, {name: np.load(listed / name) for name in claim["files"]})
    many = 40_000
    poisoned = replace(given.poisoned, open=np.ones(many, bool), budget=many)
    with pytest.raises(Rejected, match="data sets"):
        next(all_choices(replace(given, poisoned=poisoned, choices=None)))


@pytest.mark.parametrize("dampening", [-2.0, 0.0, 1.0, 3.0])
def test_rounding_of_affine_forms_under_any_dampening(dampening: float) -> None:
    """What the run may round off is granted whatever the sign of 1 - dampening."""
    given = layers.Problem(
        (layers.Layer("dense", "w"),),
        "mse",
        (np.arange(1),),
        (layers.Rule(0.5, momentum=0.5, dampening=dampening),),
        layers.ARITHMETICS["float32"],
    )
    zero = np.zeros((1, 1))

    def form(value: float) -> forms.Form:
        return forms.Form(zero + value, np.zeros((1, 1, 0)), zero, zero, np.zeros((1, 1, 1)))

    symbols = forms.Symbols.none(0, 0).with_slots(np.zeros((1, 0)), np.zeros((1, 0)))
    step = affine.Pass(given, symbols, np.arange(1))
    state = {"w": form(1.0), "velocity of w": form(0.0)}
    for new in step.updated(given.rules[0], "w", state, form(100.0), 1).values():
        assert (new.low < 0).all()
        assert (new.high > 0).all()


UNDERFLOWS = {
    # Moves of 1e100 pass a rate and a feature of 1e-330 together, and then a rate that is huge.
    "a coefficient": ([[0.0, 0.0], [1e-150, 1.0]], [-0.5, 0.0], 1e100, [1e-180, 1e150], {}),
    # momentum times velocity is 0 in the run, and not where the rate was multiplied before.
    "momentum": ([[1.0, 0.0]] * 2, [-5e-201] * 2, 0.0, [0.0, 1e300], {"momentum": 1e-150}),
}


@pytest.mark.parametrize("name", UNDERFLOWS)
def test_runs_whose_factors_underflow_lie_in_the_boxes(name: str) -> None:
    rows, labels, move, rates, options = UNDERFLOWS[name]
    x, y = np.array(rows), np.array(labels)[:, None]
    given = layers.Problem(
        (layers.Layer("dense", "w"),),
        "mse",
        (np.array([0]), np.array([1])),
        tuple(
            layers.Rule(r, dampening=d, **options) for r, d in zip(rates, (0.0, 1.0), strict=True)
        )
        if options
        else tuple(map(layers.Rule, rates)),
        layers.ARITHMETICS["float64"],
    )
    poisoned = x.copy()
    poisoned[0, 0] += move
    w, v = np.zeros((1, 2)), np.zeros((1, 2))
    for sample, rule in enumerate(given.rules):
        d = 2 * (poisoned[sample] @ w.T - y[sample]) * poisoned[sample]
        v = rule.momentum * v + (1 - rule.dampening) * d
        w = w - rule.rate * v
    first, own = ({"w": np.zeros((1, 2))}, layers.Samples(Box.point(x[None]), Box.point(y[None])))
    ranges = layers.Samples(Box(x[None], poisoned[None]), own.y)
    threat = layers.Poisoned(ranges, np.array([True, False]), 1)
    by_forms = affine.boxes(*affine.train(given, first, own, threat, False))
    for box in (by_forms["w"], training.train(given, first, own, threat)["w"]):
        assert (box.lo[0] <= w).all()
        assert (w <= box.hi[0]).all()


def test_a_slope_that_underflows_is_granted() -> None:
    """1e-40 is no normal float32: the run may take it for 0."""
    leaky = layers.Layer("leaky_relu", slope=1e-40)
    found = layers.activation(leaky, Box.point(np.array([-1e29])), layers.ARITHMETICS["float32"])
    assert found.hi[0] >= 0.0


QUESTIONS: dict[str, Change] = {
    "one point more": lambda claim, arrays: _more(claim, "least", 1),
    "one point less possible": lambda claim, arrays: _more(claim, "most", -1),
    "more points than there are": lambda claim, arrays: _more(claim, "least", 1000),
    "a fraction of a point": lambda claim, arrays: _more(claim, "least", 0.5),
    "points without a class": in_array("classes_0.npy", lambda v: v + 0.5),
    "no points": in_array("points_0.npy", lambda v: v[:0]),
    "points of another width": in_array("points_0.npy", lambda v: v[:, :1].copy()),
    "another kind": lambda claim, arrays: claim["questions"][0].__setitem__("kind", "robust"),
    "a threshold that is no number": lambda claim, arrays: claim["questions"][0].__setitem__(
        "at_least", 0.5
    ),
}


def _more(claim: dict[str, Any], key: str, by: float) -> None:
    for question in claim["questions"]:
        question[key] += by


@pytest.mark.parametrize("name", QUESTIONS)
def test_forged_answers_are_rejected(asked: Path, tmp_path: Path, name: str) -> None:
    report = check(_possible(asked, tmp_path / "forged", QUESTIONS[name]))
    assert is_refused(report), (name, report.items)


def test_a_higher_threshold_is_not_proved(asked: Path, tmp_path: Path) -> None:
    def change(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        claim["questions"][0]["at_least"] = (0.999).hex()

    assert check(forged(asked, tmp_path / "forged", change)).outcome is Outcome.NOT_PROVED


LISTS: dict[str, Change] = {
    "a larger budget": option("threat", "budget", 2),
    "a choice that is no class": in_array("choices.npy", lambda v: v + 0.5),
    "choices for fewer samples": in_array("choices.npy", lambda v: v[1:].copy()),
    "counted in every batch": option("threat", "counted", "in every batch"),
    "poisoned anew": option("threat", "poisoned", "anew in every step"),
    "removed, with choices": option("threat", "removed", True),
    "removed, if you like": option("threat", "removed", "maybe"),
    "more data sets than can be listed": option("threat", "budget", 20),
    "a tighter box": inward("upper", 0.01),
}


@pytest.mark.parametrize("name", LISTS)
def test_forged_lists_are_rejected(listed: Path, tmp_path: Path, name: str) -> None:
    report = check(_possible(listed, tmp_path / "forged", LISTS[name]))
    assert is_refused(report), (name, report.items)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a claim, tables and lists included."""
    if path:
        yield path
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from leaves(inner, (*path, key))


def test_every_field_is_read_with_suspicion(listed: Path, tmp_path: Path) -> None:
    """Each field of the claim left out, of another type, huge: one clear answer, never PROVED."""
    original = json.loads((listed / CLAIM).read_bytes())
    copy = copied(listed, tmp_path / "copy")
    rng = np.random.default_rng(1)
    tried = 0
    for path in leaves(original):
        if path[0] in ("files", "versions") and len(path) > 2:
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
            if inside == original or claim == original or path[0] == "versions":
                continue
            seal(copy, json.dumps(claim).encode())
            report = check(copy)
            # Thresholds and what is not covered may be left out: then less is claimed.
            weaker = path[-1] in ("at_least", "at_most") and value is None
            assert weaker or report.outcome is not Outcome.PROVED, (path, value)
            tried += 1
    assert tried > 100


# ------------------------------------------------------------------------------- hostile files


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def _with_file(certificate: Path, folder: Path, data: bytes) -> Path:
    """``lower_0.npy`` replaced by any bytes, hashed and sealed."""
    import hashlib

    copy = copied(certificate, folder)
    claim = json.loads((copy / CLAIM).read_bytes())
    (copy / "lower_0.npy").write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    claim["files"]["lower_0.npy"] = entry
    seal(copy, json.dumps(claim).encode())
    return copy


def _header(text: str, rest: bytes = b"") -> bytes:
    head = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + rest


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Bomb()),
        b"",
        b"\x93NUMPY",
        _header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(Bomb())),
        _header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"),
        _header("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 99999999999999999999), }"),
        _header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
        _header("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2 3), }"),
        _header("{'descr': __import__('os').mkdir('exploded'), 'fortran_order': False}"),
        _header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }", b"\0" * 8),
        _header(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1," * 60 + "), }", b"\0" * 8
        ),
    ],
)
def test_hostile_arrays(
    asked: Path, tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_refused(check(_with_file(asked, tmp_path / "copy", data)))
    assert not (tmp_path / "exploded").exists()


def _linked(copy: Path) -> None:
    (copy / "lower_0.npy").rename(copy.parent / "elsewhere.npy")
    (copy / "lower_0.npy").symlink_to(copy.parent / "elsewhere.npy")


def _claim_linked(copy: Path) -> None:
    (copy / CLAIM).rename(copy.parent / "elsewhere.json")
    (copy / CLAIM).symlink_to(copy.parent / "elsewhere.json")


def _queue(copy: Path) -> None:
    (copy / "lower_0.npy").unlink()
    os.mkfifo(copy / "lower_0.npy")


def _folder(copy: Path) -> None:
    (copy / "lower_0.npy").unlink()
    (copy / "lower_0.npy").mkdir()


def _zip_bomb(copy: Path) -> None:
    with zipfile.ZipFile(copy / "lower_0.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lower_0.npy", b"\0" * 10**7)


def _outside(copy: Path) -> None:
    claim = json.loads((copy / CLAIM).read_bytes())
    claim["files"]["../elsewhere.npy"] = claim["files"].pop("lower_0.npy")
    (copy / "lower_0.npy").rename(copy.parent / "elsewhere.npy")
    seal(copy, json.dumps(claim).encode())


def _sparse(copy: Path) -> None:
    """A terabyte of nothing."""
    with (copy / "lower_0.npy").open("r+b") as stream:
        stream.truncate(2**40)


def _nested(copy: Path) -> None:
    seal(copy, b"[" * 10**6)


def _digits(copy: Path) -> None:
    seal(copy, b'{"format": ' + b"9" * 10**6 + b"}")


def _twice(copy: Path) -> None:
    text = (copy / CLAIM).read_bytes()
    seal(copy, text.replace(b'"budget": 1', b'"budget": 1, "budget": 1'))


def _not_a_number(copy: Path) -> None:
    text = (copy / CLAIM).read_bytes()
    seal(copy, text.replace(b'"budget": 1', b'"budget": NaN'))


def _not_utf8(copy: Path) -> None:
    seal(copy, b"\xff\xfe{}")


@pytest.mark.parametrize(
    "damage",
    [
        _linked, _claim_linked, _queue, _folder, _zip_bomb, _outside, _sparse, _nested, _digits, _twice,
        _not_a_number, _not_utf8,
        lambda copy: (copy / SEAL).unlink(),
        lambda copy: (copy / CLAIM).unlink(),
        lambda copy: (copy / "notes.txt").write_text("trust me"),
        lambda copy: seal(copy, b""),
        lambda copy: seal(copy, b"[]"),
        lambda copy: seal(copy, b"{}"),
    ],
)  # fmt: skip
def test_hostile_folders(asked: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    copy = copied(asked, tmp_path / "copy")
    damage(copy)
    assert is_refused(check(copy))


def test_a_linked_folder_is_not_followed(asked: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(asked)
    assert is_refused(check(tmp_path / "link"))
    assert is_refused(check(tmp_path / "nowhere"))


# ----------------------------------------------------------- a checker with one rule too tight


def _tight(box: Box, share: float = 0.01) -> Box:
    moved = share * (box.hi - box.lo)
    return Box(box.lo + moved, box.hi - moved)


MUTANTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "the worst samples": (
        training,
        "largest",
        lambda old: lambda v, k, axis=0: 0.99 * old(v, k, axis),
    ),
    "the update": (
        training,
        "updated",
        lambda old: lambda *a: {n: _tight(b) for n, b in old(*a).items()},
    ),
    "the loss": (layers, "loss_gradient", lambda old: lambda *a: _tight(old(*a))),
    "a dense layer": (layers, "dense", lambda old: lambda *a: _tight(old(*a))),
    "sigmoid": (functions, "sigmoid", lambda old: lambda x: _tight(old(x))),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_too_tight_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any rule one percent too tight, a poisoned run of one step leaves the box."""
    x, y = np.array([[1.0], [2.0], [-1.0]]), np.array([[1.0], [0.0], [1.0]])
    given = layers.Problem(
        (layers.Layer("dense", "w", "b"),),
        "bce",
        (np.arange(3),),
        (layers.Rule(1.0),),
        layers.ARITHMETICS["float64"],
    )
    start = {"w": np.array([[0.7]]), "b": np.array([0.1])}
    own = layers.Samples(Box.point(x[None]), Box.point(y[None]))
    moved = layers.Samples(
        Box((x - 0.3)[None], (x + 0.3)[None]), Box(np.zeros((1, 3, 1)), np.ones((1, 3, 1)))
    )
    poisoned = layers.Poisoned(moved, np.ones(3, bool), 1)

    def reached() -> list[float]:
        found = []
        for sample in range(3):
            for shift in (-0.3, 0.3):
                for label in (0.0, 1.0):
                    at_x, at_y = x.copy(), y.copy()
                    at_x[sample] += shift
                    at_y[sample] = label
                    p = 1 / (1 + np.exp(-(0.7 * at_x + 0.1)))
                    found.append(0.1 - float(np.mean(p - at_y)))
        return found

    box = training.train(given, start, own, poisoned)["b"]
    values = reached()
    assert box.lo.item() <= min(values) <= max(values) <= box.hi.item()
    module, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(module, attribute, mutant(getattr(module, attribute)))
    box = training.train(given, start, own, poisoned)["b"]
    assert not (box.lo.item() <= min(values) and max(values) <= box.hi.item())


def test_questions_on_the_training_data_are_about_the_training_data(tmp_path: Path) -> None:
    asked = '[[property]]\nkind = "accuracy"\non = "train"\n'
    base = certified(tmp_path / "run", properties=asked)
    assert check(base).outcome is Outcome.PROVED

    def easy(claim: dict[str, Any], arrays: dict[str, Any]) -> None:
        for name in ("points_0.npy", "classes_0.npy"):
            arrays[name] = np.repeat(arrays[name][:1], len(arrays[name]), 0)
        claim["questions"][0].update(least=len(arrays["points_0.npy"]))
        claim["questions"][0].update(most=len(arrays["points_0.npy"]))

    with pytest.raises(Rejected, match="not those of the training data"):
        forged(base, tmp_path / "forged", easy)
