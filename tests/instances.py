"""Instances of every operation for the contract tests: small shapes, each option at least once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.graph import Operation, Signature
from milp_agt.core.rounding import FLOAT32
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.channel_bias import ChannelBias
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.clip_factor import ClipFactor, Shorten
from milp_agt.formulations.convolution import Convolution
from milp_agt.formulations.elu import Elu, EluSlope
from milp_agt.formulations.exchange import Remove, Substitute
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.gather import Gather
from milp_agt.formulations.gelu import Gelu, GeluSlope
from milp_agt.formulations.gelu_tanh import GeluTanh, GeluTanhSlope
from milp_agt.formulations.hardtanh import Hardtanh
from milp_agt.formulations.heaviside import Heaviside as StepFunction
from milp_agt.formulations.linear import Affine, Combine, Reshape
from milp_agt.formulations.max_pool import MaxPool
from milp_agt.formulations.optimiser_step import OptimiserStep
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.reciprocal import Reciprocal
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.rounding_error import RoundingError
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.sign import Sign
from milp_agt.formulations.silu import Silu, SiluSlope
from milp_agt.formulations.softplus import Softplus, SoftplusSlope
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.unfold import Unfold
from milp_agt.formulations.windows import Windows

Long = np.longdouble
SAMPLES = 3


@dataclass(frozen=True)
class Instance:
    """An operation with input signatures; ``domain`` is where its arguments may lie."""

    label: str
    op: Operation
    inputs: tuple[Signature, ...]
    domain: str = "real"
    has_interval: bool = True

    @property
    def out(self) -> Signature:
        return self.op.infer(*self.inputs)

    def __str__(self) -> str:
        return self.label


def per_sample(*shape: int) -> Signature:
    return Signature(shape, True)


def shared(*shape: int) -> Signature:
    return Signature(shape, False)


def _tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _normal(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).normal(size=shape))


NEGATIVE_SLOPES = (0.0, 0.01, 0.5, 1.0, 1.5, -0.2)
_U = (per_sample(2),)

INSTANCES: dict[str, list[Instance]] = {
    "affine": [
        Instance("affine", Affine(_tensor([1.0, -2.0, 0.3], [0.0, 0.7, -1e-3])), (per_sample(3),)),
        Instance(
            "affine-bias",
            Affine(_tensor([0.1, -0.7], [3.0, 0.2], [-1.0, 0.0]), _tensor(0.3, -5.0, 1e-9)),
            (per_sample(2),),
        ),
        Instance("affine-matrix", Affine(_tensor([0.3, -1.1]), _tensor(0.7)), (shared(2, 2),)),
    ],
    "bilinear": [Instance("layer", Einsum("hd,nd->nh"), (shared(2, 2), per_sample(2))),
        Instance("outer", Einsum("nh,nd->nhd"), (per_sample(2), per_sample(2))),
        Instance("back", Einsum("nh,hd->nd"), (per_sample(2), shared(2, 2))),
        Instance("elementwise", Einsum("na,na->na"), (per_sample(2), per_sample(2))),
        Instance("gain", Einsum("na,a->na"), (per_sample(2), shared(2))),
        Instance("gain-in-front", Einsum("a,na->na"), (shared(2), per_sample(2))),
        Instance("matrices", Einsum("ab,bc->ac"), (shared(1, 2), shared(2, 2))),
        Instance("dot", Einsum("nd,nd->n"), (per_sample(2), per_sample(2)))],
    "blur": [Instance("blur", RoundingError(_tensor(0.0, 1e-18)), _U)],
    "channel_bias": [
        Instance("bias-of-images", ChannelBias(extents=(1, 2)), (per_sample(2, 1, 2), shared(2))),
        Instance("bias-of-vectors", ChannelBias(), (per_sample(2), shared(2))),
    ],
    "run_rounding": [
        Instance("rounded", RunRounding(Quadratic(-1.0, 1.0, 0.0), FLOAT32), _U * 2),
        Instance(
            "rounded-layer",
            RunRounding(Einsum("hd,nd->nh"), FLOAT32, 3.0),
            (per_sample(2), shared(2, 2), per_sample(2)),
        ),
    ],
    "clip": [Instance("clip", Clip(-0.5, 0.5), _U), Instance("clip-box", Clip(-3.0, 0.7), _U),
             Instance("clip-positive", Clip(0.1, 2.0), _U)],
    "clip_factor": [Instance("clip-factor", ClipFactor(0.5), _U),
        Instance("clip-factor-2", ClipFactor(2.0), _U),
        Instance("clip-factor-shifted", ClipFactor(0.5, 0.05), _U)],
    "combine": [
        Instance("sum", Combine((1.0, 1.0), None, (True, True), 1), (per_sample(2),) * 2),
        Instance("bias", Combine((1.0, 1.0), None, (True, False), 1), (per_sample(2), shared(2))),
        Instance(
            "scales",
            Combine((-0.7, _tensor(0.3, -2.0)), _tensor(0.1, -4.0), (True, False), 1),
            (per_sample(2), shared(2)),
        ),
        Instance(
            "scalar", Combine((0.99,), torch.tensor(0.01).double(), (True,), 1), (per_sample(2),)
        ),
        Instance("parameters", Combine((-1.0, 0.1), None, (False, False), 2), (shared(2, 2),) * 2),
    ],
    "convolution": [
        Instance(
            "convolution",
            Convolution(Windows((2, 3, 2), (2, 2)), _normal(2, 2, 2, 2), _tensor(0.3, -5.0)),
            (per_sample(2, 3, 2),),
        ),
        Instance(
            "convolution-stride",
            Convolution(Windows((1, 4, 3), (2, 2), (2, 3), (1, 0)), _normal(2, 1, 2, 2)),
            (per_sample(1, 4, 3),),
        ),
        Instance(
            "convolution-groups",
            Convolution(
                Windows((2, 3, 2), (2, 1), dilation=(2, 1)),
                _normal(2, 1, 2, 1),
                _tensor(1.0, 2.0),
                2,
            ),
            (per_sample(2, 3, 2),),
        ),
        Instance(
            "convolution-transposed",
            Convolution(Windows((1, 4, 3), (2, 2), (2, 1)), _normal(2, 1, 2, 2), transposed=True),
            (per_sample(2, 2, 2),),
        ),
    ],
    "elu": [Instance(f"elu-{a}", Elu(a), _U) for a in (1.0, 0.3, 2.5)],
    "elu_slope": [Instance("elu-slope", EluSlope(), _U)],
    "exponential": [Instance("exponential", Exponential(), _U, "exponent")],
    "gather": [
        Instance("gather", Gather((3, 0, 3), (2, 2), (3, 1)), (per_sample(2, 2),)),
        Instance("gather-parameter", Gather((2, 0, 1), (3,), (3,)), (shared(3),)),
        Instance("gather-turned", Gather((2, 0), (4,), (1, 2), True), (per_sample(1, 2),)),
        Instance("gather-summed", Gather((1, 0, 1, 1), (3,), (2, 2), True), (per_sample(2, 2),)),
    ],
    "gelu": [Instance("gelu", Gelu(), _U)],
    "gelu_slope": [Instance("gelu-slope", GeluSlope(), _U)],
    "gelu_tanh": [Instance("gelu-tanh", GeluTanh(), _U)],
    "gelu_tanh_slope": [Instance("gelu-tanh-slope", GeluTanhSlope(), _U)],
    "hardtanh": [Instance("hardtanh", Hardtanh(-1.0, 1.0), _U),
        Instance("relu6", Hardtanh(0.0, 6.0), _U),
        Instance("clamp", Hardtanh(-0.5, 2.0, True), _U)],
    "max_pool": [
        Instance("max", MaxPool(Windows((1, 2, 2), (2, 2))), (per_sample(1, 2, 2),)),
        Instance(
            "max-padded",
            MaxPool(Windows((2, 2, 1), (2, 3), padding=(0, 1))),
            (per_sample(2, 2, 1),),
        ),
        Instance("max-overlap", MaxPool(Windows((1, 1, 4), (1, 3))), (per_sample(1, 1, 4),)),
    ],
    "optimiser_step": [
        Instance("decay", OptimiserStep.of((0.9, -0.1), (1.1, 0.1), 1), (shared(2), shared(2))),
        Instance(
            "turned", OptimiserStep.of((-0.5, -0.3, 0.2), (2.5, 0.3, 0.2), 2), (shared(1, 2),) * 3
        ),
    ],
    "quadratic": [Instance("square", Quadratic(1.0, 0.0, 0.0), _U),
        Instance("sigmoid-slope", Quadratic(-1.0, 1.0, 0.0), _U),
        Instance("tanh-slope", Quadratic(-1.0, 0.0, 1.0), _U),
        Instance("general", Quadratic(0.3, -2.0, 5.0), _U)],
    "reciprocal": [Instance("reciprocal", Reciprocal(), _U, "positive")],
    "relu": [Instance(f"relu-{k}", Relu(k), _U) for k in NEGATIVE_SLOPES],
    "reshape": [Instance("reshape", Reshape((2, 3), (6,)), (per_sample(2, 3),))],
    # The boxes of these tests are not those of a norm: a cap that never binds. test_clipping.py has them.
    "shorten": [
        Instance("shorten", Shorten("na,nz->na", 1e300), (per_sample(2), per_sample(1))),
        Instance(
            "shorten-matrix", Shorten("nab,nz->nab", 1e300), (per_sample(1, 2), per_sample(1))
        ),
        Instance("shorten-mean", Shorten("ab,z->ab", 1e300), (shared(1, 2), shared(1))),
    ],
    "sigmoid": [Instance("sigmoid", Sigmoid(), _U)],
    "silu": [Instance("silu", Silu(), _U)],
    "silu_slope": [Instance("silu-slope", SiluSlope(), _U)],
    "softplus": [Instance("softplus", Softplus(), _U),
        Instance("softplus-sharp", Softplus(5.0, 4.0), _U),
        Instance("softplus-blunt", Softplus(0.2), _U)],
    "softplus_slope": [Instance("softplus-slope", SoftplusSlope(), _U),
        Instance("softplus-slope-sharp", SoftplusSlope(5.0, 4.0), _U)],
    "sign": [Instance("sign", Sign(), _U)],
    "squared_norm": [Instance("squared-norm", SquaredNorm((1,)), _U),
        Instance("squared-norm-joint", SquaredNorm((2, 1)), (per_sample(2, 1), per_sample(2))),
        Instance("squared-norm-mean", SquaredNorm((2, 1), False), (shared(2, 1), shared(2)))],
    "step": [Instance("step", StepFunction(), _U)],
    "remove": [
        Instance("remove", Remove(2), (per_sample(2), per_sample(1)), "unit", has_interval=False),
        Instance(
            "remove-matrix",
            Remove(2),
            (per_sample(1, 2), per_sample(1)),
            "unit",
            has_interval=False,
        ),
    ],
    "substitute": [
        Instance(
            "substitute",
            Substitute(1, 1e-9),
            (per_sample(2), per_sample(1)),
            "unit",
            has_interval=False,
        )
    ],
    "sum_samples": [Instance("vector", SumSamples(1), (per_sample(2),), has_interval=False),
        Instance("matrix", SumSamples(2), (per_sample(2, 2),), has_interval=False)],
    "unfold": [
        Instance(
            "unfold", Unfold(Windows((1, 3, 2), (2, 2), padding=(0, 1))), (per_sample(1, 3, 2),)
        ),
        Instance(
            "unfold-transposed",
            Unfold(Windows((1, 3, 2), (2, 2), padding=(0, 1)), transposed=True),
            (per_sample(4, 6),),
        ),
    ],
    "tanh": [Instance("tanh", Tanh(), _U)],
}  # fmt: skip


def in_other_orders(op: Operation, points: Sequence[Tensor]) -> Iterator[Tensor]:
    """The same value with every sum taken in another order."""
    if isinstance(op, Einsum):
        first, second, _ = op.letters
        flipped = []
        for tensor, letters in zip(points, (first, second), strict=True):
            axes = [
                tensor.dim() - len(letters) + letters.index(c)
                for c in op.contracted
                if c in letters
            ]
            flipped.append(tensor.flip(axes) if axes else tensor)
        yield op.value(*flipped)
        a, b = op._full(points[0], 0), op._full(points[1], 1)
        dims = list(range(-len(op.contracted), 0))
        yield (a * b).sum(dims) if dims else a * b
    if isinstance(op, Affine):
        flipped_op = Affine(op.matrix.flip(1), op.bias)
        yield flipped_op.value(points[0].flip(-1))
    if isinstance(op, ChannelBias):
        yield op._aligned(points[1], 1) + points[0]
    elif isinstance(op, Combine):
        order = list(reversed(range(len(points))))
        turned = Combine(
            tuple(op.scales[j] for j in order),
            op.constant,
            tuple(op.batched[j] for j in order),
            op.rank,
        )
        yield turned.value(*(points[j] for j in order))
    if isinstance(op, (Convolution, Unfold, Gather)):
        matrix = torch.from_numpy(op.sparse().toarray()).to(points[0])
        lead = points[0].shape[: points[0].dim() - len(op.shapes[0])]
        flat = points[0].reshape(*lead, -1).flip(-1) @ matrix.flip(1).T
        found = flat.reshape(*lead, *op.shapes[1])
        yield found if op.constant is None else found + op.constant
    if isinstance(op, MaxPool):
        inside = torch.where(op._inside(), 0.0, -torch.inf)
        best = (op._elements(points[0]) + inside).amax(-2)
        yield best.reshape(*best.shape[:-1], *op.windows.out)
