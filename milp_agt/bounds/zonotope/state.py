"""The reachable states as a hybrid zonotope: centre, generators, and noise that the steps carry on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.dual import Spread
from milp_agt.bounds.zonotope.flips import Flips, more_samples, widened
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.rounding import TINY, gamma
from milp_agt.core.stacked import Stacked

# Groups of noise that are carried apart at most and at least, how many of the newest are not merged while
# there are more, and the share of the memory that they may take.
GROUPS, FEWEST_GROUPS, NEWEST, NOISE_SHARE = 16, 3, 8, 4
# The share of the memory that generators of samples may take.
MOVES_SHARE = 4
# Numbers of the charges of all noise beyond which they are summed up for the nodes of a step.
MANY = 2**21
# Numbers of one tensor of coefficients (rows, m, width) or (rows, f) at once.
AT_ONCE = 2**23


def most_groups(size: int, samples: int, memory: int) -> int:
    """How many groups of noise are carried apart: with two ends for each coordinate and sample, a group is
    there twice while a step is taken."""
    each = 16 * size * (size + 2 * samples)
    return max(FEWEST_GROUPS, min(GROUPS, memory // (NOISE_SHARE * each)))


def fit_in(numbers: int, memory: int) -> bool:
    """Whether generators of so many numbers are kept; they are there three times while a step is taken."""
    return 8 * numbers <= memory // MOVES_SHARE


@dataclass(frozen=True)
class Noise(Stacked):
    """What steps could not express in generators, each group with the Jacobian of all that came after it.

    Group g adds ``Phi_g nu_g`` to the state; for every admissible set S of poisoned samples

        nu_g in [-below_g - sum_{i in S} down_gi - sum_f phi_f charge_gf,  above_g + ... up ... charge].

    One of the ends down and up may be below 0: what a sample adds if it is poisoned need not hold 0.

    Attributes:
        onto: Phi, (g, P, P): from a coordinate of the noise (last) to one of the state.
        below, above: (g, P).
        down, up: (g, P, m).
        charge: on flips with rows, (g, P, q).
    """

    onto: Tensor
    below: Tensor
    above: Tensor
    down: Tensor
    up: Tensor
    charge: Tensor

    def __len__(self) -> int:
        return len(self.onto)

    @property
    def radius(self) -> Tensor:
        return torch.maximum(self.below, self.above)

    @property
    def reach(self) -> Tensor:
        return torch.maximum(self.down, self.up)

    @staticmethod
    def towards(carried: Tensor, size: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """How far numbers in ``[-low, high]``, (g, P, ...), move forms down and up that have the coefficients
        ``carried`` of the given size on them, (r, g P)."""
        low, high = low.flatten(0, 1), high.flatten(0, 1)
        both, skew = size @ (high + low), carried @ (high - low)
        return 0.5 * (both - skew), 0.5 * (both + skew)

    def charged_by(self, size: Tensor) -> Tensor:
        """What forms with coefficients of this size, (r, g P), are charged on each flip, (r, q)."""
        found = size.new_zeros(len(size), self.charge.shape[-1])
        pairs = zip(size.split(self.charge.shape[1], 1), self.charge, self.owed, strict=True)
        for part, charge, flips in pairs:
            found[:, flips] += part @ charge[:, flips]
        return found

    @cached_property
    def owed(self) -> Sequence[Tensor]:
        """The flips that each group is charged to: mostly those of its own steps."""
        return [part.any(0).nonzero()[:, 0] for part in self.charge]

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """How far what single samples add moves each coordinate down and up, (P, m) each.

        ``Phi^+ up + Phi^- down = |Phi| (up + down) / 2 + Phi (up - down) / 2``; rounding is far below that of
        the sum of all sizes, to which it is charged.
        """
        total = torch.zeros_like(self.up[0])
        tilt = torch.zeros_like(total)
        one = torch.eye(len(total), dtype=total.dtype, device=total.device)
        for onto, down, up in zip(self.onto, self.down, self.up, strict=True):
            middle, half = 0.5 * (up + down), 0.5 * (up - down)
            alone = torch.equal(onto, one)  # the newest group, mostly
            if bool(middle.any()):
                total += middle if alone else onto.abs() @ middle
            if bool(half.any()):
                tilt += half if alone else onto @ half
        return total - tilt, total + tilt

    @cached_property
    def holds_zero(self) -> bool:
        """Whether no sample adds anything for sure if it is poisoned."""
        return not bool((self.down < 0.0).any()) and not bool((self.up < 0.0).any())

    @property
    def sizes(self) -> Tensor:
        """Sums of the sizes of all that single samples add to coordinates, (P, m)."""
        return torch.einsum("gpq,gqm->pm", self.onto.abs(), self.reach)

    def carried(self, jacobian: Tensor) -> Noise:
        """The noise after a step with this Jacobian, (P, P)."""
        return replace(self, onto=jacobian @ self.onto)

    def joined(self, new: Noise) -> Noise:
        """These groups and further ones, the newest last."""
        return Noise.cat([replace(self, charge=widened(self.charge, new.charge.shape[-1])), new])

    def merged(self) -> Noise:
        """One group less: of two neighbours the older one takes the Jacobian of the younger one.

        ``Phi_a nu_a = Phi_b nu_a + (Phi_a - Phi_b) nu_a``, and the second term is bounded entry by entry
        in the newest group. The pair that adds least there is taken, the newest groups aside.
        """
        gap = (self.onto[:-1] - self.onto[1:]).abs()
        gap = gap + gamma(8) * (self.onto[:-1].abs() + self.onto[1:].abs())
        weight = torch.einsum(
            "gpq,gq->g",
            gap,
            self.radius[:-1] + self.reach[:-1].amax(-1)
            if self.reach.shape[-1]
            else self.radius[:-1],
        )
        a = int(weight[: max(1, len(self) - NEWEST)].argmin())
        b = a + 1
        more = gap[a] @ self.radius[a]
        reach, charge = gap[a] @ self.reach[a], gap[a] @ self.charge[a]
        grow = 1.0 + gamma(4 * self.onto.shape[-1])

        def summed(parts: Tensor, extra: Tensor) -> Tensor:
            parts = parts.clone()
            parts[b] += parts[a] + (grow - 1.0) * (parts[a].abs() + parts[b].abs())
            parts[-1] += extra * grow
            return torch.cat([parts[:a], parts[b:]])

        return Noise(
            torch.cat([self.onto[:a], self.onto[b:]]),
            summed(self.below, more),
            summed(self.above, more),
            summed(self.down, reach),
            summed(self.up, reach),
            summed(self.charge, charge),
        )


@dataclass(frozen=True)
class HybridZonotope:
    """``x = centre + sum_i A_i e_i + sum_f (F_f phi_f + Q_f rho_f) + noise``, x of P coordinates.

    Every state that training can reach under the threat has generators within the constraints:
    ``e_i`` in ``s_i E_i`` with ``sum s_i <= budget``, and the rows of ``flips`` for phi and rho.

    Attributes:
        samples: generators of the poisoned samples.
        flips: binary generators so far.
        centre: (P,).
        on_moves: A, (P, m, width).
        on_phase, on_bend: F and Q, (P, f).
        squares: further terms ``u_i'Q_i u_i`` in the moves, (P, m, width^2), or 0 of them, see squares.py.
        is_folded: whether moves of samples are noise, for lack of memory; A is 0.
    """

    samples: SampleGenerators
    flips: Flips
    centre: Tensor
    on_moves: Tensor
    on_phase: Tensor
    on_bend: Tensor
    noise: Noise
    squares: Tensor
    is_folded: bool = False

    @staticmethod
    def of_box(
        samples: SampleGenerators, lower: Tensor, upper: Tensor, folded: bool = False
    ) -> HybridZonotope:
        """All states in a box, (P,); ``folded``: moves of samples will be noise, and have no generators."""
        size = len(lower)
        centre = 0.5 * lower + 0.5 * upper
        zero = centre.new_zeros
        moves = (size, samples.count, samples.width)
        noise = Noise(
            torch.eye(size, dtype=centre.dtype, device=centre.device)[None],
            _outwards(centre - lower)[None],
            _outwards(upper - centre)[None],
            zero(1, size, samples.count),
            zero(1, size, samples.count),
            zero(1, size, 0),
        )
        return HybridZonotope(
            samples,
            Flips.none(samples),
            centre,
            zero(1, 1, 1).expand(moves) if folded else zero(moves),
            zero(size, 0),
            zero(size, 0),
            noise,
            zero(size, samples.count, 0),
            folded,
        )

    @property
    def size(self) -> int:
        return len(self.centre)

    def with_rows(self, keep: Tensor) -> HybridZonotope:
        """The same, or a larger set, with some of the rows of flips only."""
        noise, flips = self.noise, self.flips
        drop = torch.ones(flips.rows, dtype=torch.bool, device=keep.device)
        drop[keep] = False
        gone = drop.nonzero()[:, 0]
        alone, shared = flips.settled(noise.charge[..., gone], gone)
        noise = replace(
            noise,
            below=noise.below + shared,
            above=noise.above + shared,
            down=noise.down + alone,
            up=noise.up + alone,
            charge=noise.charge[..., keep],
        )
        return replace(self, flips=flips.with_rows(keep), noise=noise)

    def of_samples(self, samples: SampleGenerators) -> HybridZonotope:
        """The same set beside more generators, which nothing depends on yet."""
        if samples.count == self.samples.count:
            return self
        down, up = (widened(part, samples.count) for part in (self.noise.down, self.noise.up))
        if self.is_folded:
            zero = self.on_moves.new_zeros(1, 1, 1)
            on_moves = zero.expand(self.size, samples.count, samples.width)
        else:
            on_moves = more_samples(self.on_moves, samples.count)
        return replace(
            self,
            samples=samples,
            flips=self.flips.of_samples(samples.count),
            on_moves=on_moves,
            noise=replace(self.noise, down=down, up=up),
            squares=more_samples(self.squares, samples.count),
        )

    def noise_share(self, radius: Tensor) -> float:
        """How much of the coordinates' ranges, together, noise of everyone is."""
        noise = self.noise
        found = torch.einsum("gpq,gq->", noise.onto.abs(), 0.5 * (noise.below + noise.above))
        return float(found / radius.sum())

    def terms(self) -> Tensor:
        """Sum of the sizes of all terms but the centre, the worst samples counting, (P,)."""
        pieces = self.on_moves.split(max(1, AT_ONCE // max(1, self.on_moves[0].numel())))
        reach = torch.cat([(part.abs() * self.samples.reach).sum(-1) for part in pieces])
        flips = (self.on_phase.abs() + self.on_bend.abs() * self.flips.largest).sum(-1)
        noise = self.noise
        each = noise.radius + noise.charge.sum(-1)
        total = (
            self.samples.worst(reach) + flips + torch.einsum("gpq,gq->p", noise.onto.abs(), each)
        )
        total = total + self.samples.worst(self.charged if noise.holds_zero else noise.sizes)
        return total * (1.0 + gamma(self.operations)) + TINY

    @property
    def operations(self) -> float:
        """Length of the longest chain of roundings in a product with these generators."""
        groups = len(self.noise) * self.size
        longest = (
            max(self.size, self.flips.count, groups) + self.samples.width + self.squares.shape[-1]
        )
        return 8.0 * longest + 4.0 * self.samples.terms + 64.0

    @cached_property
    def charged(self) -> Tensor:
        """The most that noise of each sample moves each coordinate, (P, m)."""
        grow = 1.0 + gamma(8.0 * len(self.noise) * self.size + 64.0)
        return (torch.maximum(*self.noise.ends).clamp(min=0.0) + self.squared) * grow

    @cached_property
    def squared(self) -> Tensor:
        """The most that squares of each sample move each coordinate, (P, m)."""
        return self.squares.abs().sum(-1)

    def coordinates(self, part: slice, terms: Tensor) -> Spread:
        """:meth:`spread` of the coordinates themselves, without a product."""
        noise, moves = self.noise, self.on_moves[part]
        onto = noise.onto[:, part].transpose(0, 1).flatten(1)
        above, below = onto.clamp(min=0.0), (-onto).clamp(min=0.0)
        low, high = noise.below.flatten(), noise.above.flatten()
        down, up = noise.ends
        return Spread(
            moves,
            self.on_phase[part],
            self.on_bend[part],
            (above + below) @ noise.charge.flatten(0, 1),
            above @ low + below @ high,
            above @ high + below @ low,
            down[part] + self.squared[part],
            up[part] + self.squared[part],
            terms[part],
            self.operations,
            self.squares[part],
        )

    def spread(self, rows: Tensor, terms: Tensor, many: bool = False) -> Spread:
        """Directions ``rows`` (r, p) of the first p coordinates; ``terms`` are those of :meth:`terms`.

        Of ``many`` directions, squares are noise of coordinates, and what noise of single samples adds may be
        the sum over coordinates of the most that it moves each, ``sum_p |J_p| max |(Phi nu)_p|``: never
        less than ``max |J Phi nu|``.
        """
        used = torch.arange(rows.shape[1], device=rows.device)
        touched = (rows != 0.0).any(0)
        if 2 * int(touched.sum()) < len(used):  # the weights of one unit, say
            used = touched.nonzero()[:, 0]
            rows = rows[:, used]
        noise = self.noise
        squares = None
        onto = noise.onto[:, used].transpose(0, 1).flatten(1)
        carried = rows @ onto
        size = carried.abs()
        if many and len(noise) * self.size * self.samples.count > MANY:
            lower = upper = rows.abs() @ self.charged[used]
        else:
            lower, upper = noise.towards(carried, size, noise.down, noise.up)
            if many:
                both = rows.abs() @ self.squared[used]
            else:
                squares = rows @ self.squares[used].flatten(1)
                squares = squares.reshape(len(rows), *self.squares.shape[1:])
                both = squares.abs().sum(-1)
            lower, upper = lower + both, upper + both
        below, above = (
            end.clamp(min=0.0) for end in noise.towards(carried, size, noise.below, noise.above)
        )
        return Spread(
            self._on_moves(rows, used),
            rows @ self.on_phase[used],
            rows @ self.on_bend[used],
            noise.charged_by(size),
            below,
            above,
            lower,
            upper,
            rows.abs() @ terms[used],
            self.operations,
            squares,
        )

    def _on_moves(self, rows: Tensor, used: Tensor) -> Tensor:
        """Coefficients of directions on the moves, (r, m, width)."""
        shape = (len(rows), *self.on_moves.shape[1:])
        if self.is_folded:
            return rows.new_zeros(shape)
        own = self.on_moves if len(used) == self.size else self.on_moves[used]
        return (rows @ own.flatten(1)).reshape(shape)

    def moved(self, jacobian: Tensor) -> Tensor:
        """Generators of the samples after a step with this Jacobian, (P, m, width)."""
        if self.is_folded:
            return self.on_moves
        every = torch.arange(self.size, device=jacobian.device)
        return self._on_moves(jacobian, every)


def _outwards(radius: Tensor) -> Tensor:
    """A rounded difference of two numbers, up; an exact 0 stays."""
    return torch.where(radius > 0, torch.nextafter(radius, radius + 1.0), radius.clamp(min=0.0))
