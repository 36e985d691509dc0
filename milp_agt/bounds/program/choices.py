"""The choices of the adversary that programs cover: all in one program, or one program each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from milp_agt.bounds.adversary.enumerated import Enumerated
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program.by_choice import Leaf
from milp_agt.bounds.program.window import (
    EncodedSteps,
    EncodedWindow,
    affords_envelopes,
    encode_steps,
)
from milp_agt.bounds.step import NodeOrder, State
from milp_agt.core.encoder import Encoder
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import StepGraph


@dataclass(frozen=True)
class Span:
    """The input of one program.

    Attributes:
        window: the steps.
        state: a box of the state after them, (1, *shape) each.
        poison, restriction: the remaining moves of the adversary.
        past: the steps before the window, as far as they are kept.
    """

    window: Sequence[LinearizedStep]
    state: State
    poison: Poison
    restriction: Restriction
    past: Sequence[LinearizedStep] = ()


class Choices(Protocol):
    """Spans that together cover every run: a bound that is valid for each of them is valid."""

    def __len__(self) -> int: ...

    def span(self, choice: int) -> Span:
        """The steps of one choice."""
        ...

    @property
    def states(self) -> Sequence[State]:
        """Boxes of the state after the steps, with an axis of choices in their order."""
        ...

    @property
    def largest(self) -> float:
        """The largest number in the ranges of the steps."""
        ...


@dataclass(frozen=True)
class Together:
    """All choices in one program."""

    whole: Span

    def __len__(self) -> int:
        return 1

    def span(self, choice: int) -> Span:
        return self.whole

    @property
    def states(self) -> Sequence[State]:
        return [self.whole.state]

    @property
    def largest(self) -> float:
        return largest_of(self.whole.window)


@dataclass(frozen=True)
class SelectionGroup:
    """Some listed selections with their linearised steps, a box for each."""

    adversary: Enumerated
    window: Sequence[LinearizedStep]
    state: State


@dataclass(frozen=True)
class OneByOne:
    """A program for each listed selection, numbered through all groups.

    Attributes:
        outer: for each step of the window a box that contains the state before it in all cases.
        state: a box that contains the state after the window in all cases.
    """

    schedule: NodeOrder
    groups: Sequence[SelectionGroup]
    outer: Sequence[State]
    state: State

    def __len__(self) -> int:
        return sum(group.adversary.cases for group in self.groups)

    def span(self, choice: int) -> Span:
        case, group = choice, self.groups[0]
        for group in self.groups:
            if case < group.adversary.cases:
                break
            case -= group.adversary.cases
        leaf = Leaf.of(self.schedule, group.adversary, case, group.window, self.outer)
        own = {n: Interval(b.lower[[case]], b.upper[[case]]) for n, b in group.state.items()}
        return Span(leaf.window, self._met(own), leaf.poison, leaf.restriction)

    @property
    def states(self) -> Sequence[State]:
        return [self._met(group.state) for group in self.groups]

    def _met(self, own: State) -> State:
        return {n: b.meet(self.state[n], f"'{n}' of one choice and of all") for n, b in own.items()}

    @property
    def largest(self) -> float:
        return max(largest_of(group.window) for group in self.groups)


def largest_of(window: Sequence[LinearizedStep]) -> float:
    """The largest number in the ranges of a window."""
    boxes = (box for relaxed in window for box in relaxed.ranges.boxes.values())
    return max(float(box.magnitude.max()) for box in boxes)


@dataclass(frozen=True)
class Encoding:
    """How a span becomes a program; see :func:`encode_window`."""

    step_graph: StepGraph
    schedule: NodeOrder
    exact_phases: bool
    exact_products: bool = False

    def steps(self, span: Span) -> tuple[Encoder, EncodedSteps]:
        """The columns and rows of the steps, for further rows on top."""
        envelopes = affords_envelopes(self.schedule, span.window)
        encoder = Encoder(self.exact_phases, self.exact_products, envelopes)
        steps = encode_steps(
            self.step_graph,
            self.schedule,
            span.window,
            span.poison,
            span.restriction,
            encoder,
            span.past,
        )
        return encoder, steps

    def window(self, span: Span) -> EncodedWindow:
        """The program of the steps only."""
        encoder, steps = self.steps(span)
        return EncodedWindow(encoder.finish(), steps.state, steps.batches)
