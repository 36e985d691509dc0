"""The command line: one file for each command that computes, and one for all that show.

Exit codes are in ``common.EXIT_CODES``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TextIO

import milp_agt
from milp_agt.cli import attack, bench, certify, common, compare, show, sweep
from milp_agt.cli.common import BAD_INPUT, EXIT_CODES, LIMIT_REACHED, PROVED, Parser, tell
from milp_agt.errors import MilpAgtError
from milp_agt.runfile.reading import read_tables

COMMANDS = (
    certify.add,
    show.add_check,
    attack.add,
    compare.add,
    bench.add,
    sweep.add,
    show.add_report,
    show.add_options,
    show.add_solvers,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one message on stderr."""
    # A time limit counts from the start of the process, or from now where a program calls this.
    begun = common.LOADED if argv is None else monotonic()
    parser, arguments = _parser(), argparse.Namespace()
    try:
        arguments = parser.parse_args(argv)
        arguments.begun = begun
        path: Path | None = vars(arguments).get("run")
        if path is not None and not path.is_fifo():  # a queue gives its text once
            read_tables(path)  # before anything large is imported
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return BAD_INPUT
        command: Callable[[argparse.Namespace], int] = arguments.command
        with warnings.catch_warnings(), _stopped_like_by_keys():
            warnings.showwarning = _show_warning
            return command(arguments)
    except SystemExit as stop:  # argparse has printed its help or the version
        return int(stop.code or 0)
    except MilpAgtError as error:
        return _complain(error)
    except BrokenPipeError:  # the reader of our output, head for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_INPUT if vars(arguments).get("name") in ("certify", "check") else PROVED
    except OSError as error:
        return _complain(
            MilpAgtError(
                f"Run 'milp-agt {arguments.name}'",
                f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
                "make room, or give the file or folder back its rights, and run the command again",
            )
        )
    except KeyboardInterrupt:
        tell(f"interrupted before the first result; {_kept(arguments)}")
        return LIMIT_REACHED
    except Exception as error:
        if not _is_lack_of_memory(error):
            with suppress(OSError):
                traceback.print_exc()
            return _complain(
                MilpAgtError(
                    f"Run 'milp-agt {arguments.name}'",
                    f"{type(error).__name__}, an error of this program; nothing follows from it",
                    "please report the lines above, with the run file",
                )
            )
        _complain(
            MilpAgtError(
                f"Run 'milp-agt {arguments.name}' in the memory of this machine",
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
                "give a smaller memory, smaller batches or a shorter window; certify --resume DIR goes on "
                "from the last finished step",
            )
        )
        return LIMIT_REACHED


def _kept(arguments: argparse.Namespace) -> str:
    """What is there after an interrupt that came before anything new."""
    given = vars(arguments)
    folder: Path | None = given.get("resume") or given.get("out")
    if folder is None or not (folder / common.CHECKPOINT).exists():
        return "nothing was written"
    return (
        f"the steps that were finished before are kept in {folder}; go on with: milp-agt certify "
        f"--resume {folder}"
    )


@contextmanager
def _stopped_like_by_keys() -> Iterator[None]:
    """SIGTERM, as batch systems and ``timeout`` send it, ends a command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch says so in words on a CPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    )


def _complain(error: MilpAgtError) -> int:
    tell(error)
    return BAD_INPUT


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line for people, without the place in the code."""
    tell(f"note: {message}")


def _parser() -> Parser:
    parser = Parser(
        prog="milp-agt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Certify training runs against data poisoning: how far can somebody push a model\n"
        "by tampering with its training data?\n\nExit codes:\n"
        + "\n".join(f"  {code}  {meaning}" for code, meaning in EXIT_CODES.items()),
        epilog="For example: milp-agt certify examples/iris.toml --out runs/iris",
    )
    parser.add_argument("--version", action="version", version=f"milp_agt {milp_agt.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND", dest="name")
    for command in COMMANDS:
        command(commands)
    return parser
