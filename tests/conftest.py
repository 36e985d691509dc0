"""One thread for each process, and what many tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

# With two workers on two cores, more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

gc.disable()  # nothing that is made while tests are collected is garbage


def pytest_collection_finish() -> None:
    """What was collected belongs to no run: searches through all objects, as for hooks, leave it out."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def linear_alone() -> Iterator[None]:
    """No zonotope beside linear forms and programs: for tests of what these prove by themselves."""
    import golden

    with golden.linear_alone():
        yield


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite threats are bounded as those whose data sets are too many for a list."""
    from milp_agt.certification import listing

    monkeypatch.setattr(listing.listed, "count_choices", lambda *_: float("inf"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as empty pictures, where a test is about words and tables: drawing takes seconds."""

    from milp_agt.reports import figures

    def empty(name: str, _figure: Any, alt: str) -> object:
        return figures.Picture(name, "<svg></svg>", b"", alt)

    monkeypatch.setattr(figures, "_picture", empty)
