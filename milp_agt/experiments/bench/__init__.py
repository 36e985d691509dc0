"""How tight, how fast and how large is a certification, over steps, widths, samples and windows?"""

from milp_agt.experiments.bench.bench_table import Benchmark, Row
from milp_agt.experiments.bench.cases import Moons, RunFile
from milp_agt.experiments.bench.measure import Level
from milp_agt.experiments.bench.series import Series, bench

__all__ = ["Benchmark", "Level", "Moons", "Row", "RunFile", "Series", "bench"]
