"""What makes programs tighter than their plain encoding."""

from __future__ import annotations

from dataclasses import dataclass

from milp_agt.core.arguments import at_least, of_kind


@dataclass(frozen=True)
class Strengthening:
    """Switches of the programs of ``lp`` and above; each holds by itself, so each can be measured.

    Any choice gives sound bounds. What has gained little or nothing on the instances of README is off.

    Attributes:
        on_off: rows of a sample are tight while it is clean, and give way as its selection grows.
            False: one row for both states.
        influence: the state that a window begins with is tied to the selection by the forms of the walk
            through the steps before it (budgets for the data set).
        cuts: the state that a window ends with is tied to the selection in the same way.
        phases: phases of units inside the steps are tied to the selection: who must be poisoned before a
            unit changes sides (budgets for the data set).
        rlt: with ``phases``, products of the budget and of these rows with each phase of a relu, linearised
            (Sherali and Adams 1990): a column for each phase and sample.
        symmetry: of samples that are equal in data, moves and batches, the first ones are poisoned (trees,
            with all steps of the run in reach).
        selection_first: trees branch on the selection before all phases (solvers with priorities).
        by_choice: where selections are enumerated, the programs of a step, and those of questions about
            the model in the end, are about one choice of poisoned samples each, the loosest first, until the
            bound rests on choices that are solved: exact branching on the selection.
        identity: ``relu(z) = step(z) z`` as a bilinear term in ``qcqp`` and ``miqp``.
        pieces: pieces of the range of one operand of a chosen product, each with McCormick envelopes of
            its own and a binary (``milp`` and ``miqp``; Bergamini et al. 2005); 1 for none.
        pieced: how many products of a window are chosen: those with the largest gap.
        obbt_seconds: seconds that every step of ``lp`` and above may spend on tightening the ranges
            inside the step by linear programs (optimisation-based bound tightening), before it is
            bounded itself; 0 for none. What is done in that time depends on the machine.

    Raises:
        InvalidInputError: a switch that is neither True nor False, a count below 1, negative seconds.
    """

    on_off: bool = True
    influence: bool = True
    cuts: bool = False
    phases: bool = False
    rlt: bool = False
    symmetry: bool = False
    selection_first: bool = False
    by_choice: bool = True
    identity: bool = False
    pieces: int = 1
    pieced: int = 8
    obbt_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, default in vars(type(self)).items():
            if isinstance(default, bool):
                what = f"The switch {name} of a strengthening"
                of_kind(getattr(self, name), bool, what, "give True or False")
        for name in ("pieces", "pieced"):
            what = f"{name} of a strengthening"
            at_least(getattr(self, name), 1, what, "give 1 to leave pieces out", whole=True)
        what = "obbt_seconds of a strengthening"
        at_least(self.obbt_seconds, 0.0, what, "give 0 to leave ranges as they are")


DEFAULT = Strengthening()
