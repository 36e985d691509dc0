"""Sets of admissible moves of one poisoned sample, one class for each kind of set."""

import importlib
import pkgutil

from milp_agt.threats.sets.ball import Ball
from milp_agt.threats.sets.box import Box, BoxOrFill
from milp_agt.threats.sets.halfspaces import Halfspaces
from milp_agt.threats.sets.move_set import MoveSet, Rules
from milp_agt.threats.sets.product import Product
from milp_agt.threats.sets.sparse import Sparse
from milp_agt.threats.sets.vertices import Vertices

__all__ = [
    "Ball",
    "Box",
    "BoxOrFill",
    "Halfspaces",
    "MoveSet",
    "Product",
    "Rules",
    "Sparse",
    "Vertices",
    "move_sets",
]


def move_sets() -> tuple[type[MoveSet], ...]:
    """Every kind of set; all modules of this package are imported first."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    parts = MoveSet.__subclasses__()
    kinds = [*parts, *(kind for part in parts for kind in part.__subclasses__())]
    kinds = [kind for kind in kinds if "rules" in vars(kind)]
    return tuple(sorted(kinds, key=lambda kind: kind.__name__))
