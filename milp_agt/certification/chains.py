"""The reachable sets of a run: one chain for each level, from the loosest to the tightest.

The boxes of every chain contain all runs; after each step they are met with those of the looser chains.
Besides the requested levels, ``linear`` may have one more chain: for each selection
(a chain of several parts, whose union counts). A part is one adversary model
with its boxes: all selections jointly, a group of listed ones, or a single listed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from milp_agt.bounds.adversary.enumerated import Enumerated, list_selections
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.gathered import GatheredPass
from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.linear.linearized_step import LinearizedStep, settle
from milp_agt.bounds.linear.window_bounds import PastStep
from milp_agt.bounds.step import State, Step, union
from milp_agt.bounds.zonotope import ZonotopePass, pack_forward, unpack_forward
from milp_agt.certification.checkpoint import pack, unpack
from milp_agt.certification.planning import Plan
from milp_agt.core.relaxation import STEP_RULES, Relaxation
from milp_agt.core.restriction import Restriction
from milp_agt.properties.reached import Reached
from milp_agt.threats.poison import Poison

ENUMERATED, ZONOTOPE = "linear, each selection", Relaxation.ZONOTOPE.value


@dataclass
class ChainPart:
    """Boxes under one adversary model, with the linearised steps of its window.

    ``past`` holds bounds of earlier steps without their samples, oldest first.
    ``forward`` is the set as a hybrid zonotope, for the level of that name, or
    ``gathered`` as sums over samples.
    """

    name: str
    adversary: AdversaryModel
    state: State
    window: list[LinearizedStep] = field(default_factory=list)
    past: list[PastStep] = field(default_factory=list)
    forward: ZonotopePass | None = None
    gathered: GatheredPass | None = None

    def key(self, step: int, kind: str = "") -> str:
        """Name of a step of the window or of the past in a snapshot."""
        return "-".join(filter(None, (self.name, kind, f"{step + 1:06d}")))

    def before(self, window: Sequence[LinearizedStep]) -> tuple[PastStep, ...]:
        """The past steps before a window."""
        return tuple(past for past in self.past if window and past.index < window[0].step.index)

    def forget(self, kept: int) -> None:
        """Keep only the last ``kept`` steps of the window, to free memory for the next."""
        self.window = self.window[max(0, len(self.window) - kept) :]


@dataclass
class Chain:
    """The reachable sets of one level: the union of its parts."""

    name: str
    level: Relaxation
    parts: list[ChainPart]

    @property
    def tells_apart(self) -> bool:
        """Whether boxes distinguish selections."""
        return any(part.adversary.cases > 1 for part in self.parts)

    @property
    def used(self) -> str:
        """What records call it: its level, or the name of a rule of its own."""
        return self.name if self.name in STEP_RULES else self.level.value

    @property
    def state(self) -> State:
        """One box that contains the boxes of all parts."""
        return union([part.state for part in self.parts])


class Chains:
    """The current chains in their order: levels without programs, each selection, programs, a rule."""

    def __init__(self, plan: Plan, poison: Poison, restriction: Restriction, start: State) -> None:
        joint = Joint(poison, restriction)

        def alone(name: str, level: Relaxation) -> Chain:
            return Chain(name, level, [ChainPart(name, joint, start)])

        self.chains = [alone(r.value, r) for r in plan.levels if not r.uses_programs]
        if plan.selections.groups:
            parts = _enumerated(poison, restriction, plan.selections.groups, start)
            self.chains.append(Chain(ENUMERATED, Relaxation.LINEAR, parts))
        self.chains += [alone(r.value, r) for r in plan.levels if r.uses_programs]
        if plan.asked in STEP_RULES:
            self.chains.append(alone(plan.asked, Relaxation.INTERVAL))

    def __iter__(self) -> Iterator[Chain]:
        return iter(self.chains)

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
        ended = [chain] if chain.name in (ENUMERATED, ZONOTOPE) else within
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
                    part.state = _met(part.state, known, f"by {chain.name} and by {ended.name}")

    def forget(self) -> None:
        """Know nothing of any parameter from here on."""
        for part in self.parts:
            part.state = {name: box.forgotten() for name, box in part.state.items()}

    @property
    def beside(self) -> Reached | None:
        """The set of the zonotope, where a tighter chain answers questions; None without one."""
        for chain in self.chains[:-1]:
            (*_, part) = chain.parts
            if part.forward is not None:
                return Reached(part.state, (), part.adversary, forward=part.forward)
        return None

    @property
    def _gathered(self) -> GatheredPass | None:
        return next((part.gathered for part in self.parts if part.gathered is not None), None)

    def reached(self, window: int) -> Iterator[Reached]:
        """The boxes of the tightest chain, or of each selection if a chain distinguishes them."""
        last = self.tightest
        outer = last.state
        for chain in self.chains:
            outer = _met(chain.state, outer, "of two chains")
            last = chain if chain.tells_apart else last
        for part in last.parts:
            state = _met(part.state, outer, "of two chains")
            steps = tuple(part.window[-window:])
            yield Reached(
                state,
                steps,
                part.adversary,
                outer,
                part.before(steps),
                part.forward,
                gathered=self._gathered,
            )

    def kept(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Plain values for a snapshot: the state of each part, and what never changes."""
        states = {
            part.name: {
                "state": pack(part.state),
                "window": [relaxed.step.index for relaxed in part.window],
                "past": [past.index for past in part.past],
                "forward": None if part.forward is None else pack_forward(part.forward),
                "gathered": None if part.gathered is None else part.gathered.packed(),
            }
            for part in self.parts
        }
        steps: dict[str, dict[str, Any]] = {}
        for part in self.parts:
            for relaxed in part.window:
                steps[part.key(relaxed.step.index)] = {
                    "state": pack(relaxed.state),
                    "boxes": pack(relaxed.ranges.boxes),
                    "sums": dict(relaxed.ranges.sums),
                }
            for past in part.past:
                numbers = {name: getattr(past, name) for name in _NUMBERS}
                numbers["coefficients"] = dict(numbers["coefficients"])
                steps[part.key(past.index, "past")] = {"state": pack(past.state), **numbers}
        return states, steps

    def restore(
        self,
        states: Mapping[str, Any],
        steps: Mapping[str, Any],
        relaxed: Callable[[ChainPart, int, Mapping[str, Any]], LinearizedStep],
    ) -> None:
        """Go on from what :meth:`kept` gave; ``relaxed`` makes a step of a window from its ranges."""
        self.chains = [chain for chain in self.chains if chain.parts[0].name in states]
        for part in self.parts:
            kept = states[part.name]
            part.state = unpack(kept["state"])
            part.window = [relaxed(part, t, steps[part.key(t)]) for t in kept["window"]]
            part.past = []
            for index in kept["past"]:
                past = steps[part.key(index, "past")]
                numbers = (past[name] for name in _NUMBERS)
                part.past.append(PastStep(index, unpack(past["state"]), *numbers))
            if part.forward is not None:
                part.forward = unpack_forward(part.forward, kept["forward"])
            if part.gathered is not None:
                part.gathered = part.gathered.unpacked(kept["gathered"])


