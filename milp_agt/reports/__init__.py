"""``report.html``: what was proved, for people who have not read the paper; one file, no network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from milp_agt.errors import MilpAgtError

NEEDED = ("jinja2", "matplotlib")


class ReportUnavailableError(MilpAgtError, ImportError):
    """A package that the report needs is not installed; result.json holds the numbers all the same."""


def write_page(folder: str | Path) -> Path:
    """Make ``report.html`` and ``figures/*.svg, *.png`` from the files of a result folder.

    Reads ``result.json`` and, where it is there, ``evidence.npz``; computes no bound. The same files
    give the same page.

    Raises:
        ReportUnavailableError: jinja2 or matplotlib is missing.
        InvalidInputError: no result, a damaged one, or a folder that takes no files.
    """
    missing = [module for module in NEEDED if find_spec(module) is None]
    if missing:
        raise ReportUnavailableError(
            f"Make a report of {folder}",
            f"no module {' or '.join(missing)}",
            "pip install 'milp_agt[report]', then milp-agt report DIR",
        )
    from milp_agt.reports.content import read
    from milp_agt.reports.page import write

    return write(read(Path(folder)))
