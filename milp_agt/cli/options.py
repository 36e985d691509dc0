"""``milp-agt options [TABLE]``: what may stand in a run file."""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from milp_agt.cli.common import PROVED
from milp_agt.errors import InvalidInputError

if TYPE_CHECKING:
    from milp_agt.cli.common import Commands
    from milp_agt.runfile.reference import OptionTable

WIDEST = 100  # characters of a line


def add(commands: Commands) -> None:
    """The arguments of this command."""
    parser = commands.add_parser(
        "options",
        help="the tables and keys of a run file",
        description="Every key of a RUN.toml: which values it takes, what it is when left out, and what "
        "it means.",
        epilog="For example: milp-agt options certify",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("table", metavar="TABLE", nargs="?", help="one table only, such as certify")
    what.add_argument(
        "--schema", action="store_true", help="print the JSON schema, for editors of TOML"
    )
    parser.set_defaults(command=_options)


def _options(arguments: argparse.Namespace) -> int:
    from milp_agt.runfile.reference import json_schema, option_tables, text

    if arguments.schema:
        print(json.dumps(json_schema(), indent=2))
        return PROVED
    tables = option_tables()
    if arguments.table is not None:
        tables = (_named(arguments.table, tables),)
    width = min(shutil.get_terminal_size((WIDEST, 0)).columns, WIDEST)
    print("\n\n\n".join(text(table, width) for table in tables))
    return PROVED


def _named(asked: str, tables: Sequence[OptionTable]) -> OptionTable:
    """The table of this name, with brackets or without.

    Raises:
        InvalidInputError: there is none.
    """
    known = {table.name: table for table in tables}
    name = asked.strip("[]")
    if name in known:
        return known[name]
    found, remedy = "no such table", f"choose from {', '.join(known)}"
    homes = [table for table in tables if name in (option.key for option in table.options)]
    near = difflib.get_close_matches(name, known, 1)
    if homes:
        found = f"a key of {', '.join(home.header for home in homes)}"
        remedy = f"milp-agt options {homes[0].name}"
    elif near:
        remedy = f"did you mean '{near[0]}'? {remedy}"
    raise InvalidInputError(f"Print the options of the table '{asked}'", found, remedy)
