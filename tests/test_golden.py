"""Bounds of small certified runs are the same as ever, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import golden
import numpy as np
import pytest
from golden_runs import RUNS

from milp_agt.threats.threat_model import THREATS

NAME = "milp, substitution"


@cache
def kept() -> golden.Kept:
    return golden.load(golden.FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RUNS)
def test_no_bound_has_changed(name: str) -> None:
    """Every bit on the machine of the file; on others, which round differently, all decimals nearly."""
    said = golden.compare(name, kept(), golden.measure(RUNS[name]))
    assert said is None, said


def test_the_file_holds_all_runs_and_their_exact_numbers() -> None:
    assert list(kept().outcomes) == list(RUNS)
    for name, outcome in kept().outcomes.items():
        assert outcome.sha256 == kept().hashes[name], name
        assert 0.0 < outcome.mean_width < np.inf, name
        assert all(np.isfinite(array).all() for array in outcome.arrays.values()), name
    again = golden.load(golden.dump(kept().outcomes))
    assert again.hashes == kept().hashes


def test_the_runs_cover_threats_levels_selections_and_losses() -> None:
    runs = RUNS.values()
    assert {type(run.threat) for run in runs} == {table.made_of for table in THREATS.all().values()}
    assert {(t.static, t.scope) for t in (run.threat for run in runs) if hasattr(t, "static")} >= {
        (static, scope) for static in (True, False) for scope in ("dataset", "batch")
    }
    levels = {run.options.get("relaxation", "linear") for run in runs}
    assert levels == {"interval", "zonotope", "linear", "lp", "milp", "qcqp", "miqp"}
    selections = {run.options.get("selections", "joint") for run in runs}
    assert selections == {"joint", "enumerated", None}
    assert {run.options.get("inner_bounds") for run in runs} == {"interval", "linear", None}
    assert {run.options.get("window") for run in runs} == {1, 2, None}
    assert {run.loss for run in runs} == {"bce", "cross_entropy", "hinge", "mse"}
    assert {question for run in runs for question in run.asks} == {"accuracy", "loss", "functional"}


def test_one_changed_bit_is_named() -> None:
    before = kept().outcomes[NAME]
    arrays = {name: array.copy() for name, array in before.arrays.items()}
    bias = arrays["2.bias.upper"]
    bias[0] = np.nextafter(bias[0], np.inf)
    said = golden.difference(NAME, before, replace(before, arrays=arrays))
    assert said is not None
    assert f"run '{NAME}': '2.bias.upper' is the first of 1 arrays that differ" in said
    assert f"by {np.spacing(before.arrays['2.bias.upper'][0]):.3g} at [0]" in said


@pytest.mark.parametrize("name", RUNS)
def test_elsewhere_decimals_are_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the tolerance passes on another machine, twice as much does not."""
    monkeypatch.setattr(golden, "fingerprint", lambda: "another machine")
    before, tolerance = kept().outcomes[name], RUNS[name].tolerance
    for share, agrees in ((0.1, True), (2.0, False)):
        scaled = {n: array * (1.0 + share * tolerance) for n, array in before.arrays.items()}
        assert (golden.compare(name, kept(), replace(before, arrays=scaled)) is None) is agrees
        wider = replace(before, mean_width=before.mean_width * (1.0 + share * tolerance))
        assert (golden.compare(name, kept(), wider) is None) is agrees
