"""The house: one top-level name, complete packages, cheap import, imports that run one way."""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = {"milp_agt": "milp_agt", "milp_agt.formulations": "formulations"}
MAPPED["milp_agt.solvers"] = "solvers"


def folder_of(package: str) -> Path:
    """The real folder of a package: the longest mapped prefix, then the rest of the name."""
    prefix = max((p for p in MAPPED if package == p or package.startswith(f"{p}.")), key=len)
    rest = package.removeprefix(prefix).strip(".").split(".")
    return ROOT.joinpath(MAPPED[prefix], *filter(None, rest))


def modules() -> Iterator[tuple[str, Path]]:
    """Every module by its import name."""
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        for path in sorted(folder_of(package).glob("*.py")):
            yield (package if path.stem == "__init__" else f"{package}.{path.stem}"), path


def test_packages_are_the_folders_on_disk() -> None:
    found = {"milp_agt"}
    for package, top in MAPPED.items():
        for folder in (ROOT / top).rglob("*"):
            inside = folder.relative_to(ROOT / top)
            if folder.is_dir() and not folder.is_symlink() and any(folder.glob("*.py")):
                found.add(".".join([package, *inside.parts]))
    found |= set(MAPPED)
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == MAPPED


@pytest.mark.parametrize("room", ["formulations", "solvers"])
def test_links_are_relative(room: str) -> None:
    assert os.readlink(ROOT / "milp_agt" / room) == f"../{room}"


@pytest.mark.parametrize("room", ["formulations", "solvers"])
def test_a_second_copy_of_a_room_is_refused(room: str) -> None:
    code = f"import {room}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"milp_agt.{room}" in done.stderr


def test_wheel_has_one_top_level_name_and_every_module(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("milp_agt", "formulations", "solvers"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"milp_agt"}
    wanted = {
        name.replace(".", "/") + ("/__init__.py" if path.stem == "__init__" else ".py")
        for name, path in modules()
    }
    assert wanted <= set(names)
    assert "milp_agt/py.typed" in names


@pytest.mark.parametrize("module", ["milp_agt", "milp_agt.cli"])
def test_import_costs_neither_torch_nor_a_solver(module: str) -> None:
    heavy = "{'torch', 'scipy', 'highspy', 'gurobipy', 'pyscipopt', 'cvxpy', 'networkx'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imported(path: Path, module: str) -> set[str]:
    """Every module of ours that a file imports, lazily or for types included."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name == "milp_agt" or name.startswith("milp_agt.")}


# From the ground floor up: a room imports itself and rooms on lower floors, nothing beside or above it.
LADDER = (
    {"errors", "checker"},
    {"io"},
    {"core"},
    {"formulations", "solvers", "data"},
    {"threats"},
    {"training"},
    {"bounds"},
    {"bounds.adversary"},
    {"bounds.interval"},
    {"bounds.zonotope", "bounds.linear", "bounds.listed"},
    {"bounds.gathered", "bounds.program", "bounds.frozen", "bounds.cells"},
    {"properties", "recording"},
    {"attacks"},
    {"certification"},
    {"runfile"},
    {"certificates"},
    {"reports"},
    {"experiments"},
    {"cli"},
    {"__main__"},
)
FLOORS = {name: floor for floor, names in enumerate(LADDER) for name in names}
# Below certification, programs alone are handed to solvers.
SOLVE = "bounds.program"


def room(module: str) -> str:
    """The room of a module: its package, or its own name where it lies loose; '' for milp_agt itself.

    Packages inside a room belong to it, but for those of ``bounds``, which have floors of their own.
    """
    parts = module.split(".")[1:]
    inner = ".".join(parts[:2])
    return inner if inner in FLOORS else (parts or [""])[0]


def wrong_arrows(module: str, names: set[str]) -> list[str]:
    """The imports of a module that its room may not have."""
    own = room(module)
    wrong = []
    for name in sorted(names):
        target = room(name)
        if target in ("", own):
            continue
        early = FLOORS[own] < FLOORS["certification"] and own != SOLVE
        if FLOORS[target] >= FLOORS[own] or (target == "solvers" and early):
            wrong.append(name)
    return wrong


def test_few_modules_lie_loose() -> None:
    loose = {path.name for path in (ROOT / "milp_agt").glob("*.*")}
    assert loose == {"__init__.py", "__main__.py", "errors.py", "py.typed"}


def test_imports_run_one_way() -> None:
    wrong = {}
    for module, path in modules():
        names = imported(path, module)
        if module == "milp_agt":
            continue  # the front door leads everywhere
        bare = any(name == "milp_agt" for name in names if not _is_prefix(name, names))
        wrong[module] = wrong_arrows(module, names) + ["milp_agt"] * (
            bare and room(module) != "cli"
        )
    assert {module: names for module, names in wrong.items() if names} == {}


def test_no_module_imports_itself_round_a_circle() -> None:
    known = dict(modules())
    arrows = {name: imported(path, name) & set(known) - {name} for name, path in known.items()}
    graph = nx.DiGraph((name, target) for name, own in arrows.items() for target in own)
    # A package that hands on the names of its modules is imported with each of them.
    doors = {name for name, path in known.items() if path.name == "__init__.py"}
    graph.remove_nodes_from(doors)
    assert [c for c in nx.strongly_connected_components(graph) if len(c) > 1] == []


def _is_prefix(name: str, names: set[str]) -> bool:
    """Whether ``name`` stands only for ``from name import room``, which is judged by the room."""
    return any(other.startswith(f"{name}.") for other in names)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("milp_agt.core.graph", "milp_agt.formulations.relu"),
        ("milp_agt.core.graph", "milp_agt.training.training"),
        ("milp_agt.formulations.relu", "milp_agt.solvers.solver"),
        ("milp_agt.solvers.highs", "milp_agt.formulations.registry"),
        ("milp_agt.bounds.linear.bound", "milp_agt.solvers.solver"),
        ("milp_agt.bounds.linear.bound", "milp_agt.bounds.program.window"),
        ("milp_agt.bounds.step", "milp_agt.bounds.adversary.joint"),
        ("milp_agt.bounds.linear.bound", "milp_agt.certification.certify"),
        ("milp_agt.certification.certify", "milp_agt.cli"),
        ("milp_agt.errors", "milp_agt.core.graph"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, target: str) -> None:
    assert wrong_arrows(module, {target}) == [target]


def test_relative_and_lazy_imports_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "relu.py"
    path.write_text("def f():\n    from ..solvers import solver\n    from . import linear\n")
    found = imported(path, "milp_agt.formulations.relu")
    assert "milp_agt.solvers.solver" in found
    assert "milp_agt.formulations.linear" in found


SOLVER_LIBRARIES = {"highspy", "gurobipy", "pyscipopt", "cvxpy"}


def test_heavy_libraries_stay_in_their_rooms() -> None:
    guilty = []
    for module, path in modules():
        for node in nodes_of(path):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            tops = {name.split(".")[0] for name in names}
            foreign = {"torch"} if room(module) == "solvers" else SOLVER_LIBRARIES
            if tops & foreign:
                guilty.append(module)
    assert guilty == []
