"""Running-error analysis: the constants that widen every range before it is used.

Notation of Higham, *Accuracy and Stability of Numerical Algorithms* (2002), section 3.1: with unit
roundoff ``u = 2^-53`` a chain of ``k`` operations carries a relative error of at most
``gamma(k) = k u / (1 - k u)``, and a sum of ``k`` products in *any* order satisfies
``|fl(sum a_i b_i) - sum a_i b_i| <= gamma(k) sum |a_i| |b_i|``.
"""

from __future__ import annotations

UNIT_ROUNDOFF = 2.0**-53

# Absolute error that underflow can add to one operation, with room for 1e10 of them.
TINY = 1e-290

# Assumed relative error, in units of u, of one evaluation of exp, tanh, sigmoid and similar functions,
# in this library and in the training run. Measured errors of libm and of torch's vectorised kernels
# are below 4; the assumption is part of the claim.
ELEMENTARY = 16.0


def gamma(k: float) -> float:
    """``k u / (1 - k u)``; requires ``k u < 1``."""
    return k * UNIT_ROUNDOFF / (1.0 - k * UNIT_ROUNDOFF)
