"""The benchmark: what was asked is measured, files hold what rows hold. Times are never compared."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from refusals import refused
from run_texts import run_text

from milp_agt.attacks import Search
from milp_agt.cli import main
from milp_agt.experiments.bench import Benchmark, Moons, RunFile, Series, bench
from milp_agt.experiments.bench.bench_table import Row
from milp_agt.experiments.bench.plot import draw, series

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
    parsed = list(csv.DictReader(io.StringIO(tiny.to_csv())))
    assert [float(line["mean_width"]) for line in parsed] == [r.mean_width for r in tiny.rows]
    document = json.loads(json.dumps(tiny.to_dict()))
    assert [line["ratio"] for line in document["rows"]] == [r.ratio for r in tiny.rows]
    assert document["machine"]["versions"]["torch"]
    assert str(document["machine"]["cores"]) in tiny.table().splitlines()[0]
    assert len(tiny.table().splitlines()) == 4 + len(tiny.rows)


def test_lines_of_the_figure(tiny: Benchmark) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    panels = draw(tiny).axes
    assert [len(panel.lines) for panel in panels] == [4] * 3
    ratio = {row.step: row.ratio for row in tiny.rows[:2]}
    assert series(tiny.rows, "step", "ratio", "zonotope") == ratio
    assert dict(zip(*panels[0].lines[0].get_data(), strict=True)) == ratio


def test_medians_over_seeds() -> None:
    def row(seed: int, ratio: float) -> Row:
        sizes = {"samples": 4, "hidden": 2, "parameters": 9, "step": 1}
        widths = dict.fromkeys(("mean_width", "max_width", "ratio"), ratio)
        ones = ("attacked_mean_width", "attacked_max_width", "seconds_per_step")
        named = {"case": "moons", "seed": seed, "method": "interval", "peak_mib": None}
        return Row(**named, **sizes, **widths, **dict.fromkeys(ones, 1.0))  # type: ignore[arg-type]

    rows = [row(0, 1.0), row(1, 5.0), row(2, 2.0)]
    assert series(rows, "step", "ratio", "interval") == {1: 2.0}
    assert series(rows, "step", "peak_mib", "interval") == {}
    rows += [replace(row(0, 7.0), samples=8), replace(row(0, 9.0), hidden=3)]
    assert series(rows, "samples", "ratio", "interval") == {4: 2.0, 8: 7.0}
    assert "  -" in Benchmark(tuple(rows)).table().splitlines()[-1]


def test_a_case_is_the_same_run_by_seed() -> None:
    one, two = (Moons(3, 6, 2, (1,)).at(1) for _ in range(2))
    assert (one.data[0] == two.data[0]).all()
    assert (one.model[0].weight == two.model[0].weight).all()
    other = Moons(4, 6, 2, (1,)).at(1)
    assert not (one.data[0] == other.data[0]).all()
    assert not (one.model[0].weight == other.model[0].weight).all()


RUN = run_text(
    data={"name": "moons", "samples": 6},
    model={"layers": [2, 2, 1]},
    threat={"kind": "features", "budget": 1, "radius": 0.01},
    training={"loss": "bce", "learning_rate": 0.3},
)


def test_the_command_measures_a_run_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(RUN, encoding="utf-8")
    assert RunFile.of(path).marks == (2,)
    arguments = ["bench", "--case", str(path), "--relaxations", "interval", "--out", str(tmp_path)]
    assert main(arguments) == 0
    document = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    (row,) = document["rows"]
    assert (row["case"], row["method"], row["step"], row["hidden"]) == ("own", "interval", 2, None)
    assert row["mean_width"] >= row["attacked_mean_width"]
    text = (tmp_path / "bench.txt").read_text(encoding="utf-8")
    assert text.startswith("$ milp-agt")
    assert "Machine: " in capsys.readouterr().out
    assert (tmp_path / "bench.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--case", "x.toml", "--hidden", "4"], ("run of a file", "hidden", "leave out --case")),
        (["--samples", "1"], ("sizes of at least 1", "1 samples", "at least 2 samples")),
        (["--hidden", "0"], ("'0' is not a whole number >= 1",)),
        (["--windows", "x"], ("'x' is neither",)),
        (["--relaxations", "simplex"], ("'simplex' is not one of",)),
    ],
)
def test_bad_input(
    arguments: list[str],
    parts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text(RUN, encoding="utf-8")
    assert main(["bench", "--out", str(tmp_path), *arguments]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in parts), told


def test_an_empty_axis_is_refused() -> None:
    with refused("each axis", "'seeds'", "leave them out"):
        Series(seeds=())
