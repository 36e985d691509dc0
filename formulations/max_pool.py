"""Maxima over sliding windows of frozen layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions, add
from milp_agt.core.graph import Operation, Signature, Tensors
from milp_agt.core.interval import Boxes, Interval, as_array
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.registry import register
from milp_agt.formulations.windows import Windows


@dataclass(frozen=True, slots=True)
class MaxPlanes:
    """``slope_lower . u + lower[s] <= v <= slope_upper . u + upper[s]`` in each window.

    Slopes have shape ([leading,] samples, channels, elements, positions).
    """

    windows: Windows
    slope_lower: Tensor
    slope_upper: Tensor
    lower: Tensor
    upper: Tensor
    magnitude: Tensor

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> Tensors:
        flat = coefficients.flatten(-2).unsqueeze(-2)
        positive = flat.clamp(min=0.0)
        inside = positive * self.slope_lower + (flat - positive) * self.slope_upper
        return (self.windows.fold(inside.flatten(-3, -2)),)


@register
@dataclass(frozen=True)
class MaxPool(Operation):
    """``v = max_k u_k`` over each window of each channel, as ``torch.nn.functional.max_pool2d``.

    Monotone, so the box is exact. For any slopes s the largest value of ``max_k u_k - s . u`` over a
    box is that of the best k, in closed form, and is the offset of the upper plane; of three slopes
    (constant; the element j that is largest in the clean range; chords of ``max(u_k, l)`` with
    the largest lower end l) the one counts whose plane is lowest at the centre. The lower plane is
    ``u_j`` with the offset ``max(0, max_k l_k - u_j)``. Both are exact where one element dominates.

    No gradient passes: which element is the largest would have to be part of the step.
    """

    windows: Windows
    key = "max_pool"
    rounds_in_run = False
    exactness = "box exact; planes exact where one element dominates; choice binaries (milp)"

    def infer(self, *inputs: Signature) -> Signature:
        (source,) = inputs
        if source.shape != self.windows.image:
            raise EncodingError(f"Pooling of {self.windows.image}", f"shape {source.shape}")
        return Signature((source.shape[0], *self.windows.out), source.batched)

    def value(self, *inputs: Tensor) -> Tensor:
        (images,) = inputs
        w = self.windows
        flat = images.reshape(-1, *w.image)
        found = functional.max_pool2d(flat, w.size, w.stride, w.padding, w.dilation)
        return found.reshape(*images.shape[:-3], *found.shape[1:])

    def interval(self, *inputs: Interval) -> Interval:
        return inputs[0].each(self.value)

    def _inside(self) -> Tensor:
        """Mask of the elements that lie inside the image, (elements, positions)."""
        return self.windows.index()[: self.windows.elements] >= 0

    def _elements(self, images: Tensor) -> Tensor:
        """(..., channels, elements, positions); 0 where a window reaches beyond the image."""
        columns = self.windows.unfold(images)
        channels = self.windows.image[0]
        return columns.reshape(*images.shape[:-3], channels, -1, self.windows.positions)

    def relax(self, *inputs: Interval) -> MaxPlanes:
        (box,) = inputs
        elements = box.each(self._elements)
        inside = self._inside().to(box.lower.device)
        clean = elements.of_clean
        largest = _one_hot(clean, inside)
        size = elements.magnitude
        top = size.amax(-2)
        upper_slope, above = self._upper(elements, clean, largest, inside)
        below = _shortfall(elements, largest, inside)
        slack = (4 * top + (upper_slope.abs() * size).sum(-2)) * gamma(
            4 * self.windows.elements + 16
        )
        shape = (self.windows.image[0], *self.windows.out)

        def image(tensor: Tensor) -> Tensor:
            return tensor.reshape(*tensor.shape[:-2], *shape)

        magnitude = 4 * top.amax(0) + (upper_slope.abs() * size.amax(0)).sum(-2)
        return MaxPlanes(
            self.windows,
            largest,
            upper_slope,
            image(below - slack - TINY),
            image(above + slack + TINY),
            image(magnitude),
        )

    def _upper(
        self, box: Interval, clean: Interval, largest: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Slopes and offsets of the upper plane."""
        floor = torch.where(inside, clean.lower, -torch.inf).amax(-2, keepdim=True)
        rising = inside & (clean.upper > floor)
        width = torch.where(rising, clean.width, 1.0)
        chords = torch.where(rising, ((clean.upper - floor) / width).clamp(max=1.0), 0.0)
        worst = Interval(box.lower[-1], box.upper[-1])
        slope, best = torch.zeros_like(largest), _excess(worst, torch.zeros_like(largest), inside)
        for candidate in (largest, chords):
            at_centre = (candidate * worst.centre).sum(-2) + _excess(worst, candidate, inside)
            better = at_centre < best
            slope = torch.where(better.unsqueeze(-2), candidate, slope)
            best = torch.where(better, at_centre, best)
        return slope, _excess(box, slope, inside)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        """A column for each maximum: above every element, below the planes and the one chosen."""
        (argument,), (box,) = inputs, ranges
        planes, own = self.relax(box), self.interval(box)
        hull = own.hull()
        lead = argument.shape[: len(argument.shape) - 3]
        column = encoder.columns_of(own)
        encoder.conditional(column, own)
        taken = self._taken(argument, lead)
        choices = []
        for k, element in enumerate(taken):
            away = add([column, element.scale(-1.0)])
            inside = self._inside()[k].numpy().reshape(self.windows.out)
            encoder.rows(away, np.where(inside, 0.0, -np.inf), np.inf)
            choice = encoder.columns(
                np.zeros(column.shape),
                np.broadcast_to(inside, column.shape).astype(np.float64),
                integer=encoder.exact_phases,
            )
            low = self._elements(box.hull().lower)[..., k, :].reshape(hull.upper.shape)
            reach = np.where(inside, (hull.upper - low).cpu().numpy(), 0.0) * (1 + 2.0**-50)
            # v - u_k <= reach (1 - choice_k)
            chosen = add([away, choice.scale(reach)])
            encoder.rows(chosen, -np.inf, np.where(inside, reach, np.inf))
            choices.append(choice)
        encoder.rows(add(choices), 1.0, 1.0)
        sides = ((planes.slope_lower, planes.lower), (planes.slope_upper, planes.upper))
        for add_rows, (slope, offsets) in zip(
            (encoder.at_least, encoder.at_most), sides, strict=True
        ):
            scales = as_array(slope.reshape(*slope.shape[:-1], *self.windows.out))
            steps = [e.scale(-scales[..., k, :, :]) for k, e in enumerate(taken)]
            add_rows(add([column, *steps]), offsets)
        return column

    def _taken(self, argument: Expression, lead: tuple[int, ...]) -> list[Expression]:
        """The k-th element of every window, for each k, in the shape of the result."""
        w = self.windows
        pixels = int(np.prod(w.image))
        count = int(np.prod(lead))
        index = w.index().clamp(min=0).reshape(w.image[0], w.elements, *w.out).numpy()
        start = pixels * np.arange(count).reshape(count, 1, 1, 1)
        shape = (*lead, w.image[0], *w.out)
        return [
            argument.take((start + index[None, :, k]).reshape(shape)) for k in range(w.elements)
        ]


