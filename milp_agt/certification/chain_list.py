"""The list of chains of a run: which there are, in which order, and when they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from milp_agt.bounds.adversary.enumerated import Enumerated, list_selections
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.step import State
from milp_agt.certification.chains import ENUMERATED, Chain, ChainPart
from milp_agt.certification.planning import Plan
from milp_agt.core.relaxation import STEP_RULES, Relaxation
from milp_agt.core.restriction import Restriction
from milp_agt.properties.models import Reached
from milp_agt.threats.poison import Poison


class Chains:
    """Chains from the loosest to the tightest; iterating yields the current ones."""

    def __init__(self, plan: Plan, poison: Poison, restriction: Restriction, start: State) -> None:
        joint = Joint(poison, restriction)
        self.chains = [
            Chain(level.value, level, [ChainPart(level.value, joint, start)])
            for level in plan.levels
        ]
        if plan.asked in STEP_RULES:
            part = ChainPart(plan.asked, joint, start)
            self.chains.append(Chain(plan.asked, Relaxation.INTERVAL, [part]))
        after = sum(not level.uses_programs for level in plan.levels)
        if plan.selections.groups:
            parts = _enumerated(poison, restriction, plan.selections.groups, start)
            self.chains.insert(after, Chain(ENUMERATED, Relaxation.LINEAR, parts))

    def __iter__(self) -> Iterator[Chain]:
        return iter(self.chains)

    def __contains__(self, chain: Chain) -> bool:
        return chain in self.chains

    @property
    def parts(self) -> Iterator[ChainPart]:
        for chain in self.chains:
            yield from chain.parts

    @property
    def tightest(self) -> Chain:
        return self.chains[-1]

    def cheaper(self, chain: Chain) -> list[str]:
        """Names of the chains before this one."""
        return [other.name for other in self.chains[: self.chains.index(chain)]]

    def end(self, chain: Chain) -> list[Chain]:
        """Drop a chain and all chains that lie within it; returns the dropped ones, the chain first."""
        within = [c for c in self.chains if chain.level in c.level.chain()]
        alone = (ENUMERATED, Relaxation.ZONOTOPE.value)
        ended = [chain] if chain.name in alone else within
        self.chains = [c for c in self.chains if c not in ended]
        return ended

    def inherit(self, ended: Chain) -> None:
        """Go on from the boxes of a chain that has ended, at the same step: all boxes contain all runs.

        Chains that tell selections apart keep their own; windows go on as they are.
        """
        known = ended.state
        for chain in self.chains:
            if not chain.tells_apart:
                for part in chain.parts:
                    part.state = {
                        n: b.meet(known[n], f"'{n}' by {chain.name} and by {ended.name}")
                        for n, b in part.state.items()
                    }

    def keep(self, parts: Sequence[str]) -> None:
        """Keep only the chains whose parts have these names."""
        self.chains = [c for c in self.chains if c.parts[0].name in parts]

    @property
    def beside(self) -> Reached | None:
        """The set of the zonotope, where a tighter chain answers questions; None without one."""
        for chain in self.chains[:-1]:
            (*_, part) = chain.parts
            if part.forward is not None:
                return Reached(part.state, (), part.adversary, forward=part.forward)
        return None

    def reached(self, window: int) -> Iterator[Reached]:
        """The boxes of the tightest chain, or of each selection if a chain distinguishes them."""
        last = self.tightest
        outer = last.state
        for chain in self.chains:
            outer = {n: b.meet(outer[n], f"'{n}' of two chains") for n, b in chain.state.items()}
            if chain.tells_apart:
                last = chain
        for part in last.parts:
            state = {n: b.meet(outer[n], f"'{n}' of two chains") for n, b in part.state.items()}
            steps = tuple(part.window[-window:])
            before = part.before(steps)
            yield Reached(state, steps, part.adversary, outer, before, part.forward)


def _enumerated(
    poison: Poison, restriction: Restriction, groups: int, start: State
) -> list[ChainPart]:
    """A box for every selection, in at most ``groups`` groups."""
    listed = list_selections(poison, restriction)
    count = len(listed) - 1
    size = max(1, -(-count // groups))
    return [
        _part(
            f"selections-{number}",
            Enumerated(poison, listed.part(slice(first, first + size))),
            start,
        )
        for number, first in enumerate(range(0, count, size))
    ]


def _part(name: str, adversary: AdversaryModel, start: State) -> ChainPart:
    return ChainPart(
        name, adversary, {n: b.expand_states(adversary.cases) for n, b in start.items()}
    )
