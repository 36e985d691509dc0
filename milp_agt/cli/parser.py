"""Arguments of the command line: complaints in three parts, with the nearest word that is known."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from typing import NoReturn

from milp_agt.errors import InvalidInputError

CHOICE = re.compile(
    r"(?P<where>argument .*?): invalid choice: '(?P<word>.*?)' \(choose from (?P<all>.*)\)"
)
UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.*)")


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of leaving; the epilog is a command that works."""

    def error(self, message: str) -> NoReturn:
        """Turn a complaint into an error.

        Raises:
            InvalidInputError: always.
        """
        found, remedy = message, ""
        if choice := CHOICE.fullmatch(message):
            found = f"{choice['where']}: '{choice['word']}'"
            known = choice["all"].replace("'", "")
            remedy = f"{_nearest(choice['word'], known.split(', '))}choose from {known}"
        elif unknown := UNKNOWN.fullmatch(message):
            first = unknown["words"].partition(" ")[0]  # an argument may be empty
            remedy = _nearest(first, list(self._options()))
            remedy += f"'{self.prog} COMMAND --help' lists all arguments"
        elif self.epilog:
            remedy = f"{self.epilog[0].lower()}{self.epilog[1:]}; '{self.prog} --help' says more"
        raise InvalidInputError(f"Run '{self.prog}'", found, remedy or f"see '{self.prog} --help'")

    def _options(self) -> Iterator[str]:
        """Names of options, those of all commands included."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from command._options()


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word.partition("=")[0], known, 1)
    return f"did you mean '{near[0]}'? " if near else ""
