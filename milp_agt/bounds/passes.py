"""How many rows share a backward pass; fewer after memory has run out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from milp_agt.errors import InvalidInputError

T = TypeVar("T")

# Messages of torch's allocators when they raise a plain RuntimeError for lack of memory.
REFUSALS = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(r in str(error) for r in REFUSALS)


@dataclass
class Passes:
    """How many rows share a pass; halved for good whenever a pass runs out of memory.

    Attributes:
        most: the largest number of rows to try; None as long as memory has sufficed.
        halved: rows before and after each halving since the last call of :meth:`told`.
    """

    most: int | None = None
    halved: list[tuple[int, int]] = field(default_factory=list)

    def limit(self, rows: int) -> int:
        """``rows``, or fewer if memory has room for fewer."""
        return rows if self.most is None else min(rows, self.most)

    def run(
        self, rows: Tensor, chunk: int, work: Callable[[Tensor], T]
    ) -> Iterator[tuple[Tensor, T]]:
        """Yield pieces of at most ``chunk`` rows with the result of ``work`` on each, in order.

        Raises:
            InvalidInputError: memory does not suffice for a single row.
        """
        waiting = list(rows.split(self.limit(chunk)))[::-1]
        while waiting:
            part = waiting.pop()
            if len(part) > self.limit(chunk):
                waiting += list(part.split(self.limit(chunk)))[::-1]
                continue
            done, refused = None, ""
            try:
                done = work(part)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                refused = str(error) or type(error).__name__
            # Outside the handler, because the error keeps the tensors of the pass alive.
            if done is not None:
                yield part, done
                continue
            self._halve(len(part), refused)
            waiting.append(part)

    def _halve(self, rows: int, refused: str) -> None:
        if rows <= 1:
            raise InvalidInputError(
                "Linear forms are walked back through the window, one row at a time at least",
                f"no memory for a single row ({refused.splitlines()[0]})",
                "take a shorter window or smaller batches, or relaxation='interval'",
            )
        self.most = rows // 2
        self.halved.append((rows, self.most))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def told(self) -> list[tuple[int, int]]:
        """The halvings since the last call."""
        found, self.halved = self.halved, []
        return found


def in_passes(count: int, chunk: int, work: Callable[[Tensor], T]) -> list[T]:
    """Results of ``work`` on ``count`` rows, ``chunk`` at once; warns if memory forced fewer rows."""
    passes = Passes()
    found = [done for _, done in passes.run(torch.arange(count), chunk, work)]
    if passes.most is not None:
        warnings.warn(
            f"Memory ran out with {passes.halved[0][0]} rows in a pass; {passes.most} shared one.",
            UserWarning,
            stacklevel=2,
        )
    return found
