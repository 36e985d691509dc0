"""Sweeps: monotone curves, brackets by bisection, and the command line over both."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, network
from refusals import refused
from run_texts import run_text

import milp_agt as agt
from milp_agt.cli import main
from milp_agt.experiments.sweep import resized
from milp_agt.properties.answer import meet, nested
from milp_agt.runfile.run_file import load_config

X = torch.randn(18, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] + 0.3 * X[:, 1] > 0).long()
MODEL = network([2, 3, 2], seed=1)
TRAINING = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=4)
THREAT = agt.FeaturePoisoning(budget=1, radius=0.05)


def certify(threat: Any, relaxation: str = "linear") -> Any:
    options = {"relaxation": relaxation, "refute": "none", "carried": "none"}
    return agt.certify(MODEL, (X[:10], Y[:10]), TRAINING, threat, **options)


def ask(result: Any) -> dict[str, agt.Bounds]:
    x, y = X[10:], Y[10:]
    return {
        "accuracy": result.accuracy(x, y, groups=y),
        "loss": result.loss(x, y),
        "backdoor": result.backdoor(x, y, 0.2),
        "bias": result.functional({"0.bias": np.ones(3)})[0],
    }


@functools.cache
def curves(relaxation: str = "linear") -> Any:
    return agt.sweep(
        functools.partial(certify, relaxation=relaxation),
        THREAT,
        ask,
        budgets=(3, 0, 1),
        radii=(0.3, 0.02),
    )


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_bounds_never_get_worse_as_the_threat_shrinks(relaxation: str) -> None:
    found = curves(relaxation)
    assert [(c.budget, c.radius) for c in found.cells] == [
        (0, 0.02), (0, 0.3), (1, 0.02), (1, 0.3), (3, 0.02), (3, 0.3),
    ]  # fmt: skip
    for small, large in itertools.product(found.cells, repeat=2):
        if small.budget <= large.budget and small.radius <= large.radius:
            for name in small.answers:
                a, b = small.answers[name], large.answers[name]
                assert a.lower >= b.lower, (name, small.budget, large.budget)
                assert a.upper <= b.upper
                assert a.nominal == b.nominal
            points = [c.answers["accuracy"].points for c in (small, large)]
            assert (points[0].score_lower >= points[1].score_lower).all()
            assert (points[0].upper <= points[1].upper).all()
            for group, bounds in small.answers["accuracy"].groups.items():
                assert bounds.lower >= large.answers["accuracy"].groups[group].lower
    assert found.cells[0].answers["loss"].upper < found.cells[-1].answers["loss"].upper


def test_every_cell_holds_under_attack() -> None:
    for cell in curves().cells:
        threat = resized(THREAT, cell.budget, cell.radius)
        replay = Replay(Problem(MODEL, X[:10], Y[:10], TRAINING, threat))
        generator = torch.Generator().manual_seed(0)
        for attack in replay.all(generator, X[10:], Y[10:], attacks=16, iterations=2, largest=4):
            f = replay.outputs_at(replay.run(attack)[-1], X[10:]).detach()
            right = (f.argmax(-1) == Y[10:]).double()
            points = cell.answers["accuracy"].points
            assert (torch.from_numpy(points.lower) <= right).all()
            assert (right <= torch.from_numpy(points.upper)).all()


TRIGGERS = (0.0, 0.05, 0.3, 1.0)


@functools.cache
def moons() -> tuple[Any, ...]:
    """A sweep over budget, radius and trigger, with the data that it is about."""
    from milp_agt.data.dataset import load_dataset

    data = load_dataset("moons", samples=40, noise=0.1, test_fraction=0.4, seed=0)
    model = network([2, 4, 1], seed=1)
    training = agt.Training(loss="bce", learning_rate=0.8, epochs=5)

    def run(threat: Any) -> Any:
        run = (model, (data.x_train, data.y_train), training, threat)
        return agt.certify(*run, window=3, refute="none", carried="none")

    def ask_triggers(result: Any) -> dict[str, agt.Bounds]:
        curve = nested([result.backdoor(data.x_test, data.y_test, r) for r in TRIGGERS])
        named = {f"{r:g}": answer for r, answer in zip(TRIGGERS, curve, strict=True)}
        return named | {"accuracy": result.accuracy(data.x_test, data.y_test)}

    found = agt.sweep(run, THREAT, ask_triggers, budgets=(0, 2), radii=(0.01, 0.1))
    return found, model, training, data


def test_backdoor_on_moons_is_monotone_and_begins_at_the_error() -> None:
    found = moons()[0]
    for cell in found.cells:
        curve = [cell.answers[f"{r:g}"] for r in TRIGGERS]
        right = cell.answers["accuracy"]
        assert curve[0].upper == pytest.approx(1.0 - right.lower, abs=1e-15)
        assert curve[0].nominal == pytest.approx(1.0 - right.nominal)
        for small, large in itertools.pairwise(curve):
            assert small.upper <= large.upper
            assert small.nominal <= large.nominal
            assert small.lower <= large.lower
            assert (small.points.score_lower >= large.points.score_lower).all()
            assert (small.points.upper <= large.points.upper).all()
        assert curve[-1].upper > curve[0].upper
    for small, large in itertools.product(found.cells, repeat=2):
        if small.budget <= large.budget and small.radius <= large.radius:
            for r in TRIGGERS:
                assert small.answers[f"{r:g}"].upper <= large.answers[f"{r:g}"].upper


@pytest.mark.parametrize("target", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_backdoor_on_moons_lies_between_attack_and_one(target: int | None) -> None:
    from milp_agt.attacks import Backdoor, Search

    found, model, training, data = moons()
    threat = resized(THREAT, 2, 0.1)
    result = agt.certify(model, (data.x_train, data.y_train), training, threat, window=3)
    search = Search(pool=64, restarts=1, rounds=1, iterations=2, aims=4)
    data_given = (data.x_train, data.y_train)
    for radius in (0.0, 0.3):
        objective = Backdoor(data.x_test, data.y_test, agt.BallTrigger(radius), target)
        reached = agt.attack(
            model, data_given, training, threat, objective=objective, search=search
        )
        answer = result.backdoor(data.x_test, data.y_test, radius, target=target)
        assert reached.value <= answer.upper <= 1.0
        if target is None:
            assert reached.value <= found.cells[-1].answers[f"{radius:g}"].upper


def fake(lower: float, upper: float) -> agt.Bounds:
    return agt.Bounds(lower, 0.5, upper)


def test_a_larger_threat_helps_a_smaller_one_and_saves_runs() -> None:
    """Stand-ins for certifications: loose at radius 1, tight at radius 2, so 1 inherits from 2."""
    runs: list[tuple[int, float]] = []
    by_radius = {1.0: (0.0, 1.0), 2.0: (0.4, 0.6), 3.0: (0.1, 0.55)}

    def run(threat: Any) -> Any:
        runs.append((threat.budget, threat.radius))
        return types.SimpleNamespace(radius=threat.radius)

    found = agt.sweep(
        run, THREAT, lambda r: {"q": fake(*by_radius[r.radius])}, budgets=[1], radii=[1, 2, 3]
    )
    assert [(c.answers["q"].lower, c.answers["q"].upper) for c in found.cells] == [
        (0.4, 0.55), (0.4, 0.55), (0.1, 0.55),
    ]  # fmt: skip
    assert runs == [(1, 3), (1, 2), (1, 1)]
    runs.clear()
    tight = agt.sweep(run, THREAT, lambda r: {"q": fake(0.5, 0.5)}, budgets=[1, 2], radii=[1, 2])
    assert runs == [(2, 2)]
    assert [c.seconds is None for c in tight.cells] == [True, True, True, False]


def test_a_contradiction_between_threats_is_an_error() -> None:
    with pytest.raises(agt.MilpAgtError, match="nominal value must lie within"):
        meet(agt.Bounds(0.0, 0.2, 0.4), agt.Bounds(0.3, 0.35, 0.4))


def test_tables_and_files_of_a_sweep() -> None:
    found = curves()
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == 6 * 4
    document = json.loads(found.to_json())
    assert document["rows"][0]["question"] == "accuracy"
    assert document["rows"][-1]["budget"] == 3
    assert float(rows[0]["lower"]) == document["rows"][0]["lower"]
    assert "accuracy" in found.table().splitlines()[2]


def statements(limits: dict[str, float], runs: list[float], over: str) -> Any:
    def run(threat: Any) -> Any:
        runs.append(getattr(threat, over))
        return getattr(threat, over)

    return run, lambda value: {name: value <= limit for name, limit in limits.items()}


@pytest.mark.parametrize("seed", range(5))
def test_bisection_finds_every_budget_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limits = {f"s{i}": int(v) for i, v in enumerate(rng.integers(-1, 70, 6))}
    runs: list[float] = []
    run, holds = statements(limits, runs, "budget")
    found = agt.largest(run, THREAT, holds, budgets=(0, 64))
    for name, limit in limits.items():
        bracket = found[name]
        assert bracket.proved == (None if limit < 0 else min(limit, 64))
        assert bracket.unproved == (None if limit >= 64 else max(limit + 1, 0))
    assert len(runs) == len(set(runs)) <= 2 + 6 * 6
    assert [t.value for t in found.trials] == runs


def test_bisection_finds_radii_up_to_the_precision() -> None:
    runs: list[float] = []
    run, holds = statements({"a": 0.0123, "b": 0.9, "c": 1e-9}, runs, "radius")
    found = agt.largest(run, THREAT, holds, radii=(1e-4, 0.5), precision=1.05)
    a, b, c = found["a"], found["b"], found["c"]
    assert a.proved <= 0.0123 < a.unproved <= 1.05 * a.proved
    assert (b.proved, b.unproved) == (0.5, None)
    assert (c.proved, c.unproved) == (None, 1e-4)
    assert "largest radius proved" in found.table()
    document = json.loads(found.to_json())
    assert document["brackets"]["c"] == {"proved": None, "unproved": 1e-4, "refuted": None}
    assert len(document["runs"]) == len(runs)
    assert found.to_csv().splitlines()[3] == "c,radius,,0.0001,"


def test_a_bracket_has_two_sides() -> None:
    """Verdicts: proved up to 12, refuted from 20 on, open between; one that contradicts itself is found."""

    def holds(value: int) -> dict[str, str]:
        state = "PROVED" if value <= 12 else "REFUTED" if value >= 20 else "OPEN"
        return {"s": state, **agt.by_point("p", np.array([state]))}

    found = agt.largest(lambda threat: threat.budget, THREAT, holds, budgets=(0, 64))
    assert (found["s"].proved, found["s"].unproved) == (12, 13)
    assert found["p[0]"] == found["s"]
    assert found["s"].refuted >= 20
    assert "refuted from" in found.table()

    def contradiction(value: int) -> dict[str, str]:
        return {"s": "REFUTED" if value < 40 else "PROVED", "t": "PROVED" if value < 9 else "OPEN"}

    with pytest.raises(agt.errors.SoundnessError, match="refuted for a smaller"):
        agt.largest(lambda threat: threat.budget, THREAT, contradiction, budgets=(0, 64))


def test_a_proof_above_a_failure_counts() -> None:
    """Bounds of single runs need not be monotone, the truth is."""
    run, _ = statements({}, [], "budget")
    found = agt.largest(
        run, THREAT, lambda v: {"odd": v in (0, 8, 12), "never": False}, budgets=(0, 16)
    )
    assert found["odd"].proved == 12
    assert found["odd"].unproved == 13


def test_largest_radius_of_points_holds_under_attack() -> None:
    x, y = X[10:], Y[10:]
    found = agt.largest(
        certify,
        THREAT,
        lambda r: (
            agt.by_point("point", r.accuracy(x, y).points.lower == 1.0)
            | {"80 %": r.accuracy(x, y).lower >= 0.8}
        ),
        radii=(1e-3, 1.0),
        precision=2.0,
    )
    assert set(found.brackets) == {"80 %"} | {f"point[{i}]" for i in range(len(x))}
    values = sorted({b.proved for n, b in found.brackets.items() if b.proved and n != "80 %"})
    assert values
    for radius in values:
        threat = resized(THREAT, None, radius)
        replay = Replay(Problem(MODEL, X[:10], Y[:10], TRAINING, threat))
        generator = torch.Generator().manual_seed(0)
        sure = [i for i in range(len(x)) if (found[f"point[{i}]"].proved or 0.0) >= radius]
        for attack in replay.all(generator, x, y, attacks=16, iterations=2, largest=4):
            f = replay.outputs_at(replay.run(attack)[-1], x).detach()
            assert (f.argmax(-1) == y)[:, sure].all()


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: agt.sweep(certify, THREAT, ask, budgets=()), ("Sweep", "0 budgets", "at least")),
        (lambda: agt.sweep(certify, agt.LabelPoisoning(1), ask, budgets=(1,), radii=(0.1,)),
         ("radius for LabelPoisoning", "without a radius", "leave it out")),
        (lambda: agt.largest(certify, THREAT, ask), ("largest", "neither", "budgets=(1, 20)")),
        (lambda: agt.largest(certify, THREAT, ask, budgets=(1, 2), radii=(1, 2)),
         ("largest", "both", "one range")),
        (lambda: agt.largest(certify, THREAT, ask, budgets=(3, 2)), ("largest", "3 to 2", ">= 0")),
        (lambda: agt.largest(certify, THREAT, ask, radii=(0.0, 2)), ("largest", "0.0 to", "> 0")),
        (lambda: agt.largest(certify, THREAT, ask, radii=(1, 2), precision=1.0),
         ("largest", "precision 1.0", "above 1")),
        (lambda: agt.largest(certify, THREAT, ask, budgets=(1, 50)),
         ("50 samples", "10 samples", "at most 10")),
    ],
)  # fmt: skip
def test_bad_sweeps_are_one_clear_error(call: Any, parts: tuple[str, ...]) -> None:
    with refused(*parts, kind=agt.MilpAgtError):
        call()


RUN = run_text(
    [{"kind": "accuracy", "at_least": 0.5}, {"kind": "backdoor", "radius": 0.1}],
    model={"layers": [2, 3, 2]},
    training={"epochs": 3},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", X=X.numpy(), y=Y.numpy())
    path = tmp_path / "run.toml"
    path.write_text(RUN, encoding="utf-8")
    return path


def swept(run: Path, *options: str) -> Any:
    """The document that a sweep writes."""
    out = run.parent / "out"
    assert main(["sweep", str(run), "--out", str(out), *options]) == 0
    return json.loads((out / "sweep.json").read_text())


def test_curves_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = swept(run, "--budgets", "1,2", "--radii", "0.001,0.5")
    assert "accuracy on test" in capsys.readouterr().out
    rows = document["rows"]
    assert len(rows) == 8
    assert {r["question"] for r in rows} == {"accuracy on test", "backdoor (radius 0.1) on test"}
    assert len((run.parent / "out" / "sweep.csv").read_text().splitlines()) == 9


def test_triggers_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = swept(run, "--triggers", "0.5,0,0.1", "--budgets", "1,2")["rows"]
    assert "backdoor (radius 0.5) on test" in capsys.readouterr().out
    for budget in (1, 2):
        own = {r["question"]: r for r in rows if r["budget"] == budget}
        curve = [own[f"backdoor (radius {r}) on test"]["upper"] for r in ("0", "0.1", "0.5")]
        assert curve == sorted(curve)
        assert curve[0] == pytest.approx(1.0 - own["accuracy on test"]["lower"])


def test_the_largest_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = swept(run, "--largest", "budget", "--between", "0,4", "--points")
    assert "accuracy on test >= 0.5" in capsys.readouterr().out
    names = set(document["brackets"])
    row = load_config(run).build().dataset.rows.test[0]
    assert {f"accuracy on test: row {row}", f"backdoor (radius 0.1) on test: row {row}"} <= names
    assert document["over"] == "budget"
    assert main(["sweep", str(run), "--largest", "radius", "--between", "0.1,0.4"]) == 0
    assert "largest radius proved" in capsys.readouterr().out


LARGEST = ["--largest", "budget", "--between", "1,2"]


@pytest.mark.parametrize(
    ("options", "said", "text"),
    [
        ([], "neither --budgets, --radii, --triggers nor --largest", RUN),
        (["--budgets", "1", *LARGEST], "curves and --largest", RUN),
        (["--largest", "budget"], "give both", RUN),
        (["--largest", "budget", "--between", "1"], "give both", RUN),
        (["--budgets", "1", "--points"], "--points without --largest", RUN),
        (["--budgets", "one"], "is not a whole number >= 0", RUN),
        (["--radii", "x"], "is no number", RUN),
        (["--budgets", "1"], "no [[property]]", RUN.split("[[property]]")[0]),
        (LARGEST, "without at_least or at_most", RUN.replace("at_least = 0.5", "")),
        (
            ["--triggers", "0.1"],
            "0 backdoors with a radius",
            RUN.split('[[property]]\nkind = "back')[0],
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(
    run: Path, options: list[str], said: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.write_text(text, encoding="utf-8")
    assert main(["sweep", str(run), *options]) == 2
    assert said in capsys.readouterr().err
