"""What bounds propose to attacks: points of programs, and the forms of data that a zonotope maximises."""

from __future__ import annotations

from collections.abc import Sequence

from milp_agt.attacks import Attacker
from milp_agt.attacks.proposed import Favoured
from milp_agt.bounds.program import Incumbents
from milp_agt.bounds.zonotope import favoured_by_ends
from milp_agt.properties.models import ReachableModels

# Ends of parameters whose forms are tried: each is one training, and more found little.
MOST_ENDS = 128


def proposals(
    models: ReachableModels, attacker: Attacker
) -> Sequence[Sequence[Incumbents] | Favoured]:
    """The adversary's choices in points of programs, for the final state and the questions so far, and in
    the bounds of a zonotope.

    A zonotope behind frozen layers moves what comes out of them: it proposes nothing for the data in front
    of them, and nothing where whole samples change, which have no such moves.
    """
    attacked = attacker.unrolled.poison
    found: list[Sequence[Incumbents] | Favoured] = []
    if models.program is not None:
        found.extend(models.program.incumbents)
    for reached in models.everywhere:
        if reached.rows is not None:
            found.extend(reached.rows.incumbents)
        if reached.forward is None:
            continue
        samples = reached.forward.zonotope.samples
        seen = models.poison.features.shape == attacked.features.shape
        if not samples.count or not seen or models.poison.whole is not None:
            continue
        moves, worth = favoured_by_ends(reached.forward, MOST_ENDS)
        on_x, on_y = moves.split([samples.on_features, samples.width - samples.on_features], -1)
        features, labels = (
            part.reshape(len(moves), *data.shape)
            if part.shape[-1]
            else data.new_zeros(len(moves), *data.shape)
            for part, data in ((on_x, attacked.features), (on_y, attacked.labels))
        )
        found.append(Favoured(features, labels, worth))
    return found
