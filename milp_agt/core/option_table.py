"""The base of all option tables: strict keys, kinds of numbers, and custom problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from milp_agt.errors import Problem

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, json_schema_extra={"x-unit": "seconds"})]
Memory = Annotated[str, Field(examples=["4GiB"])]
KIND = "The kind of this table, which decides what other keys it has."


STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Table(BaseModel):
    """A table that refuses unknown keys, type conversions and non-finite numbers."""

    model_config = STRICT

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        """What does not go together among the keys that are ``given``.

        Also asked of a table with wrong values, which are :data:`WRONG` then: it says all that is
        wrong with a file at once.
        """
        yield from ()

    @classmethod
    def refusals(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        """What building the table would refuse, asked of a file with other problems only."""
        yield from ()

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        given = {key: getattr(self, key) for key in self.model_fields_set}
        found = tuple(self.contradictions(given))
        if found:
            raise problems(found)
        return self


class _Wrong:
    """A value that is not of the kind its key asks for, and is reported already."""


WRONG = _Wrong()


def problem(found: str, remedy: str) -> PydanticCustomError:
    """A problem with its own words, in the two parts that end a message."""
    return problems([(found, remedy)])


def problems(found: Sequence[Problem]) -> PydanticCustomError:
    """Several problems of one table."""
    told = "; ".join(each for each, _ in found)
    return PydanticCustomError("milp_agt", "{found}", {"found": told, "problems": tuple(found)})
