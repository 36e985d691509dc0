"""Where in the user's own code something happened, for messages."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)
_PACKAGE = str(Path(__file__).parent.parent)


@dataclass(frozen=True)
class Place:
    """A line of the user's code.

    Attributes:
        line: file and number, for instance ``train.py:31``.
        through: the function of torch that the line called and in which it happened; '' for none.
    """

    line: str
    through: str

    def __str__(self) -> str:
        return f"{self.through}() at {self.line}" if self.through else self.line


def place() -> Place:
    """The innermost frame of the stack that is neither torch's nor of this package."""
    frame = sys._getframe(1)
    through = ""
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if name.startswith(_TORCH):
            called = frame.f_code.co_name
            wrapper = called.startswith("_") or called in ("wrapper", "inner", "decorate_context")
            through = through if wrapper else called
        elif not name.startswith(_OWN):
            break
        frame = frame.f_back
    return Place(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}", through)


def called_by_torch() -> bool:
    """Whether the call that is being watched was made by torch's own code, not by a user's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(_TORCH)


def asks_for_edge() -> bool:
    """Whether the call that is being watched looks up a node of the graph for ``get_gradient_edge``."""
    frame = sys._getframe(1)
    for _ in range(8):
        if frame.f_code.co_name == "get_gradient_edge" and frame.f_back is not None:
            return not frame.f_back.f_code.co_filename.startswith((_TORCH, _PACKAGE))
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False
