"""Poisoned data against the threat, sample by sample in exact arithmetic, and trained on in plain torch."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from milp_agt.attacks.replay import PlainSteps, clipped_mean, per_sample_gradients
from milp_agt.attacks.unrolled import Poisoning, Unrolled
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import MoveSet

# How much shorter the moves of data that are admissible up to rounding are made.
FACTORS = (1.0, 1.0 - 1e-12, 1.0 - 1e-9)


def violation(unrolled: Unrolled, data: Poisoning) -> str:
    """Why the threat does not admit the data of one run; empty if it does.

    Everything is compared exactly: who was changed against the samples that are open and the budgets, and how
    far against the sets of moves (``MoveSet.admits``) and the domain.
    """
    poison, own = unrolled.poison, unrolled.moves
    x, y = data.features[0], data.labels[0]
    in_x, in_y = (x != own.features).flatten(1).any(1), (y != own.labels).any(-1)
    in_x = in_x | unrolled.turned(data)[0]
    both = [in_x, in_y] if unrolled.quotas > 1 else [in_x | in_y]
    for quota, mask in zip(poison.quotas, both, strict=True):
        chosen = torch.zeros(len(unrolled.spans), len(poison.features), dtype=torch.bool)
        chosen[unrolled.span.cpu(), unrolled.cover.cpu()] = mask.cpu()
        closed = (chosen & ~quota.open.cpu()).any(0)
        if bool(closed.any()):
            return f"sample {int(closed.nonzero()[0])} is changed, which the threat leaves alone"
        count = _most_at_once(unrolled, chosen)
        if count > quota.budget:
            return f"{count} samples are changed at once, more than the budget of {quota.budget}"
    return _wrong_moves(own, unrolled.cover, x, y)


def _most_at_once(unrolled: Unrolled, masks: Tensor) -> int:
    """How many samples are poisoned where the budget counts, from masks (leaves, N)."""
    if not unrolled.poison.per_batch:
        return int(masks.any(0).sum())
    if not unrolled.poison.static:
        return int(masks.sum(1).max())
    return max(int(masks[0][batch.cpu()].sum()) for batch in unrolled.batches)


def _wrong_moves(own: Poison, samples: Tensor, x: Tensor, y: Tensor) -> str:
    """An entry of some sample whose move is not admitted, in words."""
    in_x = (x != own.features).flatten(1).any(1)
    for what, moves, nominal, given in (
        ("features", own.feature_moves, own.features.flatten(1), x.flatten(1)),
        ("label", own.label_moves, own.labels, y),
    ):
        if not bool(torch.isfinite(given).all()):
            return f"a {what} that is not a finite number"
        for entry in (given != nominal).any(1).nonzero()[:, 0].tolist():
            if moves is None or not moves.admits(entry, nominal[entry], given[entry]):
                sample = int(samples[entry])
                return f"the {what} of sample {sample} moved farther than the threat admits"
    if own.domain is not None:
        outside = (x < own.domain.lower) | (x > own.domain.upper)
        if bool(outside[in_x].any()):
            return "features outside their domain"
    return ""


def tightened(unrolled: Unrolled, data: Poisoning, dtype: torch.dtype) -> Poisoning | None:
    """The data of one run in ``dtype``, moved inwards until they are admissible exactly; None if none are."""
    for factor in FACTORS:
        nearer = _nearer(unrolled, data, factor, dtype)
        if not violation(unrolled, nearer):
            return nearer
    return None


def _nearer(unrolled: Unrolled, data: Poisoning, factor: float, dtype: torch.dtype) -> Poisoning:
    def moved(moves: MoveSet | None, nominal: Tensor, given: Tensor) -> Tensor:
        flat, start = given.flatten(2), nominal.flatten(1)
        if moves is not None and factor < 1.0:
            flat = moves.shrunk(start, flat, factor)
        rounded = flat.to(dtype).to(flat)
        beyond = (rounded - start).abs() > (flat - start).abs()
        back = torch.nextafter(rounded.to(dtype), start.expand(flat.shape).to(dtype)).to(flat)
        return torch.where(beyond, back, rounded).reshape(given.shape)

    own = unrolled.moves
    return Poisoning(
        moved(own.feature_moves, own.features, data.features),
        moved(own.label_moves, own.labels, data.labels),
        data.there,
    )


def train_plainly(unrolled: Unrolled, data: Poisoning, dtype: torch.dtype) -> nn.Module:
    """The model after plain training on the data of one run, as its user would do it.

    The module itself in ``dtype``, ``loss.backward()`` on each batch in its order without absent samples,
    gradients of single samples where the run clips, and ``torch.optim.SGD``; a batch without samples is
    skipped.
    """
    graph = unrolled.step_graph
    module = copy.deepcopy(graph.model).to(data.labels[0].device).double()
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in graph.initial.items():
            own[name].copy_(value)
    module = module.to(dtype)
    own = {name: p for name, p in module.named_parameters() if name in graph.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in own)
    loss, optimiser = graph.loss.plain, PlainSteps(own)
    for step, update in enumerate(unrolled.updates):
        features, labels, there = unrolled.batch(data, step)
        x, y = features[0].to(dtype), labels[0].to(dtype)
        if there is not None:
            x, y = x[there[0] > 0], y[there[0] > 0]
        if not len(x):
            continue
        module.zero_grad()
        if graph.clipping is None:
            loss(module(x), y).backward()
        else:
            state = {n: p.detach() for n, p in own.items()}
            each = per_sample_gradients(module, loss, state, x, y)
            found = clipped_mean(each, graph.clipping.bound, graph.clipping.mode)
            for name, parameter in own.items():
                parameter.grad = found[name]
        if update.clip_total is not None:
            nn.utils.clip_grad_norm_(list(own.values()), update.clip_total)
        optimiser.step(update)
    return module


def stacked(unrolled: Unrolled, module: nn.Module) -> dict[str, Tensor]:
    """The parameters of one trained module as the state of one run, (1, *shape) float64."""
    found: Mapping[str, Tensor] = dict(module.named_parameters())
    return {n: found[n].detach().double()[None] for n in unrolled.step_graph.parameters}


def fingerprint(unrolled: Unrolled) -> str:
    """A hash of the data as given, the order of the batches and the initial parameters."""
    digest = hashlib.sha256()
    tensors = [unrolled.poison.features, unrolled.poison.labels, *unrolled.batches]
    for tensor in (*tensors, *unrolled.step_graph.initial.values()):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
