"""Norms and radii given by users, in what units they are, and what a claim says of units and of scalers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.core.option_table import Key
from milp_agt.data.origin import UNIT_ROUNDOFF, Origin, Scaling
from milp_agt.errors import InvalidThreatModelError

Array = npt.NDArray[Any]
# Infinite only under a domain, which the threat checks.
_Length = Annotated[float, Field(ge=0, allow_inf_nan=True)]
Lengths = _Length | list[_Length] | list[list[_Length]]
RadiusIn = Annotated[
    str,
    Key(
        Literal["model", "raw"],
        "The units of every radius, and of `domain` and `missing`: those that training sees (standard "
        "deviations, if [data] standardises), or `raw`, those of the file.",
    ),
]


@dataclass(frozen=True)
class Units:
    """In what units a threat says its radius, for the features or the targets of a data set.

    Attributes:
        name: of the threat model, for messages.
        radius_in: "model" (as training sees the numbers) or "raw" (as the user's file has them).
        origin: of the data set; None for plain arrays.
        of: "features" or "targets".
    """

    name: str
    radius_in: str
    origin: Origin | None
    of: str

    def check(self) -> None:
        """See that the unit is known, and that there is a scaler for it. Raises InvalidThreatModelError:
        another word, or raw units of arrays or of components."""
        if not isinstance(self.radius_in, str) or self.radius_in not in ("model", "raw"):
            raise InvalidThreatModelError(
                f"{self.name} needs radius_in 'model' or 'raw'",
                f"radius_in = {self.radius_in!r:.60}",
                "use 'raw' for the units of the file, or leave it out for those that training sees",
            )
        if self.radius_in == "model":
            return
        if self.origin is None:
            raise InvalidThreatModelError(
                f"{self.name} in raw units",
                "plain arrays, of which nobody knows how they were scaled",
                "give a data set in place of (X, y): agt.load_dataset(...), or leave radius_in out",
            )
        if self.origin.projected and self.of == "features":
            raise InvalidThreatModelError(
                f"{self.name} in raw units",
                "features that are principal components",
                "leave radius_in out: the radius is then one of the components",
            )

    @property
    def scaling(self) -> Scaling | None:
        """How the file's numbers were scaled; None where they were not."""
        if self.origin is None:
            return None
        return self.origin.features if self.of == "features" else self.origin.targets

    @property
    def converts(self) -> Scaling | None:
        """The scaling that a radius has to go through; None for none."""
        return self.scaling if self.radius_in == "raw" else None

    def per_sample(self, values: object, shape: tuple[int, ...]) -> Any:
        """Values with a sample axis in the order of the training part, from one for each row of the file.
        Raises InvalidThreatModelError: in the order of a training part that is not the file's."""
        if self.origin is None:
            return values
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            return values  # whoever uses them says what is wrong
        count, asked = len(self.origin.rows.train), f"{self.name} with a value for each sample"
        if array.ndim == 0 or len(array) not in (self.origin.total, count):
            return values
        if array.shape == shape:
            if len(array) == self.origin.total != count:
                raise InvalidThreatModelError(
                    asked,
                    f"shape {shape}, with as many rows in the file as columns",
                    f"give shape {(len(array), *[1] * len(shape))} for rows",
                )
            return values
        return self.origin.of_rows(array, asked, InvalidThreatModelError)

    def to_model(self, radius: Tensor, nominal: Tensor, order: float) -> Tensor:
        """Radii of raw numbers as radii of what training sees, (N, *shape), rounding included.

        Guarantee: if raw numbers move by at most ``radius`` in the norm of this order, the scaled ones,
        computed in float64, move by at most the result, for every sample.

        A move is divided by ``size``. Rounding adds at most e of ``Scaling.slack`` to each coordinate
        that moves at all. In the norms inf and 0 it is added. In the norms 1 and 2 of ``move / r`` all
        radii grow by the factor ``1 + sum(e / r)``: ``|t r + e| <= |t| r + e``, and the norm of
        ``e / r`` is at most its sum.
        """
        scaling = self.converts
        if scaling is None:
            return radius
        alike = radius.stride(0) == 0 or len(radius) == 1
        given = (radius[:1] if alike else radius).numpy()
        largest = nominal.abs().amax(0).numpy()
        slack = np.broadcast_to(scaling.slack(largest), given.shape)
        scaled = given / scaling.size * (1.0 + 8.0 * UNIT_ROUNDOFF)
        if order in (1, 2):
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(given > 0, slack / scaled, 0.0)
            total = share.reshape(len(share), -1).sum(1) * (1.0 + 1e-9)
            found = scaled * (1.0 + total.reshape(-1, *[1] * (given.ndim - 1)))
            found = found * (1.0 + 8.0 * UNIT_ROUNDOFF)
        else:
            found = np.where(given > 0, scaled + slack, 0.0)
        return torch.from_numpy(np.ascontiguousarray(found)).expand(radius.shape)

    def ends(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of a raw domain as training sees them, rounded outwards."""
        scaling = self.converts
        if scaling is None:
            return low, high
        lower, upper = (scaling.apply(end.numpy()) for end in (low, high))
        slack = [scaling.slack(np.where(np.isfinite(e), e, 0.0)) for e in (lower, upper)]
        return torch.from_numpy(lower - slack[0]), torch.from_numpy(upper + slack[1])

    def fill(self, column: int, value: float) -> float:
        """The number that training reads where the file has ``value`` in a column."""
        scaling = self.converts
        if scaling is None:
            return value
        return float(scaling.apply(np.full(scaling.mean.shape, value)).reshape(-1)[column])

    def words(self, radius: object) -> tuple[str, str]:
        """The unit of a radius, and what that is in the other one; nothing for plain arrays."""
        if self.origin is None:
            return "", ""
        scaling, raw = self.scaling, self.radius_in == "raw"
        if scaling is None:
            return "", ", in the units of the data"
        finite = bool(np.isfinite(np.asarray(radius, dtype=np.float64)).all())
        beside = f" ({scaling.beside(radius, raw)})" if finite else ""
        return (" in the units of the data" if raw else scaling.unit), beside

    def shown(self, positions: list[int]) -> str:
        """Training samples for an error: rows of the file, or positions in the arrays."""
        if self.origin is None:
            return f"{positions[:5]}"
        return f"rows {', '.join(self.origin.name(each) for each in positions[:5])}"


def located(threat: Any, origin: Origin) -> Any:
    """The same threat, which now reads rows, ids and raw units by a data set.

    Threats of a user's own are left as they are, unless they have a field ``origin``.
    """
    if not dataclasses.is_dataclass(threat) or isinstance(threat, type):
        return threat
    names = {each.name for each in dataclasses.fields(threat)}
    if "origin" in names:
        return dataclasses.replace(threat, origin=origin)
    parts = {"features", "labels"}
    if parts <= names:
        changed = {name: located(getattr(threat, name), origin) for name in parts}
        return dataclasses.replace(threat, **changed)
    return threat


def fitted_on_poison(threat: Any, origin: Origin | None) -> str:
    """What a claim says first where a scaler was fitted on data that the adversary may change.

    Empty where no scaler was, or where the adversary has no say in it.
    """
    if origin is None or getattr(threat, "budget", 1) == 0:
        return ""
    touched = getattr(threat, "touches", ("features", "targets"))
    scalers = {"features": origin.features, "targets": origin.targets}
    fitted = [n for n, s in scalers.items() if s is not None and s.fitted and n in touched]
    if not fitted:
        return ""
    return (
        f"Mind that the {' and '.join(fitted)} were standardised by mean and deviation of the training "
        "part, which this adversary may change: the claim takes these numbers as they are, so it is about "
        "changes to the standardised data, and not about a scaler that is fitted again on poisoned data."
    )


Numbers = float | Sequence[float] | Array
Radius = float | Sequence[float] | Sequence[Sequence[float]] | Array
Rows = tuple[Sequence[Sequence[float]] | Array, Sequence[float] | Array]
NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0, "0": 0.0}


def norm_of(name: str, given: str | float) -> float:
    """The order of a norm: inf, 2, 1 or 0, given as a number or a string. Raises InvalidThreatModelError:
    any other value."""
    known = given if isinstance(given, (str, int, float)) and not isinstance(given, bool) else None
    for word, order in NORMS.items():
        if known in (word, order):
            return order
    raise InvalidThreatModelError(
        f"{name} in norm {given!r}", "no such norm", "use norm 'inf', 2, 1 or 0"
    )


def radii(
    name: str, given: Radius, like: Tensor, may_be_infinite: bool, what: str = "feature"
) -> Tensor:
    """A radius for each entry of ``like`` (N, *shape), from one, one per entry, per sample, or for both.
    The same radius for all samples is stored once, as a view. Raises InvalidThreatModelError: not
    numbers, below 0, NaN, or a shape that fits nowhere or is ambiguous."""
    asked = f"{name} needs one radius, or one for each {what} or sample"
    count, shape = len(like), tuple(like.shape[1:])
    known = f"shape {shape}, ({count},) or ({count}, {', '.join(map(str, shape))})"
    try:
        values = torch.from_numpy(np.array(given, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidThreatModelError(asked, str(error), f"give a number, or {known}") from None
    per_sample = (count, *[1] * len(shape))
    found = tuple(values.shape)
    if found == shape == (count,) and count > 1:
        raise InvalidThreatModelError(
            asked,
            f"shape {found}, with as many samples as {what}s",
            f"give shape {per_sample} for samples, ({count}, {count}) for {what}s",
        )
    if found not in ((), shape, (count,), per_sample, tuple(like.shape)):
        raise InvalidThreatModelError(asked, f"shape {found}", f"give {known}")
    finite = torch.isfinite(values) | (values == torch.inf) & may_be_infinite
    if not bool((finite & (values >= 0)).all()):
        raise InvalidThreatModelError(
            f"{name} needs finite radii >= 0", f"radius = {given}", "give numbers >= 0"
        )
    if found == (count,) and found != shape:
        values = values.reshape(per_sample)
    return values.expand(like.shape)


def radius_text(radius: Radius) -> str:
    """A radius in words."""
    if np.ndim(radius) == 0:
        return f"{float(radius):g}"  # type: ignore[arg-type]
    values = np.asarray(radius)
    return f"a radius between {values.min():g} and {values.max():g}"
