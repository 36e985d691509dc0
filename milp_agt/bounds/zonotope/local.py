"""How nodes of a step follow the parameters: by way of few symbols of each sample, not of all parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from milp_agt.formulations.einsum import Letters, einsum

AXES = "abcdefg"


@dataclass(frozen=True)
class Term:
    """What deviations of one parameter add to the symbols of a source: ``einsum(deviation, other)``.

    Attributes:
        reads: coordinates of the state that the parameter is made of, (p',).
        matrix: (p', a) from these to the elements of the parameter; None for the identity.
        shape: of the parameter.
        letters: of the parameter, of the other factor, and of the result.
        other: centre of the other factor, (n, ...); None for a constant 1.
    """

    reads: Tensor
    matrix: Tensor | None
    shape: tuple[int, ...]
    letters: Letters
    other: Tensor | None

    @staticmethod
    def of(on_state: Tensor, letters: Letters, other: Tensor | None) -> Term:
        """``on_state`` (p, *shape) of the parameter."""
        flat = on_state.flatten(1)
        reads = flat.any(1).nonzero()[:, 0]
        matrix = flat[reads]
        eye = torch.eye(len(reads), dtype=flat.dtype, device=flat.device)
        plain = matrix.shape == eye.shape and torch.equal(matrix, eye)
        return Term(reads, None if plain else matrix, on_state.shape[1:], letters, other)

    def reach(self, radius: Tensor) -> Tensor:
        """How far the symbols move if coordinates move as far as ``radius`` (P,), (n or 1, *result)."""
        far = radius[self.reads]
        if self.matrix is not None:
            far = far @ self.matrix.abs()
        far = far.reshape(self.shape)
        return far[None] if self.other is None else einsum(self.letters, far, self.other.abs())

    def pulled(self, weights: Tensor, samples: Tensor) -> Tensor:
        """Coefficients on ``reads`` of ``weights . symbols``, (r, p'); weights (r, *result)."""
        if self.other is None:
            found = weights
        else:
            own, other, out = self.letters
            equation = f"n{out.removeprefix('n')},{other}->n{own}"
            found = torch.einsum(equation, weights, self.other[samples])
        return self._onto(found.flatten(1))

    def summed(self, on_symbols: Tensor, axes: str, product: Letters, other: Tensor) -> Tensor:
        """Sum over samples of products, as coefficients on ``reads``, (p', *result of the product).

        Args:
            on_symbols: of the first factor of the products, (*result, n, *axes).
            product: letters of both factors, and of the result, without samples.
            other: the second factor, (n, ...).
        """
        own, mine, out = (part.upper().replace("N", "n") for part in self.letters)
        first, second, result = product
        symbols = out.removeprefix("n") + "n" + axes
        assert first == axes
        if self.other is None:
            equation = f"{symbols},n{second}->{own}{result}"
            found = torch.einsum(equation, on_symbols, other)
        else:
            inner = mine.removeprefix("n")
            both = torch.einsum(f"n{inner},n{second}->n{inner}{second}", self.other, other)
            equation = f"{symbols},n{inner}{second}->{own}{result}"
            found = torch.einsum(equation, on_symbols, both)
        rank = len(result)
        shape = found.shape[found.dim() - rank :]
        return self._onto(found.flatten(0, len(self.shape) - 1).flatten(1).T).T.reshape(-1, *shape)

    def _onto(self, rows: Tensor) -> Tensor:
        """Coefficients on the elements of the parameter, (r, a), on the coordinates that it reads."""
        return rows if self.matrix is None else rows @ self.matrix.T


@dataclass(frozen=True, eq=False)
class Source:
    """Symbols ``s_j = K_j (theta - c)`` of each sample j.

    Attributes:
        terms: that add up to them; none for the deviations themselves.
        shape: of the symbols of a sample.
        samples: n.
    """

    terms: Sequence[Term] = ()
    shape: tuple[int, ...] = ()
    samples: int = 0

    @cached_property
    def identity(self) -> Tensor:
        """The coefficients of a node that is these symbols, (symbols, n, *shape)."""
        count = prod(self.shape)
        eye = torch.eye(count, dtype=torch.float64, device=self.terms[0].reads.device)
        return eye.reshape(count, 1, *self.shape).expand(count, self.samples, *self.shape)

    def reach(self, radius: Tensor) -> Tensor:
        """How far each symbol moves, (n or 1, symbols)."""
        if not self.terms:
            return radius[None]
        return sum((t.reach(radius) for t in self.terms[1:]), self.terms[0].reach(radius)).flatten(
            1
        )


# The deviations of all parameters themselves.
PLAIN = Source()


@dataclass(frozen=True)
class Local:
    """Coefficients of a node with a sample axis on the symbols of its own sample: (symbols, n, *shape)."""

    parts: Mapping[Source, Tensor]
    parameters: int

    @staticmethod
    def entering(
        on_state: Tensor, letters: Letters, other: Tensor | None, shape: Sequence[int], samples: int
    ) -> Local:
        """A parameter with coefficients ``on_state`` (p, ...) times a factor that it meets at its centre.

        ``shape`` is that of the result.
        """
        own, mine, out = letters
        parameters = len(on_state)
        if prod(shape) >= parameters or not set(own) <= set(mine + out):
            if other is None:
                found = on_state.unsqueeze(1).expand(parameters, samples, *on_state.shape[1:])
            else:
                found = einsum(letters, on_state, other)
            return Local({PLAIN: found}, parameters)
        source = Source((Term.of(on_state, letters, other),), tuple(shape), samples)
        return Local({source: source.identity}, parameters)

    @staticmethod
    def broadcast(on_state: Tensor, samples: int) -> Local:
        """A parameter itself, in each sample."""
        shape = on_state.shape[1:]
        axes = AXES[: len(shape)]
        return Local.entering(on_state, (axes, "", "n" + axes), None, shape, samples)

    @property
    def symbols(self) -> int:
        return sum(len(part) for part in self.parts.values())

    def map(self, image: Callable[[Tensor], Tensor]) -> Local:
        """The coefficients after a map that is linear in the node."""
        return Local({key: image(part) for key, part in self.parts.items()}, self.parameters)

    def plus(self, other: Local) -> Local:
        parts = dict(self.parts)
        for key, part in other.parts.items():
            parts[key] = parts[key] + part if key in parts else part
        return Local(parts, self.parameters)

    def split(self) -> tuple[Sequence[Term], Local]:
        """The terms of symbols that the node is a plain sum of, and the other coefficients."""
        fresh = [s for s, part in self.parts.items() if s.terms and part is s.identity]
        rest = {key: part for key, part in self.parts.items() if key not in fresh}
        return [term for source in fresh for term in source.terms], Local(rest, self.parameters)

    def reach(self, radius: Tensor) -> Tensor:
        """How far a node moves if each coordinate moves as far as ``radius`` (p,), (n, *shape)."""
        total = None
        for source, part in self.parts.items():
            far = source.reach(radius)
            if source != PLAIN and part is source.identity:
                more = far.expand(source.samples, -1).reshape(part.shape[1:])
            else:
                far = far.expand(part.shape[1], -1)
                more = torch.einsum("rn...,nr->n...", part.abs(), far)
            total = more if total is None else total + more
        assert total is not None
        return total

    def rows(self, samples: Tensor, elements: Tensor) -> Tensor:
        """Coefficients of some elements on the state, (r, p)."""
        out = samples.new_zeros(len(samples), self.parameters, dtype=torch.float64)
        for source, part in self.parts.items():
            flat = part.flatten(2) if part.dim() > 2 else part.unsqueeze(-1)
            weights = flat[:, samples, elements].T
            if not source.terms:
                out += weights
            for term in source.terms:
                shaped = weights.reshape(-1, *source.shape)
                out[:, term.reads] += term.pulled(shaped, samples)
        return out

    def summed(self, product: Letters | None = None, other: Tensor | None = None) -> Tensor:
        """The sum over samples of the node, or of its products with ``other`` (n, ...), (p, *result)."""
        part = next(iter(self.parts.values()))
        axes = AXES[: part.dim() - 2]
        if product is None or other is None:
            product, other = (axes, "", axes), part.new_ones(part.shape[1])
        first, second, result = (letters.replace("n", "") for letters in product)
        total: Tensor | None = None
        for source, part in self.parts.items():
            if not source.terms:
                more = torch.einsum(f"rn{first},n{second}->rn{result}", part, other).sum(1)
                total = more if total is None else total + more
            for term in source.terms:
                shaped = part.reshape(*source.shape, *part.shape[1:])
                found = term.summed(shaped, first, (first, second, result), other)
                if total is None:
                    total = found.new_zeros(self.parameters, *found.shape[1:])
                total[term.reads] += found
        assert total is not None
        return total


OnState = Tensor | Local | None


def mapped(on_state: OnState, image: Callable[[Tensor], Tensor]) -> OnState:
    """Coefficients after a map that is linear in the node."""
    if on_state is None:
        return None
    return on_state.map(image) if isinstance(on_state, Local) else image(on_state)


def added(first: OnState, second: OnState) -> OnState:
    """The sum of two coefficients, None being 0."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, Local) and isinstance(second, Local):
        return first.plus(second)
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return first + second
