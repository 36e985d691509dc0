"""Running-error analysis: the constants that widen every range before it is used.

Notation of Higham, *Accuracy and Stability of Numerical Algorithms* (2002), section 3.1: with unit
roundoff ``u = 2^-53`` a chain of ``k`` operations carries a relative error of at most
``gamma(k) = k u / (1 - k u)``, and a sum of ``k`` products in *any* order satisfies
``|fl(sum a_i b_i) - sum a_i b_i| <= gamma(k) sum |a_i| |b_i|``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a training run.

    Attributes:
        name: of the type of its numbers.
        unit: its unit roundoff u: a result that neither over- nor underflows is off by a factor in
            ``[1 - u, 1 + u]``.
        tiny: what underflow, gradual or to zero, adds to one value, with room for 1e10 operations and
            for gradients that are kept divided by the size of the batch.
        largest: values beyond it may have overflowed on the way; nothing is known of them.
    """

    name: str
    unit: float
    tiny: float
    largest: float

    def gamma(self, k: float) -> float:
        """``k u / (1 - k u)``, and infinite for ``k u >= 1/2``: no sum is that long."""
        error = k * self.unit
        return error / (1.0 - error) if error < 0.5 else math.inf

    def elementary(self, magnitude: float = 0.0) -> float:
        """Relative error that is granted to exp, tanh, sigmoid, at arguments up to ``magnitude``."""
        return self.unit * (ELEMENTARY + 4.0 * magnitude)


FLOAT64 = Precision("float64", UNIT_ROUNDOFF, TINY, math.inf)
FLOAT32 = Precision("float32", 2.0**-24, 1e-28, 1e30)
PRECISIONS = {each.name: each for each in (FLOAT64, FLOAT32)}

_REDUCED = {
    **dict.fromkeys(
        ("tf32", "tensorfloat32"),
        "TF32, whose products keep 10 bits of each factor, and not on every device",
    ),
    **dict.fromkeys(("float16", "half", "fp16"), "half precision, which overflows at 65504"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16, which keeps 8 bits of a number"),
    **dict.fromkeys(
        ("mixed", "amp", "autocast"),
        "mixed precision, whose casts and loss scaling are no part of the graph of a step",
    ),
}


USE_FLOAT32 = (
    "train in float32 under torch.set_float32_matmul_precision('highest') and without autocast, and certify "
    "with precision = 'float32', or in float64 with precision = 'float64'"
)


def what_is_wrong_with(name: str) -> str:
    """Why runs in a precision, by its name, cannot be certified."""
    known = name.lower().removeprefix("torch.").replace("-", "").replace("_", "")
    return _REDUCED.get(known, f"which is none of {', '.join(PRECISIONS)}")
