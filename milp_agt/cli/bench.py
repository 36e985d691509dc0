"""``milp-agt bench --out DIR``: tightness, seconds and memory over steps, widths, samples, windows."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from milp_agt.cli.common import LIMIT_REACHED, PROVED, add_time_limit, window
from milp_agt.cli.progress import progress
from milp_agt.core.relaxation import levels
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import replace_text

if TYPE_CHECKING:
    from milp_agt.cli.common import Commands
    from milp_agt.experiments.bench import Benchmark, Row


def add(commands: Commands) -> None:
    """The arguments of this command."""
    parser = commands.add_parser(
        "bench",
        help="tightness, seconds and memory over steps, hidden width, samples and windows",
        description="Certify and attack two moons with a 2-h-1 relu network. The first entry of a "
        "list is its base value; one list varies at a time. Takes about a minute as it stands.",
        epilog="For example: milp-agt bench --windows T,1 --steps 10,20 --out runs/bench",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="result folder")
    parser.add_argument("--case", metavar="RUN.toml", type=Path, help="measure this run instead")
    parser.add_argument("--relaxations", metavar="A,B", type=_relaxations, help="as in certify")
    parser.add_argument("--windows", metavar="T,1", type=_windows, help="T is the whole run")
    parser.add_argument("--samples", metavar="N,N", type=_counts, help="training samples")
    parser.add_argument("--hidden", metavar="H,H", type=_counts, help="hidden units")
    parser.add_argument(
        "--steps", dest="marks", metavar="T,T", type=_counts, help="the largest ends the run"
    )
    parser.add_argument("--seeds", metavar="S,S", type=_seeds, help="of data and weights")
    parser.add_argument("--budget", metavar="N", type=int, help="poisoned samples")
    parser.add_argument("--radius", metavar="R", type=float, help="move of each feature")
    parser.add_argument(
        "--selections",
        choices=("joint", "enumerated"),
        help="how choices of poisoned samples are bounded",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or auto")
    add_time_limit(parser, "what is not reached in an equal share of it is left out")
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    parser.set_defaults(command=_bench)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_number(part, 1) for part in text.split(","))


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(_number(part, 0) for part in text.split(","))


def _number(text: str, least: int) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number >= {least}")
    return int(text)


def _windows(text: str) -> tuple[int, ...]:
    found = (window(part.strip()) for part in text.split(","))
    return tuple(0 if each == "T" else int(each) for each in found)


def _relaxations(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in levels():
            raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(levels())}")
    return names


def _bench(arguments: argparse.Namespace) -> int:
    from milp_agt.experiments.bench import Benchmark, Series, bench
    from milp_agt.experiments.bench.plot import write_plot
    from milp_agt.reports.result_folder import make_folder, write_json

    given = {
        name: value
        for name, value in vars(arguments).items()
        if name in Series.__dataclass_fields__ and value is not None
    }
    _check_case(given)
    sweep = Series(**given)
    folder = make_folder(arguments.out)
    command = shlex.join(["milp-agt", *sys.argv[1:]])
    paths = [folder / f"bench.{kind}" for kind in ("txt", "csv", "json")]
    rows: list[Row] = []

    def save(found: Benchmark) -> str:
        text = f"$ {command}\n{found.table()}\n"
        replace_text(paths[0], text)
        replace_text(paths[1], found.to_csv())
        write_json(paths[2], {"command": command, **found.to_dict()})
        return text

    with progress("rows", arguments.quiet) as advance:

        def on_row(row: Row, done: int, total: int) -> None:
            rows.append(row)
            save(Benchmark(tuple(rows), cut_short=True))
            advance(done, total, row.method)

        try:
            found = bench(sweep, on_row, within=arguments.time_limit)
        except KeyboardInterrupt:
            if not rows:
                raise
            found = Benchmark(tuple(rows), cut_short=True)
    text = save(found)
    print(text if not arguments.quiet else found.table())
    try:
        paths += write_plot(found, folder)
    except InvalidInputError as error:
        print(f"milp-agt: no figure: {error}", file=sys.stderr)
    if not arguments.quiet:
        print(f"Written: {', '.join(map(str, paths))}")
    return LIMIT_REACHED if found.cut_short else PROVED


def _check_case(given: dict[str, object]) -> None:
    """A run file has sizes, steps and a threat of its own."""
    generated = {"samples", "hidden", "marks", "seeds", "budget", "radius"}
    if "case" in given and generated & set(given):
        raise InvalidInputError(
            "Measure the run of a file",
            f"options for generated runs as well: {', '.join(sorted(generated & set(given)))}",
            "leave them out, or leave out --case",
        )
