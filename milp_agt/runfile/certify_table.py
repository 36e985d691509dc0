"""[certify] of a RUN.toml: the options of ``certify``, and whether to attack as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from milp_agt.attacks.search_settings import Search
from milp_agt.certification.options import CertifyOptions, with_further
from milp_agt.core.option_table import Table, table_of


class CertifyTable(CertifyOptions):
    """Which relaxation, over which window, with which means."""

    attack: bool = Field(
        default=False,
        description="Attack the run as well when the bounds are done, as [attack] says, so that every "
        "number has both sides.",
    )


class Further:
    """Annotation of [certify]: with all options that are registered."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return handler.generate_schema(with_further(source))


if TYPE_CHECKING:
    AttackTable = Table
else:
    AttackTable = table_of(
        Search,
        Table,
        "How much an attack tries, for `milp-agt attack` and for certificates with attacks.",
    )
