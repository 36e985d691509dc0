"""The command line: ``milp-agt certify``, ``compare`` and ``solvers``.

Exit codes: 0 every requested property is proved, 1 not proved, 2 bad input, 4 a limit (time or
Ctrl-C) was reached first.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from milp_agt.core.relaxation import Relaxation
from milp_agt.errors import MilpAgtError
from milp_agt.tables import format_number, format_table

if TYPE_CHECKING:
    from milp_agt.config import CertifyTable, Run
    from milp_agt.result import Result
    from milp_agt.verdicts import Verdict

PROVED, NOT_PROVED, BAD_INPUT, LIMIT_REACHED = 0, 1, 2, 4
RELAXATIONS = (*(level.value for level in Relaxation), "auto")
SHOWN_STEPS = 40

Advance = Callable[[int, int], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one message on stderr."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help or its complaint
        return int(stop.code or 0)
    try:
        command: Callable[[argparse.Namespace], int] = arguments.command
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return command(arguments)
    except MilpAgtError as error:
        print(f"milp-agt: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("milp-agt: interrupted before the first result; nothing was written", file=sys.stderr)
        return LIMIT_REACHED


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line for people, without the place in the code."""
    print(f"milp-agt: note: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="milp-agt",
        description="Certify training runs against data poisoning.",
        epilog="Exit codes: 0 proved, 1 not proved, 2 bad input, 4 a limit was reached first.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    certify = commands.add_parser("certify", help="certify the run described in a TOML file")
    certify.add_argument("run", metavar="RUN.toml", type=Path)
    certify.add_argument("--out", metavar="DIR", type=Path, required=True, help="result folder")
    certify.add_argument("--relaxation", choices=RELAXATIONS, help="in place of the file's")
    certify.add_argument("--window", metavar="W", type=_window, help="a number of steps, or T")
    certify.add_argument("--quiet", action="store_true", help="print the verdicts only")
    certify.set_defaults(command=_certify)

    compare = commands.add_parser("compare", help="several relaxations on the same run")
    compare.add_argument("run", metavar="RUN.toml", type=Path)
    compare.add_argument(
        "--relaxations", metavar="A,B", type=_relaxations, default=("interval", "linear", "lp")
    )
    compare.add_argument("--windows", metavar="1,3,T", type=_windows, default=(1,))
    compare.add_argument("--out", metavar="DIR", type=Path, help="folder for the table as files")
    compare.set_defaults(command=_compare)

    solvers = commands.add_parser("solvers", help="which solvers are installed")
    solvers.set_defaults(command=_solvers)
    return parser


def _window(text: str) -> int | str:
    if text == "T":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of steps >= 1 nor T")
    return int(text)


def _windows(text: str) -> tuple[int | str, ...]:
    return tuple(_window(part.strip()) for part in text.split(","))


def _relaxations(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in RELAXATIONS:
            raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(RELAXATIONS)}")
    return names


def _certify(arguments: argparse.Namespace) -> int:
    from milp_agt.certification import certify
    from milp_agt.config import load_config
    from milp_agt.output import ResultFolder
    from milp_agt.verdicts import judge

    config = load_config(arguments.run)
    run = config.build()
    options = _override(run.options, arguments.relaxation, arguments.window)
    folder = ResultFolder(arguments.out, config, run.dataset, options.model_dump(exclude_none=True))
    data = (run.dataset.x_train, run.dataset.y_train)
    total = len(run.training.batch_order(len(run.dataset.x_train)))
    so_far: list[Result] = []
    with _progress("steps", arguments.quiet) as advance:

        def on_step(result: Result, _step: int, steps: int) -> None:
            so_far[:] = [result]
            folder.save_step(result)
            advance(len(result.steps), steps)

        try:
            result = certify(
                run.model,
                data,
                run.training,
                run.threat,
                relaxation=options.relaxation,
                window=total if options.window == "T" else options.window,
                program_window=total if options.program_window == "T" else options.program_window,
                inner_bounds=options.inner_bounds,
                solver=options.solver,
                device=options.device,
                memory=options.memory,
                time_limit=options.time_limit,
                on_step=on_step,
            )
            verdicts = [judge(result, run.dataset, asked) for asked in run.properties]
            folder.save(result, verdicts, complete=True)
        except KeyboardInterrupt:
            if not so_far:
                raise
            folder.save(so_far[0], (), complete=False)
            print(
                f"milp-agt: interrupted after {len(so_far[0].steps)} of {total} steps; "
                f"the finished steps are in {folder.json_path}",
                file=sys.stderr,
            )
            return LIMIT_REACHED
    if not arguments.quiet:
        _print_run(run, result)
    _print_verdicts(verdicts)
    if not arguments.quiet:
        print(f"\nWritten: {folder.json_path} and {folder.npz_path}")
    if all(verdict.status != "NOT PROVED" for verdict in verdicts):
        return PROVED
    return LIMIT_REACHED if result.limit_reached else NOT_PROVED


def _override(
    options: CertifyTable, relaxation: str | None, window: int | str | None
) -> CertifyTable:
    changes = {"relaxation": relaxation, "window": window}
    return options.model_copy(update={k: v for k, v in changes.items() if v is not None})


def _print_run(run: Run, result: Result) -> None:
    print(f"Data: {run.dataset.description}; {len(run.dataset.x_train)} training samples")
    print(f"\nClaim: {result.claim}\n")
    for assumption in (*result.assumptions, *run.dataset.notes):
        print(f"  assumed: {assumption}")
    steps = result.steps
    stride = max(1, -(-len(steps) // SHOWN_STEPS))
    shown = [s for i, s in enumerate(steps, 1) if i % stride == 0 or i in (1, len(steps))]
    rows = [
        (
            str(s.step),
            format_number(s.mean_width),
            format_number(s.max_width),
            s.relaxation,
            f"{s.seconds:.3f}",
        )
        for s in shown
    ]
    print("\n" + format_table(("step", "mean width", "max width", "relaxation", "seconds"), rows))
    if len(shown) < len(steps):
        print(f"({len(shown)} of {len(steps)} steps; all of them are in result.json)")
    used = ", ".join(dict.fromkeys(s.relaxation for s in steps))
    print(f"\nRelaxation asked: {result.relaxation}; used: {used or '-'}")
    for fallback in result.fallbacks:
        print(f"  fallback: {fallback}")
    if result.limit_reached:
        print("  a limit was reached; the bounds hold, and may be looser than without it")
    print()


def _print_verdicts(verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        print("No property was asked for.")
        return
    rows = [
        (
            v.name,
            format_number(v.lower),
            format_number(v.nominal),
            format_number(v.upper),
            v.threshold,
            v.status,
        )
        for v in verdicts
    ]
    headers = ("property", "lower", "nominal", "upper", "threshold", "verdict")
    print(format_table(headers, rows))


def _compare(arguments: argparse.Namespace) -> int:
    from milp_agt.comparison import compare
    from milp_agt.config import load_config
    from milp_agt.output import make_folder

    run = load_config(arguments.run).build()
    dataset, options = run.dataset, run.options
    folder = None if arguments.out is None else make_folder(arguments.out)
    with _progress("rows", quiet=False) as advance:
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
            solver=options.solver,
            device=options.device,
            memory=options.memory,
            time_limit=options.time_limit,
            on_row=lambda row, count, total: advance(count, total),
        )
    print(comparison.table())
    if folder is not None:
        (folder / "compare.csv").write_text(comparison.to_csv(), encoding="utf-8")
        (folder / "compare.json").write_text(comparison.to_json(), encoding="utf-8")
        print(f"\nWritten: {folder / 'compare.csv'} and {folder / 'compare.json'}")
    return LIMIT_REACHED if comparison.limit_reached else PROVED


def _solvers(_: argparse.Namespace) -> int:
    from milp_agt.solvers import solver_table

    rows = [
        (
            row.name,
            "yes" if row.available else "no",
            row.version or "-",
            row.capabilities,
            row.note or "-",
        )
        for row in solver_table()
    ]
    print(format_table(("solver", "installed", "version", "solves", "note"), rows))
    return PROVED


@contextmanager
def _progress(unit: str, quiet: bool) -> Iterator[Advance]:
    """A bar on stderr while the block runs; nothing where stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
