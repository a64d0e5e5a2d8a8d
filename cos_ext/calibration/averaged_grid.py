"""The thresholds of AdaFire neurons: for each batch the best of a grid, and a moving average.

No activation is kept, no model is run, and nothing waits for the device before the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation_statistics import Rule, Statistics

GRID = 95  # candidates (1 - i/100) times a batch's largest activation
KEPT = 0.9  # of the average, at every batch
_CHUNK = 1 << 22  # elements in a temporary


class AveragedGrid(Statistics):
    """θ of one level, whose φ levels a step are rounded down.

    A channel that a batch leaves at 0 keeps its average.
    """

    def __init__(
        self, site: str, x: Tensor, clip: float | None, per_channel: bool, rule: Rule
    ) -> None:
        super().__init__(site, x, clip, per_channel)
        self.timesteps, self.levels = rule.timesteps, rule.levels
        self.theta = torch.zeros_like(self.high)

    def _see(self, x: Tensor, dims: list[int], inplace: bool) -> None:
        new = self._best(x, dims, x.amax(dims).double().reshape(-1).clamp(0, self.clip))
        moved = torch.where(self.theta > 0, KEPT * self.theta + (1 - KEPT) * new, new)
        self.theta = torch.where(new > 0, moved, self.theta)

    def _best(self, x: Tensor, dims: list[int], largest: Tensor) -> Tensor:
        """Of one batch, [C] or [1]; 0 where nothing fires."""
        per_sample = max(x.numel() // x.shape[0], 1) if x.dim() else 1
        parts = x.split(max(_CHUNK // per_sample, 1)) if x.dim() else (x,)
        found, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
        for index in range(GRID):
            theta = largest * ((100 - index) / 100)
            own = theta.reshape(self.shape).to(self.dtype)
            error = torch.zeros_like(theta)
            for part in parts:
                wide = part.to(self.dtype).clamp(0, self.clip)
                count = (wide / own).mul_(self.timesteps).floor_().clamp_(max=self.levels)
                rest = count.mul_(own / self.timesteps).sub_(wide).square_()
                error += rest.sum(dims, dtype=torch.float64).reshape(-1)
            better = error < least  # false where θ is 0, and the error NaN
            found, least = torch.where(better, theta, found), torch.minimum(least, error)
        return found

    def _rule(self, rule: Rule) -> tuple[Tensor, Tensor]:
        return self.theta, self.theta.amax()
