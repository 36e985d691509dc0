"""``milp-agt compare RUN.toml``: several relaxations side by side on one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from milp_agt.cli.common import LIMIT_REACHED, PROVED, RELAXATIONS, window
from milp_agt.cli.progress import progress

if TYPE_CHECKING:
    from milp_agt.cli.common import Commands


def add(commands: Commands) -> None:
    """The arguments of this command."""
    parser = commands.add_parser("compare", help="several relaxations on the same run")
    parser.add_argument("run", metavar="RUN.toml", type=Path)
    parser.add_argument(
        "--relaxations", metavar="A,B", type=_relaxations, default=("interval", "linear", "lp")
    )
    parser.add_argument("--windows", metavar="1,3,T", type=_windows, default=(1,))
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for the table as files")
    parser.set_defaults(command=_compare)


def _windows(text: str) -> tuple[int | str, ...]:
    return tuple(window(part.strip()) for part in text.split(","))


def _relaxations(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in RELAXATIONS:
            raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(RELAXATIONS)}")
    return names


def _compare(arguments: argparse.Namespace) -> int:
    from milp_agt.comparison import compare
    from milp_agt.config import load_config
    from milp_agt.output import make_folder

    run = load_config(arguments.run).build()
    dataset, options = run.dataset, run.options
    folder = None if arguments.out is None else make_folder(arguments.out)
    with progress("rows", quiet=False) as advance:
        comparison = compare(
            run.model,
            (dataset.x_train, dataset.y_train),
            run.training,
            run.threat,
            relaxations=arguments.relaxations,
            windows=arguments.windows,
            X_test=dataset.x_test if len(dataset.x_test) else None,
            y_test=dataset.y_test if len(dataset.x_test) else None,
            program_window=options.program_window,
            inner_bounds=options.inner_bounds,
            selections=options.selections,
            solver=options.solver,
            device=options.device,
            memory=options.memory,
            time_limit=options.time_limit,
            on_row=lambda row, count, total: advance(count, total, row.relaxation),
        )
    print(comparison.table())
    if folder is not None:
        (folder / "compare.csv").write_text(comparison.to_csv(), encoding="utf-8")
        (folder / "compare.json").write_text(comparison.to_json(), encoding="utf-8")
        print(f"\nWritten: {folder / 'compare.csv'} and {folder / 'compare.json'}")
    return LIMIT_REACHED if comparison.limit_reached else PROVED
