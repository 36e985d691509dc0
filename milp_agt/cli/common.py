"""What the commands share: exit codes, names of relaxations, and arguments of one form."""

from __future__ import annotations

import argparse
import difflib
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn, TypeAlias, TypeVar

from milp_agt.cli.progress import tell as tell
from milp_agt.core.relaxation import levels
from milp_agt.errors import InvalidInputError

LOADED = monotonic()  # when the process began, but for the start of the interpreter
PROVED, NOT_PROVED, BAD_INPUT, REJECTED, LIMIT_REACHED = 0, 1, 2, 3, 4
# Every command keeps this table; README shows it.
EXIT_CODES = {
    PROVED: "everything that was asked is proved; of other commands: done",
    NOT_PROVED: "something that was asked is not proved, or refuted",
    BAD_INPUT: "no answer: bad input, files that cannot be read or written, or an error of this program",
    REJECTED: "of check: the certificate states more than its evidence shows, or is damaged",
    LIMIT_REACHED: "a limit came first (time, memory, an interrupt); what was finished is saved and holds",
}
# Of the time limit of a command, what is kept for its files and figures: seconds, at most a share.
FILES_SECONDS, FILES_SHARE = 2.0, 0.1
CHECKPOINT = "checkpoint"  # folder inside a result folder, while its run is not at its end
Read = TypeVar("Read")
OPTION = "option_"  # before the names of options among the arguments

RUN_FILE = (
    "a run file: data, model, training, threat, what is to be proved (see 'milp-agt options')"
)


CHOICE = re.compile(
    r"(?P<where>argument .*?): invalid choice: '(?P<word>.*?)' \(choose from (?P<all>.*)\)"
)
UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.*)")
# Options that are no more, and what stands in for them.
REPLACED = {
    "--case": "milp-agt compare RUN.toml measures the run of a file; ",
    **dict.fromkeys(
        ("--alpha-steps", "--alpha-every"),
        "it was removed, and the zonotope beside linear forms proves as much; ",
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of leaving; the epilog is a command that works."""

    def error(self, message: str) -> NoReturn:
        """Turn a complaint into an error.

        Raises:
            InvalidInputError: always.
        """
        found, remedy = message, ""
        if choice := CHOICE.fullmatch(message):
            found = f"{choice['where']}: '{choice['word']}'"
            known = choice["all"].replace("'", "")
            remedy = f"{_nearest(choice['word'], known.split(', '))}choose from {known}"
        elif unknown := UNKNOWN.fullmatch(message):
            first = unknown["words"].partition(" ")[0].partition("=")[0]  # an argument may be empty
            if first in (known := list(self._options())):
                remedy = "it is an option of other commands: "
            else:
                remedy = REPLACED.get(first) or _nearest(first, known)
            remedy += f"'{self.prog} COMMAND --help' lists all arguments"
        elif self.epilog:
            remedy = f"{self.epilog[0].lower()}{self.epilog[1:]}; '{self.prog} --help' says more"
        raise InvalidInputError(f"Run '{self.prog}'", found, remedy or f"see '{self.prog} --help'")

    def _options(self) -> Iterator[str]:
        """Names of options, those of all commands included."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from command._options()


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word.partition("=")[0], known, 1)
    return f"did you mean '{near[0]}'? " if near else ""


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def new(
    commands: Commands,
    run: Callable[[argparse.Namespace], int],
    name: str,
    about: str,
    description: str,
    example: str | None = None,
) -> Parser:
    """A command that ``run`` carries out; ``example`` is a line that works."""
    epilog = None if example is None else f"For example: milp-agt {example}"
    parser = commands.add_parser(name, help=about, description=description, epilog=epilog)
    parser.set_defaults(command=run)
    return parser


def add_force(parser: Parser) -> None:
    """The flag that lets a command write over the results of another run."""
    parser.add_argument(
        "--force", action="store_true", help="write over what another run left in the folder"
    )


def add_time_limit(parser: Parser, then: str) -> None:
    """The flag that ends a command early; ``then`` says what is there when the time is over."""
    parser.add_argument(
        "--time-limit", metavar="SECONDS", type=_seconds, help=f"of the whole command: {then}"
    )


def time_left(arguments: argparse.Namespace) -> float | None:
    """What is left of the time limit of a command, but for its files and figures; None without one."""
    limit: float | None = arguments.time_limit
    if limit is None:
        return None
    kept = min(FILES_SECONDS, FILES_SHARE * limit)
    ends: float = arguments.begun + limit - kept
    return max(0.0, ends - monotonic())


def _seconds(text: str) -> float:
    value = _value(text)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds, 0 or more")


def folder(text: str) -> Path:
    """A folder; no name at all would be the one that the command runs in."""
    if not text:
        raise argparse.ArgumentTypeError("no name; give '.' for the folder that you are in")
    return Path(text)


def window(text: str) -> int | str:
    if text == "T":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of steps >= 1 nor T")
    return int(text)


def relaxation(text: str) -> str:
    if text not in levels():
        raise argparse.ArgumentTypeError(f"'{text}' is not one of {', '.join(levels())}")
    return text


def count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number >= {least}")
    return int(text)


def index(text: str) -> int:
    return count(text, 0)


def size(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None


def many(read: Callable[[str], Read]) -> Callable[[str], tuple[Read, ...]]:
    """Reads values with commas between them."""
    return lambda text: tuple(read(part.strip()) for part in text.split(","))


relaxations, windows, counts = many(relaxation), many(window), many(count)
indices, sizes, names = many(index), many(size), many(str)


def drawn(draw: Callable[[], Sequence[Path]]) -> Sequence[Path]:
    """The files of a figure; that there is none is no failure."""
    try:
        return draw()
    except InvalidInputError as error:
        tell(f"no figure: {error}")
        return ()


def add_options(parser: Parser, without: Collection[str] = ()) -> None:
    """A flag for every option of ``certify`` that is one value."""
    from milp_agt.certification.options import CertifyOptions

    group = parser.add_argument_group(
        "options of [certify]", "in place of the file's (see 'milp-agt options certify')"
    )
    for name, schema in CertifyOptions.model_json_schema()["properties"].items():
        if name not in without:
            forms = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
            words = schema.get("enum") or (forms[0].get("enum") if len(forms) == 1 else None)
            group.add_argument(
                f"--{name.replace('_', '-')}",
                dest=f"{OPTION}{name}",
                metavar="VALUE",
                type=str if words else _reader(name),
                choices=words,
                help=schema["description"].replace("`", "").replace("%", "%%"),
            )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of ``certify`` that stand on the command line."""
    named = {k: v for k, v in vars(arguments).items() if k.startswith(OPTION) and v is not None}
    return {name.removeprefix(OPTION): value for name, value in named.items()}


def _reader(name: str) -> Callable[[str], Any]:
    """Reads the value of an option, and has it checked."""

    def read(text: str) -> Any:
        from milp_agt.certification.options import CertifyOptions

        value = _value(text)
        try:
            CertifyOptions().changed({name: value})
        except InvalidInputError as error:
            raise argparse.ArgumentTypeError(f"{error.found}; {error.remedy}") from None
        return value

    return read


def _value(text: str) -> Any:
    """A value as TOML would read it; text needs no quotes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, (bool, int, float, str)) else text
