"""Certificates that :mod:`milp_agt.checker` can check: written here, from a run and its result."""

from milp_agt.certificates.folder import write as write

__all__ = ["write"]
