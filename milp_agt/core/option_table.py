"""The base of all option tables: strict keys, kinds of numbers, and custom problems."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from milp_agt.errors import InvalidInputError, Problem

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


TableType = TypeVar("TableType", bound=Table)


class Kinds(Generic[TableType]):
    """The tables that may stand at one key, told apart by their key ``kind``; sorted by it.

    Args:
        what: the key of the run file, for messages.
        find: imports the modules that register tables of ours.
    """

    def __init__(self, what: str, find: Callable[[], object] = lambda: None) -> None:
        self._what, self._find = what, find
        self._tables: dict[str, type[TableType]] = {}

    def register(self, table: type[TableType]) -> type[TableType]:
        """Class decorator: enter a table under the value of its key ``kind``.

        Raises:
            InvalidInputError: a kind that is taken.
        """
        kind = kind_of(table)
        if kind in self._tables:
            raise InvalidInputError(
                f"[{self._what}] kind = '{kind}' was registered twice",
                f"{self._tables[kind].__name__} and {table.__name__}",
                "choose another kind",
            )
        self._tables[kind] = table
        return table

    def forget(self, kind: str) -> None:
        """Take a kind out again."""
        del self._tables[kind]

    def all(self) -> dict[str, type[TableType]]:
        """Every registered table by its kind."""
        self._find()
        return dict(sorted(self._tables.items()))


def kind_of(table: type[Table]) -> str:
    """The kind that a table is for."""
    (kind,) = table.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
    return str(kind)


@dataclass(frozen=True)
class OneOf:
    """Annotation of a key at which any table of some kinds may stand."""

    kinds: Kinds[Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        tables = reduce(operator.or_, self.kinds.all().values())
        return handler.generate_schema(Annotated[tables, Field(discriminator="kind")])


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
