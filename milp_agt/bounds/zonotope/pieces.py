"""A step taken in pieces of its batch: forms of few samples at a time, so that memory bounds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.step import Step
from milp_agt.bounds.zonotope import linear_maps
from milp_agt.bounds.zonotope.bounds import Carried
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.form import SummedForm
from milp_agt.bounds.zonotope.kinks import kink_of, unsupported
from milp_agt.bounds.zonotope.sums import folded
from milp_agt.bounds.zonotope.transformer import Transformer
from milp_agt.bounds.zonotope.work import Work
from milp_agt.core.interval import Interval
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.linear_map import LinearMap
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Whole

# The forms of a piece take at most this share of the memory; bytes of a number.
SHARE, FLOAT = 8, 8


@dataclass(frozen=True)
class Summed:
    """The summed gradients of a step by parameter, and its flips.

    Attributes:
        columns: sample generators of the batch, sample by sample and part by part, -1 for those that
            stay clean.
    """

    gradients: Mapping[str, SummedForm]
    flips: Flips
    columns: Tensor
    work: Work


def summed_gradients(before: Carried, step: Step) -> Summed:
    """Forms of the summed gradients. A sum over samples is a sum over pieces: the same set but for rounding,
    and for which phases get rows."""
    schedule, zonotope, layout = before.schedule, before.zonotope, before.layout
    made = {product.name for product in schedule.summed_products.values()}
    own = [n for n in schedule.before if n.batched and n.name not in made]
    sizes = [node.signature.size for node in own] or [1]
    # Coefficients of a number: on symbols of its sample, on its moves, and on its flips.
    entered = sum(node.signature.size for node in own if isinstance(node.op, Einsum))
    symbols = min(layout.parameters, max(entered, 2 * max(sizes)))
    coefficients = symbols + 2 * max(sizes) + zonotope.samples.width
    each = FLOAT * coefficients * sum(sizes)
    kinks = {n.inputs[0]: n.signature.size for n in own if kink_of(n.op) is not None}
    every = torch.arange(step.size, device=step.samples.device)
    work = Work.of(zonotope, sum(kinks.values()) * step.size, step.size)
    sums: dict[str, SummedForm] = {}
    flips = Flips.none(zonotope.samples)
    most = max(1, before.memory // (SHARE * each))
    if step.poison.whole is Whole.REMOVED:  # the mean of those that are left needs the whole batch
        most = step.size
    for part in every.split(most):
        piece = replace(step, samples=step.samples[part], poison=step.poison.take(part))
        share = (int(part[-1]) + 1) / step.size
        transformer = Transformer(before, piece, work, flips, share)
        for name, found in _sums(transformer).items():
            if zonotope.is_folded:
                found = folded(found, zonotope.samples, transformer.columns.flatten())
            sums[name] = sums[name].plus(found, step.size) if name in sums else found
        flips = transformer.flips
    for node in schedule.sums:
        assert isinstance(node.op, SumSamples)
        own_sum = sums[node.name]
        sums[node.name] = replace(own_sum, base=node.op.widened(own_sum.base, own_sum.size))
    for node in schedule.after:
        if isinstance(node.op, RunRounding):
            sums[node.name] = _rounded(node.op, [sums[name] for name in node.inputs])
            continue
        if not isinstance(node.op, LinearMap) or any(name not in sums for name in node.inputs):
            raise unsupported(node.op, node)
        sums[node.name] = linear_maps.of_sums(node.op, [sums[name] for name in node.inputs])
    gradients = {name: sums[node.name] for name, node in schedule.gradients}
    return Summed(gradients, flips, zonotope.samples.at(step).flatten(), work)


def _rounded(op: RunRounding, inputs: Sequence[SummedForm]) -> SummedForm:
    """A sum, and what the run rounds in it: noise of everyone, by the sizes of all terms."""
    error = op.error(*(Interval(-form.size[None], form.size[None]) for form in inputs))
    form = inputs[0]
    return replace(form, base=form.base.widen(error), size=form.size + error[0])


def _sums(transformer: Transformer) -> dict[str, SummedForm]:
    """Forms of all sums over the samples of a piece."""
    schedule = transformer.schedule
    transformer.leaves()
    unmade = {product.name for product in schedule.summed_products.values()}
    for node in schedule.before:
        if node.name not in transformer.forms and node.name not in unmade:
            transformer.take(node)
    return {node.name: transformer.sum(node) for node in schedule.sums}
