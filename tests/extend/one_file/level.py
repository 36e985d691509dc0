"""A level and its option: boxes are halved before a step, and the union of what follows counts."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.step import State, Step, union
from milp_agt.certification.bound_step import Bounder
from milp_agt.certification.chains import ChainPart
from milp_agt.certification.options import CertifyOptions, register_options
from milp_agt.core.interval import Interval
from milp_agt.core.option_table import Index
from milp_agt.core.relaxation import register_level


@register_options
class HalvingOptions(CertifyOptions):
    halvings: Index = Field(default=1, description="How often boxes are halved, for `halved`.")


@register_level("halved")
def halved(bounder: Bounder, part: ChainPart, step: Step) -> State:
    options = bounder.options
    assert isinstance(options, HalvingOptions)

    def after(state: State) -> State:
        ranges = bound_propagation.propagate(bounder.schedule, state, step, part.adversary)
        return bound_propagation.update(bounder.step_graph, state, ranges, step)

    return union([after(state) for state in pieces(dict(part.state), options.halvings)])


def pieces(state: State, halvings: int) -> Iterator[State]:
    """Boxes whose union is the state: its widest entry is halved, and again."""
    widest = max(state, key=lambda name: float(state[name].width.max()))
    box = state[widest]
    if halvings == 0 or not float(box.width.max()) > 0:
        yield state
        return
    at = box.width.flatten().argmax()
    middle = box.centre.flatten()[at]
    low, high = box.lower.clone(), box.upper.clone()
    low.view(-1)[at] = high.view(-1)[at] = middle
    for half in (Interval(box.lower, high), Interval(low, box.upper)):
        yield from pieces({**state, widest: half}, halvings - 1)
