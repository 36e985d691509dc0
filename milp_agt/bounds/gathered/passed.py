"""The steps of a run whose first layer is a sum over samples: intervals inside, sums across the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.gathered.first_layer import FirstLayer
from milp_agt.bounds.gathered.joint import forms_of_layer, jointly
from milp_agt.bounds.gathered.supported import Gathered
from milp_agt.bounds.gathered.tally import Tally
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.step import State, Step
from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.interval_products import box_of_products
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES

# Ranges beyond this prove nothing that intervals do not.
WILD = 1e6
# Numbers of the terms of a sum at once.
AT_ONCE = 2**19


@dataclass(frozen=True)
class GatheredPass:
    """What is known after some steps: of the first layer as a sum over samples, of each parameter as a tally.

    Every state that float64 training can reach, in any order of summation, is in :meth:`state`.
    ``met`` are the samples met since charges were settled, ``steps`` those taken so far.
    """

    parts: Gathered
    first: FirstLayer
    tallies: Mapping[str, Tally]
    met: Tensor
    steps: int = 0

    @staticmethod
    def begin(parts: Gathered, state: State, poison: Poison) -> GatheredPass:
        """Before the first step, from boxes (1, *shape)."""
        features, budget = poison.features, poison.budget if bool(poison.open.any()) else 0
        bias = state[parts.bias].hull() if parts.bias else None
        first = FirstLayer.of(features, state[parts.weight].hull(), bias, budget)
        tallies = {name: Tally.of(box, budget) for name, box in state.items()}
        return GatheredPass(parts, first, tallies, torch.zeros_like(poison.open))

    @property
    def is_bounded(self) -> bool:
        """Whether every parameter lies within a range that is worth going on with."""
        return all(bool((box.width <= 2.0 * WILD).all()) for box in self.state().values())

    def state(self) -> State:
        """Boxes of all tensors of the state, (1, *shape)."""
        return {name: tally.box() for name, tally in self.tallies.items()}

    def outputs(self, features: Tensor) -> Interval:
        """Outputs of the first layer at features (n, d), as a run may round them, (1, n, units)."""
        parts = self.parts
        error = self.tallies[parts.weight].error
        if parts.bias:
            error = torch.cat([error, self.tallies[parts.bias].error[:, None]], 1)
        found = self.first.outputs(features, error, self.steps)
        return found.each(lambda end: end[None])

    def _refined(
        self,
        node: Node,
        boxes: Mapping[str, Interval],
        outputs: Interval,
        poison: Poison | None = None,
    ) -> Interval:
        """The box of a node met with what sums over samples, and sums inside it, tell."""
        box = boxes[node.name]
        if node.name == self.parts.output:
            return box.meet(outputs.expand_states(len(box.lower)), f"'{node.name}' by sums")
        return jointly(self.parts, node, boxes, poison)

    def forms(
        self,
        nodes: Sequence[Node],
        leaves: Mapping[str, Interval],
        coefficients: Tensor,
        constant: Tensor,
    ) -> Interval:
        """Boxes of forms of the outputs of the model, the last of some nodes, at known features.

        Coefficients (n, forms, outputs), constants (n, forms); found (1, n, forms). Nothing is known where
        the last layer is not dense.
        """
        boxes, outputs = dict(leaves), self.outputs(leaves[FEATURES].of_clean.lower)
        layer = self.parts.layers.get(nodes[-1].name)
        if layer is None:
            return Interval.point(constant[None]).forgotten()
        for node in nodes:
            if node.name not in boxes:
                box = node.op.interval(*(boxes[name] for name in node.inputs))
                boxes[node.name] = self._refined(node, boxes | {node.name: box}, outputs)
        return forms_of_layer(layer, boxes, coefficients, constant)

    def advanced(
        self, step: Step, state: State, adversary: AdversaryModel, samples: int | None
    ) -> GatheredPass:
        """After one more step; ``state`` are boxes before it, ``samples`` are bounded at once.

        Raises:
            SoundnessError: an empty meet (never expected).
        """
        parts = self.parts
        outputs = self.outputs(step.poison.features)

        def refine(part: slice) -> bound_propagation.Refine:
            own = outputs.each(lambda end: end[:, part])
            poison = step.poison.take(
                torch.arange(part.start, part.stop, device=step.samples.device)
            )
            return lambda node, boxes: self._refined(node, boxes, own, poison)

        keep = {name for names in parts.terms.values() for name in names}
        ranges = bound_propagation.propagate(
            parts.order, state, step, adversary, samples, sorted(keep), refine
        )
        again = bool(self.met[step.samples].any())
        met = self.met & (not again)
        tallies = {}
        for name, tally in self.tallies.items():
            tally = tally.settled() if again else tally
            tallies[name] = self._tallied(name, tally, step, ranges.boxes, state)
        signal = ranges.boxes[parts.signal]
        clean, down, up = _by_state(signal, step.poison.open)
        keeps, scale = step.of(parts.weight).theta_scalars[:2]
        first = self.first.after(step.samples, keeps, scale, clean, down, up)
        met = met.index_fill(0, step.samples, True)
        return replace(self, first=first, tallies=tallies, met=met, steps=self.steps + 1)

    def _tallied(
        self, name: str, tally: Tally, step: Step, boxes: Mapping[str, Interval], state: State
    ) -> Tally:
        """A parameter after ``theta' = keep theta + scale sum_i g_i``."""
        own = step.of(name)
        (keep, scale), (kept, scaled) = own.theta_scalars[:2], own.theta_sizes[:2]
        pieces = []
        for terms in self._terms(name, boxes):
            clean, down, up = _by_state(terms, step.poison.open)
            low, high = (clean.lower, clean.upper) if scale >= 0.0 else (clean.upper, clean.lower)
            down, up = (down, up) if scale >= 0.0 else (up, down)
            most = min(len(down), tally.budget)
            charges = (abs(scale) * part.topk(most, 0).values for part in (down, up))
            size = terms.magnitude.amax(0).sum(0)
            pieces.append((scale * low.sum(0), scale * high.sum(0), *charges, size))
        joined = [
            torch.cat(part, part[0].dim() - tally.low.dim()) for part in zip(*pieces, strict=True)
        ]
        low, high, down, up, size = joined
        # Of the sum and of the update, in the run and here: the ends of the tally may be the wider ones.
        before = torch.maximum(state[name].magnitude, tally.box().magnitude).amax(0)
        error = gamma(4 * step.size + 64) * abs(scaled) * size + gamma(64) * abs(kept) * before
        return tally.times(keep).plus(low, high, down, up, error + TINY)

    def _terms(self, name: str, boxes: Mapping[str, Interval]) -> Iterator[Interval]:
        """The terms of the gradient of a parameter, (states, n, *shape), some of its rows at a time."""
        used = [boxes[node] for node in self.parts.terms[name]]
        if len(used) == 1:
            yield used[0]
            return
        letters, (first, second) = self.parts.letters[name], used
        if letters != ("nh", "nd", "nhd"):
            yield box_of_products(letters, first, second)
            return
        states = max(len(first.lower), len(second.lower))
        chunk = max(1, AT_ONCE // (states * second.lower[0].numel()))
        for lower, upper in zip(
            first.lower.split(chunk, 2), first.upper.split(chunk, 2), strict=True
        ):
            yield box_of_products(letters, Interval(lower, upper), second)

    def packed(self) -> dict[str, Any]:
        """Plain values; what follows from the run itself is left out."""
        grown = ("share", "low", "high", "down", "up", "seen")
        return {
            "first": {name: getattr(self.first, name) for name in grown},
            "tallies": {name: _plain(tally) for name, tally in self.tallies.items()},
            "met": self.met,
            "steps": self.steps,
        }

    def unpacked(self, plain: Mapping[str, Any]) -> GatheredPass:
        """What :meth:`packed` packed, of a run that has just begun."""
        return replace(
            self,
            first=replace(self.first, **plain["first"]),
            tallies={name: Tally(**own) for name, own in plain["tallies"].items()},
            met=plain["met"],
            steps=plain["steps"],
        )


def _plain(tally: Tally) -> dict[str, Any]:
    return {field.name: getattr(tally, field.name) for field in fields(tally)}


def _by_state(box: Interval, open_: Tensor) -> tuple[Interval, Tensor, Tensor]:
    """The box of clean samples, (n, ...), and how far poisoned ones lie below and above it."""
    clean, hull = box.of_clean, box.hull()
    may = open_.reshape(-1, *[1] * (clean.lower.dim() - 1)).to(clean.lower)
    down, up = (clean.lower - hull.lower) * may, (hull.upper - clean.upper) * may
    return clean, down, up
