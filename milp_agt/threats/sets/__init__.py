"""Sets of admissible moves of one poisoned sample, one class for each kind of set."""

from milp_agt.threats.sets.ball import Ball
from milp_agt.threats.sets.box import Box, BoxOrFill
from milp_agt.threats.sets.halfspaces import Halfspaces
from milp_agt.threats.sets.move_set import MoveSet, Rules
from milp_agt.threats.sets.product import Product
from milp_agt.threats.sets.sparse import Sparse
from milp_agt.threats.sets.vertices import Vertices

__all__ = [
    "KINDS",
    "Ball",
    "Box",
    "BoxOrFill",
    "Halfspaces",
    "MoveSet",
    "Product",
    "Rules",
    "Sparse",
    "Vertices",
]

KINDS: tuple[type[MoveSet], ...] = (Box, Ball, Sparse, Vertices, BoxOrFill, Product, Halfspaces)
