"""What is kept of a site's activations while thresholds are calibrated, and the rules that need no
histogram: the largest activation, and local threshold balancing.

No activation is kept, no model is run, and nothing waits for the device before the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional as F


class Rule(NamedTuple):
    """What thresholds are wanted: the arguments of :func:`cos_ext.calibrate_thresholds`.

    levels: N, how many above 0 the mean of T steps can have. part: θ as a part of their range.
    """

    method: str
    percentile: float
    timesteps: int
    levels: int
    part: float
    iterations: int | None


class Statistics:
    """The largest activation of a site, [C] or [1] for the whole layer, on the data's device.

    A subclass keeps more, and has a rule of its own.

    Args:
        site: the activation's call site, for errors.
        x: the input of its first call, [B, ...].
        clip: where the activation saturates, or None.
        per_channel: a threshold for every index of dimension 1.
    """

    def __init__(self, site: str, x: Tensor, clip: float | None, per_channel: bool) -> None:
        self.site, self.clip, self.per_channel = site, clip, per_channel
        # It broadcasts to the neurons: [C, 1, ...], or [] for the whole layer.
        self.shape = self._channels(x)
        self.dtype = F.state_dtype(x.dtype)
        size = self.shape[0] if self.shape else 1
        # Of the activation's input; both keep a NaN, and an infinity of their sign.
        self.low = torch.full((), torch.inf, dtype=torch.float64, device=x.device)
        self.high = torch.full((size,), -torch.inf, dtype=torch.float64, device=x.device)

    def _channels(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[1], *[1] * (x.dim() - 2)) if self.per_channel and x.dim() > 1 else ()

    def see(self, x: Tensor, inplace: bool) -> Tensor | None:
        """Take in the input [B, ...] of a call. What the activation is to be given instead, or
        None.
        """
        if self._channels(x) != self.shape:
            raise ValueError(
                f"per_channel must be False where calls of an activation differ in their channels: "
                f"{self.site!r} is called with {self._channels(x)} after {self.shape}"
            )
        if x.numel() == 0:
            return None
        dims = [dim for dim in range(x.dim()) if dim != 1] if self.shape else list(range(x.dim()))
        self.low = torch.minimum(self.low, x.amin().double())
        self.high = torch.maximum(self.high, x.amax(dims).double().reshape(-1))
        return self._see(x, dims, inplace)

    def _see(self, x: Tensor, dims: list[int], inplace: bool) -> Tensor | None:
        return None

    def largest(self) -> Tensor:
        """The largest activation so far, [C] or [1] in float64; 0 where there is none above."""
        return self.high.clamp(0, self.clip)

    def finite(self) -> bool:
        """Whether all inputs were; true before any value."""
        return bool((self.low > -torch.inf) & (self.high < torch.inf).all())  # false for NaN

    def fires(self) -> bool:
        """Whether an activation exceeded 0."""
        return bool((self.high > 0).any())

    def thresholds(self, rule: Rule) -> Tensor:
        """As :func:`cos_ext.calibrate_thresholds` returns them; 0 where the percentile of a whole
        layer is.
        """
        own, layer = self._rule(rule)
        if self.shape:
            own = torch.where(own > 0, own, self.largest())
            own = torch.where(own > 0, own, torch.where(layer > 0, layer, self.largest().amax()))
        return (own * rule.part).reshape(self.shape).to(self.dtype)

    def _rule(self, rule: Rule) -> tuple[Tensor, Tensor]:
        """The thresholds of the channels, [C] or [1], 0 where there is none; and that of the whole
        layer.
        """
        return self.largest(), self.largest().amax()


class Balance(Statistics):
    """Local threshold balancing: one gradient step per call."""

    def __init__(self, site: str, x: Tensor, clip: float | None, per_channel: bool) -> None:
        super().__init__(site, x, clip, per_channel)
        self.theta = torch.zeros_like(self.high)

    def _see(self, x: Tensor, dims: list[int], inplace: bool) -> Tensor:
        wide = x.to(self.dtype).clamp(max=self.clip) if self.clip is not None else x.to(self.dtype)
        excess = (wide - self.theta.reshape(self.shape).to(self.dtype)).clamp_(min=0)
        mean = excess.sum(dims, dtype=torch.float64).reshape(-1) * (self.theta.numel() / x.numel())
        self.theta = torch.minimum(self.theta + 2 * mean, self.largest())
        ceiling = self.theta.reshape(self.shape).to(x.dtype)
        # In place where the activation itself is: a forward may go on with its input.
        return x.clamp_(max=ceiling) if inplace else x.clamp(max=ceiling)

    def _rule(self, rule: Rule) -> tuple[Tensor, Tensor]:
        return self.theta, self.theta.amax()
