"""Mean and variance of an activation's input, streamed, and the thresholds that follow from them if
it is normally distributed.

No activation is kept, no model is run, and nothing waits for the device before the end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activation_statistics import Rule, Statistics

GRID = 256  # thresholds that are tried before one is bisected
_REACH = 12  # σ above the mean (or 0): no larger threshold pays, with any number of levels
_HALVINGS = 80
_CHUNK = 1 << 20  # elements in a temporary


class Moments(Statistics):
    """Mean and variance of every channel, in float64, merged call by call (Chan et al., 1979)."""

    def __init__(self, site: str, x: Tensor, clip: float | None, per_channel: bool) -> None:
        super().__init__(site, x, clip, per_channel)
        self.count = 0  # values of a channel
        self.mean = torch.zeros_like(self.high)
        self.squares = torch.zeros_like(self.high)  # the sum of squared differences from the mean

    def _see(self, x: Tensor, dims: list[int], inplace: bool) -> None:
        per_sample = max(x.numel() // x.shape[0], 1) if x.dim() else 1
        for part in x.split(max(_CHUNK // per_sample, 1)) if x.dim() else (x,):
            new = part.numel() // self.mean.numel()
            variance, mean = torch.var_mean(part.double(), dims, correction=0)
            variance, mean = variance.reshape(-1), mean.reshape(-1)
            both, gap = self.count + new, mean - self.mean
            self.mean = self.mean + gap * (new / both)
            self.squares = self.squares + variance * new + gap**2 * (self.count * new / both)
            self.count = both

    def _rule(self, rule: Rule) -> tuple[Tensor, Tensor]:
        # Of the layer: every channel has as many values.
        middle = self.mean.mean().reshape(1)
        squares = self.squares + self.count * (self.mean - middle) ** 2
        layer = (squares.sum() / (self.count * self.mean.numel())).sqrt().reshape(1)
        own = self._found(self.mean, (self.squares / self.count).sqrt(), rule)
        # A channel that never exceeds 0 gets what its layer gets.
        return torch.where(self.high > 0, own, 0.0), self._found(middle, layer, rule)[0]

    def _found(self, mean: Tensor, sigma: Tensor, rule: Rule) -> Tensor:
        """The threshold [C]; the largest activation where the rule has none."""
        if rule.iterations is None:
            found = solved(mean, sigma, rule.levels)
        else:
            found = iterated(mean, sigma, rule.levels, rule.iterations)
        largest = self.largest().amax()
        found = torch.where((found > 0) & found.isfinite(), found, largest)
        return found if self.clip is None else found.clamp(max=self.clip)


def sums(theta: Tensor, mean: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """E[n²] and E[n x] for x of this mean [C] and variance 1 that is rounded to n steps θ/N."""
    squares, products = torch.zeros_like(theta), torch.zeros_like(theta)
    for level in torch.arange(1, levels + 1, dtype=theta.dtype, device=theta.device).split(
        max(_CHUNK // max(theta.numel(), 1), 1)
    ):
        z = (level - 0.5) / levels * theta[:, None] - mean[:, None]
        above = torch.erfc(z / math.sqrt(2)) / 2
        squares += ((2 * level - 1) * above).sum(1)
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        products += (mean[:, None] * above + density).sum(1)
    return squares, products


def solved(mean: Tensor, sigma: Tensor, levels: int) -> Tensor:
    """The θ [C] of least squared error E[(q(x; θ) - relu(x))²], x normal; the mean, where σ is 0.

    The error is (θ/N)² E[n²] - 2 (θ/N) E[n x] and a constant. Its slope has the sign of
    (θ/N) E[n²] - E[n x], which is 0 where k(θ) = 1. θ is no smaller than E[x | x > 0].
    """
    relative = mean / sigma

    def slope(theta: Tensor) -> Tensor:
        squares, products = sums(theta, relative, levels)
        return theta / levels * squares - products

    above = torch.erfc(-relative / math.sqrt(2)) / 2
    density = torch.exp(-relative.square() / 2) / math.sqrt(2 * math.pi)
    low = relative + density / above  # 0/0, NaN, where nothing is above 0
    high = relative.clamp(min=0) + _REACH
    ratio = (high / low) ** (1 / (GRID - 1))
    best, error = low, torch.full_like(low, torch.inf)
    for step in range(GRID):
        theta = low * ratio**step
        squares, products = sums(theta, relative, levels)
        here = theta / levels * (theta / levels * squares - 2 * products)
        best, error = torch.where(here < error, theta, best), torch.minimum(error, here)
    left, right = torch.maximum(best / ratio, low), best * ratio
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        up = slope(middle) < 0
        left, right = torch.where(up, middle, left), torch.where(up, right, middle)
    return torch.where(sigma > 0, sigma * (left + right) / 2, mean)


def iterated(mean: Tensor, sigma: Tensor, levels: int, iterations: int) -> Tensor:
    """θ [C] after so many steps θ <- k(θ) θ from θ = 1, as published."""
    relative, theta = mean / sigma, 1 / sigma
    for _ in range(iterations):
        squares, products = sums(theta, relative, levels)
        theta = levels * products / squares
    return torch.where(sigma > 0, sigma * theta, mean)
