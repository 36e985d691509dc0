"""Steps bounded by intervals around weights that are sums over the samples met so far.

``theta_t = a theta_0 + sum_i c_i x_i^T``: where data are clean, the first layer is a sum of known inputs with
uncertain coefficients, one for each sample and unit. Its outputs follow from inner products of samples, a
poisoned sample counts as one among all steps, and no coefficient of a parameter on a sample is kept: memory
is that of intervals. See ``first_layer.py`` for the outputs, ``tally.py`` for the parameters, ``passed.py``
for the steps in between, and ``supported.py`` for what is refused.
"""

from milp_agt.bounds.gathered.passed import GatheredPass
from milp_agt.bounds.gathered.supported import Gathered, gathered

__all__ = ["Gathered", "GatheredPass", "gathered"]
