"""The options of ``certify``: each is defined here once, with its default and description.

Python, run files, the command line, ``compare``, the JSON schema and ``examples/RUNFILE.md`` read them here.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from milp_agt.core.arguments import of_kind
from milp_agt.core.deadline import shorter
from milp_agt.core.option_table import Count, Index, Memory, NonNegative, Table, problem, told
from milp_agt.core.relaxation import levels
from milp_agt.core.results import Limits
from milp_agt.core.rounding import PRECISIONS, USE_FLOAT32, what_is_wrong_with
from milp_agt.errors import InvalidInputError

Window = Count | Literal["T"]
Time = Annotated[NonNegative, Field(json_schema_extra={"x-unit": "seconds"})]
EACH_SOLVE = Limits()
Options = TypeVar("Options", bound="CertifyOptions")
Function = TypeVar("Function", bound=Callable[..., Any])


# Options, or values of them, of older run files, and what is done in their place.
_BESIDE = "the zonotope beside linear forms proves as much"
_OLDER: Mapping[str, str] = {
    **dict.fromkeys(("alpha_steps", "alpha_every"), _BESIDE),
    "strengthening": "programs gained nothing by it that was worth its cost",
}
_OLDER_VALUES: Mapping[tuple[str, object], str] = {("selections", "charged"): _BESIDE}


def _with_levels(schema: dict[str, Any]) -> None:
    schema["enum"] = list(levels())


class CertifyOptions(Table):
    """Which relaxation, over which window, with which means."""

    relaxation: str = Field(
        default="linear",
        description="How the run is bounded, from cheap and loose to dear and tight; `auto` takes the "
        "tightest of interval, zonotope, linear and lp whose predicted cost fits `time_limit` and `memory`, "
        "under a time limit a tighter one as far as it gets, and for questions about classes a tree where "
        "there is a rule (`tree`). "
        "Each level carries the looser ones along; `zonotope` where it has rules for the run and is "
        "predicted to be cheap, until linear forms are far tighter; `linear` ends beside it where it adds "
        "nothing for some steps, and gives way to it where it is predicted to be the dearer of two that "
        "are too dear together.",
        json_schema_extra=_with_levels,
    )
    window: Window | None = Field(
        default=None,
        description='Past steps that linear forms are followed back through; `"T"`, or leaving it out, '
        "is the whole run.",
    )
    program_window: Index | Literal["T"] | None = Field(
        default=None,
        description='Steps in one program of `lp` and above, `"T"` for the whole run; unless given, '
        "as many as `window` says, and 1 without either. Where a zonotope is carried along, one program "
        "on its rows spans the whole run, for the last step and for questions; 0 solves that one alone "
        "(`lp` and `milp`).",
    )
    inner_bounds: Literal["interval", "linear"] | None = Field(
        default=None,
        description="How intermediate nodes of a step are bounded in `linear` and above: by intervals, or "
        "by linear forms through the window; unless given, linear where its predicted cost is small and "
        "no zonotope is carried along, and of programs.",
    )
    carried: Literal["zonotope", "none"] = Field(
        default="zonotope",
        description="What is carried along beside linear forms and programs, and met with them: a zonotope "
        "where it has rules for the run and is predicted to be cheap (at `linear` also in place of dearer "
        "linear forms), or `none`, to see what these levels prove by themselves.",
    )
    selections: Literal["joint", "enumerated"] | None = Field(
        default=None,
        description="Bound all choices of poisoned samples at once, or carry a box for each choice "
        "(`linear` and above, budgets for the data set); unless given, enumerated where that is predicted "
        "to be cheap and no zonotope is carried along, or labels flip; else joint. Of a finite threat "
        "(classes, categories, removals) each choice is one data set: below programs, enumerated trains on "
        "all of them, exact up to rounding.",
    )
    solver: str | None = Field(
        default=None,
        description="Back end of programs: `highs`, `scip`, `gurobi`, `cvxpy`, or `cvxpy:NAME` for a "
        "solver that cvxpy reaches; unless given, the first of them that is installed and able.",
        examples=["highs"],
    )
    solve_time_limit: Time | None = Field(
        default=EACH_SOLVE.time,
        description="Time for each solve of a program; a limit loosens bounds and never breaks them.",
    )
    solve_gap: NonNegative = Field(
        default=EACH_SOLVE.gap,
        description="Relative distance of the bound to the best point found at which the tree of a "
        "solve may stop (`milp` and above).",
    )
    solve_nodes: Index | None = Field(
        default=EACH_SOLVE.nodes,
        description="Nodes of the tree of each solve, at most (`milp` and above); no limit unless given.",
    )
    workers: Count = Field(
        default=1,
        description="Processes that solve programs and search trees, by joblib (extra `parallel` for more "
        "than one); inside `joblib.parallel_config` its backend (dask, ray) spreads them over machines.",
    )
    device: str = Field(
        default="cpu",
        description="`cpu`, `cuda` or another device of torch, or `auto`, the GPU if there is one.",
        examples=["cuda"],
    )
    memory: Memory | Count = Field(
        default="4GiB",
        description="Memory of the process, in B, KB, MB, GB, KiB, MiB or GiB; work is cut into pieces "
        "that fit, and a fallback says where it cannot be kept.",
    )
    tree: Time = Field(
        default=0.0,
        description="Seconds that a question about classes may take for a tree over selections of poisoned "
        "samples and cells of their moves, which decides the test points that all other bounds leave open; "
        "0 for none (`auto`: 10 s, or a share of `time_limit`). For features, and targets of regressions, "
        "of a few samples of the data set. A run that carries a zonotope takes any budget: "
        "`result.narrowed` then branches on samples and phases.",
    )
    time_limit: Time | None = Field(
        default=None,
        description="Time for the whole run: a level ends where its next step is predicted not to fit "
        "beside what cheaper levels need for the steps that are left, programs before linear forms, and "
        "intervals go on to the end; where these would overrun it by more than a twentieth, nothing is "
        "bounded from that step on. Preparation counts, and so do the properties of a run file: once the "
        "time is over, these are answered from boxes. No limit unless given.",
    )

    refute: Literal["none", "quick", "thorough"] = Field(
        default="quick",
        description="Attacks on the test points (and the loss) that a question leaves open, asked of the "
        "result: `quick` tries some hundred guided runs, fewer where a run is long, `thorough` searches as "
        "an attack does (by its settings where the run is attacked), `none` leaves them open. What a "
        "trained model gets wrong is REFUTED, with the poisoned data.",
    )
    precision: str | None = Field(
        default=None,
        description="Of the training run that is certified, `float64` or `float32`; unless given, that of a "
        "recorded run, else float64. Bounds are computed in "
        "float64 in either case; for `float32` they cover what rounding to float32 does to every "
        "number of the run, and model, data and limits have to be float32 numbers. Dense layers, their "
        "activations, batch normalisation with kept statistics and clipping of single gradients are "
        "covered; convolutions and threats to whole samples are refused, as are TF32, float16, bfloat16 "
        "and mixed precision.",
        json_schema_extra={"enum": list(PRECISIONS)},
    )

    @model_validator(mode="before")
    @classmethod
    def _older(cls, given: object) -> object:
        """Older run files keep working: what was removed is dropped, with a warning for each."""
        if not isinstance(given, dict):
            return given
        gone = {key: _OLDER[key] for key in given if key in _OLDER}
        words = {key: word for key, word in given.items() if isinstance(word, str)}
        gone |= {k: _OLDER_VALUES[k, v] for k, v in words.items() if (k, v) in _OLDER_VALUES}
        for key, why in gone.items():
            warnings.warn(
                f"[certify] {key} = {given[key]!r} has no effect: it was removed, {why}; drop the line",
                UserWarning,
                stacklevel=2,
            )
        return {key: value for key, value in given.items() if key not in gone}

    @field_validator("precision")
    @classmethod
    def _covered_precision(cls, name: str | None) -> str | None:
        if name is not None and name not in PRECISIONS:
            raise problem(f"precision = '{name}', {what_is_wrong_with(name)}", USE_FLOAT32)
        return name

    @field_validator("relaxation")
    @classmethod
    def _known_relaxation(cls, name: str) -> str:
        if name not in levels():
            raise problem(
                f"relaxation = '{name}'", f"relaxation should be one of {', '.join(levels())}"
            )
        return name

    @property
    def solve_limits(self) -> Limits:
        """The limits of each solve of a program."""
        return Limits(self.solve_time_limit, self.solve_gap, self.solve_nodes)

    def steps_of(self, window: int | Literal["T"] | None, total: int) -> int | None:
        """A window as a count of steps, of a run of ``total`` steps."""
        return total if window == "T" else window

    def within(self, seconds: float | None) -> Self:
        """The same with a time limit of so many seconds at most."""
        return self.changed({"time_limit": shorter(self.time_limit, seconds)})

    def changed(self, given: Mapping[str, Any]) -> Self:
        """These options with some replaced; ``solve_limits=agt.Limits(...)`` stands for three of them.

        Raises:
            InvalidInputError: an unknown name, or a value that the option does not take.
        """
        changes = {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items()}
        limits = changes.pop("solve_limits", None)
        if limits is not None:
            of_kind(limits, Limits, "solve_limits", "give agt.Limits(time=10.0), say")
            changes |= {"solve_time_limit": limits.time, "solve_gap": limits.gap}
            changes |= {"solve_nodes": limits.nodes}
        try:
            return self.model_validate({**dict(self), **changes})
        except ValidationError as error:
            raise _refusal(error, type(self)) from None


# Classes with further options, beside which rules of levels stand.
FURTHER: list[type[CertifyOptions]] = []


def register_options(table: type[CertifyOptions]) -> type[CertifyOptions]:
    """Class decorator: a subclass of :class:`CertifyOptions` whose fields are options as well."""
    FURTHER.append(table)
    return table


def with_further(table: type[Options]) -> type[Options]:
    """A class of options with all that are registered."""
    bases: Any = (*FURTHER, table)
    return create_model(table.__name__, __base__=bases, __doc__=table.__doc__) if FURTHER else table


def options_of(options: object, changes: Mapping[str, Any]) -> CertifyOptions:
    """The options given as one object, or the defaults, with those given by name replaced. Raises
    InvalidInputError: another object, an unknown name, or a value that its option does not take."""
    known = with_further(CertifyOptions)() if options is None else options
    of_kind(known, CertifyOptions, "options", "give agt.CertifyOptions(...), or leave it out")
    assert isinstance(known, CertifyOptions)
    return known.changed(changes)


def _refusal(error: ValidationError, table: type[CertifyOptions]) -> InvalidInputError:
    """All problems of options given in Python, as one error."""
    found: dict[str, str] = {}
    wanted: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        # The rest of the path is pydantic's.
        name = ".".join(str(part) for part in item["loc"] if part in table.model_fields)
        if item["type"] == "extra_forbidden":
            name = str(item["loc"][-1])
            near = get_close_matches(name, table.model_fields, 1)
            known = ", ".join(table.model_fields)
            found[name] = f"no option '{name}'"
            wanted[name] = [f"did you mean '{near[0]}'?" if near else f"the options are {known}"]
        elif item["type"] == "milp_agt":
            pairs = item["ctx"]["problems"]
            found[name] = "; ".join(each for each, _ in pairs)
            wanted[name] = ["; ".join(remedy for _, remedy in pairs)]
        else:
            value = item["input"]
            kind = f" of type {type(value).__name__}" if item["type"].endswith("_type") else ""
            found[name] = f"{name} = {value!r:.60}{kind}"
            wish = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            if f"{name} should be {wish}" not in wanted.setdefault(
                name, [f"{name} should be {wish}"]
            ):
                wanted[name].append(f"or {wish}")
    problems = [(found[name], " ".join(wishes)) for name, wishes in wanted.items()]
    asked = f"Certify with {', '.join(f'{name}=' for name in wanted)}"
    return InvalidInputError.of(asked, problems)


def takes_options(*without: str) -> Callable[[Function], Function]:
    """Decorator of functions with ``**options``: signature and docstring list every option.

    Args:
        without: options that the function takes in another form.
    """

    def completed(function: Function) -> Function:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = {n: f for n, f in CertifyOptions.model_fields.items() if n not in without}
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default)
            for name, field in known.items()
        ]
        function.__dict__["__signature__"] = own.replace(parameters=[*kept, *options])
        if function.__doc__ is not None:
            lines = (told(name, field.description or "") for name, field in known.items())
            before, raises, after = function.__doc__.partition("\n    Raises:")
            function.__doc__ = "\n".join([before.rstrip(), *lines, f"{raises}{after}"])
        return function

    return completed
