"""Comparisons and benchmarks: what was asked is measured, and files hold what rows hold."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

import milp_agt as agt
from milp_agt.attacks import Search
from milp_agt.cli import main
from milp_agt.experiments.bench import Benchmark, Moons, Series, bench
from milp_agt.experiments.compare import Comparison, ComparisonRow
from milp_agt.solvers import available_solvers


def run(
    loss: str = "cross_entropy",
    steps: int = 3,
    tested: int = 10,
    radius: float = 0.01,
    **options: Any,
) -> Comparison:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 2))
    y: Any = np.arange(10) % 2 if loss == "cross_entropy" else x[:, 0] - x[:, 1]
    torch.manual_seed(0)
    outputs = 2 if loss == "cross_entropy" else 1
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, outputs)
    ).double()
    training = agt.Training(loss=loss, learning_rate=0.2, epochs=steps)
    threat = agt.FeaturePoisoning(budget=1, radius=radius)
    return agt.compare(
        model, (x, y), training, threat, X_test=x[:tested], y_test=y[:tested], **options
    )


@pytest.mark.usefixtures("linear_alone")
def test_one_row_for_each_case_and_tighter_ones_inside() -> None:
    seen: list[tuple[ComparisonRow, int, int]] = []
    table = run(
        relaxations=("interval", "linear", "lp"),
        windows=(1, "T", 3, 99),
        on_row=lambda *row: seen.append(row),
    )
    cases = [(row.relaxation, row.window) for row in table.rows]
    assert cases == [("interval", 0), ("linear", 1), ("linear", 3), ("lp", 1), ("lp", 3)]
    assert [row.program_window for row in table.rows] == [0, 0, 0, 1, 3]
    assert [number for _, number, _ in seen] == [1, 2, 3, 4, 5]
    assert {total for _, _, total in seen} == {5}
    width = {case: row.mean_width for case, row in zip(cases, table.rows, strict=True)}
    assert width["lp", 1] < width["linear", 1] < width["interval", 0]
    assert width["linear", 3] < width["linear", 1]
    for row in table.rows:
        assert row.used == row.relaxation
        assert row.measure == "accuracy"
        assert row.lower <= row.nominal <= row.upper
        assert len(row.widths) == len(row.elapsed) == 3
        assert row.widths[-1] == row.mean_width
        assert list(row.elapsed) == sorted(row.elapsed)
        assert row.attack_ratio is None
    assert "accuracy: lower" in table.table()
    assert not table.limit_reached


def test_the_window_of_programs_can_be_set_apart() -> None:
    narrow = run(relaxations=("lp",), windows=("T",), program_window=1).rows[0]
    assert (narrow.window, narrow.program_window) == (3, 1)
    wide = run(relaxations=("lp",), windows=("T",), program_window="T").rows[0]
    assert (wide.window, wide.program_window) == (3, 3)
    assert wide.mean_width < narrow.mean_width


def test_inner_bounds_arrive() -> None:
    options = {"relaxations": ("linear",), "windows": ("T",)}
    linear, interval = (
        run(**options, inner_bounds=inner).rows[0].mean_width for inner in ("linear", "interval")
    )
    assert linear < interval


def test_regression_compares_the_loss() -> None:
    (row,) = run("mse", relaxations=("linear",)).rows
    assert row.measure == "loss"
    assert 0 <= row.lower < row.nominal < row.upper


def test_a_limit_is_told() -> None:
    table = run(relaxations=("linear",), time_limit=1e-9)
    assert table.limit_reached
    assert table.rows[0].used == "interval"
    assert "limit reached" in table.table()


def test_files_hold_what_the_rows_hold() -> None:
    inf, widths = math.inf, {"widths": (0.05, math.inf), "elapsed": (0.5, 1.5)}
    first = ComparisonRow(
        relaxation="interval", window=0, mean_width=inf, max_width=inf, seconds=0.5
    )
    second = replace(
        first, relaxation="linear", window=2, program_window=None, mean_width=0.1, max_width=0.25
    )
    ends = {"measure": "loss", "lower": 0.0, "nominal": 0.5, "upper": math.nan}
    table = Comparison((first, replace(second, **ends, **widths)))
    one, other = json.loads(table.to_json())["rows"]
    assert (one["mean_width"], one["lower"], other["upper"]) == ("inf", None, "nan")
    assert other["max_width"] == 0.25
    assert other["widths"] == [0.05, "inf"]
    parsed = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert (parsed[0]["relaxation"], parsed[0]["lower"]) == ("interval", "")
    assert float(parsed[1]["mean_width"]) == 0.1
    assert "widths" not in parsed[0]


@pytest.mark.parametrize(
    ("options", "asked", "found"),
    [
        ({"relaxations": ()}, "Compare relaxations", "relaxations ()"),
        ({"windows": ()}, "Compare relaxations", "windows ()"),
        ({"windows": (0,)}, "A window of a comparison", "int 0"),
        ({"y_test": None}, "Compare relaxations", "only one of X_test and y_test"),
    ],
)
def test_bad_input(options: dict[str, Any], asked: str, found: str) -> None:
    x, y = np.eye(2), np.array([0, 1])
    arguments: dict[str, Any] = {"X_test": x, "y_test": y, **options}
    training = agt.Training(loss="cross_entropy", learning_rate=0.2)
    threat = agt.FeaturePoisoning(budget=1, radius=0.01)
    with refused(asked, found):
        agt.compare(torch.nn.Linear(2, 2).double(), (x, y), training, threat, **arguments)


def test_solvers_stand_side_by_side_and_what_is_not_installed_is_noted() -> None:
    if not {"highs", "scip"} <= set(available_solvers()):
        pytest.skip("highs and scip are needed")
    solvers = ("highs", "scip", "cvxpy:NOPE")
    table = run("mse", relaxations=("linear", "lp", "qcqp"), solvers=solvers, steps=1, tested=1)
    cases = [(row.relaxation, row.solver) for row in table.rows]
    programs = [(level, solver) for level in ("lp", "qcqp") for solver in solvers[:2]]
    assert cases == [("linear", None), *programs]
    by = dict(zip(cases, table.rows, strict=True))
    assert by["lp", "highs"].mean_width == pytest.approx(by["lp", "scip"].mean_width, rel=1e-5)
    assert by["qcqp", "scip"].mean_width <= by["lp", "scip"].mean_width
    assert by["qcqp", "scip"].products > 0 == by["lp", "scip"].products
    for row in table.rows[1:]:
        assert min(row.columns, row.rows, row.solves) > 0
    assert by["linear", None].columns == by["linear", None].solves == 0
    note, _ = table.notes
    assert "lp by cvxpy:NOPE" in note
    assert note in table.table()
    assert json.loads(table.to_json())["notes"] == [*table.notes]
    assert "largest program" in table.table()


def test_a_tree_and_attacks_stand_beside_the_levels() -> None:
    table = run(relaxations=("interval", "linear"), attack=True, tree=4.0, radius=0.3)
    assert [row.relaxation for row in table.rows] == ["interval", "linear", "tree"]
    tree = table.rows[-1]
    assert tree.mean_width < min(row.mean_width for row in table.rows[:-1])
    assert tree.widths[-1] == tree.mean_width
    ratios = [row.attack_ratio for row in table.rows]
    assert ratios == sorted(ratios, reverse=True)  # attacks lie inside every row
    assert min(ratios) >= 1.0
    head, _, first = table.table().splitlines()[:3]
    assert "/ tree" in head
    assert f"{table.rows[0].mean_width / tree.mean_width:.3g}"[:4] in first


def test_plots_are_written_in_both_formats(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    table = run(relaxations=("interval", "linear"), windows=(1, "T"))
    png, svg = table.plot(tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text(encoding="utf-8")
    for row in table.rows:
        assert row.name in drawn
    left, right = table.draw().axes
    for axes in (left, right):
        assert len(axes.lines) == len(table.rows)
    assert left.lines[0].get_ydata().tolist() == list(table.rows[0].widths)
    assert right.lines[1].get_xdata().tolist() == list(table.rows[1].elapsed)


def test_a_missing_matplotlib_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("milp_agt.io.drawing.find_spec", lambda name: None)
    with refused("drawn", "matplotlib", "milp_agt[plot]"):
        Comparison(()).plot(tmp_path)


TINY = Search(pool=8, restarts=1, rounds=0)
LINEAR, WINDOW = "linear, whole run", "linear, window 1"


@pytest.fixture(scope="module")
def tiny() -> Benchmark:
    sweep = Series(
        windows=(0, 1), samples=(6,), hidden=(2,), marks=(3, 1), radius=0.05, search=TINY
    )
    return bench(sweep)


def test_one_axis_varies_at_a_time() -> None:
    sweep = Series(windows=(0, 1), samples=(6, 8), hidden=(2, 3), marks=(3, 1), seeds=(5,))
    base, more, wider = sweep.sources()
    sizes = [(s.samples, s.hidden, s.seed, s.marks) for s in (base, more, wider)]
    assert sizes == [(n, h, 5, (1, 3)) for n, h in ((6, 2), (8, 2), (6, 3))]
    assert [level.name for level in sweep.levels(base)] == ["zonotope", LINEAR, WINDOW, "interval"]
    for source in (more, wider):
        assert [level.name for level in sweep.levels(source)] == ["zonotope", LINEAR, "interval"]


def test_a_row_for_each_method_and_mark(tiny: Benchmark) -> None:
    cases = [(row.method, row.step) for row in tiny.rows]
    assert cases == [(m, t) for m in ("zonotope", LINEAR, WINDOW, "interval") for t in (1, 3)]
    assert {(row.samples, row.hidden, row.parameters) for row in tiny.rows} == {(6, 2, 9)}


def test_certificates_hold_the_attacks_and_tighter_ones_are_tighter(tiny: Benchmark) -> None:
    for row in tiny.rows:
        assert 0 < row.attacked_mean_width <= row.mean_width
        assert row.attacked_max_width <= row.max_width
        assert row.ratio == row.mean_width / row.attacked_mean_width
        assert row.seconds_per_step > 0
        assert row.peak_mib is None or row.peak_mib >= 0
    by = {(row.method, row.step): row.mean_width for row in tiny.rows}
    assert by["zonotope", 3] < by[LINEAR, 3] < by[WINDOW, 3] < by["interval", 3]


def test_files_of_a_benchmark_hold_its_rows(tiny: Benchmark) -> None:
    document = json.loads(json.dumps(tiny.to_dict()))
    assert [line["ratio"] for line in document["rows"]] == [r.ratio for r in tiny.rows]
    assert document["machine"]["versions"]["torch"]
    assert str(document["machine"]["cores"]) in tiny.table().splitlines()[0]
    assert len(tiny.table().splitlines()) == 4 + len(tiny.rows)


def test_a_case_is_the_same_run_by_seed() -> None:
    one, two = (Moons(3, 6, 2, (1,)).at(1) for _ in range(2))
    other = Moons(4, 6, 2, (1,)).at(1)
    for part in (lambda run: run[0][0].weight, lambda run: run[1][0]):
        assert (part(one) == part(two)).all()
        assert not (part(one) == part(other)).all()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--windows", "T", "--samples", "6", "--hidden", "2", "--steps", "2"]
    assert main(["bench", *small, "--relaxations", "interval", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    (row,) = document["rows"]
    assert (row["samples"], row["method"], row["step"], row["hidden"]) == (6, "interval", 2, 2)
    assert row["mean_width"] >= row["attacked_mean_width"]
    text = (tmp_path / "bench.txt").read_text(encoding="utf-8")
    assert text.startswith("$ milp-agt")
    assert "Machine: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--samples", "1"], ("The samples of a benchmark", ": 1", "give 2 or more")),
        (["--hidden", "0"], ("'0' is not a whole number >= 1",)),
        (["--windows", "x"], ("'x' is neither",)),
        (["--relaxations", "simplex"], ("'simplex' is not one of",)),
    ],
)
def test_bad_sizes_of_a_benchmark(
    arguments: list[str],
    parts: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "--out", str(tmp_path), *arguments]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in parts), told


def test_an_empty_axis_is_refused() -> None:
    with refused("each axis", "'seeds'", "leave them out"):
        Series(seeds=())
