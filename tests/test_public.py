"""The public names: each is there, documented with its fields and arguments, and typed as it is imported."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import milp_agt as agt
from milp_agt.properties.triggers import Trigger
from milp_agt.threats import ThreatModel
from milp_agt.training.schedules import Schedule

# What their members do is said once, in the protocol.
PROTOCOLS = (Schedule, ThreatModel, Trigger)
NAMES = sorted(set(agt.__all__) - {"__version__"})
CLASSES = [name for name in NAMES if inspect.isclass(getattr(agt, name))]
FUNCTIONS = [name for name in NAMES if name not in CLASSES]


def mentioned(name: str, doc: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", doc) is not None


def own_text(name: str) -> str:
    """The docstring that was written for this name, not what dataclass makes up or a base class says."""
    doc = vars(getattr(agt, name)).get("__doc__") if name in CLASSES else getattr(agt, name).__doc__
    assert doc, name
    assert not doc.startswith(f"{name}("), name
    return inspect.cleandoc(doc)


def members(name: str) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class, those of its bases in this package included."""
    for base in getattr(agt, name).__mro__:
        if base.__module__.partition(".")[0] == "milp_agt":
            for member, value in vars(base).items():
                plain = value.__func__ if isinstance(value, staticmethod) else value
                if not member.startswith("_") and isinstance(plain, property | type(own_text)):
                    yield f"{base.__name__}.{member}", plain


@pytest.mark.parametrize("name", NAMES)
def test_every_name_says_what_it_is(name: str) -> None:
    first, *_ = own_text(name).split("\n\n")
    assert len(first) > 30
    assert first.rstrip().endswith((".", ":", "``"))


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_and_member_is_explained(name: str) -> None:
    kind = getattr(agt, name)
    if dataclasses.is_dataclass(kind):
        said = "\n".join(inspect.cleandoc(base.__doc__ or "") for base in kind.__mro__[:-1])
        shown = [field.name for field in dataclasses.fields(kind) if field.repr]
        assert [field for field in shown if not mentioned(field, said)] == []
    said_once = {m for kind in PROTOCOLS for m, v in vars(kind).items() if inspect.getdoc(v)}
    silent = [member for member, value in members(name) if not inspect.getdoc(value)]
    assert [member for member in silent if member.partition(".")[2] not in said_once] == []


def arguments(function: Callable[..., Any]) -> list[str]:
    return [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_explains_its_arguments_and_errors(name: str) -> None:
    doc = own_text(name)
    assert [each for each in arguments(getattr(agt, name)) if not mentioned(each, doc)] == []
    assert "Raises:" in doc


# What users call on a result: Result.of is for the loop that makes one.
METHODS = [n for n, v in members("Result") if inspect.isfunction(v) and n != "Result.of"]


@pytest.mark.parametrize("question", METHODS)
def test_every_question_says_what_it_bounds_and_refuses(question: str) -> None:
    doc = inspect.getdoc(dict(members("Result"))[question]) or ""
    assert len(doc) > 60
    assert "Raises:" in doc


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(agt.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {a.name for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert seen == set(NAMES)
    assert list(agt._HOMES) == sorted(agt._HOMES)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'certfy'; did you mean 'certify'"):
        agt.certfy  # type: ignore[attr-defined]  # noqa: B018


def test_rooms_are_reached_from_the_top() -> None:
    """In a process that has imported nothing else."""
    code = f"import milp_agt as agt; print(*(getattr(agt, r).__name__ for r in {list(agt._ROOMS)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"milp_agt.{home}" for home in agt._ROOMS.values()]
