"""Where in the user's own code something happened, for messages."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)
_PACKAGE = str(Path(__file__).parent.parent)


def place() -> str:
    """The innermost line of the stack that is neither torch's nor of this package.

    ``train.py:31``, or ``step() at train.py:31`` where it called the function of torch in which it happened.
    """
    frame, through = sys._getframe(1), ""
    while frame.f_back is not None:
        name, called = frame.f_code.co_filename, frame.f_code.co_name
        if name.startswith(_TORCH):
            wrapper = called.startswith("_") or called in ("wrapper", "inner", "decorate_context")
            through = through if wrapper else f"{called}() at "
        elif not name.startswith(_OWN):
            break
        frame = frame.f_back
    return f"{through}{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


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
        if frame.f_back is None:
            return False
        if frame.f_code.co_name == "get_gradient_edge":
            return not frame.f_back.f_code.co_filename.startswith((_TORCH, _PACKAGE))
        frame = frame.f_back
    return False
