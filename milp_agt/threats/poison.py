"""A threat model bound to a data set: moves per sample, their support function, and attacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.threats.sets import Halfspaces, MoveSet


class Whole(Enum):
    """The kinds of threats to whole samples, as words of the claim."""

    SUBSTITUTED = "substituted"  # samples with any features and labels take their places
    REMOVED = "removed"  # the mean is over the remaining samples
    INSERTED = "inserted"  # further samples join a batch; those of the data set do not change


@dataclass(frozen=True)
class Quota:
    """How many samples may be poisoned at once, among those in the mask ``open`` (N,)."""

    open: Tensor
    budget: int

    @property
    def is_void(self) -> bool:
        return self.budget == 0 or not bool(self.open.any())


@dataclass(frozen=True)
class Poison:
    """The admissible moves of every sample; each set of moves contains "no move".

    Attributes:
        features: nominal features, (N, *shape), float64.
        labels: nominal encoded labels, (N, width), float64.
        open: mask of the samples that can be poisoned, (N,).
        budget: how many samples can be poisoned at once.
        static: one perturbation for the whole run, instead of a new one in every step.
        per_batch: the budget counts in each batch, instead of over the data set.
        feature_moves: moves of the flat features of each sample; None if features are clean.
        label_moves: moves of the encoded label of each sample; None if labels are clean.
        whole: the threat to whole samples, which then have no moves; None if there is none.
        label_quota: how many samples, and which, may have their labels changed if labels have their
            own budget; ``open`` and ``budget`` are then those of the features. None: both the features
            and the label of a poisoned sample may change.
        domain: range of the poisoned features, (*shape) each, or None. Moves respect it up to
            rounding, poisoned features exactly (with missing values, up to rounding too: the domain is
            then extended to the value of missing entries).
    """

    features: Tensor
    labels: Tensor
    open: Tensor
    budget: int
    static: bool
    per_batch: bool
    feature_moves: MoveSet | None = None
    label_moves: MoveSet | None = None
    domain: Interval | None = None
    whole: Whole | None = None
    label_quota: Quota | None = None

    @staticmethod
    def none(features: Tensor, labels: Tensor) -> Poison:
        """Data that cannot be poisoned."""
        mask = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        return Poison(features, labels, mask, budget=0, static=True, per_batch=False)

    def _on(self, change: Callable[[Tensor], Tensor]) -> Poison:
        """The same with every tensor that has a sample axis replaced by its image."""
        x, y, quota = self.feature_moves, self.label_moves, self.label_quota
        return replace(
            self,
            features=change(self.features),
            labels=change(self.labels),
            open=change(self.open),
            feature_moves=x and x.on(change),
            label_moves=y and y.on(change),
            label_quota=quota and replace(quota, open=change(quota.open)),
        )

    def to(self, device: torch.device) -> Poison:
        ends = self.domain and Interval(
            *(e.to(device) for e in (self.domain.lower, self.domain.upper))
        )
        return replace(self._on(lambda tensor: tensor.to(device)), domain=ends)

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """One quota of samples, or one of features and one of labels."""
        own = Quota(self.open, self.budget)
        return (own,) if self.label_quota is None else (own, self.label_quota)

    @property
    def exposed(self) -> Tensor:
        """Mask of the samples that can be poisoned within some quota, (N,)."""
        return torch.stack([quota.open for quota in self.quotas]).any(0)

    @property
    def states(self) -> int:
        """Number of states of a sample: bit p of a state shows whether it counts in quota p."""
        return 1 if self.is_clean else 2 ** len(self.quotas)

    def budgets_given(self, state: int) -> tuple[int, ...]:
        """The rest of each budget for the other samples if one sample is in this state."""
        return tuple(q.budget - (int(state) >> p & 1) for p, q in enumerate(self.quotas))

    @property
    def is_clean(self) -> bool:
        """Whether no sample of the data set can be poisoned; others may still be inserted."""
        return all(quota.is_void for quota in self.quotas)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the data and of their moves."""
        found = [self.features, self.labels]

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        for moves in (self.feature_moves, self.label_moves):
            if moves is not None:
                moves.on(note)
        return found

    def take(self, samples: Tensor) -> Poison:
        """The part of the data set with these indices, (n,)."""
        return self._on(lambda tensor: tensor[samples])

    def feature_box(self) -> Interval:
        """The features in each state, (states, N, *shape); one state if they are clean."""
        return self._box(self.features, self.feature_moves, 0)

    def label_box(self) -> Interval:
        """The encoded labels in each state, (states, N, width); one state if they are clean."""
        return self._box(self.labels, self.label_moves, len(self.quotas) - 1)

    def _box(self, nominal: Tensor, moves: MoveSet | None, quota: int) -> Interval:
        if moves is None or self.is_clean:
            return Interval.point(nominal.unsqueeze(0))
        low, high = moves.lower.reshape(nominal.shape), moves.upper.reshape(nominal.shape)
        # Ends are rounded outwards, because x + e in the run is rounded to nearest.
        lower = torch.nextafter(nominal + low, torch.full_like(nominal, -torch.inf))
        upper = torch.nextafter(nominal + high, torch.full_like(nominal, torch.inf))
        lower = torch.where(low < 0, lower, nominal)
        upper = torch.where(high > 0, upper, nominal)
        moved = [bool(state >> quota & 1) for state in range(self.states)]
        return Interval(
            torch.stack([lower if m else nominal for m in moved]),
            torch.stack([upper if m else nominal for m in moved]),
        )

    def selection_box(self, chosen: Tensor, batch: int) -> Interval:
        """The share of each sample that is exchanged, (states, n, 1), for masks ``chosen`` (states, n).

        A chosen sample is removed for the whole run, while a substitute may equal the original.
        Insertions into a batch of ``batch`` samples are a share of the enlarged batch, rounded up.
        """
        upper = chosen.to(torch.float64).unsqueeze(-1)
        if self.whole is Whole.INSERTED:
            share = math.nextafter(self.budget / (batch + self.budget), math.inf)
            upper = torch.full_like(upper, share if self.budget else 0.0)
        return Interval(upper if self.whole is Whole.REMOVED else torch.zeros_like(upper), upper)

    def support(self, on_features: Tensor | None, on_labels: Tensor | None) -> Tensor:
        """How far each sample can lower a linear form: ``max over moves of -(c . move)``, (rows, N).

        Moves are those of features and labels together, regardless of budgets. ``on_features``
        (rows, N, *shape) and ``on_labels`` (rows, N, width) are the coefficients c.
        """
        reference = on_features if on_features is not None else on_labels
        assert reference is not None
        total = torch.zeros(reference.shape[:2], dtype=torch.float64, device=reference.device)
        if self.feature_moves is not None and on_features is not None:
            total = total + self.feature_moves.support(-on_features.flatten(2))
        if self.label_moves is not None and on_labels is not None:
            total = total + self.label_moves.support(-on_labels)
        return total

    def left_out(self, programs: bool) -> tuple[str, ...]:
        """The parts of the threat that bounds ignore; ``programs``: whether programs are solved."""
        if self.is_clean or programs:
            return ()
        found = []
        for what, moves in (("features", self.feature_moves), ("labels", self.label_moves)):
            if isinstance(moves, Halfspaces):
                found.append(
                    f"the {len(moves.matrix)} linear rows on the moves of {what} are left out: only "
                    "'lp' and 'milp' keep them (the bounds hold for the larger threat)"
                )
        return tuple(found)

    def sample_moves(
        self, generator: torch.Generator, selection: Tensor, corners: bool
    ) -> tuple[Tensor, Tensor]:
        """Poisoned features (attacks, N, *shape) and labels (attacks, N, width) for selections.

        ``selection`` is (attacks, N, quotas). With ``corners`` moves are extreme, otherwise drawn from
        the whole set.
        """
        attacks = len(selection)
        features = self.features.expand(attacks, *self.features.shape)
        labels = self.labels.expand(attacks, *self.labels.shape)
        if self.feature_moves is not None:
            moves = self.feature_moves.sample(generator, attacks, corners)
            at = selection[..., 0].reshape(*features.shape[:2], *[1] * (features.dim() - 2))
            moved = self._kept(features + moves.reshape(features.shape))
            features = torch.where(at, moved, features)
        if self.label_moves is not None:
            moves = self.label_moves.sample(generator, attacks, corners)
            labels = torch.where(selection[..., -1:], labels + moves, labels)
        return features, labels

    def steepest(self, on_features: Tensor, on_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Data that raise the form ``on_features . x + on_labels . y`` most, sample by sample.

        Coefficients are (attacks, N, *shape) and (attacks, N, width), as are the features and the labels.
        What both gain over the nominal sample, (attacks, N, 2), adds up to the support function of the
        opposite form, ``support(-on_features, -on_labels)``, where it is exact.
        """
        features, by_features = self._raised(self.features, self.feature_moves, on_features)
        labels, by_labels = self._raised(self.labels, self.label_moves, on_labels)
        return self._kept(features), labels, torch.stack([by_features, by_labels], -1)

    def _raised(self, nominal: Tensor, moves: MoveSet | None, on: Tensor) -> tuple[Tensor, Tensor]:
        flat, nominal = on.flatten(2), nominal.expand(on.shape)
        if moves is None:
            return nominal, torch.zeros_like(flat[..., 0])
        best = moves.maximise(flat)
        gain = (flat * best).sum(-1)
        best = torch.where((gain > 0)[..., None], best, 0.0)
        return nominal + best.reshape(on.shape), gain.clamp(min=0.0)

    def project(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Admissible data near the given ones, sample by sample, as if all samples were poisoned.

        Shapes (attacks, N, *shape) and (attacks, N, width). For boxes, balls of one radius, and finite
        sets of moves the nearest point is returned; admissible data do not change, up to rounding.
        """
        near = self._near(self.features, self.feature_moves, features)
        return self._kept(near), self._near(self.labels, self.label_moves, labels)

    def _near(self, nominal: Tensor, moves: MoveSet | None, given: Tensor) -> Tensor:
        if moves is None:
            return nominal.expand(given.shape)
        asked = (given - nominal).flatten(2)
        near = moves.project(asked)
        stays = (near == asked).reshape(given.shape)
        return torch.where(stays, given, nominal + near.reshape(given.shape))

    def _kept(self, features: Tensor) -> Tensor:
        """Features, moved back into the domain where rounding left it."""
        if self.domain is None:
            return features
        inside = torch.minimum(torch.maximum(features, self.domain.lower), self.domain.upper)
        # Unmoved features stay, even outside the domain: closed samples may lie there.
        return torch.where(features == self.features, features, inside)