_NUMBERS = ("coefficients", "constant", "magnitude", "operations")


def _enumerated(
    poison: Poison, restriction: Restriction, groups: int, start: State
) -> list[ChainPart]:
    """A box for every selection, in at most ``groups`` groups."""
    listed = list_selections(poison, restriction)
    count = len(listed) - 1
    size = max(1, -(-count // groups))
    parts = []
    for number, first in enumerate(range(0, count, size)):
        adversary = Enumerated(poison, listed.part(slice(first, first + size)))
        boxes = {n: b.expand_states(adversary.cases) for n, b in start.items()}
        parts.append(ChainPart(f"selections-{number}", adversary, boxes))
    return parts


def _met(state: State, other: State, how: str) -> State:
    return {name: box.meet(other[name], f"'{name}' {how}") for name, box in state.items()}


@dataclass
class StepSets:
    """The sets of the state after one step, while chains bound it one after the other.

    ``updated`` are the sets after the update, by chain name; ``ended`` those at the end of the step: after
    the projection of the parameters, or unchanged where the batch has lost all its samples. ``newest`` is
    the set of the last chain at the end. A chain lies within the chains before it whose levels are its own
    or looser; its sets are met with theirs.
    :meth:`add` is the only writer, and :meth:`settle` hands the sets to the parts of chains, which keep
    those before the step until then.
    """

    step: Step
    update: UpdateGraph
    updated: dict[str, State] = field(default_factory=dict)
    ended: dict[str, State] = field(default_factory=dict)
    newest: State = field(default_factory=dict)
    _parts: dict[str, tuple[State, State]] = field(default_factory=dict)
    _levels: dict[str, Relaxation] = field(default_factory=dict)

    def add(self, chain: Chain, found: Sequence[State]) -> None:
        """Add the sets of a chain, from those that its level found for its parts after the update.

        Where the batch of a part may be emptied, its set is met with others at the end of the step alone.
        """
        for part, state in zip(chain.parts, found, strict=True):
            empty = part.adversary.emptied(self.step)
            new = state if empty is not None else self._met(chain, self.updated, state)
            end = self.update.projected(new)
            if empty is not None:
                end = self._met(chain, self.ended, empty.merged(part.state, end))
            self._parts[part.name] = new, end
        new, end = (union(s) for s in zip(*(self._parts[p.name] for p in chain.parts), strict=True))
        self.updated[chain.name] = self._met(chain, self.updated, new)
        self.ended[chain.name] = self.newest = self._met(chain, self.ended, end)
        self._levels[chain.name] = chain.level

    def settle(self, part: ChainPart) -> bool:
        """Hand a part its set at the end of the step; False where its windows begin anew from there."""
        new, end = self._parts[part.name]
        if self.update.projections and part.window:
            part.window[-1] = settle(part.window[-1], new, part.adversary.cases)
        part.state = end
        if part.adversary.emptied(self.step) is None:
            return True
        begun = bool(part.window)
        part.window, part.past = [], []
        return not begun

    def _met(self, chain: Chain, sets: Mapping[str, State], state: State) -> State:
        """The meet of a state with the sets of the chains that a chain lies within."""
        for name, level in self._levels.items():
            if level in chain.level.chain():
                state = _met(state, sets[name], f"by {chain.name} and by {name}")
        return state
