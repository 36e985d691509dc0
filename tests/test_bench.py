"""The benchmark: what was asked is measured, files hold what rows hold. Times are never compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refused

from milp_agt.attacks import Search
from milp_agt.cli import main
from milp_agt.experiments.bench import Benchmark, Moons, Series, bench

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


def test_files_hold_what_the_rows_hold(tiny: Benchmark) -> None:
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
def test_bad_input(
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
