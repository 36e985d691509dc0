"""The sets of the state after one step, while chains bound it one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.step import State, Step, union
from milp_agt.certification.chains import Chain, ChainPart
from milp_agt.core.relaxation import Relaxation


@dataclass
class StepSets:
    """Sets of the state after the update of a step, and at the end of the step.

    The end comes after the projection of the parameters, if there is one. It equals the beginning if the
    batch has lost all its samples.

    A chain lies within the chains before it whose levels are its own or looser; its sets are met with theirs.

    Attributes:
        before: sets before the step, by part name.
        updated: sets after the update, by chain name.
        ended: sets at the end, by chain name and by the keys of parts.
        newest: the set of the last chain at the end.
        levels: of the chains so far, by name, in their order.
    """

    step: Step
    update: UpdateGraph
    before: Mapping[str, State]
    updated: dict[str, State] = field(default_factory=dict)
    ended: dict[str, State] = field(default_factory=dict)
    newest: State = field(default_factory=dict)
    levels: dict[str, Relaxation] = field(default_factory=dict)

    def within(self, chain: Chain, part: ChainPart, state: State) -> State:
        """The set of a part after the update, met with the looser chains.

        If the batch may be emptied, it is met with these at the end of the step instead.
        """
        emptied = part.adversary.emptied(self.step) is not None
        return state if emptied else self._met(chain, self.updated, state)

    def add(self, chain: Chain) -> None:
        """Add the sets of a chain."""
        self.updated[chain.name] = self._met(chain, self.updated, chain.state)
        for part in chain.parts:
            self._end(chain, part)
        outer = union([self.end_of(part) for part in chain.parts])
        self.ended[chain.name] = self.newest = self._met(chain, self.ended, outer)
        self.levels[chain.name] = chain.level

    def _met(self, chain: Chain, sets: Mapping[str, State], state: State) -> State:
        """The meet of a state with the sets of the chains that a chain lies within."""
        for name, level in self.levels.items():
            if level in chain.level.chain():
                what = f"by {chain.name} and by {name}"
                state = {n: b.meet(sets[name][n], f"'{n}' {what}") for n, b in state.items()}
        return state

    def end_of(self, part: ChainPart) -> State:
        """The set of a part at the end of the step."""
        return self.ended[part.key(self.step.index)]

    def _end(self, chain: Chain, part: ChainPart) -> None:
        """Project the set of a part, or keep the old one where all samples are removed."""
        new, empty = self.update.projected(part.state), part.adversary.emptied(self.step)
        if empty is not None:
            new = self._met(chain, self.ended, empty.merged(self.before[part.name], new))
        self.ended[part.key(self.step.index)] = new
