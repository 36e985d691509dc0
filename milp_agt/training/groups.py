"""Parameters with rates, momentum and decay of their own, as the groups of a torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from milp_agt.core.arguments import listed, of_kind
from milp_agt.core.option_table import Key, NonNegative, Positive, documented
from milp_agt.errors import InvalidInputError

_NUMBERS = ("learning_rate", "momentum", "weight_decay")


@documented
@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained in a way of their own; what is None is as for all others.

    Raises:
        InvalidInputError: no names, or a value out of range.
    """

    names: Annotated[
        Sequence[str],
        Key(
            Annotated[list[str], Field(min_length=1)],
            'Names as in `named_parameters()`, or patterns: `["0.*", "*.bias"]`.',
        ),
    ]
    learning_rate: Annotated[
        float | None,
        Key(
            Positive,
            "Their base rate; a `schedule` acts on it as on the other, a list by its ratio.",
        ),
    ] = None
    momentum: Annotated[float | None, Key(NonNegative, "Their momentum.")] = None
    weight_decay: Annotated[float | None, Key(NonNegative, "Their weight decay.")] = None
    nesterov: Annotated[bool | None, Key(bool, "Their kind of momentum.")] = None

    def __post_init__(self) -> None:
        remedy = "give names=('0.weight', '0.bias') or patterns ('0.*',)"
        listed(self.names, str, "names of a group", remedy)
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names:
            raise InvalidInputError("A group of parameters needs names", "none", remedy)
        of_kind(self.nesterov or False, bool, "nesterov of a group", "give True or False")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None:
                continue
            of_kind(value, (int, float), f"{name} of a group", "give a number")
            least = "> 0" if name == "learning_rate" else ">= 0"
            if not math.isfinite(value) or value < 0 or (value == 0 and least == "> 0"):
                raise InvalidInputError(
                    f"A group of parameters needs {name} {least}",
                    f"{name} = {value!r}",
                    f"change {name}; parameters that shall not train are frozen by requires_grad_(False)",
                )

    def holds(self, name: str) -> bool:
        """Whether a parameter of that name is in the group."""
        return any(fnmatchcase(name, pattern) for pattern in self.names)


def check_groups(groups: Sequence[ParameterGroup], parameters: Sequence[str]) -> None:
    """See that every name of a group is that of a trainable parameter, and none is in two groups.

    Raises:
        InvalidInputError: other names.
    """
    asked = "Groups were to train some parameters in a way of their own"
    remedy = "use names of model.named_parameters() that are trained, each in one group"
    for group in groups:
        for pattern in group.names:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise InvalidInputError(
                    asked,
                    f"'{pattern}', where the trainable parameters are {', '.join(parameters)}",
                    remedy,
                )
    for name in parameters:
        if sum(group.holds(name) for group in groups) > 1:
            raise InvalidInputError(asked, f"'{name}' in several groups", remedy)
