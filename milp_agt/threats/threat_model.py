"""The interface of threat models, the parts most share (a budget, the samples, the times), and their
tables in run files, one for each kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.core.arguments import is_at_least
from milp_agt.core.option_table import WRONG, Index, Key, Kinds, NonNegative, Table
from milp_agt.data.origin import Origin
from milp_agt.errors import ConfigurationError, InvalidThreatModelError, Problem
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.poison import Poison

SCOPES = ("dataset", "batch")


class ThreatModel(Protocol):
    """Defines, for a data set, the admissible moves of each sample."""

    @property
    def budget(self) -> int: ...

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        """Admissible moves for encoded data: features (N, *shape), labels (N, width), float64."""
        ...

    def describe(self) -> str:
        """What the adversary may do, as a part of the claim."""
        ...


@dataclass(frozen=True)
class Budgeted:
    """Common part: how many samples, and the data set that ``certify`` fills in as ``origin``.

    Attributes:
        budget: training samples that the adversary may choose, at most.
    """

    budget: Annotated[int, Key(Index)]
    _: KW_ONLY
    origin: Origin | None = field(default=None, repr=False, compare=False)

    @property
    def touches(self) -> tuple[str, ...]:
        """What of the training data the adversary may change: "features", "targets", or both."""
        return ("features", "targets")

    def _check_budget(self) -> int:
        if not is_at_least(self.budget, 0, whole=True):
            raise InvalidThreatModelError(
                f"{type(self).__name__} needs a whole budget >= 0",
                f"budget = {self.budget}",
                "give a count",
            )
        return int(self.budget)


STATIC = Key(
    bool, "`true`: the data are poisoned once, before training; `false`: anew in every step."
)
SCOPE = Key(
    Literal["dataset", "batch"],
    "`dataset`: one choice of samples for the whole run; `batch`: one for every batch, each within the "
    "budget.",
)
_Indices = Annotated[list[Index], Field(min_length=1)]


@dataclass(frozen=True)
class Chosen(Budgeted):
    """Which samples of the data set may be chosen, and for how long.

    Attributes:
        samples: the training samples that may be chosen, by their rows in the file: from 0, below the header;
            all unless given.
        ids: the same by who they are, in place of ``samples``: what stands in the column ``id`` of [data].
        positions: the same by position in the training part after the split, in place of ``samples``.
    """

    _: KW_ONLY
    samples: Annotated[Sequence[int] | None, Key(_Indices)] = None
    ids: Annotated[
        Sequence[object] | None, Key(Annotated[list[str | int], Field(min_length=1)])
    ] = None
    positions: Annotated[Sequence[int] | None, Key(_Indices)] = None
    scope: Annotated[str, SCOPE] = "dataset"

    def _open(self, count: int | None = None) -> list[int] | None:
        """Positions of the samples that are named, out of ``count`` training samples; None for all.
        Raises InvalidThreatModelError: named in two ways, or by what is no sample of the training
        part."""
        name, origin = type(self).__name__, self.origin
        ways: dict[str, Any] = {n: getattr(self, n) for n in ("samples", "ids", "positions")}
        given = {way: value for way, value in ways.items() if value is not None}
        if len(given) > 1:
            raise InvalidThreatModelError(
                f"{name} names the samples that can be poisoned",
                " and ".join(f"{way}=" for way in given),
                "name them in one way",
            )
        if not given:
            return None
        ((way, values),) = given.items()
        is_list = isinstance(values, Iterable) and not isinstance(values, str)
        is_list &= getattr(values, "ndim", 1) > 0
        chosen = list(values) if is_list else []
        if way == "ids" and chosen and origin is None:
            raise InvalidThreatModelError(
                f"{name} with ids=",
                "plain arrays, whose samples have none",
                "give certify a data set with ids (load_dataset(id=), Dataset.of(ids=)), or samples=",
            )
        if origin is None and count is None:
            return chosen  # only to be counted
        asked, kind, rows = f"{name} with {way}=", InvalidThreatModelError, way
        if origin is not None:
            if way == "ids" and chosen:
                return origin.positions(asked, "train", ids=chosen, kind=kind)
            count = len(origin.rows.train)
            if way == "samples":
                count, rows = origin.total, f"rows ({origin.where})"
        assert count is not None
        bad = [s for s in chosen if not is_at_least(s, 0, whole=True) or s >= count]
        if not chosen or bad or len(set(chosen)) != len(chosen):
            mask = len(chosen) > 0 and all(isinstance(s, (bool, np.bool_)) for s in chosen)
            twice = [] if bad else [s for s in chosen if chosen.count(s) > 1]
            raise InvalidThreatModelError(
                f"{name} needs distinct {rows} out of 0..{count - 1}",
                f"{twice[0]} more than once"
                if twice
                else f"{len(chosen)} {way}, no index of the data: {bad[:5]}"
                if is_list
                else f"{type(values).__name__} {values!r:.60}",
                f"give {way}=np.flatnonzero(mask)" if mask else f"correct {way}=, a list",
            )
        if origin is None or way != "samples":
            return [int(s) for s in chosen]
        asked = f"{asked}, rows of training samples"
        return origin.positions(asked, "train", chosen, kind=kind)

    def _mask(self, count: int) -> Tensor:
        """Mask of the samples that can be poisoned, (N,)."""
        name = type(self).__name__
        self._check_budget()
        if not isinstance(self.scope, str) or self.scope not in SCOPES:
            raise InvalidThreatModelError(
                f"{name} needs a scope out of {SCOPES}",
                f"scope = {self.scope!r:.60}",
                "choose one of them",
            )
        if self.origin is not None and len(self.origin.rows.train) != count:
            raise InvalidThreatModelError(
                f"{name} by the rows of a data set",
                f"{len(self.origin.rows.train)} training samples there, {count} samples here",
                "certify that data set, or make the threat anew for these arrays",
            )
        chosen = self._open(count)
        mask = torch.full((count,), chosen is None)
        mask[chosen or []] = True
        open_ = int(mask.sum())
        if self.budget > open_:
            raise InvalidThreatModelError(
                f"{name} may poison {self.budget} samples",
                f"a data set of {count} samples"
                if chosen is None
                else f"only {open_} samples are open to poison",
                f"choose a budget of at most {open_}",
            )
        return mask

    @property
    def _who(self) -> str:
        """How many samples, and out of which, in words; rows of the file where they are known."""
        chosen = self._open()
        text = samples_in_words(self.budget, chosen, self.scope)
        if chosen is None or self.origin is None:
            return text
        named = f"named training samples ({self.origin.where}: {self.origin.in_words(chosen)})"
        return text.replace("named training samples", named)


@dataclass(frozen=True)
class Timed(Chosen):
    """Samples that are poisoned once, or anew in every step."""

    _: KW_ONLY
    static: Annotated[bool, STATIC] = True

    def _poison(self, features: Tensor, labels: Tensor, **parts: Any) -> Poison:
        """What may be done to the samples that are chosen, ``parts``, as a :class:`Poison`."""
        if self.static is not True and self.static is not False:
            raise InvalidThreatModelError(
                f"{type(self).__name__} is static or not",
                f"static = {self.static!r}",
                "give True or False",
            )
        return Poison(
            features=features,
            labels=labels,
            open=self._mask(len(features)),
            budget=int(self.budget),
            static=self.static,
            per_batch=self.scope == "batch",
            **parts,
        )

    @property
    def _when(self) -> str:
        return "once, before training" if self.static else "anew in every step"


def samples_in_words(budget: int, samples: Sequence[int] | None, scope: str) -> str:
    of = "the training set" if samples is None else f"{len(samples)} named training samples"
    each = "" if scope == "dataset" else " in each batch"
    return f"up to {budget} sample{'s' if budget != 1 else ''} of {of}{each}"


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
