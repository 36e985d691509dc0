"""Sets of admissible moves of one poisoned sample, one class for each kind of set."""

import importlib
import pkgutil

from milp_agt.threats.sets.ball import Ball as Ball
from milp_agt.threats.sets.box import Box as Box
from milp_agt.threats.sets.box import BoxOrFill as BoxOrFill
from milp_agt.threats.sets.halfspaces import Halfspaces as Halfspaces
from milp_agt.threats.sets.move_set import MoveSet as MoveSet
from milp_agt.threats.sets.move_set import Rules as Rules
from milp_agt.threats.sets.product import Product as Product
from milp_agt.threats.sets.sparse import Sparse as Sparse
from milp_agt.threats.sets.vertices import Vertices as Vertices


def move_sets() -> tuple[type[MoveSet], ...]:
    """Every kind of set; all modules of this package are imported first."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    parts = MoveSet.__subclasses__()
    kinds = [*parts, *(kind for part in parts for kind in part.__subclasses__())]
    kinds = [kind for kind in kinds if "rules" in vars(kind)]
    return tuple(sorted(kinds, key=lambda kind: kind.__name__))
