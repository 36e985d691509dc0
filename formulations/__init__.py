"""Operations of the step graph. One file holds all rules of one operation."""

if __name__ != "milp_agt.formulations":
    raise ImportError(
        f"This package must be imported as 'milp_agt.formulations', not '{__name__}': a second copy "
        "would have a registry of its own."
    )
