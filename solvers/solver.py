"""The interface of solvers, and the choice of one."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

from milp_agt.core.program import Program
from milp_agt.errors import SolverUnavailableError
from milp_agt.solvers.session import Session


class Solver(ABC):
    """A back end whose module is on PyPI. Nothing but :meth:`open` imports it or takes a licence."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]  # modules
    distribution: ClassVar[str]  # the name on PyPI, for the version
    rank: ClassVar[int] = 100  # 'auto' prefers the least
    has_inner: ClassVar[bool] = False  # whether NAME:INNER names a solver that it reaches
    note: ClassVar[str] = ""  # licence and limits, one line
    install: ClassVar[str] = "pip install milp_agt"

    def available(self) -> bool:
        """Whether every module of ``requires`` is installed; none of them is imported."""
        return all(find_spec(module) is not None for module in self.requires)

    def version(self) -> str:
        """The installed version from its metadata, '' if it is not installed."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return ""

    def check_available(self) -> None:
        """
        Raises:
            SolverUnavailableError: a module is missing.
        """
        if not self.available():
            raise SolverUnavailableError(
                f"Solver '{self.name}' is needed",
                f"no module {' or '.join(self.requires)}; installed are {_installed()}",
                f"{self.install}, or choose an installed solver",
            )

    @abstractmethod
    def open(self, program: Program) -> Session:
        """Pass a program to the solver.

        Raises:
            SolverUnavailableError: not installed, or the licence does not allow this program.
            EncodingError: coefficients that the solver refuses.
        """


_BACK_ENDS: dict[str, type[Solver]] = {}
Class = TypeVar("Class", bound=type[Solver])


def register(back_end: Class) -> Class:
    """Class decorator: enter a back end under its name; a name that is taken raises.

    Its file imports the solver only when a program is opened, so that a missing one does no harm.
    """
    if back_end.name in _BACK_ENDS:
        raise SolverUnavailableError(
            f"Solver '{back_end.name}' was registered twice",
            f"{_BACK_ENDS[back_end.name].__name__} and {back_end.__name__}",
            "choose another name",
        )
    _BACK_ENDS[back_end.name] = back_end
    return back_end


def back_ends() -> dict[str, type[Solver]]:
    """Every registered back end by name, in the order of preference of 'auto'.

    All modules of this package are imported first.
    """
    import milp_agt.solvers as package

    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_BACK_ENDS.items(), key=lambda entry: (entry[1].rank, entry[0])))


def get_solver(name: str) -> Solver:
    """The back end of this name, installed or not; ``cvxpy:INNER`` names cvxpy's inner solver.

    Raises:
        SolverUnavailableError: an unknown name.
    """
    key, _, inner = name.strip().partition(":")
    known = back_ends()
    back_end: Any = known.get(key.lower())
    if back_end is None or (inner and not back_end.has_inner):
        raise SolverUnavailableError(
            f"Solver '{name}' is needed",
            f"known are {', '.join(known)} and cvxpy:INNER; installed are {_installed()}",
            "choose one of these; pip install 'milp_agt[gurobi]' or 'milp_agt[scip]' adds more",
        )
    solver: Solver = back_end(inner.upper()) if inner else back_end()
    return solver


def available_solvers() -> tuple[str, ...]:
    """Names of the installed back ends, in the order of preference of 'auto'."""
    return tuple(name for name in back_ends() if get_solver(name).available())


def choose(name: str | None) -> Solver:
    """The solver of this name ('cvxpy:INNER' among them); for None and 'auto' the first that is installed.

    Raises:
        SolverUnavailableError: unknown, or not installed.
    """
    if not isinstance(name, (str, type(None))):
        raise SolverUnavailableError(
            "A solver is asked for by its name", f"{name!r}", f"use one of {', '.join(back_ends())}"
        )
    if name is None or name.strip().lower() in ("", "auto"):
        known = available_solvers()
        if not known:
            raise SolverUnavailableError(
                "A solver is needed", "none that is installed", "pip install highspy"
            )
        return get_solver(known[0])
    solver = get_solver(name)
    solver.check_available()
    return solver


def solver_table() -> tuple[Solver, ...]:
    """Every back end, installed or not. No solver is imported and no licence is taken."""
    return tuple(map(get_solver, back_ends()))


def _installed() -> str:
    return ", ".join(available_solvers()) or "none"
