"""[attack]: how much an attack tries, for ``milp-agt attack`` and for certificates with attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from milp_agt.core.option_table import Index, Memory, Seconds, Table

if TYPE_CHECKING:
    from milp_agt.attacks import Search


def _with_defaults(schema: dict[str, Any]) -> None:
    """Keys that are left out keep the defaults of a search, which are written there only."""
    from milp_agt.attacks import Search

    for name, field in schema["properties"].items():
        if getattr(Search(), name) is not None:
            field["default"] = getattr(Search(), name)


class AttackTable(Table):
    """How much an attack tries, for `milp-agt attack` and for certificates with attacks."""

    model_config = ConfigDict(json_schema_extra=_with_defaults)

    pool: Index | None = Field(
        default=None,
        description="Random poisonings that serve every objective, half of them at full strength.",
    )
    corners: Index | None = Field(
        default=None,
        description="Samples that are moved by themselves, at most so often, so that units of theirs flip; "
        "the best for each end are then tried together.",
    )
    enumerate: Index | None = Field(
        default=None,
        description="Where the data can be poisoned in finitely many ways, at most so many, all of them "
        "are tried, and nothing else.",
    )
    restarts: Index | None = Field(
        default=None, description="Starts of the gradient ascent for each end of each quantity."
    )
    rounds: Index | None = Field(
        default=None,
        description="Rounds of local search around the best poisoning of each end, by exchanged samples "
        "and gradient steps.",
    )
    iterations: Index | None = Field(
        default=None, description="Gradient steps of each start and of each round."
    )
    aims: Index | None = Field(
        default=None,
        description="Ends (of parameters, say) that are followed by gradient, drawn at random where there "
        "are more; the others keep the best that any run reached.",
    )
    seed: Index | None = Field(default=None, description="Seed of everything that is drawn.")
    memory: Memory | None = Field(
        default=None,
        description="Memory for the tensors of one pass, in B, KB, MB, GB, KiB, MiB or GiB.",
    )
    time_limit: Seconds | None = Field(
        default=None,
        description="Time for one search: there is one for the parameters and one for each property. The "
        "best that was met by then counts. No limit unless given.",
    )

    def search(self) -> Search:
        """The settings as an object.

        Raises:
            InvalidInputError: a memory that is no size.
        """
        from milp_agt.attacks import Search

        return Search(**self.model_dump(exclude_none=True))
