"""``milp-agt certify RUN.toml --out DIR``: bounds, verdicts and files of one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from milp_agt.cli import common
from milp_agt.cli.in_time import CommandTime
from milp_agt.cli.progress import progress
from milp_agt.errors import InvalidInputError
from milp_agt.io.tables import format_number, format_table

if TYPE_CHECKING:
    from milp_agt.certification.result import Result
    from milp_agt.certification.verdicts import Verdict
    from milp_agt.properties.suspects import Suspects
    from milp_agt.runfile.run_file import LoadedRun

SHOWN_STEPS = 40
ASKING = ("questions: attacks on open points", "questions: test points")
REPLAYED = ("shown by a run", "points proved/refuted/open")


def add(commands: common.Commands) -> None:
    """The arguments of this command."""
    parser = common.new(
        commands,
        _certify,
        "certify",
        "certify the run described in a TOML file",
        description="Bound everything that training can end in under the threat of a run file, judge its "
        "properties, and write result.json, reachable.npz, report.html and a certificate.",
        example="certify examples/iris.toml --out runs/iris",
    )
    parser.add_argument("run", metavar="RUN.toml", type=Path, nargs="?", help=common.RUN_FILE)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", metavar="DIR", type=common.folder, help="result folder")
    where.add_argument(
        "--resume",
        metavar="DIR",
        type=common.folder,
        help="go on with the run that was cut off in this result folder",
    )
    parser.add_argument(
        "--no-report", action="store_true", help="bounds only: no test points, no report.html"
    )
    parser.add_argument(
        "--attack", action="store_true", help="attack the run as well: both sides of every number"
    )
    parser.add_argument(
        "--suspects",
        action="store_true",
        help="name the training samples that carry the bound, and split its width by cause",
    )
    common.add_force(parser)
    parser.add_argument("--quiet", action="store_true", help="print the verdicts only")
    parser.add_argument(
        "--points", action="store_true", help="print every property test point by test point"
    )
    common.add_options(parser)


def _job(arguments: argparse.Namespace) -> tuple[Path, Path, dict[str, Any]]:
    """Run file, result folder and options: from the command line, or from the checkpoint that it names."""
    given, resumed = common.given_options(arguments), arguments.resume
    if resumed is None:
        if arguments.run is None:
            raise InvalidInputError(
                "Certify a run", "no RUN.toml", "milp-agt certify RUN.toml --out DIR"
            )
        return arguments.run, arguments.out, given
    from milp_agt.certification.checkpoint import Checkpoint

    stored = Checkpoint(resumed / common.CHECKPOINT).manifest
    if stored is None:
        done = (resumed / "result.json").exists()
        raise InvalidInputError(
            f"Resume the run in {resumed}",
            "no checkpoint there"
            + (", but a result.json: that run is at its end, or it kept none" if done else ""),
            "begin one with milp-agt certify RUN.toml --out DIR",
        )
    note = stored.get("note", {})
    if arguments.run is None and "run" not in note:
        raise InvalidInputError(
            f"Resume the run in {resumed}",
            "a checkpoint that names no run file",
            f"milp-agt certify RUN.toml --resume {resumed}",
        )
    return arguments.run or Path(note["run"]), resumed, note.get("options", {}) | given


def _certify(arguments: argparse.Namespace) -> int:
    from milp_agt import certificates
    from milp_agt.certification.checkpoint import Checkpoint
    from milp_agt.certification.worth import LISTED
    from milp_agt.experiments.still_proved import in_boxes
    from milp_agt.reports.result_folder import ResultFolder, check_same_run, run_header
    from milp_agt.runfile.run_file import load_config

    path, place, options = _job(arguments)
    config = load_config(path)
    run = config.build(options)
    built = monotonic()
    checkpoint = Checkpoint(
        place / common.CHECKPOINT, {"run": str(path.absolute()), "options": options}
    )
    before = (checkpoint.manifest or {"step": 0})["step"]
    header = run_header(config, run.dataset) | {
        "options": run.options.model_dump(exclude_none=True)
    }
    if arguments.resume is None and not check_same_run(
        place / "result.json", header, force=arguments.force
    ):
        checkpoint.clear()
        before = 0
    folder = ResultFolder(place, header, run.dataset.notes, before)
    so_far: list[Result] = []
    # The last result with useful boxes of each level; with boxes alone after about 2, 4, 8, ... steps.
    useful: dict[str, Result] = {}
    with progress("steps", arguments.quiet, before) as advance:

        def on_step(result: Result, _step: int, steps: int) -> None:
            so_far[:] = [result]
            folder.save_step(result)
            step = result.steps[-1]
            if step.mean_width <= result.reachable.mean_size:
                if step.relaxation != LISTED:  # all its runs would take memory
                    useful[step.relaxation] = result
                useful[f"{len(result.steps).bit_length()} bits"] = in_boxes(result)
            widths = f"width {step.mean_width:.3g} (max {step.max_width:.3g})"
            text = f"{step.relaxation}, {widths}, {step.seconds:.2f} s/step"
            advance(len(result.steps), steps, text)
            if attack is not False and len(result.steps) == steps:
                advance(0, 0, "", "attacks")

        begun: float = arguments.begun
        whole = CommandTime(run, begun)
        attack = whole.search() if run.options.attack or arguments.attack else False
        try:
            result = whole.steps(attack is not False).certify(
                on_step=on_step, checkpoint=checkpoint, attack=attack, begun=begun
            )
            spent = sum(step.seconds for step in result.steps[:before])
            whole = CommandTime(run, begun, spent)
            advance(0, 0, "", "questions")
            result = result.watched(
                lambda done, points: advance(done, points, "", ASKING[done < points])
            )
            result, verdicts = whole.judged(result)
            left = whole.for_certificate()
            found = _suspects(result, left) if arguments.suspects else None
            advance(0, 0, "", "smaller threats and earlier steps")
            result, smaller = whole.searched(result, verdicts, [*useful.values()])
            plain = None if smaller is None else smaller.plain()
            folder.save(result, verdicts, complete=True, suspects=found, smaller=plain)
        except KeyboardInterrupt:
            if not so_far:
                raise
            folder.save(so_far[0], (), complete=False)
            common.tell(
                f"interrupted after {len(so_far[0].steps)} of {run.steps} steps; the finished steps are "
                f"in {folder.json_path}; go on with: milp-agt certify --resume {place}"
            )
            return common.LIMIT_REACHED
        written = [folder.json_path, folder.npz_path]
        judged = monotonic()
        advance(0, 0, "", "certificate")
        certificate, seconds = place / certificates.FOLDER, whole.for_certificate()
        written.append(certificates.write(certificate, run, result, verdicts, seconds))
        stored = monotonic()
        if not arguments.no_report:
            advance(0, 0, "", "report")
            written += _report(result, verdicts, run, place)
    checkpoint.clear()
    if not arguments.quiet:
        _print_run(run, result, () if smaller is None else smaller.in_vain)
    _print_verdicts(verdicts)
    if found is not None:
        print(f"\nWhat carries the bound\n{found}")
    if arguments.points:
        _print_points(verdicts)
    if not arguments.quiet:
        bounds, proof = f"{spent + judged - built:.2f} s", f"{stored - judged:.2f} s"
        print(
            f"\nBounds and answers in {bounds}, the certificate in {proof}, after the start of Python"
        )
        print(f"Written: {', '.join(str(path) for path in written)}")
    states = {verdict.status for verdict in verdicts}
    if not states & {"OPEN", "REFUTED"}:
        return common.PROVED
    # What real training refutes stays refuted, whatever time there is.
    undecided = "REFUTED" not in states and result.limit_reached
    return common.LIMIT_REACHED if undecided else common.NOT_PROVED


def _suspects(result: Result, seconds: float | None) -> Suspects | None:
    """What carries the bound; that there is no time, or no form to tell it from, is a note."""
    if seconds == 0.0:
        common.tell("note: no time was left to name suspects; give more time")
        return None
    try:
        return result.suspects()
    except InvalidInputError as error:
        common.tell(f"note: {error}")
        return None


def _report(
    result: Result, verdicts: Sequence[Verdict], run: LoadedRun, folder: Path
) -> list[Path]:
    """Bounds of the test points and the page; what stands in the way of a page is no failure."""
    from milp_agt.reports import ReportUnavailableError, evidence, write_page

    written = []
    try:
        written.append(evidence.save(folder, evidence.collect(result, run.dataset, verdicts)))
        written.append(write_page(folder))
    except (InvalidInputError, ReportUnavailableError) as error:
        common.tell(f"note: {error}")
    except KeyboardInterrupt:
        common.tell("note: the report was interrupted; the result is complete")
    return written


def _print_run(run: LoadedRun, result: Result, in_vain: Sequence[str]) -> None:
    print(f"Data: {run.dataset.description}; {len(run.dataset.x_train)} training samples")
    print(f"\nClaim: {result.claim}\n")
    for assumption in (*result.assumptions, *run.dataset.notes):
        print(f"  assumed: {assumption}")
    steps = result.steps
    stride = max(1, -(-len(steps) // SHOWN_STEPS))
    shown = [s for i, s in enumerate(steps, 1) if i % stride == 0 or i in (1, len(steps))]
    rows = [(s.step, s.mean_width, s.max_width, s.relaxation, f"{s.seconds:.3f}") for s in shown]
    print("\n" + format_table(("step", "mean width", "max width", "relaxation", "seconds"), rows))
    if len(shown) < len(steps):
        print(f"({len(shown)} of {len(steps)} steps; all of them are in result.json)")
    used = ", ".join(dict.fromkeys(s.relaxation for s in steps))
    print(f"\nRelaxation asked: {result.relaxation}; used: {used or '-'}")
    for note in result.notes:
        print(f"  note: {note}")
    for fallback in result.fallbacks:
        print(f"  fallback: {fallback}")
    if result.limit_reached:
        print("  a limit was reached; the bounds hold, and may be looser than without it")
    if result.worth.words:
        print(f"  worth: {result.worth.words}")
    for line in in_vain:
        print(f"  tried: {line}")
    _print_attack(result)
    print()


def _print_attack(result: Result) -> None:
    attack, sandwich = result.attack, result.sandwich
    if attack is None or sandwich is None:
        return
    tried = "all" if attack.exhaustive else "the worst"
    print(
        f"Attacks: mean width {format_number(sandwich.reached)} reached of "
        f"{format_number(sandwich.certified)} certified, ratio {format_number(sandwich.ratio)}; largest "
        f"{format_number(sandwich.largest[0])} of {format_number(sandwich.largest[1])} "
        f"({tried} of {attack.trained} poisoned runs, {attack.seconds:.1f} s)"
    )


def _print_verdicts(verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        print("No property was asked for.")
        return
    attacked = any(v.reached is not None for v in verdicts)
    replayed = any(v.worst is not None for v in verdicts)
    headers = ["property", "lower", "nominal", "upper", *(REPLAYED if replayed else ())]
    headers += ["threshold", "verdict", *(["attacks reach", "ratio"] if attacked else [])]
    rows: list[list[object]] = []
    for v in verdicts:
        row: list[object] = [v.name, v.lower, v.nominal, v.upper]
        if replayed:  # the worst value of a real run, and how many points are decided
            row += [v.worst, "/".join(map(str, v.counts.values())) or "-"]
        row += [v.threshold, v.status]
        if attacked:
            ends = v.reached if v.ratio is not None else None
            row += [None if ends is None else " to ".join(map(format_number, ends)), v.ratio]
        rows.append(row)
    print(format_table(headers, rows))
    for verdict in verdicts:
        if verdict.is_vacuous:
            print(f"vacuous: the bounds of {verdict.name} hold for every model and prove nothing")


def _print_points(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        if verdict.points is None:
            continue
        headers = [name.replace("_", " ") for name in verdict.points]
        print(f"\n{verdict.name}, point by point")
        print(format_table(headers, list(zip(*verdict.points.values(), strict=True))))
