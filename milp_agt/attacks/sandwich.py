"""Attack <= truth <= certificate: both sides of one number, and how far they are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from milp_agt.attacks.attacker import Attack
from milp_agt.core.reachable import Bounds, ReachableSet
from milp_agt.errors import SoundnessError


@dataclass(frozen=True)
class Sandwich:
    """What attacks reached inside what is certified.

    The set of values that an adversary can cause contains ``reached`` and lies within ``certified``.

    Attributes:
        name: of the quantity.
        reached: least and largest value of real poisoned runs.
        certified: ends of the bound.

    Raises:
        SoundnessError: an attack outside the certificate. The certificate is wrong then; nothing of
            it may be used.
    """

    name: str
    reached: tuple[float, float]
    certified: tuple[float, float]

    def __post_init__(self) -> None:
        (low, high), (lower, upper) = self.reached, self.certified
        if not lower <= low <= high <= upper:
            raise SoundnessError(
                f"Attacks on '{self.name}' must stay within its certificate",
                f"[{low!r}, {high!r}] reached, [{lower!r}, {upper!r}] certified",
                "do not use this certificate; please report this run",
            )

    @property
    def ratio(self) -> float:
        """Certified width over reached width: 1 is exact, inf where attacks moved nothing."""
        return _ratio(*(high - low for low, high in (self.certified, self.reached)))

    @staticmethod
    def of_property(bounds: Bounds, attack: Attack, two_sided: bool) -> Sandwich:
        """One property and what attacks aimed at both its ends reach.

        Where only the largest value shows something, both sides start at the nominal value.
        """
        low, high = attack.reached
        if two_sided:
            return Sandwich(attack.objective, (low, high), (bounds.lower, bounds.upper))
        least = bounds.nominal
        return Sandwich(attack.objective, (least, max(least, high)), (least, bounds.upper))


@dataclass(frozen=True)
class ParameterSandwich:
    """Mean widths of the parameter boxes: reached by attacks, and certified.

    Attributes:
        reached, certified: mean widths.
        largest: the largest widths, reached and certified.
    """

    reached: float
    certified: float
    largest: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Certified over reached mean width; inf where attacks moved nothing."""
        return _ratio(self.certified, self.reached)

    @staticmethod
    def of(reachable: ReachableSet, attack: Attack) -> ParameterSandwich:
        """See that every end of every parameter that attacks reached is inside the set.

        Raises:
            SoundnessError: an attack outside the set, without any tolerance.
        """
        for name, low in attack.lower.items():
            inside = (reachable.lower[name] <= low).all()
            if not inside or not (attack.upper[name] <= reachable.upper[name]).all():
                below = float((reachable.lower[name] - low).max())
                above = float((attack.upper[name] - reachable.upper[name]).max())
                raise SoundnessError(
                    f"Attacks on parameter '{name}' must stay within the reachable set",
                    f"a trained model outside it by {max(below, above):.3g}",
                    "do not use this certificate; please report this run",
                )
        largest = attack.max_width, reachable.max_width
        return ParameterSandwich(attack.mean_width, reachable.mean_width, largest)


def _ratio(certified: float, reached: float) -> float:
    if reached > 0:
        return certified / reached
    return 1.0 if certified == 0 else math.inf
