"""What is refused: one error in three parts, and the words that each of them holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from milp_agt.errors import InvalidInputError, MilpAgtError

Kinds = type[MilpAgtError] | tuple[type[MilpAgtError], ...]


@contextmanager
def refused(
    asked: str = "",
    found: str = "",
    remedy: str = "",
    *,
    said: str = "",
    kind: Kinds = InvalidInputError,
) -> Iterator[pytest.ExceptionInfo[MilpAgtError]]:
    """The block raises an error of this kind: its three parts are there, and hold these words.

    ``said`` may stand in any of the parts.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    for words, part in ((asked, error.asked), (found, error.found), (remedy, error.remedy)):
        assert part, error
        assert words in part, (words, part)
    assert said in str(error)
    assert "Found: " in str(error)
    assert "What to do: " in str(error)
