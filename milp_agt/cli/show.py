"""Commands that show what is there: ``check``, ``report``, ``options`` and ``solvers``."""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from milp_agt.checker import __main__ as checker
from milp_agt.cli import common
from milp_agt.errors import InvalidInputError
from milp_agt.io.tables import format_table

if TYPE_CHECKING:
    from milp_agt.runfile.reference import OptionTable

WIDEST = 100  # characters of a line


def add_check(commands: common.Commands) -> None:
    parser = common.new(
        commands,
        _check,
        "check",
        "check the certificate of a result folder",
        description="Prove what a certificate states anew, with nothing of what made it: numpy alone. "
        "A result folder keeps what came of it, for milp-agt report. "
        "Exit codes: 0 PROVED, 1 NOT PROVED or NOT COVERED, 2 no certificate there, 3 REJECTED.",
        example="check runs/iris",
    )
    checker.add_arguments(parser)


def _check(arguments: argparse.Namespace) -> int:
    from milp_agt.reports import audit

    if found := checker.missing(arguments.folder):
        asked = f"Check the certificate in {arguments.folder}"
        raise InvalidInputError(asked, found, checker.REMEDY)
    report, words = checker.checked(arguments)
    print(words)
    if (arguments.folder / "result.json").exists():
        try:
            audit.save(arguments.folder, report)
        except OSError as error:  # an auditor's copy may be read-only
            common.tell(f"note: {audit.NAME} was not kept: {error}")
    return report.outcome.exit_code


def add_report(commands: common.Commands) -> None:
    parser = common.new(
        commands,
        _report,
        "report",
        "report.html and figures of a result folder",
        description="Make the page anew from the files of a result folder: result.json and, where it "
        "is there, evidence.npz. Nothing is computed again.",
        example="report runs/iris",
    )
    parser.add_argument("folder", metavar="DIR", type=common.folder, help="as written by certify")


def _report(arguments: argparse.Namespace) -> int:
    from milp_agt.reports import write_page

    print(f"Written: {write_page(arguments.folder)}")
    return common.PROVED


def add_options(commands: common.Commands) -> None:
    parser = common.new(
        commands,
        _options,
        "options",
        "the tables and keys of a run file",
        description="Every key of a RUN.toml: which values it takes, what it is when left out, and what "
        "it means.",
        example="options certify",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("table", metavar="TABLE", nargs="?", help="one table only, such as certify")
    what.add_argument(
        "--schema", action="store_true", help="print the JSON schema, for editors of TOML"
    )


def _options(arguments: argparse.Namespace) -> int:
    from milp_agt.runfile.reference import json_schema, option_tables, section

    if arguments.schema:
        print(json.dumps(json_schema(), indent=2))
        return common.PROVED
    tables = option_tables()
    if arguments.table is not None:
        tables = (_named(arguments.table, tables),)
    width = min(shutil.get_terminal_size((WIDEST, 0)).columns, WIDEST)
    print("\n\n".join(section(table, width) for table in tables))
    return common.PROVED


def _named(asked: str, tables: Sequence[OptionTable]) -> OptionTable:
    """The table of this name, with brackets or without.

    Raises:
        InvalidInputError: there is none.
    """
    known = {table.name: table for table in tables}
    name = asked.strip("[]")
    if name in known:
        return known[name]
    homes = [table for table in tables if name in (option.key for option in table.options)]
    near = difflib.get_close_matches(name, known, 1)
    remedy = f"choose from {', '.join(known)}"
    raise InvalidInputError(
        f"Print the options of the table '{asked}'",
        f"a key of {homes[0].header}" if homes else "no such table",
        f"milp-agt options {homes[0].name}"
        if homes
        else (f"did you mean '{near[0]}'? " if near else "") + remedy,
    )


def add_solvers(commands: common.Commands) -> None:
    common.new(
        commands,
        _solvers,
        "solvers",
        "which solvers are installed",
        description="Back ends of the relaxations lp, milp, qcqp and miqp: installed or not, version, "
        "licence.",
    )


def _solvers(_: argparse.Namespace) -> int:
    from milp_agt.solvers import solver_table

    rows = [
        (s.name, "yes" if s.available() else "no", s.version() or "-", s.note or "-")
        for s in solver_table()
    ]
    print(format_table(("solver", "installed", "version", "note"), rows))
    return common.PROVED
