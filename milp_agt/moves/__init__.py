"""Sets of admissible moves: what one poisoned sample may do, one class for each kind of set."""

from milp_agt.moves.ball import Ball
from milp_agt.moves.base import MoveSet, Rules
from milp_agt.moves.box import Box, BoxOrFill
from milp_agt.moves.halfspaces import Halfspaces
from milp_agt.moves.product import Product
from milp_agt.moves.sparse import Sparse
from milp_agt.moves.vertices import Vertices

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
