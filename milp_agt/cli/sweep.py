"""``milp-agt sweep RUN.toml``: curves over budgets and radii, or the largest threat still certified."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from milp_agt.cli import common
from milp_agt.cli.progress import Advance, progress
from milp_agt.core.deadline import Deadline
from milp_agt.errors import InvalidInputError

if TYPE_CHECKING:
    from milp_agt.certification.result import Result
    from milp_agt.core.reachable import Bounds
    from milp_agt.experiments.sweep import Largest, Sweep, SweepCell
    from milp_agt.runfile.run_file import LoadedRun
    from milp_agt.threats import ThreatModel

STEPS_SHARE = 0.8  # of the time of a certificate; the rest is for its questions


def add(commands: common.Commands) -> None:
    """The arguments of this command."""
    parser = common.new(
        commands,
        _sweep,
        "sweep",
        "the properties of a run under many budgets and radii",
        description="How far does a certificate reach? Curves of every property over the size of the "
        "threat, or the largest threat that still proves each threshold.",
        example="sweep examples/moons.toml --budgets 1,2,4 --out runs/sweep",
    )
    parser.add_argument("run", metavar="RUN.toml", type=Path, help=common.RUN_FILE)
    parser.add_argument(
        "--budgets", metavar="1,2,4", type=common.indices, help="curve over budgets"
    )
    parser.add_argument("--radii", metavar="0.01,0.1", type=common.sizes, help="curve over radii")
    parser.add_argument(
        "--triggers",
        metavar="0,0.1",
        type=common.sizes,
        help="radii of the triggers of every backdoor",
    )
    parser.add_argument(
        "--largest",
        choices=("budget", "radius"),
        help="search the largest one that proves each threshold, and with --points each test point",
    )
    parser.add_argument(
        "--between", metavar="LOW,HIGH", type=common.sizes, help="where --largest searches"
    )
    parser.add_argument(
        "--points", action="store_true", help="with --largest: every test point too"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=common.folder, help="folder for the table as files"
    )
    common.add_time_limit(
        parser,
        "each certificate has an equal share of what is left, within that of the file; none is made after it",
    )
    common.add_options(parser, without=("time_limit",))


def _sweep(arguments: argparse.Namespace) -> int:
    from milp_agt.experiments.sweep import Sweep
    from milp_agt.reports.result_folder import make_folder
    from milp_agt.runfile.run_file import load_config

    _check(arguments)
    config = load_config(arguments.run)
    run = config.build(common.given_options(arguments))
    if not run.properties:
        raise InvalidInputError(
            f"Sweep the properties of {arguments.run}",
            "no [[property]]",
            "add one, for instance kind = 'accuracy'",
        )
    folder = None if arguments.out is None else make_folder(arguments.out)
    limits: list[Deadline] = []
    cells: list[SweepCell] = []

    def save(found: Sweep | Largest) -> list[Path]:
        return [] if folder is None else found.save(folder, "sweep")

    def on_cell(cell: SweepCell, _number: int, _cells: int) -> None:
        cells.insert(0, cell)
        save(Sweep(tuple(cells)))

    with progress("steps", quiet=False) as advance:
        certify = _certifier(run, advance, limits, _runs(arguments), common.time_left(arguments))
        try:
            if arguments.largest is None:
                found: Sweep | Largest = _curves(run, arguments, certify, on_cell)
            else:
                found = _largest(run, arguments, certify)
        except KeyboardInterrupt:
            if not cells:
                raise
            found = Sweep(tuple(cells), cut_short=True)
    print(found.table())
    if found.cut_short:
        print(
            "\ncut short: rows without seconds are bounds of larger threats; more time may tighten them"
        )
    if written := save(found):
        print(f"\nWritten: {' and '.join(map(str, written))}")
    return (
        common.LIMIT_REACHED
        if found.cut_short or any(each.missed for each in limits)
        else common.PROVED
    )


def _runs(arguments: argparse.Namespace) -> int:
    """How many certificates a sweep makes at most, or a search about."""
    if arguments.largest is None:
        return len(arguments.budgets or [0]) * len(arguments.radii or [0])
    low, high = arguments.between
    if arguments.largest == "budget":
        return 2 + max(1, int(high - low)).bit_length()
    return 2 + max(1, int(math.log(max(1.0, high / low), 1.1))).bit_length() if low > 0 else 2


def _check(arguments: argparse.Namespace) -> None:
    """Options that contradict each other."""
    swept = (arguments.budgets, arguments.radii, arguments.triggers)
    curves = any(values is not None for values in swept)
    if curves == (arguments.largest is not None):
        raise InvalidInputError(
            "Sweep over threats",
            "curves and --largest"
            if curves
            else "neither --budgets, --radii, --triggers nor --largest",
            "give --budgets and --radii for curves, or --largest budget --between 1,20",
        )
    if (arguments.largest is None) != (arguments.between is None) or (
        arguments.between is not None and len(arguments.between) != 2
    ):
        raise InvalidInputError(
            "Search the largest certified threat",
            f"--largest {arguments.largest} and --between {arguments.between}",
            "give both, for instance --largest radius --between 0.001,0.1",
        )
    if arguments.points and arguments.largest is None:
        raise InvalidInputError(
            "Search the largest threat of every test point",
            "--points without --largest",
            "add --largest budget or --largest radius",
        )


def _certifier(
    run: LoadedRun, advance: Advance, limits: list[Deadline], runs: int, time_limit: float | None
) -> Callable[[ThreatModel], Result]:
    """The run as a function of its threat; notes the time of each, and whether it was too short."""
    deadline = Deadline.within(time_limit)

    def at(threat: ThreatModel) -> Result:
        radius = getattr(getattr(threat, "features", threat), "radius", None)
        named = f"run {len(limits) + 1}: budget {threat.budget}"
        named += f", radius {radius:g}" if isinstance(radius, (int, float)) else ""
        share = Deadline.within(deadline.share(runs - len(limits)))
        result = run._replace(options=run.options.within(share.share(1, STEPS_SHARE))).certify(
            threat, on_step=lambda _result, step, steps: advance(step, steps, named)
        )
        share.missed |= result.limit_reached
        limits.append(share)
        return result.within(share)

    return at


def _curves(
    run: LoadedRun,
    arguments: argparse.Namespace,
    certify: Callable[[ThreatModel], Result],
    on_cell: Callable[[SweepCell, int, int], None],
) -> Sweep:
    from milp_agt.certification.verdicts import answers, trigger_curve
    from milp_agt.experiments.sweep import sweep
    from milp_agt.properties.backdoor import BackdoorTable

    balls = [p for p in run.properties if isinstance(p, BackdoorTable) and p.radius is not None]
    if arguments.triggers is None:
        balls = []
    elif not balls or min(arguments.triggers) < 0:
        raise InvalidInputError(
            "Sweep over the radii of triggers",
            f"radii {arguments.triggers} and {len(balls)} backdoors with a radius",
            "give radii >= 0, and a [[property]] with kind = 'backdoor' and a radius",
        )
    others = [p for p in run.properties if p not in balls]

    def ask(result: Result) -> dict[str, Bounds]:
        found = answers(result, run.dataset, others)
        for table in balls:
            found |= trigger_curve(result, run.dataset, table, arguments.triggers)
        return found

    return sweep(
        certify,
        run.threat,
        ask,
        budgets=arguments.budgets,
        radii=arguments.radii,
        within=common.time_left(arguments),
        on_cell=on_cell,
    )


def _largest(
    run: LoadedRun, arguments: argparse.Namespace, certify: Callable[[ThreatModel], Result]
) -> Largest:
    from milp_agt.certification.verdicts import judge
    from milp_agt.experiments.sweep import largest

    if not arguments.points and all(p.at_least is p.at_most is None for p in run.properties):
        raise InvalidInputError(
            "Search the largest threat that proves a threshold",
            "properties without at_least or at_most",
            "add a threshold, or search for every test point with --points",
        )

    def holds(result: Result) -> dict[str, bool | str]:
        found: dict[str, bool | str] = {}
        for asked in run.properties:
            for verdict in judge(result, run.dataset, asked):
                if verdict.threshold != "-":
                    found[f"{verdict.name} {verdict.threshold}"] = verdict.status
                if not arguments.points or verdict.points is None:
                    continue
                judged = verdict.points.get("verdict", ())
                for row, state in zip(verdict.points["row"], judged, strict=bool(judged)):
                    found[f"{verdict.name}: row {row}"] = state
        return found

    low, high = arguments.between
    within = common.time_left(arguments)
    if arguments.largest == "budget":
        budgets = int(low), int(high)
        return largest(certify, run.threat, holds, budgets=budgets, within=within)
    return largest(certify, run.threat, holds, radii=(low, high), within=within)
