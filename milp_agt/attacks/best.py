"""What a search aims at, and the best run that it met for every aim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.packed import Packed
from milp_agt.attacks.unrolled import Poisoning, Unrolled


@dataclass(frozen=True)
class Aim:
    """Ends of quantities: ``sign * quantity`` is raised."""

    quantity: Tensor
    sign: Tensor

    def __len__(self) -> int:
        return len(self.quantity)


@dataclass
class Best:
    """The best run that was met for every aim.

    Attributes:
        value: ``sign * quantity``, (aims,).
        data: poisoned data, one row for each aim.
        run: number of the run for each aim, (aims,).
        runs: trained models so far.
    """

    aim: Aim
    value: Tensor
    data: Packed
    run: Tensor
    runs: int = 0

    def offer(self, values: Tensor, poisoning: Poisoning, unrolled: Unrolled) -> None:
        """Keep what is better; values (attacks, quantities). A number that is not finite never is."""
        before, self.runs = self.runs, self.runs + len(values)
        found = values[:, self.aim.quantity] * self.aim.sign
        found = torch.where(torch.isfinite(found), found, -torch.inf)
        best, row = found.max(0)
        better = best > self.value
        if bool(better.any()):
            self.value = torch.where(better, best, self.value)
            self.run = torch.where(better, before + row, self.run)
            self.data = self.data.replaced(better, Packed.of(poisoning.rows(row[better]), unrolled))

    def first_of_each_run(self) -> Tensor:
        """One aim for each distinct run, in the order of the aims."""
        distinct, of_run = self.run.unique(return_inverse=True)
        aims = torch.arange(len(self.run), device=self.run.device)
        last = torch.full_like(distinct, len(self.run))
        return last.scatter_reduce(0, of_run, aims, "amin").sort().values
