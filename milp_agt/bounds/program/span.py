"""The steps of one program, and how they become columns and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program.window import (
    EncodedSteps,
    EncodedWindow,
    affords_envelopes,
    encode_steps,
)
from milp_agt.bounds.step import NodeOrder, State
from milp_agt.core.encoder import Encoder
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
