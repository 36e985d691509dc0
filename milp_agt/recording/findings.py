"""What was found in a loop: the first difference ends the watching, the rest stands in the claim."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from milp_agt.errors import MilpAgtError
from milp_agt.recording.passes import differs

# What was found, and what to do.
_REFUSED = {
    "hook": ("a hook on a tensor ({at})", "leave it out"),
    "node": (
        "a node of the gradient's graph that is taken in hand ({at}), on which hooks cannot be seen",
        "leave grad_fn out",
    ),
    "read": (
        "a forward that reads the values of tensors ({at}), and may branch on them",
        "compute with tensors throughout",
    ),
}
# What is assumed where numbers are only logged, else what was found, and what to do.
_ONLY_LOGGED = {
    "compared": (
        "The number that is compared or converted at {line} decides neither the number of steps nor "
        "anything in them.",
        "a number of the training is compared or converted at {at}, which may stop it, skip a step or "
        "change one",
        "train for a fixed number of steps; if the comparison only logs or saves something",
    ),
    "left": (
        "What is read at {line} is only printed or saved.",
        "numbers of the training leave torch at {at}, where nobody sees what they decide",
        "keep them as tensors, or read single numbers with item(); if they are only printed or saved",
    ),
}


class Findings:
    """Is told what a loop does with its numbers, and keeps what is wrong and what is assumed.

    Attributes:
        problem: why the run cannot be certified, if it cannot.
        deaf: True where nothing is listened to: inside a step of the optimiser, and after a problem.
        in_forward: True while the model is called.
        assumed: what is assumed of the loop, in words (a set that keeps its order).
        batches: the samples of each finished step.
    """

    def __init__(self, values_only_logged: bool) -> None:
        self.problem: MilpAgtError | None = None
        self.deaf, self.in_forward = True, False
        self.assumed: dict[str, None] = {}
        self.batches: list[tuple[int, ...]] = []
        self._values_only_logged = values_only_logged

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What is done inside is nobody's business: a loader reads its samples."""
        before, self.deaf = self.deaf, True
        try:
            yield
        finally:
            self.deaf = before or self.problem is not None

    def attempt(self, check: Callable[[], object], where: str | None = None) -> None:
        """Run a check; the first one that fails is the problem."""
        if self.problem is not None:
            return
        try:
            check()
        except MilpAgtError as error:
            where = f"step {len(self.batches) + 1}: " if where is None else where
            self.problem = type(error)(error.asked, f"{where}{error.found}", error.remedy)
            self.deaf = True
            told = f"This run cannot be certified. {self.problem}"
            warnings.warn(told, UserWarning, stacklevel=2)

    def refuse(self, found: str, remedy: str) -> None:
        def fail() -> None:
            raise differs(found, remedy)

        self.attempt(fail)

    def saw(self, what: str, at: str) -> None:
        """Something that makes another run of it, or may: a key of the tables above, and where."""
        if what in _REFUSED:
            found, remedy = _REFUSED[what]
            self.refuse(found.format(at=at), remedy)
            return
        assumed, found, remedy = _ONLY_LOGGED[what]
        if self._values_only_logged:
            self.assumed[assumed.format(line=at.rpartition(" at ")[2])] = None
        else:
            logged = "record with agt.record(..., values_only_logged=True)"
            self.refuse(found.format(at=at), f"{remedy}, {logged}")
