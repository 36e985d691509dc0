"""``milp-agt attack RUN.toml --out DIR``: what poisoned data really reach."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from milp_agt.cli import common
from milp_agt.cli.progress import progress
from milp_agt.core.deadline import Deadline
from milp_agt.io.tables import format_number, format_table

if TYPE_CHECKING:
    from milp_agt.attacks import Attack, Objective
    from milp_agt.runfile.run_file import LoadedRun


def add(commands: common.Commands) -> None:
    """The arguments of this command."""
    parser = common.new(
        commands,
        _attack,
        "attack",
        "search for the worst poisoned data of the run described in a TOML file",
        description="The other side of a certificate: what real training runs on poisoned data reach, "
        "for all parameters and each property. Writes attack.json and the poisoned data in attack.npz.",
        example="attack examples/moons.toml --out runs/attack",
    )
    parser.add_argument("run", metavar="RUN.toml", type=Path, help=common.RUN_FILE)
    parser.add_argument(
        "--out", metavar="DIR", type=common.folder, required=True, help="result folder"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, help="seed of the search, in place of the file's"
    )
    common.add_time_limit(
        parser, "each search has an equal share of what is left, within time_limit of the file"
    )
    common.add_force(parser)
    parser.add_argument("--quiet", action="store_true", help="print the table only")


def _attack(arguments: argparse.Namespace) -> int:
    from milp_agt.attacks import attack
    from milp_agt.reports.result_folder import AttackFolder
    from milp_agt.runfile.run_file import load_config

    config = load_config(arguments.run)
    run = config.build()
    search = run.search
    if arguments.seed is not None:
        search = replace(search, seed=arguments.seed)
    deadline = Deadline.within(common.time_left(arguments))
    folder = AttackFolder(arguments.out, config, run.dataset, search, force=arguments.force)
    aims = _aims(run)
    found: dict[str, Attack] = {}
    with progress("searches", arguments.quiet) as advance:
        try:
            parameters = attack(
                run.model,
                run.dataset,
                run.training,
                run.threat,
                search=search.within(deadline.share(len(aims) + 1)),
                device=run.options.device,
            )
            found[parameters.objective] = parameters
            for done, (name, objective) in enumerate(aims, 1):
                folder.save(found, complete=False)
                advance(done, len(aims) + 1, name)
                own = search.within(deadline.share(len(aims) + 1 - done))
                attacker = replace(parameters.attacker, search=own)
                found[name] = replace(parameters, attacker=attacker).towards(objective)
        except KeyboardInterrupt:
            if not found:
                raise
            common.tell(
                f"interrupted after {len(found)} of {len(aims) + 1} searches; their poisoned data are in "
                f"{folder.npz_path}"
            )
            return common.LIMIT_REACHED
        folder.save(found)
    if not arguments.quiet:
        print(f"Data: {run.dataset.description}; {len(run.dataset.x_train)} training samples")
        print(f"\nThreat: {run.threat.describe()}\n")
        print(
            f"Envelope: mean width {format_number(parameters.mean_width)}, largest "
            f"{format_number(parameters.max_width)} over {len(parameters.widths)} parameters"
        )
        tried = "all admissible ones" if parameters.exhaustive else "a lower bound on the adversary"
        print(
            f"{parameters.trained} poisoned runs, {tried}; {len(parameters.runs)} kept and confirmed in "
            f"plain torch; {parameters.seconds:.1f} s, seed {parameters.seed}\n"
        )
    _print(found, [name for name, _ in aims])
    cut = [name for name, each in found.items() if each.limit_reached]
    if cut:
        print(f"a time limit ended the search for {', '.join(cut)}; more time may reach more")
    if not arguments.quiet:
        print(f"\nWritten: {folder.json_path} and {folder.npz_path}")
    return common.LIMIT_REACHED if cut else common.PROVED


def _aims(run: LoadedRun) -> list[tuple[str, Objective]]:
    """The properties of the file as objectives."""
    from milp_agt.attacks.objectives import objective_of
    from milp_agt.properties.property_table import TableOfPoints

    points = (
        (p, p.pick(run.dataset) if isinstance(p, TableOfPoints) else None) for p in run.properties
    )
    return [(asked.name, objective_of(asked, picked)) for asked, picked in points]


def _print(found: dict[str, Attack], names: list[str]) -> None:
    if not names:
        print("No property was asked for.")
        return
    rows = [
        (
            name,
            found[name].nominal,
            *found[name].reached,
            ", ".join(map(str, found[name].poisoned[:8])) or "-",
        )
        for name in names
    ]
    print(format_table(("property", "nominal", "least", "largest", "samples poisoned"), rows))
