"""A set of states as plain values, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from milp_agt.bounds.zonotope.bounds import StateBounds
from milp_agt.bounds.zonotope.dual import Multipliers
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.state import Noise

if TYPE_CHECKING:
    from milp_agt.bounds.zonotope.engine import ZonotopePass

OWN = ("centre", "on_moves", "on_phase", "on_bend")
PROVED = ("below", "above", "clean", "poisoned", "terms")


def pack_forward(forward: ZonotopePass) -> dict[str, Any]:
    """Plain values; what follows from the run itself is left out."""
    zonotope = forward.zonotope
    return {
        "zonotope": {name: getattr(zonotope, name) for name in OWN},
        "flips": _plain(zonotope.flips),
        "noise": _plain(zonotope.noise),
        "bounds": {name: getattr(forward.bounds, name) for name in PROVED},
        "alpha": _plain(forward.bounds.alpha),
    }


def unpack_forward(begun: ZonotopePass, plain: Mapping[str, Any]) -> ZonotopePass:
    """What :func:`pack_forward` packed, of a run that has just begun."""
    flips = Flips(**plain["flips"])
    samples = begun.samples.first(plain["zonotope"]["on_moves"].shape[1])
    zonotope = replace(
        begun.zonotope,
        samples=samples,
        flips=flips,
        noise=Noise(**plain["noise"]),
        **plain["zonotope"],
    )
    bounds = StateBounds(flips, Multipliers(**plain["alpha"]), **plain["bounds"])
    return replace(begun, zonotope=zonotope, bounds=bounds)


def _plain(parts: Any) -> dict[str, Any]:
    return {field.name: getattr(parts, field.name) for field in fields(parts)}
