"""Certificates that :mod:`milp_agt.checker` can check: written here, from a run and its result."""

from milp_agt.certificates.asked import Asked as Asked
from milp_agt.certificates.asked import questions_of as questions_of
from milp_agt.certificates.folder import clear as clear
from milp_agt.certificates.folder import write as write
from milp_agt.certificates.folder import write_result as write_result
from milp_agt.checker.__main__ import FOLDER as FOLDER

__all__ = ["FOLDER", "Asked", "clear", "questions_of", "write", "write_result"]
