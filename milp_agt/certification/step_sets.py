"""The sets of the state after one step, while chains bound it one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.step import State, Step
from milp_agt.certification.chains import Chain, ChainPart


@dataclass
class StepSets:
    """Sets of the state after the update of a step, and at the end of the step.

    The end comes after the projection of the parameters, if there is one. It equals the beginning if the
    batch has lost all its samples.

    Attributes:
        before: sets before the step, by part name.
        updated: sets after the update, by chain name.
        ended: sets at the end, by chain name and by the keys of parts.
        newest: the set of the last chain at the end.
    """

    step: Step
    update: UpdateGraph
    before: Mapping[str, State]
    updated: dict[str, State] = field(default_factory=dict)
    ended: dict[str, State] = field(default_factory=dict)
    newest: State = field(default_factory=dict)

    def within(self, chain: Chain, part: ChainPart, state: State) -> State:
        """The set of a part after the update, met with the looser chains.

        If the batch may be emptied, it is met with these at the end of the step instead.
        """
        emptied = part.adversary.emptied(self.step) is not None
        return state if emptied else chain.within(self.updated, state)

    def add(self, chain: Chain) -> None:
        """Add the sets of a chain."""
        self.updated[chain.name] = chain.within(self.updated, chain.state)
        looser = [self.ended[name] for name in chain.looser if name in self.ended]
        for part in chain.parts:
            self._end(part, looser)
        outer = chain.outer([self.end_of(part) for part in chain.parts])
        self.ended[chain.name] = self.newest = chain.within(self.ended, outer)

    def end_of(self, part: ChainPart) -> State:
        """The set of a part at the end of the step."""
        return self.ended[part.key(self.step.index)]

    def _end(self, part: ChainPart, looser: Sequence[State]) -> None:
        """Project the set of a part, or keep the old one where all samples are removed."""
        new, empty = self.update.projected(part.state), part.adversary.emptied(self.step)
        if empty is not None:
            new = empty.merged(self.before[part.name], new)
            for state in looser:
                new = {n: b.meet(state[n], f"'{n}' by two chains") for n, b in new.items()}
        self.ended[part.key(self.step.index)] = new
