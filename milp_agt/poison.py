"""A threat model bound to a data set: per-sample moves, their support function, and attacks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.core.interval import Interval


@dataclass(frozen=True)
class Steepest:
    """The best admissible data of every sample for a linear form, whichever samples are poisoned.

    Attributes:
        features: (attacks, N, *shape), each sample at the move that the form favours.
        labels: (attacks, N, width).
        feature_gain, label_gain: how much the form gains over the nominal sample, (attacks, N), >= 0.
    """

    features: Tensor
    labels: Tensor
    feature_gain: Tensor
    label_gain: Tensor


@dataclass(frozen=True)
class Poison:
    """The admissible moves of every sample; the set of moves of each always contains "no move".

    Attributes:
        features: nominal features, (N, *shape), float64.
        labels: nominal encoded labels, (N, width), float64.
        open: mask of the samples that can be poisoned, (N,).
        budget: how many samples can be poisoned at once.
        static: one perturbation for the whole run, instead of a fresh one in every step.
        per_batch: the budget counts in each batch, instead of over the data set.
        radius: l_inf radius of each feature, (N, *shape); None if features are clean.
        label_vertices: moves of the encoded label to every class, (N, classes, width), or None.
        label_radius: largest move of each target, (N, width), or None.
    """

    features: Tensor
    labels: Tensor
    open: Tensor
    budget: int
    static: bool
    per_batch: bool
    radius: Tensor | None = None
    label_vertices: Tensor | None = None
    label_radius: Tensor | None = None

    @staticmethod
    def none(features: Tensor, labels: Tensor) -> Poison:
        """Data that nobody poisons."""
        mask = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        return Poison(features, labels, mask, budget=0, static=True, per_batch=False)

    def with_labels(self, vertices: Tensor | None, radius: Tensor | None) -> Poison:
        return replace(self, label_vertices=vertices, label_radius=radius)

    def to(self, device: torch.device) -> Poison:
        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            features=self.features.to(device),
            labels=self.labels.to(device),
            open=self.open.to(device),
            radius=moved(self.radius),
            label_vertices=moved(self.label_vertices),
            label_radius=moved(self.label_radius),
        )

    @property
    def is_clean(self) -> bool:
        """No sample can be moved at all."""
        return self.budget == 0 or not bool(self.open.any())

    def take(self, samples: Tensor) -> Poison:
        """The part of the data set with these indices, (n,)."""

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[samples]

        return replace(
            self,
            features=self.features[samples],
            labels=self.labels[samples],
            open=self.open[samples],
            radius=part(self.radius),
            label_vertices=part(self.label_vertices),
            label_radius=part(self.label_radius),
        )

    def feature_box(self) -> Interval:
        """States CLEAN and POISONED of the features, (2, N, *shape); one state if they are clean."""
        if self.radius is None or self.is_clean:
            return Interval.point(self.features.unsqueeze(0))
        # Ends are rounded outwards: x + e in the run is rounded to nearest.
        lower = torch.nextafter(self.features - self.radius, self.features - torch.inf)
        upper = torch.nextafter(self.features + self.radius, self.features + torch.inf)
        moved = self.radius > 0
        return Interval(
            torch.stack([self.features, torch.where(moved, lower, self.features)]),
            torch.stack([self.features, torch.where(moved, upper, self.features)]),
        )

    def label_box(self) -> Interval:
        """States of the encoded labels, (2, N, width); one state if they are clean."""
        if self.is_clean or (self.label_vertices is None and self.label_radius is None):
            return Interval.point(self.labels.unsqueeze(0))
        if self.label_vertices is not None:
            low, high = self.label_vertices.amin(1), self.label_vertices.amax(1)
            lower, upper = self.labels + low, self.labels + high
        else:
            assert self.label_radius is not None
            lower = torch.nextafter(self.labels - self.label_radius, self.labels - torch.inf)
            upper = torch.nextafter(self.labels + self.label_radius, self.labels + torch.inf)
            moved = self.label_radius > 0
            lower = torch.where(moved, lower, self.labels)
            upper = torch.where(moved, upper, self.labels)
        return Interval(torch.stack([self.labels, lower]), torch.stack([self.labels, upper]))

    def support(self, on_features: Tensor | None, on_labels: Tensor | None) -> Tensor:
        """How far each sample can lower a linear form: ``max over moves of -(c . move)``, (rows, N).

        ``on_features`` (rows, N, *shape) and ``on_labels`` (rows, N, width) are the coefficients c.
        A class label is a vertex set: its coordinates move jointly.
        """
        total: Tensor | None = None
        if self.radius is not None and on_features is not None:
            total = torch.einsum("rnd,nd->rn", on_features.abs().flatten(2), self.radius.flatten(1))
        if on_labels is not None and self.label_vertices is not None:
            moves = torch.einsum("rnw,nlw->rnl", on_labels, self.label_vertices)
            best = (-moves).amax(-1).clamp(min=0.0)
            total = best if total is None else total + best
        if on_labels is not None and self.label_radius is not None:
            best = torch.einsum("rnw,nw->rn", on_labels.abs(), self.label_radius)
            total = best if total is None else total + best
        if total is None:
            reference = on_features if on_features is not None else on_labels
            assert reference is not None
            total = torch.zeros(reference.shape[:2], dtype=torch.float64, device=reference.device)
        return total

    def steepest(self, on_features: Tensor, on_labels: Tensor) -> Steepest:
        """Data that raise the form ``on_features . x + on_labels . y`` most, sample by sample.

        Coefficients are (attacks, N, *shape) and (attacks, N, width). The gains add up to the
        support function of the opposite form: ``support(-on_features, -on_labels)``.
        """
        features = self.features.expand(on_features.shape)
        labels = self.labels.expand(on_labels.shape)
        feature_gain = torch.zeros_like(on_features.flatten(2)[..., 0])
        label_gain = torch.zeros_like(feature_gain)
        if self.radius is not None:
            features = features + torch.sign(on_features) * self.radius
            feature_gain = (on_features.abs() * self.radius).flatten(2).sum(-1)
        if self.label_vertices is not None:
            moves = torch.einsum("anw,nlw->anl", on_labels, self.label_vertices)
            label_gain, best = moves.max(-1)
            samples = torch.arange(best.shape[1], device=best.device)
            labels = labels + self.label_vertices[samples, best]
        if self.label_radius is not None:
            labels = labels + torch.sign(on_labels) * self.label_radius
            label_gain = (on_labels.abs() * self.label_radius).sum(-1)
        return Steepest(features, labels, feature_gain, label_gain.clamp(min=0.0))

    def project(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest admissible data, sample by sample, whichever samples are poisoned.

        Shapes (attacks, N, *shape) and (attacks, N, width). Labels of classes go to the nearest class.
        """
        if self.radius is None:
            features = self.features.expand(features.shape)
        else:
            low, high = self.features - self.radius, self.features + self.radius
            features = torch.minimum(torch.maximum(features, low), high)
        if self.label_vertices is not None:
            classes = self.labels[:, None] + self.label_vertices
            distance = (labels[..., None, :] - classes).square().sum(-1)
            best = distance.argmin(-1)
            labels = classes[torch.arange(best.shape[1], device=best.device), best]
        elif self.label_radius is not None:
            low, high = self.labels - self.label_radius, self.labels + self.label_radius
            labels = torch.minimum(torch.maximum(labels, low), high)
        else:
            labels = self.labels.expand(labels.shape)
        return features, labels

    def sample_selection(self, generator: torch.Generator, attacks: int) -> Tensor:
        """Masks of poisoned samples, (attacks, N): up to ``budget`` open ones, uniformly drawn."""
        scores = torch.rand(attacks, len(self.open), generator=generator, dtype=torch.float64)
        scores = torch.where(self.open.cpu(), scores, -1.0)
        ranks = scores.argsort(dim=1, descending=True).argsort(dim=1)
        return ((ranks < self.budget) & self.open.cpu()).to(self.features.device)

    def sample_moves(
        self, generator: torch.Generator, selection: Tensor, corners: bool
    ) -> tuple[Tensor, Tensor]:
        """Poisoned features (attacks, N, *shape) and labels (attacks, N, width) for selections.

        ``corners`` takes moves at full radius, otherwise they are uniform within it.
        """
        device, attacks = self.features.device, len(selection)

        def unit(shape: torch.Size) -> Tensor:
            draw = (
                2.0 * torch.rand((attacks, *shape), generator=generator, dtype=torch.float64) - 1.0
            )
            return (torch.sign(draw) if corners else draw).to(device)

        def at(tensor: Tensor) -> Tensor:
            return selection.reshape(*selection.shape, *[1] * (tensor.dim() - 2))

        features = self.features.expand(attacks, *self.features.shape)
        labels = self.labels.expand(attacks, *self.labels.shape)
        if self.radius is not None:
            features = torch.where(
                at(features), features + unit(self.radius.shape) * self.radius, features
            )
        if self.label_vertices is not None:
            count, classes, _ = self.label_vertices.shape
            choice = torch.randint(classes, (attacks, count), generator=generator).to(device)
            moves = self.label_vertices[torch.arange(count, device=device), choice]
            labels = torch.where(at(labels), labels + moves, labels)
        if self.label_radius is not None:
            labels = torch.where(
                at(labels), labels + unit(self.label_radius.shape) * self.label_radius, labels
            )
        return features, labels
