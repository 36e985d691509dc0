"""Rows of programs that are one per cent too tight are caught, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checks_encoding import check_encoding, encode_operation
from draws import all_instances, univariate_instances
from instances import INSTANCES, Instance
from mutants import SHARE, MutantEncoder, is_caught, moderate

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression


def _kinds(instance: Instance) -> list[str]:
    boxes = moderate(instance, "nested", 0)
    inputs = encode_operation(replace(instance, op=_Nothing()), boxes, exact=False).program.size
    size = encode_operation(instance, boxes, exact=False).program.size
    rows = ["rows", "charge"] if any(s.batched for s in instance.inputs) else ["rows"]
    return [
        "output",
        *(["columns"] if size["columns"] > inputs["columns"] else []),
        *(rows if size["rows"] > inputs["rows"] else []),
    ]


class _Nothing:
    """Encodes its first input as it is."""

    @staticmethod
    def encode(encoder: Encoder, inputs: Sequence[Expression], ranges: object) -> Expression:
        return inputs[0]


@pytest.mark.parametrize("instance", all_instances(), ids=str)
def test_encoding_mutants(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output, its columns, its rows and what they charge to samples."""
    original = type(instance.op).encode

    def mutant(op: Any, *args: Any) -> Expression:
        out = original(op, *args)
        return Expression((1.0 - SHARE) * out.matrix, out.constant, out.error, out.shape)

    def is_noticed(kind: str) -> bool:
        def check(seed: int) -> None:
            rng = np.random.default_rng(seed)
            boxes = moderate(instance, "nested", seed)
            check_encoding(instance, boxes, False, rng, encoder=MutantEncoder(False, kind))

        with monkeypatch.context() as patch:
            if kind == "output":
                patch.setattr(type(instance.op), "encode", mutant)
            return is_caught(check)

    assert [kind for kind in _kinds(instance) if not is_noticed(kind)] == []


def _blocks() -> list[Any]:
    cases = []
    quick = ("relu-0.0", "step", "sigmoid", "elementwise")
    elementwise = [i for i in INSTANCES["bilinear"] if i.label == "elementwise"]
    for instance in [*univariate_instances(), *elementwise]:
        for states in ("single", "nested"):
            for exact in (False, True) if instance.op.key in ("relu", "step") else (False,):
                slow = instance.label not in quick and states == "nested"
                # These have the blocks of the other curves, and take longest to bracket.
                slow |= str(instance).startswith(("gelu-", "silu-slope", "softplus-slope-"))
                marks = [pytest.mark.slow] if slow else []
                name = f"{instance}-{states}-{'milp' if exact else 'lp'}"
                cases.append(pytest.param(instance, states, exact, marks=marks, id=name))
    return cases


@pytest.mark.parametrize(("instance", "states", "exact"), _blocks())
def test_every_block_of_rows_has_a_mutant(instance: Instance, states: str, exact: bool) -> None:
    """Each block of rows alone, one per cent too tight, is caught: none of them is slack."""
    counter = MutantEncoder(exact, "rows", only=0)
    encode_operation(instance, moderate(instance, states, 0), exact, counter)
    survivors = []
    for block in range(1, counter.calls + 1):

        def check(seed: int, block: int = block) -> None:
            rng = np.random.default_rng(seed)
            boxes = moderate(instance, states, seed)
            encoder = MutantEncoder(exact, "rows", only=block)
            check_encoding(instance, boxes, exact, rng, count=6, encoder=encoder)

        if not is_caught(check):
            survivors.append(block)
    assert survivors == []
