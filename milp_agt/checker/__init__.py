"""The checker of certificates: numpy and the standard library, and nothing of what made them.

Read it in this order: ``boxes`` (numbers and their rounding), ``functions`` (exp and its kin), ``layers``
(the run), ``training`` (one step against the adversary), ``forms``, ``affine`` and ``steps`` (the same by
affine forms), ``proof`` (everything a run can end with, and what such models do), ``files`` and
``statement`` (what a certificate says), ``check`` (the verdict). ``README.md`` beside them specifies the
format and names what stays outside.
"""

from milp_agt.checker.check import Item, Outcome, Report, check

__all__ = ["Item", "Outcome", "Report", "check"]
