"""The command line: one room for each command.

Exit codes: 0 every requested property is proved, 1 not proved, 2 bad input, 4 a limit (time or
Ctrl-C) was reached first.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from milp_agt.cli import attack, bench, certify, compare, report, solvers, sweep
from milp_agt.cli.common import BAD_INPUT, LIMIT_REACHED
from milp_agt.errors import MilpAgtError

COMMANDS = (certify, attack, compare, bench, sweep, report, solvers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one message on stderr."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help or its complaint
        return int(stop.code or 0)
    try:
        command: Callable[[argparse.Namespace], int] = arguments.command
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return command(arguments)
    except MilpAgtError as error:
        print(f"milp-agt: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("milp-agt: interrupted before the first result; nothing was written", file=sys.stderr)
        return LIMIT_REACHED


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line for people, without the place in the code."""
    print(f"milp-agt: note: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="milp-agt",
        description="Certify training runs against data poisoning.",
        epilog="Exit codes: 0 proved, 1 not proved, 2 bad input, 4 a limit was reached first.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
