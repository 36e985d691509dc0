"""[certify] of a RUN.toml: the options of ``certify``, and whether to attack as well."""

from __future__ import annotations

from pydantic import Field

from milp_agt.certification.options import CertifyOptions


class CertifyTable(CertifyOptions):
    """Which relaxation, over which window, with which means."""

    attack: bool = Field(
        default=False,
        description="Attack the run as well when the bounds are done, as [attack] says, so that every "
        "number has both sides.",
    )
