"""Certificates that :mod:`milp_agt.checker` can check: written here, from a run and its result."""

from milp_agt.certificates.folder import clear as clear
from milp_agt.certificates.folder import write as write
from milp_agt.checker.__main__ import FOLDER as FOLDER

__all__ = ["FOLDER", "clear", "write"]
