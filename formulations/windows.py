"""Sliding windows over images: the geometry that convolution, unfolding and pooling share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.errors import EncodingError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """Windows of ``size`` over images (channels, height, width), in the order of torch's unfold.

    Attributes:
        image: shape of one image, (channels, height, width).
        size, stride, padding, dilation: along height and width, as in ``torch.nn.Conv2d``.
    """

    image: tuple[int, int, int]
    size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def __post_init__(self) -> None:
        if min(self.out) < 1:
            raise EncodingError(
                f"Windows of {self.size} over an image {self.image}", f"{self.out} positions"
            )

    def _steps(self) -> list[tuple[int, int]]:
        """Along height and width: how often a window can move on, and what is left then."""
        sides = zip(
            self.image[1:], self.size, self.padding, self.dilation, self.stride, strict=True
        )
        return [
            divmod(extent + 2 * pad - step * (size - 1) - 1, stride)
            for extent, size, pad, step, stride in sides
        ]

    @property
    def out(self) -> Pair:
        """Count of windows along height and width."""
        (height, _), (width, _) = self._steps()
        return height + 1, width + 1

    @property
    def rest(self) -> Pair:
        """Rows and columns of the image that no window reaches at the far end."""
        (_, height), (_, width) = self._steps()
        return height, width

    @property
    def positions(self) -> int:
        return self.out[0] * self.out[1]

    @property
    def elements(self) -> int:
        """Elements of one window in one channel."""
        return self.size[0] * self.size[1]

    @property
    def columns(self) -> tuple[int, int]:
        """Shape of the unfolded image: (channels * elements, positions)."""
        return self.image[0] * self.elements, self.positions

    def unfold(self, images: Tensor) -> Tensor:
        """(..., channels, height, width) -> (..., channels * elements, positions); padding is 0."""
        lead = images.shape[:-3]
        columns = functional.unfold(
            images.reshape(-1, *self.image), self.size, self.dilation, self.padding, self.stride
        )
        return columns.reshape(*lead, *self.columns)

    def fold(self, columns: Tensor) -> Tensor:
        """The transpose of :meth:`unfold`: overlapping windows are added up."""
        lead = columns.shape[:-2]
        images = functional.fold(
            columns.reshape(-1, *self.columns),
            self.image[1:],
            self.size,
            self.dilation,
            self.padding,
            self.stride,
        )
        return images.reshape(*lead, *self.image)

    def index(self) -> Tensor:
        """Flat index of the pixel under each element of the unfolded image; -1 for padding."""
        pixels = torch.arange(1, 1 + self.image[0] * self.image[1] * self.image[2])
        unfolded = self.unfold(pixels.to(torch.float64).reshape(self.image))
        return unfolded.to(torch.int64) - 1
