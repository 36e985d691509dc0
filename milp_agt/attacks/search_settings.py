"""How much an attack tries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from milp_agt.core.deadline import Deadline, shorter
from milp_agt.core.option_table import Index, Key, Memory, Seconds
from milp_agt.errors import InvalidInputError
from milp_agt.training import inputs


@dataclass(frozen=True)
class Search:
    """How much is tried. The same seed and settings give the same result.

    Attributes:
        pool: random poisonings that serve every objective, half of them at full strength.
        corners: samples that are moved by themselves, at most so often, so that units of theirs flip; the
            best for each end are then tried together.
        enumerate: where the data can be poisoned in finitely many ways, at most so many, all of them are
            tried, and nothing else.
        restarts: starts of the gradient ascent for each end of each quantity.
        rounds: rounds of local search around the best poisoning of each end, by exchanged samples and
            gradient steps.
        iterations: gradient steps of each start and of each round.
        aims: ends (of parameters, say) that are followed by gradient, drawn at random where there are more;
            the others keep the best that any run reached.
        seed: seed of everything that is drawn.
        memory: memory for the tensors of one pass, in B, KB, MB, GB, KiB, MiB or GiB.
        time_limit: time for one search: there is one for the parameters and one for each property. The best
            that was met by then counts. No limit unless given.

    Raises:
        InvalidInputError: a count that is not a whole number >= 0, a negative time limit.
    """

    pool: Annotated[int, Key(Index)] = 1024
    corners: Annotated[int, Key(Index)] = 2048
    enumerate: Annotated[int, Key(Index)] = 4096
    restarts: Annotated[int, Key(Index)] = 4
    rounds: Annotated[int, Key(Index)] = 4
    iterations: Annotated[int, Key(Index)] = 8
    aims: Annotated[int, Key(Index)] = 512
    seed: Annotated[int, Key(Index)] = 0
    memory: Annotated[str | int, Key(Memory)] = "1GiB"
    time_limit: Annotated[float | None, Key(Seconds)] = None

    def __post_init__(self) -> None:
        counts = {n: v for n, v in vars(self).items() if n not in ("memory", "time_limit")}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
                raise InvalidInputError(
                    f"A search needs a whole number >= 0 of at most 64 bits for '{name}'",
                    f"{name} = {value!r}",
                    f"change {name}",
                )
        inputs.bytes_of(self.memory)
        Deadline.within(self.time_limit)

    def within(self, seconds: float | None) -> Search:
        """The same in so many seconds at most."""
        return replace(self, time_limit=shorter(self.time_limit, seconds))
