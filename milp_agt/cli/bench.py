"""``milp-agt bench --out DIR``: tightness, seconds and memory over steps, widths, samples, windows."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from milp_agt.cli import common
from milp_agt.cli.progress import progress
from milp_agt.io.files import replace_text

if TYPE_CHECKING:
    from milp_agt.experiments.bench import Benchmark, Row


def add(commands: common.Commands) -> None:
    """The arguments of this command."""
    parser = common.new(
        commands,
        _bench,
        "bench",
        "tightness, seconds and memory over steps, hidden width, samples and windows",
        description="Certify and attack two moons with a 2-h-1 relu network. The first entry of a "
        "list is its base value; one list varies at a time. Takes about a minute as it stands.",
        example="bench --windows T,1 --steps 10,20 --out runs/bench",
    )
    argument = parser.add_argument
    argument("--out", metavar="DIR", type=common.folder, required=True, help="result folder")
    argument("--relaxations", metavar="A,B", type=common.relaxations, help="as in certify")
    argument("--windows", metavar="T,1", type=common.many(_window), help="T is the whole run")
    argument("--samples", metavar="N,N", type=common.counts, help="training samples")
    argument("--hidden", metavar="H,H", type=common.counts, help="hidden units")
    argument(
        "--steps", dest="marks", metavar="T,T", type=common.counts, help="the largest ends the run"
    )
    argument("--seeds", metavar="S,S", type=common.indices, help="of data and weights")
    argument("--budget", metavar="N", type=int, help="poisoned samples")
    argument("--radius", metavar="R", type=float, help="move of each feature")
    argument("--device", metavar="NAME", help="cpu, cuda or auto")
    common.add_time_limit(parser, "what is not reached in an equal share of it is left out")
    argument("--quiet", action="store_true", help="print the table only")


def _window(text: str) -> int:
    found = common.window(text)
    return 0 if isinstance(found, str) else found


def _bench(arguments: argparse.Namespace) -> int:
    from milp_agt.experiments.bench import Benchmark, Series, bench
    from milp_agt.reports.result_folder import make_folder, write_json

    given = {
        name: value
        for name, value in vars(arguments).items()
        if name in Series.__dataclass_fields__ and value is not None
    }
    sweep = Series(**given)
    folder = make_folder(arguments.out)
    command = shlex.join(["milp-agt", *sys.argv[1:]])
    paths = [folder / f"bench.{kind}" for kind in ("txt", "json")]
    rows: list[Row] = []

    def save(found: Benchmark) -> str:
        text = f"$ {command}\n{found.table()}\n"
        replace_text(paths[0], text)
        write_json(paths[1], {"command": command, **found.to_dict()})
        return text

    with progress("rows", arguments.quiet) as advance:

        def on_row(row: Row, done: int, total: int) -> None:
            rows.append(row)
            save(Benchmark(tuple(rows), cut_short=True))
            advance(done, total, row.method)

        try:
            found = bench(sweep, on_row, within=common.time_left(arguments))
        except KeyboardInterrupt:
            if not rows:
                raise
            found = Benchmark(tuple(rows), cut_short=True)
    text = save(found)
    print(text if not arguments.quiet else found.table())
    if not arguments.quiet:
        print(f"Written: {', '.join(map(str, paths))}")
    return common.LIMIT_REACHED if found.cut_short else common.PROVED
