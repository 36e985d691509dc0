"""``milp-agt check DIR``: is what a certificate states proved?"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from milp_agt.checker import __main__ as checker

if TYPE_CHECKING:
    from milp_agt.cli.common import Commands


def add(commands: Commands) -> None:
    """The arguments of this command."""
    parser = commands.add_parser(
        "check",
        help="check the certificate of a result folder",
        description="Prove what a certificate states anew, with nothing of what made it: numpy alone. "
        "A result folder keeps what came of it, for milp-agt report. "
        "Exit codes: 0 PROVED, 1 NOT PROVED or NOT COVERED, 3 REJECTED.",
        epilog="For example: milp-agt check runs/iris",
    )
    checker.add_arguments(parser)
    parser.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> int:
    from milp_agt.reports import audit

    report = checker.checked(arguments)
    print(checker.in_words(report))
    if (arguments.folder / "result.json").exists():
        try:
            audit.save(arguments.folder, report)
        except OSError as error:  # an auditor's copy may be read-only
            print(f"milp-agt: note: {audit.NAME} was not kept: {error}", file=sys.stderr)
    return report.outcome.exit_code
