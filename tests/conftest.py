"""One thread for each process: with two workers on two cores, more would only wait for each other."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite threats are bounded as those whose data sets are too many for a list."""
    from milp_agt.certification import listing

    monkeypatch.setattr(listing, "count_choices", lambda *_: float("inf"))
