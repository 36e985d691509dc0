"""The chain with optimised slopes: all selections jointly, or each critical selection by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from milp_agt.bounds.adversary.enumerated import Enumerated
from milp_agt.bounds.linear import alpha
from milp_agt.bounds.linear.linearized_step import settle
from milp_agt.bounds.linear.slopes import Slopes
from milp_agt.bounds.signed_entries import entry_bounds, entry_boxes
from milp_agt.bounds.step import State, Step
from milp_agt.certification.bound_step import Bounder
from milp_agt.certification.chains import Chain, ChainPart
from milp_agt.certification.critical import CriticalSelections
from milp_agt.core.interval import Interval


@dataclass(frozen=True)
class Optimiser:
    """Tightens the boxes of a chain after its parts were bounded with default slopes."""

    bounder: Bounder

    def improve(self, chain: Chain, step: Step, until: float | None) -> None:
        """Optimise slopes if the plan includes this step; moves end at ``until``."""
        empties = any(part.adversary.emptied(step) is not None for part in chain.parts)
        if empties or not self.bounder.plan.is_optimised(step.index):
            return
        for part in chain.parts:
            assert list(part.state) == list(part.window[-1].state)  # same numbering of ends
        told_apart = isinstance(chain.parts[0].adversary, Enumerated)
        work = self._each if told_apart else self._all
        if work(chain, step, until):
            self.bounder.notes.fall_back(
                f"step {step.index + 1}: time limit, slopes were optimised by fewer than alpha_steps = "
                f"{self.bounder.plan.alpha_steps} moves",
                limit=True,
            )

    def _ends(self, state: State, step: Step) -> Tensor:
        """Numbers of the signed entries that are needed: no velocities after the last step."""
        sizes = [box.lower[0].numel() for box in state.values()]
        last = step.index + 1 == self.bounder.plan.steps
        asked = [not last or name in self.bounder.step_graph.initial for name in state]
        mask = torch.cat([torch.full((n,), a) for n, a in zip(sizes, asked, strict=True)])
        return mask.repeat(2).nonzero()[:, 0].to(self.bounder.poison.features.device)

    def _all(self, chain: Chain, step: Step, until: float | None) -> bool:
        """Optimise all selections jointly, starting from the last slopes; returns whether time was up."""
        (part,) = chain.parts
        ends = self._ends(part.state, step)
        start = {
            index: {place: tuple(v[ends] for v in values) for place, values in own.items()}
            for index, own in part.slopes.items()
        }
        found = self._optimised(chain.name, part, ends, start, until)
        indices = (relaxed.step.index for relaxed in part.window[-self.bounder.plan.window :])
        part.slopes = dict(zip(indices, found.slopes, strict=True))
        bounds = entry_bounds(part.state)
        bounds[:, ends] = found.bounds
        better = entry_boxes(part.state, bounds)
        part.state = {n: b.meet(better[n], f"'{n}' by two slopes") for n, b in part.state.items()}
        return found.late

    def _each(self, chain: Chain, step: Step, until: float | None) -> bool:
        """Optimise each critical selection by itself; returns whether time was up."""
        union = CriticalSelections.of(chain.parts, self._ends(chain.parts[0].state, step))
        alone: dict[int, ChainPart] = {}
        late = False

        def bounded(number: int) -> Tensor:
            alone[number] = self._alone(chain, *union.place(number))
            for relaxed in alone[number].window:
                self.bounder.recorder.step(_label(chain, number), relaxed)
            return entry_bounds(alone[number].state)[0]

        def optimised(number: int, ends: Tensor) -> Tensor:
            nonlocal late
            found = self._optimised(_label(chain, number), alone[number], ends, {}, until)
            late |= found.late
            return found.bounds[0]

        before = float(union.widths.sum())
        late |= union.improve(bounded, optimised, lambda: until is not None and monotonic() > until)
        union.settle()
        share = 1.0 - float(union.widths.sum()) / before if before > 0 else 0.0
        self.bounder.notes.note(
            f"step {step.index + 1}: slopes were optimised for the {len(alone)} of {len(union.bounds)} "
            f"selections that carry the union, which became {100 * share:.3g} % narrower"
        )
        return late

    def _optimised(
        self,
        name: str,
        part: ChainPart,
        ends: Tensor,
        start: Mapping[int, Slopes],
        until: float | None,
    ) -> alpha.Optimised:
        plan = self.bounder.plan
        window = part.window[-plan.window :]
        problem = alpha.Problem(self.bounder.schedule, window, part.adversary)
        found = alpha.optimise_ends(
            problem, ends, plan.alpha_steps, plan.alpha_memory, start, until
        )
        index = window[-1].step.index
        self.bounder.recorder.slopes(index, name, ends, found.slopes)
        if found.steps < len(window):
            self.bounder.notes.fall_back_once(
                "the memory budget has room for the gradients of no more than the last steps of the "
                f"window: slopes before those are not optimised (first {found.steps} of "
                f"{len(window)}, at step {index + 1})"
            )
        return found

    def _alone(self, chain: Chain, part: ChainPart, case: int) -> ChainPart:
        """One case bounded again through the steps of a window, within its boxes, with its own slopes.

        The state is the one after the window, before any projection.
        """
        bounder, adversary = self.bounder, part.adversary
        assert isinstance(adversary, Enumerated)
        first = _case_of(part.window[0].state, case)
        own = ChainPart(
            part.name, Enumerated(adversary.poison, adversary.listed.single(case)), first
        )
        states = [*(relaxed.state for relaxed in part.window[1:]), part.state]
        for known, after in zip(part.window, states, strict=True):
            ranges = bounder.ranges(chain, own, known.step)
            for name, box in _case_of(known.ranges.boxes, case).items():
                if name in ranges.boxes:
                    ranges.boxes[name] = ranges.boxes[name].meet(box, f"'{name}' by itself")
            relaxed = bounder.relax(own.adversary, own.state, known.step, ranges)
            own.window = [*own.window, relaxed]
            own.state = bounder.walked(own, known.step, ranges)
            if after is not part.state:
                if relaxed.update.projections:
                    own.window[-1] = settle(relaxed, own.state, 1)
                own.state = relaxed.update.projected(own.state)
            own.state = {
                n: b.meet(own.state[n], f"'{n}' by itself")
                for n, b in _case_of(after, case).items()
            }
        return own


def _case_of(boxes: Mapping[str, Interval], case: int) -> dict[str, Interval]:
    """The boxes of one case, including those that all cases share."""
    return {
        name: box if len(box.lower) == 1 else Interval(box.lower[case, None], box.upper[case, None])
        for name, box in boxes.items()
    }


def _label(chain: Chain, number: int) -> str:
    return f"{chain.name}, selection {number}"
