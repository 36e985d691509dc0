"""Convex sets of moves of poisoned samples: boxes cut by half-spaces, one or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.stacked import Stacked

# Half-spaces are shifted outwards, and supports of polygons widened, by this share of all terms: far more
# than what thousands of cuts round.
SLACK = 2.0**-40
# A cell of more than two coordinates keeps this many of its half-spaces; any subset holds it.
MOST_CUTS = 8


@dataclass(frozen=True)
class Cell:
    """``{e : lower <= e <= upper, normals . e <= offsets}``, a set of moves in K coordinates.

    In up to two coordinates ``vertices`` are those of a polygon that holds the cell (up to
    ``SLACK``), and supports are those of the polygon; in more, supports are duals of box and half-spaces.

    Attributes:
        lower, upper: a box that holds the cell, (K,).
        vertices: (V, K) for K <= 2, in order around the polygon; None for more coordinates.
        normals, offsets: half-spaces, (H, K) and (H,); none where there are vertices.
    """

    lower: Tensor
    upper: Tensor
    vertices: Tensor | None
    normals: Tensor
    offsets: Tensor

    @staticmethod
    def box(lower: Tensor, upper: Tensor) -> Cell:
        """A whole box, (K,) each."""
        size, vertices = len(lower), None
        if size == 1:
            vertices = torch.stack([lower, upper])
        elif size == 2:
            (a, c), (b, d) = lower.tolist(), upper.tolist()
            vertices = lower.new_tensor([[a, c], [b, c], [b, d], [a, d]])
        return Cell(lower, upper, vertices, lower.new_zeros(0, size), lower.new_zeros(0))

    @property
    def centre(self) -> Tensor:
        return 0.5 * self.lower + 0.5 * self.upper

    @property
    def size(self) -> float:
        """Length, area of the polygon, or volume of the box."""
        if self.vertices is None or len(self.lower) < 2:
            return float((self.upper - self.lower).prod())
        x, y = self.vertices.T
        return 0.5 * float((x * y.roll(-1) - x.roll(-1) * y).sum().abs())

    def cut(self, normal: Tensor, offset: float) -> Cell | None:
        """The part with ``normal . e <= offset``, or a little more; None where it is surely empty."""
        largest = torch.maximum(self.lower.abs(), self.upper.abs())
        offset = offset + SLACK * float(normal.abs() @ largest + abs(offset))
        if self.vertices is not None:
            return self._clipped(normal, offset)
        low = torch.minimum(normal * self.lower, normal * self.upper)
        high = torch.maximum(normal * self.lower, normal * self.upper)
        if float(low.sum()) > offset:
            return None
        if float(high.sum()) <= offset:
            return self
        # normal_k e_k <= offset - (least value of all other terms)
        room = offset - (low.sum() - low)
        room = room + SLACK * (room.abs() + low.abs().sum())
        end = room / torch.where(normal == 0.0, 1.0, normal)
        end = end + SLACK * end.abs()
        from_above = end + 2.0 * SLACK * end.abs()
        from_below = end - 2.0 * SLACK * end.abs()
        upper = torch.where(normal > 0.0, torch.minimum(self.upper, from_above), self.upper)
        lower = torch.where(normal < 0.0, torch.maximum(self.lower, from_below), self.lower)
        if bool((lower > upper).any()):
            return None
        normals = torch.cat([self.normals, normal[None]])[-MOST_CUTS:]
        offsets = torch.cat([self.offsets, normal.new_tensor([offset])])[-MOST_CUTS:]
        return Cell(lower, upper, None, normals, offsets)

    def _clipped(self, normal: Tensor, offset: float) -> Cell | None:
        points = self.vertices
        assert points is not None
        inside = offset - points @ normal  # >= 0 on the part that is kept
        if bool((inside >= 0.0).all()):
            return self
        if bool((inside < 0.0).all()):
            return None
        following, then = points.roll(-1, 0), inside.roll(-1)
        crosses = inside * then < 0.0
        share = inside / torch.where(crosses, inside - then, 1.0)
        between = points + share[:, None] * (following - points)
        kept = torch.stack([inside >= 0.0, crosses], 1).flatten()
        vertices = torch.stack([points, between], 1).flatten(0, 1)[kept]
        return Cell(vertices.amin(0), vertices.amax(0), vertices, self.normals, self.offsets)

    def points(self, towards: Tensor) -> Tensor:
        """Moves to try: the centre, then the vertices of a polygon or a corner of the box, (points, K)."""
        if self.vertices is not None:
            return torch.cat([self.centre[None], self.vertices])
        corner = torch.where(towards > 0.0, self.upper, self.lower)
        corner = torch.where(towards == 0.0, self.centre, corner)
        return torch.stack([self.centre, corner])


@dataclass(frozen=True)
class Cells(Stacked):
    """Many cells of the same number of coordinates.

    Attributes:
        centre, radius: of a box that holds each cell, (B, K).
        vertices: relative to the centre, (B, V, K), some repeated; None for K > 2.
        normals, offsets: half-spaces around the centre, (B, H, K) and (B, H); a row of zeros is none.
    """

    centre: Tensor
    radius: Tensor
    vertices: Tensor | None
    normals: Tensor
    offsets: Tensor

    @staticmethod
    def of(cells: Sequence[Cell]) -> Cells:
        centre = torch.stack([cell.centre for cell in cells])
        lower = torch.stack([cell.lower for cell in cells])
        upper = torch.stack([cell.upper for cell in cells])
        radius = torch.maximum(upper - centre, centre - lower)
        radius = radius + SLACK * (radius + centre.abs())
        vertices = None
        if cells[0].vertices is not None:
            corners = [cell.vertices for cell in cells if cell.vertices is not None]
            most = max(len(each) for each in corners)
            padded = [torch.cat([c, c[:1].expand(most - len(c), -1)]) for c in corners]
            vertices = torch.stack(padded) - centre[:, None]
        most = max(len(cell.offsets) for cell in cells)
        count, size = centre.shape
        normals, offsets = centre.new_zeros(count, most, size), centre.new_zeros(count, most)
        for row, cell in enumerate(cells):  # a handful of rows each
            normals[row, : len(cell.offsets)] = cell.normals
            offsets[row, : len(cell.offsets)] = cell.offsets
        moved = (normals @ centre[..., None])[..., 0]
        size_of = (normals.abs() @ (centre.abs() + radius)[..., None])[..., 0] + offsets.abs()
        return Cells(centre, radius, vertices, normals, offsets - moved + SLACK * size_of)

    def __len__(self) -> int:
        return len(self.centre)

    @classmethod
    def cat(cls, parts: Sequence[Cells]) -> Cells:
        corners = max(0 if part.vertices is None else part.vertices.shape[1] for part in parts)
        spaces = max(part.offsets.shape[1] for part in parts)
        return super().cat([part._padded(corners, spaces) for part in parts])

    def _padded(self, corners: int, spaces: int) -> Cells:
        """The same with more vertices, the first one again, and half-spaces that say nothing."""
        vertices, more = self.vertices, spaces - self.offsets.shape[1]
        if vertices is not None:
            again = vertices[:, :1].expand(-1, corners - vertices.shape[1], -1)
            vertices = torch.cat([vertices, again], 1)
        return replace(
            self,
            vertices=vertices,
            normals=functional.pad(self.normals, (0, 0, 0, more)),
            offsets=functional.pad(self.offsets, (0, more)),
        )

    def reach(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """How far ``directions . (e - centre)`` goes below and above 0 at most, (B, R) each.

        ``directions`` are (B, R, K). In two coordinates these are the supports of the polygon; in more,
        for half-spaces ``a . d <= b`` and any beta >= 0, ``g . d <= beta b + sum_k |g_k - beta a_k| r_k``.
        """
        plain = (directions.abs() @ self.radius[..., None])[..., 0]
        if self.vertices is not None:
            along = directions @ self.vertices.transpose(1, 2)
            slack = SLACK * plain
            return -along.amin(-1) + slack, along.amax(-1) + slack
        if not self.offsets.shape[1]:
            return self.reach_of_box(directions)
        return self._dual(-directions, plain), self._dual(directions, plain)

    def reach_of_box(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`reach`, of the boxes around the cells."""
        grown = (directions.abs() @ self.radius[..., None])[..., 0] * (1.0 + SLACK)
        return grown, grown

    def _dual(self, directions: Tensor, plain: Tensor) -> Tensor:
        """Supports by two rounds of the best multiplier of one more half-space, breakpoints all tried."""
        best, rest, paid = plain, directions, torch.zeros_like(plain)
        terms = plain
        normals, radius = self.normals[:, None], self.radius[:, None, None]
        for _ in range(min(2, self.offsets.shape[1])):
            slope = torch.where(normals == 0.0, torch.inf, normals)
            beta = (rest[:, :, None] / slope).clamp(min=0.0)  # (B, R, H, K)
            left = rest[:, :, None, None] - beta[..., None] * normals[..., None, :]
            cost = (left.abs() * radius[..., None, :]).sum(-1) + beta * self.offsets[
                :, None, :, None
            ]
            at = cost.flatten(2).argmin(-1, keepdim=True)
            chosen = beta.flatten(2).gather(2, at)
            width = beta.shape[-1]
            which = (at[..., 0] // width).clamp(max=normals.shape[2] - 1)
            row = torch.arange(len(self), device=which.device)[:, None]
            rest = rest - chosen * self.normals[row, which]
            pays = chosen[..., 0] * self.offsets[row, which]
            size = (rest.abs() @ self.radius[..., None])[..., 0]
            paid, terms = paid + pays, terms + pays.abs() + size
            best = torch.minimum(best, paid + size + SLACK * terms)
        return torch.minimum(best, plain * (1.0 + SLACK))
