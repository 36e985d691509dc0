"""What a recorded run adds to the result of its certification."""

from __future__ import annotations

from dataclasses import replace

from milp_agt.certification.result import Result
from milp_agt.errors import SoundnessError
from milp_agt.recording import NominalCheck, RecordedRun


def with_recording(
    result: Result, check: NominalCheck, recorded: RecordedRun, is_whole: bool
) -> Result:
    """The result of a recorded run: what was checked of it, and what is assumed besides.

    Args:
        is_whole: whether all admissible attacks are bounded, none among them.

    Raises:
        SoundnessError: the user's own model, of a run in the certified precision, lies outside.
    """
    own = is_whole and result.precision == recorded.dtype
    if own and not result.reachable.contains(recorded.final):
        raise SoundnessError(
            "The model that a recorded run ended with must lie in its reachable set",
            f"{check}, and outside",
            "please report this run",
        )
    told = (
        f"The claim is about the {result.precision} run of the recorded steps: {check}.",
        *recorded.assumptions,
    )
    return replace(result, nominal_check=check, assumptions=(*result.assumptions, *told))
