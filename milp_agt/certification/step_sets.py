"""What chains have proved of one step, while they bound it one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.step import State, Step
from milp_agt.certification.chains import Chain, ChainPart


@dataclass
class StepSets:
    """Sets of the state after a step: where its update leads, and where it ends.

    The end of a step is behind the projection of the parameters, if there is one, and the same as its
    beginning where a batch has lost all its samples.

    Attributes:
        before: sets before the step, by the names of parts.
        updated: after the update, by the names of chains.
        ended: at the end, by the names of chains and the keys of their parts.
        newest: the set of the last chain at the end.
    """

    step: Step
    update: UpdateGraph
    before: Mapping[str, State]
    updated: dict[str, State] = field(default_factory=dict)
    ended: dict[str, State] = field(default_factory=dict)
    newest: State = field(default_factory=dict)

    def within(self, chain: Chain, part: ChainPart, state: State) -> State:
        """What a part reaches by the update, within the looser chains.

        Where the batch may be emptied these are met at the end of the step.
        """
        emptied = part.adversary.emptied(self.step) is not None
        return state if emptied else chain.within(self.updated, state)

    def add(self, chain: Chain, smaller: Sequence[ChainPart]) -> None:
        """A chain has bounded its parts, and on the way made those of another one ``smaller``."""
        self.updated[chain.name] = chain.within(self.updated, chain.state)
        for part in smaller:
            if part.adversary.emptied(self.step) is None:
                self._end(part, ())
        looser = [self.ended[name] for name in chain.looser if name in self.ended]
        for part in chain.parts:
            self._end(part, looser)
        outer = chain.outer([self.end_of(part) for part in chain.parts])
        self.ended[chain.name] = self.newest = chain.within(self.ended, outer)

    def end_of(self, part: ChainPart) -> State:
        """The set of a part at the end of the step."""
        return self.ended[part.key(self.step.index)]

    def _end(self, part: ChainPart, looser: Sequence[State]) -> None:
        """Project what a part reaches, or keep what it was where all samples are removed."""
        new, empty = self.update.projected(part.state), part.adversary.emptied(self.step)
        if empty is not None:
            new = empty.merged(self.before[part.name], new)
            for state in looser:
                new = {n: b.meet(state[n], f"'{n}' by two chains") for n, b in new.items()}
        self.ended[part.key(self.step.index)] = new
