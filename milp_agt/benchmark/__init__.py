"""How tight, how fast and how large is a certification, over steps, widths, samples and windows?"""

from milp_agt.benchmark.cases import Moons, RunFile
from milp_agt.benchmark.measure import Level
from milp_agt.benchmark.run import Sweep, bench
from milp_agt.benchmark.table import Benchmark, Row

__all__ = ["Benchmark", "Level", "Moons", "Row", "RunFile", "Sweep", "bench"]
