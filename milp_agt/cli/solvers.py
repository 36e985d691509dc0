"""``milp-agt solvers``: which back ends are installed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from milp_agt.cli.common import PROVED
from milp_agt.io.tables import format_table

if TYPE_CHECKING:
    from milp_agt.cli.common import Commands


def add(commands: Commands) -> None:
    """The arguments of this command."""
    parser = commands.add_parser(
        "solvers",
        help="which solvers are installed",
        description="Back ends of the relaxations lp, milp, qcqp and miqp: installed or not, version, "
        "what each can solve.",
    )
    parser.set_defaults(command=_solvers)


def _solvers(_: argparse.Namespace) -> int:
    from milp_agt.solvers import solver_table

    rows = [
        (
            row.name,
            "yes" if row.available else "no",
            row.version or "-",
            row.capabilities,
            row.note or "-",
        )
        for row in solver_table()
    ]
    print(format_table(("solver", "installed", "version", "solves", "note"), rows))
    return PROVED
