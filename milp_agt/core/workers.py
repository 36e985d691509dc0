"""Work that is spread over processes, or machines, by joblib."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from milp_agt.errors import InvalidInputError, MilpAgtError

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")


def on_workers(
    task: Callable[..., Answer],
    pieces: Sequence[Piece],
    arguments: Callable[[Piece], tuple[Any, ...]],
    workers: int,
) -> dict[int, Answer]:
    """The answers of ``task(*arguments(piece))`` by the number of the piece.

    Processes are those of joblib: loky, or the backend of ``joblib.parallel_config``. A worker that dies
    takes down the others of its pool: pieces without an answer are tried once more, one pool for each, so
    that only the piece that kills its worker is missing at the end.

    Raises:
        InvalidInputError: joblib is not installed.
    """
    if find_spec("joblib") is None:
        raise InvalidInputError(
            f"{workers} workers were asked for",
            "no module joblib",
            "pip install 'milp_agt[parallel]', or workers=1",
        )
    found: dict[int, Answer] = {}
    numbers = list(range(len(pieces)))
    if not _collect(task, pieces, numbers, arguments, workers, found):
        for number in numbers:
            if number not in found:
                _collect(task, pieces, [number], arguments, workers, found)
    return found


def _collect(
    task: Callable[..., Answer],
    pieces: Sequence[Piece],
    numbers: Sequence[int],
    arguments: Callable[[Piece], tuple[Any, ...]],
    workers: int,
    found: dict[int, Answer],
) -> bool:
    """Add the answers of some pieces to ``found``; False if a worker died."""
    joblib: Any = import_module("joblib")
    jobs = (joblib.delayed(_numbered)(k, task, *arguments(pieces[k])) for k in numbers)
    try:
        pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
        answers: Iterable[tuple[int, Answer]] = pool(jobs)
        for number, answer in answers:
            found[number] = answer
    except MilpAgtError:
        raise
    except Exception:  # any error by which the chosen backend reports a dead worker
        return False
    return True


def _numbered(number: int, task: Callable[..., Answer], *arguments: Any) -> tuple[int, Answer]:
    return number, task(*arguments)
