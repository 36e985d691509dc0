"""``milp-agt compare RUN.toml``: several relaxations side by side on one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from milp_agt.cli import common
from milp_agt.cli.progress import progress

if TYPE_CHECKING:
    from milp_agt.experiments.compare import ComparisonRow


def add(commands: common.Commands) -> None:
    """The arguments of this command."""
    parser = common.new(
        commands,
        _compare,
        "compare",
        "several relaxations on the same run",
        description="Certify one run by several relaxations, windows and solvers, side by side. All "
        "bounds hold; a smaller width is tighter.",
        example="compare examples/moons.toml --windows 1,T",
    )
    parser.add_argument("run", metavar="RUN.toml", type=Path, help=common.RUN_FILE)
    parser.add_argument(
        "--relaxations",
        metavar="A,B",
        type=common.relaxations,
        default=("interval", "linear", "lp"),
        help="relaxations to compare (default: interval,linear,lp)",
    )
    parser.add_argument(
        "--windows",
        metavar="1,3,T",
        type=common.windows,
        default=(1,),
        help="steps that bounds are followed through, T for all (default: 1)",
    )
    parser.add_argument(
        "--solvers", metavar="A,B", type=common.names, help="for relaxations that solve programs"
    )
    parser.add_argument("--attack", action="store_true", help="how far is each row from attacks?")
    parser.add_argument(
        "--out", metavar="DIR", type=common.folder, help="folder for the table as files"
    )
    common.add_time_limit(
        parser,
        "each row has an equal share of what is left, within that of the file; rows after it are left out",
    )
    common.add_options(parser, without=("relaxation", "window", "solver", "time_limit"))


def _compare(arguments: argparse.Namespace) -> int:
    from milp_agt.experiments.compare import Comparison, compare
    from milp_agt.reports.result_folder import make_folder
    from milp_agt.runfile.run_file import load_config
    from milp_agt.solvers import get_solver

    for name in arguments.solvers or ():
        get_solver(name)  # an unknown name is an error before any work
    run = load_config(arguments.run).build(common.given_options(arguments))
    dataset, options = run.dataset, run.options
    folder = None if arguments.out is None else make_folder(arguments.out)
    rows: list[ComparisonRow] = []
    with progress("rows", quiet=False) as advance:

        def on_row(row: ComparisonRow, count: int, total: int) -> None:
            rows.append(row)
            if folder is not None:
                Comparison(tuple(rows)).save(folder, "compare")
            advance(count, total, row.name)

        try:
            comparison = compare(
                run.model,
                run.dataset,
                run.training,
                run.threat,
                relaxations=arguments.relaxations,
                windows=arguments.windows,
                X_test=dataset.x_test if len(dataset.x_test) else None,
                y_test=dataset.y_test if len(dataset.x_test) else None,
                solvers=arguments.solvers or (options.solver,),
                attack=arguments.attack,
                within=common.time_left(arguments),
                options=options,
                on_row=on_row,
            )
        except KeyboardInterrupt:
            if not rows:
                raise
            comparison = Comparison(tuple(rows), ("other rows: interrupted",), cut_short=True)
    print(comparison.table())
    if folder is not None:
        written = comparison.save(folder, "compare")
        written += common.drawn(lambda: comparison.plot(folder))
        print(f"\nWritten: {', '.join(map(str, written))}")
    return common.LIMIT_REACHED if comparison.limit_reached else common.PROVED
