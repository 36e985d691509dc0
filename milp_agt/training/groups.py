"""Parameters with rates, momentum and decay of their own, as the groups of a torch optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from milp_agt.core.arguments import is_at_least, listed
from milp_agt.core.option_table import Key, NonNegative, Positive, check_fields
from milp_agt.errors import InvalidInputError


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained in a way of their own; what is None is as for all others.

    Attributes:
        names: names as in ``named_parameters()``, or patterns: ``["0.*", "*.bias"]``.
        learning_rate: their base rate; a ``schedule`` acts on it as on the other, a list by its ratio.
        momentum: their momentum.
        weight_decay: their weight decay.
        nesterov: their kind of momentum.

    Raises:
        InvalidInputError: no names, or a value out of range.
    """

    names: Annotated[Sequence[str], Key(Annotated[list[str], Field(min_length=1)])]
    learning_rate: Annotated[float | None, Key(Positive)] = None
    momentum: Annotated[float | None, Key(NonNegative)] = None
    weight_decay: Annotated[float | None, Key(NonNegative)] = None
    nesterov: Annotated[bool | None, Key(bool)] = None

    def __post_init__(self) -> None:
        remedy = "give names=('0.weight', '0.bias') or patterns ('0.*',)"
        listed(self.names, str, "names of a group", remedy)
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names:
            raise InvalidInputError("A group of parameters needs names", "none", remedy)
        if is_at_least(self.learning_rate, 0.0) and self.learning_rate == 0:
            remedy = "freeze parameters that shall not train by requires_grad_(False)"
            raise InvalidInputError("A group trains", "learning_rate = 0", remedy)
        check_fields(self)

    def holds(self, name: str) -> bool:
        """Whether a parameter of that name is in the group."""
        return any(fnmatchcase(name, pattern) for pattern in self.names)


def check_groups(groups: Sequence[ParameterGroup], parameters: Sequence[str]) -> None:
    """See that every name of a group is that of a trainable parameter, and none is in two groups. Raises
    InvalidInputError: other names."""
    unknown = [
        f"'{pattern}', where the trainable parameters are {', '.join(parameters)}"
        for group in groups
        for pattern in group.names
        if not any(fnmatchcase(name, pattern) for name in parameters)
    ]
    twice = [
        f"'{name}' in several groups"
        for name in parameters
        if sum(group.holds(name) for group in groups) > 1
    ]
    for found in (*unknown, *twice):
        raise InvalidInputError(
            "Groups were to train some parameters in a way of their own",
            found,
            "use names of model.named_parameters() that are trained, each in one group",
        )
