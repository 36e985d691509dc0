"""[attack]: how much an attack tries, for ``milp-agt attack`` and for certificates with attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milp_agt.config_table import Index, Table

if TYPE_CHECKING:
    from milp_agt.attacks import Search


class AttackTable(Table):
    """The settings of :class:`milp_agt.attacks.Search`; keys that are left out keep its defaults."""

    pool: Index | None = None
    enumerate: Index | None = None
    restarts: Index | None = None
    rounds: Index | None = None
    iterations: Index | None = None
    aims: Index | None = None
    seed: Index | None = None
    memory: str | None = None

    def search(self) -> Search:
        """The settings as an object.

        Raises:
            InvalidInputError: a memory that is no size.
        """
        from milp_agt.attacks import Search

        return Search(**self.model_dump(exclude_none=True))
