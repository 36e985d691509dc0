"""From content to one HTML page with everything inside it, and the figures as files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from milp_agt.io.files import replace_text, writing
from milp_agt.reports import audit, words
from milp_agt.reports.content import Content
from milp_agt.reports.figures import Picture, pictures

TEMPLATES = Path(__file__).parent / "templates"
PAGE, FIGURES = "report.html", "figures"
SHOWN_POINTS = 1000


def write(content: Content) -> Path:
    """Write ``report.html`` and ``figures/`` into the folder of the content.

    Raises:
        InvalidInputError: the folder takes no files.
    """
    drawn = pictures(content)
    page = render(content, drawn)
    target = content.folder / PAGE
    with writing(
        f"Write the report to {content.folder}",
        "make room or give the folder back its rights, then milp-agt report DIR",
    ):
        (content.folder / FIGURES).mkdir(exist_ok=True)
        for picture in drawn.values():
            stem = content.folder / FIGURES / picture.name
            replace_text(stem.with_suffix(".svg"), picture.svg)
            replace_text(stem.with_suffix(".png"), picture.png)
        replace_text(target, page)
    return target


def render(content: Content, drawn: Mapping[str, Picture]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "percent": words.percent, "plain": _plain}
    environment.filters["seconds"] = lambda value: words.number(value, 3)  # of a clock
    status, headline = words.verdict(content)
    return environment.get_template("page.html").render(
        content=content,
        document=content.document,
        words=words,
        status=status,
        headline=headline,
        figures={name: _inline(picture) for name, picture in drawn.items()},
        alts={name: picture.alt for name, picture in drawn.items()},
        points=content.points or content.predictions,
        most_points=SHOWN_POINTS,
        solver=solver_totals(content.steps),
        total_seconds=sum(float(step["seconds"]) for step in content.steps),
        audit=audit.read(content.folder),
        run_text=json.dumps(content.document["run"], indent=2),
    )


def solver_totals(steps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Solves over all steps and the largest program; empty where no program was solved."""
    totals: dict[str, int] = {}
    for step in steps:
        for name, count in (step["program"] or {}).items():
            if name in ("solves", "skipped", "limited"):
                totals[name] = totals.get(name, 0) + count
            else:
                largest = f"largest count of {name}"
                totals[largest] = max(totals.get(largest, 0), count)
    return totals


def _plain(value: object) -> str:
    """An option of a run, tables with their keys."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_plain(each)}" for key, each in value.items())
    return str(value)


def _inline(picture: Picture) -> str:
    """The SVG element alone, with names of its own and the sentence that stands for it."""
    text = picture.svg[picture.svg.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{picture.name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{picture.name}-", text)
    label = escape(picture.alt, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
