"""What the commands share: exit codes, names of relaxations, and arguments of one form."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from milp_agt.core.relaxation import Relaxation

if TYPE_CHECKING:
    from milp_agt.cli.parser import Parser

    Commands = argparse._SubParsersAction[Parser]

PROVED, NOT_PROVED, BAD_INPUT, LIMIT_REACHED = 0, 1, 2, 4
RELAXATIONS = (*(level.value for level in Relaxation), "auto")


RUN_FILE = (
    "a run file: data, model, training, threat, what is to be proved (see 'milp-agt options')"
)


def window(text: str) -> int | str:
    if text == "T":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of steps >= 1 nor T")
    return int(text)
