"""``python -m milp_agt.checker DIR``: check the certificate in a folder or in its folder ``certificate``.

Exit codes: 0 PROVED, 1 NOT PROVED or NOT COVERED, 2 wrong arguments or no certificate there, 3 REJECTED.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from milp_agt.checker.check import Report, check
from milp_agt.checker.files import CLAIM, SEAL

FOLDER = "certificate"
REMEDY = (
    "give what milp-agt certify left; of a run that was interrupted, go on with certify --resume"
)
SLOW = "note: fractions are a thousand times as slow: minutes for 30 samples and a few steps"


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print what came of it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="milp-agt check", description=__doc__.partition("\n")[0])
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    if found := missing(arguments.folder):
        parser.error(f"no certificate in {arguments.folder}: {found}; {REMEDY}")
    report, words = checked(arguments)
    print(words)
    return report.outcome.exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, for this module and for the command line of the whole package."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="result folder or certificate")
    told = "processes for listed runs and leaves of trees"
    parser.add_argument("--jobs", metavar="N", type=_count, default=1, help=told)
    parser.add_argument("--exact", action="store_true", help="compute in fractions; for small runs")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of processes")
    return int(text)


def _place(folder: Path) -> Path:
    """Of a result folder the one of its certificate."""
    inner = (folder / FOLDER).is_dir() and not (folder / CLAIM).exists()
    return folder / FOLDER if inner else folder


def missing(folder: Path) -> str:
    """What a folder lacks that a certificate has; empty where there is one to check."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    there = [name for name in (CLAIM, SEAL) if not os.path.lexists(_place(folder) / name)]
    return f"no {' and no '.join(there)} in {_place(folder)}" if there else ""


def checked(arguments: argparse.Namespace) -> tuple[Report, str]:
    """The check of the certificate that the arguments name, and in words."""
    if arguments.exact:
        print(SLOW, file=sys.stderr, flush=True)
    begun = time.perf_counter()
    report = check(_place(arguments.folder), arguments.jobs, arguments.exact)
    seconds = time.perf_counter() - begun
    return report, f"Checked in {seconds:.2f} s, after the start of Python\n{in_words(report)}"


def in_words(report: Report) -> str:
    """What was checked, line by line, and the verdict."""
    lines = [*report.words, ""] if report.words else []
    for item in report.items:
        detail = f": {item.detail}" if item.detail else ""
        lines.append(f"  {item.outcome.text:<12} {item.name}{detail}")
    if report.sha256:
        lines += ["", f"Certificate: {report.bytes} bytes; SHA-256 of its claim {report.sha256}"]
    lines.append(f"Checker: SHA-256 of its source {source_sha256()}")
    return "\n".join(map(_printable, [*lines, report.outcome.text]))


def _printable(line: str) -> str:
    """One line, whatever a certificate wrote into it: no line ends, no codes for terminals."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def source_sha256() -> str:
    """One hash of the files of this package, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
