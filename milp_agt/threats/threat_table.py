"""[threat] of a run file: tables made of the classes of threats, one for each kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from milp_agt.core.option_table import WRONG, Index, Kinds, NonNegative, Table
from milp_agt.errors import ConfigurationError, Problem


class ThreatTable(Table):
    """What the adversary may change, and how often."""

    def resolved(self, labels: npt.NDArray[Any]) -> Self:
        """The same table with the samples of its ``classes`` by their positions. Raises
        ConfigurationError: a class without samples, or targets that are no classes."""
        return self


THREATS: Kinds[ThreatTable] = Kinds("threat", ThreatTable)


class ChosenTable(ThreatTable):
    """``samples``, ``ids``, ``positions`` or ``classes`` are those not trusted (default: all)."""

    classes: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None,
        description="The classes whose training samples may be chosen, in place of `samples`.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        ways = ("samples", "ids", "positions", "classes")
        named = [f"'{way}'" for way in ways if given.get(way) is not None]
        if len(named) > 1:
            yield " and ".join(named), "name the untrusted ones by one of them"

    def resolved(self, labels: npt.NDArray[Any]) -> Self:
        if self.classes is None:
            return self
        known = np.unique(labels).tolist() if labels.dtype == np.int64 else []
        absent = [c for c in self.classes if c not in known]
        if absent:
            raise ConfigurationError(
                f"Threat with classes = {self.classes}",
                f"no training sample of class {absent[0]}"
                if known
                else "targets that are real numbers",
                f"name classes among {known}" if known else "give samples = [...] instead",
            )
        chosen = np.flatnonzero(np.isin(labels, self.classes)).tolist()
        return self.model_copy(update={"positions": chosen, "classes": None})


class FeatureTable(ChosenTable):
    """Moves of features: rows and their limits are two keys, and columns are texts."""

    row_limits: list[NonNegative] | list[list[NonNegative]] | None = Field(
        default=None,
        description="The limits b of `rows`: one for each row, or for each sample and row.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        if ("rows" in given) != ("row_limits" in given):
            lone = "rows" if "rows" in given else "row_limits"
            yield f"'{lone}' alone", "give rows = [[...], ...] and row_limits = [...] together"
        norm, coordinates = given.get("norm", "inf"), given.get("coordinates")
        if WRONG not in (norm, coordinates) and (norm in ("0", 0)) != (coordinates is not None):
            yield (
                f"norm = {norm!r} with coordinates = {coordinates}",
                "norm = 0 needs coordinates, the count of features that may move; others have none",
            )
        missing = given.get("missing")
        if isinstance(missing, dict) and not all(key.isdecimal() for key in missing):
            yield f"missing = {missing}", "missing should be a value, or { column = value }"

    def arguments(self) -> dict[str, Any]:
        found = super().arguments()
        if isinstance(found.get("missing"), dict):
            found["missing"] = {int(c): value for c, value in found["missing"].items()}
        if "domain" in found:
            found["domain"] = tuple(found["domain"])
        if "rows" in found:
            found["rows"] = found["rows"], self.row_limits
        return found


threat_kind = THREATS.kind
