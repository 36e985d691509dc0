"""Out of memory halves the rows of a pass and goes on, to the same bounds; any other error does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from attacks import network
from boxes import assert_same

import milp_agt as agt
from milp_agt.bounds.linear import intermediate, window_bounds
from milp_agt.bounds.passes import Passes, is_out_of_memory
from milp_agt.errors import InvalidInputError

CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
ERRORS = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError(CPU),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8000000000 bytes."),
)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_counts_as_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), ValueError("memory")])
def test_what_does_not(error: Exception) -> None:
    assert not is_out_of_memory(error)
    passes = Passes()

    def work(rows: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(type(error)):
        list(passes.run(torch.arange(4), 4, work))
    assert passes.most is None


def limited(most: int, error: Exception) -> Callable[[torch.Tensor], torch.Tensor]:
    def work(rows: torch.Tensor) -> torch.Tensor:
        if len(rows) > most:
            raise error
        return 2 * rows

    return work


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_rows_come_in_order_and_fewer_at_once(error: Exception) -> None:
    passes = Passes()
    rows = torch.arange(23)
    pieces = list(passes.run(rows, 16, limited(3, error)))
    assert torch.cat([part for part, _ in pieces]).tolist() == rows.tolist()
    assert torch.cat([done for _, done in pieces]).tolist() == (2 * rows).tolist()
    assert passes.most == 2
    assert passes.told() == [(16, 8), (8, 4), (4, 2)]
    assert passes.told() == []
    # It is not tried again.
    assert [len(part) for part, _ in passes.run(rows[:5], 16, limited(3, error))] == [2, 2, 1]
    assert passes.told() == []


def test_a_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(InvalidInputError) as error:
        list(Passes().run(torch.arange(4), 4, limited(0, RuntimeError(CPU))))
    for part in ("one row at a time", "DefaultCPUAllocator", "shorter window"):
        assert part in str(error.value)


def certified(**options: object) -> agt.Result:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (8,), generator=generator)
    training = agt.Training(loss="bce", learning_rate=0.3, epochs=3)
    threat = agt.FeaturePoisoning(1, 0.02)
    return agt.certify(network((2, 3, 1), seed=1), (x, y), training, threat, **options)


@pytest.mark.parametrize("error", ERRORS[1:3], ids=repr)
@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_a_run_goes_on_with_fewer_rows(
    error: Exception, selections: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"selections": selections, "inner_bounds": "linear"}
    plain = certified(**options)
    assert not plain.notes
    walk, failed = window_bounds.propagate_backward, []

    def starved(*arguments, **named):
        forms = arguments[2]
        if arguments[1].step.index == 1 and forms.rows > 5:
            failed.append(forms.rows)
            raise error
        return walk(*arguments, **named)

    monkeypatch.setattr(window_bounds, "propagate_backward", starved)
    monkeypatch.setattr(intermediate, "propagate_backward", starved)
    result = certified(**options)
    assert_same(result.reachable, plain.reachable, rtol=1e-12, atol=1e-14)
    assert len(result.notes) == len(failed)
    outer = [text for text in result.notes if "inner rows" not in text]
    assert not result.fallbacks
    assert outer
    assert len(outer) < len(result.notes)
    assert all("memory ran out with" in text for text in result.notes)
    assert outer[0].startswith("step 2: ")
    assert f"{failed[-1] // 2} share one" in result.notes[-1]


def test_questions_warn_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    result = certified(selections="joint", carried="none")
    x, y = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])
    plain, suspects = result.margins(x, y), result.suspects()
    walk = window_bounds.propagate_backward

    def starved(*arguments, **named):
        if arguments[2].rows > 1:
            raise MemoryError
        return walk(*arguments, **named)

    monkeypatch.setattr(window_bounds, "propagate_backward", starved)
    with pytest.warns(UserWarning, match="Memory ran out with 4 rows in a pass; 1 shared one"):
        margins = result.margins(x, y)
    assert np.allclose(margins, plain, rtol=1e-12)
    with pytest.warns(UserWarning, match="Memory ran out"):
        again = result.suspects()
    assert [s.sample for s in again] == [s.sample for s in suspects]
    assert [s.width for s in again] == pytest.approx([s.width for s in suspects], rel=1e-9)
