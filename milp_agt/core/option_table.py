"""What every table of options shares: strict keys, the kinds of numbers, problems of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, json_schema_extra={"x-unit": "seconds"})]
Memory = Annotated[str, Field(examples=["4GiB"])]
KIND = "The kind of this table, which decides what other keys it has."


STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Table(BaseModel):
    """A table that refuses unknown keys, conversions and numbers that are not finite."""

    model_config = STRICT


def problem(found: str, remedy: str) -> PydanticCustomError:
    """A problem with its own words, in the two parts that end a message."""
    return PydanticCustomError("milp_agt", "{found}", {"found": found, "remedy": remedy})
