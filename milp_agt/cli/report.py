"""``milp-agt report DIR``: the page and the figures of a result folder, made anew."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from milp_agt.cli.common import PROVED

if TYPE_CHECKING:
    from milp_agt.cli.common import Commands


def add(commands: Commands) -> None:
    """The arguments of this command."""
    parser = commands.add_parser(
        "report",
        help="report.html and figures of a result folder",
        description="Make the page anew from the files of a result folder: result.json and, where they "
        "are there, evidence.npz and sweep.json. Nothing is computed again.",
        epilog="For example: milp-agt report runs/iris",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="as written by certify")
    parser.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> int:
    from milp_agt.reports import write_page

    print(f"Written: {write_page(arguments.folder)}")
    return PROVED
