"""How much an attack tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from milp_agt.core.deadline import Deadline
from milp_agt.core.option_table import Index, Key, Memory, Seconds, documented
from milp_agt.errors import InvalidInputError
from milp_agt.training import inputs


@documented
@dataclass(frozen=True)
class Search:
    """How much is tried. The same seed and settings give the same result.

    Raises:
        InvalidInputError: a count that is not a whole number >= 0, a negative time limit.
    """

    pool: Annotated[
        int,
        Key(Index, "Random poisonings that serve every objective, half of them at full strength."),
    ] = 1024
    corners: Annotated[
        int,
        Key(
            Index,
            "Samples that are moved by themselves, at most so often, so that units of theirs flip; the best "
            "for each end are then tried together.",
        ),
    ] = 2048
    enumerate: Annotated[
        int,
        Key(
            Index,
            "Where the data can be poisoned in finitely many ways, at most so many, all of them are tried, "
            "and nothing else.",
        ),
    ] = 4096
    restarts: Annotated[
        int, Key(Index, "Starts of the gradient ascent for each end of each quantity.")
    ] = 4
    rounds: Annotated[
        int,
        Key(
            Index,
            "Rounds of local search around the best poisoning of each end, by exchanged samples and gradient "
            "steps.",
        ),
    ] = 4
    iterations: Annotated[int, Key(Index, "Gradient steps of each start and of each round.")] = 8
    aims: Annotated[
        int,
        Key(
            Index,
            "Ends (of parameters, say) that are followed by gradient, drawn at random where there are more; "
            "the others keep the best that any run reached.",
        ),
    ] = 512
    seed: Annotated[int, Key(Index, "Seed of everything that is drawn.")] = 0
    memory: Annotated[
        str | int,
        Key(Memory, "Memory for the tensors of one pass, in B, KB, MB, GB, KiB, MiB or GiB."),
    ] = "1GiB"
    time_limit: Annotated[
        float | None,
        Key(
            Seconds,
            "Time for one search: there is one for the parameters and one for each property. The best that "
            "was met by then counts. No limit unless given.",
        ),
    ] = None

    def __post_init__(self) -> None:
        counts = {n: v for n, v in vars(self).items() if n not in ("memory", "time_limit")}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InvalidInputError(
                    f"A search needs a whole number >= 0 for '{name}'",
                    f"{name} = {value!r}",
                    f"change {name}",
                )
        inputs.bytes_of(self.memory)
        Deadline.within(self.time_limit)