def _one_hot(clean: Interval, inside: Tensor) -> Tensor:
    """1 at the element of each window with the largest centre."""
    centre = torch.where(inside, clean.centre, -torch.inf)
    return torch.zeros_like(centre).scatter(-2, centre.argmax(-2, keepdim=True), 1.0)


def _excess(box: Interval, slope: Tensor, inside: Tensor) -> Tensor:
    """``max over the box of max_k u_k - slope . u``, up to rounding, without the axis of elements.

    For each k the terms are separable: ``sup((1 - s_k) u_k) + sum_{j != k} sup(-s_j u_j)``.
    """
    drop = torch.maximum(-slope * box.lower, -slope * box.upper)
    keep = torch.maximum((1.0 - slope) * box.lower, (1.0 - slope) * box.upper)
    total = drop.sum(-2, keepdim=True)
    return torch.where(inside, total - drop + keep, -torch.inf).amax(-2)


def _shortfall(box: Interval, largest: Tensor, inside: Tensor) -> Tensor:
    """``min over the box of max_k u_k - u_j = max(0, max_{k != j} l_k - u_j)``, j from ``largest``."""
    own = (largest * box.upper).sum(-2)
    others = torch.where(inside & (largest == 0.0), box.lower, -torch.inf).amax(-2)
    return (others - own).clamp(min=0.0)
