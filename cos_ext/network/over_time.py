"""Modules that know the time, which is folded into the batch, [T*B, ...]: repeating a static tensor
over it, and the two ends of a stretch that is computed on running means. Nothing is decided here.

A function f that is not affine is exact over time on the running mean of its input: with X(t) the
sum of the inputs up to t it gives y(t) = t f(X(t)/t) - (t-1) f(X(t-1)/(t-1)), whose mean over
t = 1..T is f of the mean input. With several inputs likewise, so that a product of two is
P(t) - P(t-1), P(t) = (Σ a)(Σ b)/t. RunningMean is X(t)/t, Difference what takes t f(...) apart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional as F
from .._neuron.finite import unfit
from .._neuron.runs import frames_now, portion, steps_now


def over_time(x: Tensor, timesteps: int) -> Tensor:
    """[B, ...] at every step, [T*B, ...]; channels_last is kept."""
    return torch.cat([x] * timesteps)


def odd(x: Tensor) -> Tensor:
    """Which of [N, ...] have NaN or infinity; bool [N]."""
    return unfit(x) | unfit(-x)


def wide(x: Tensor) -> Tensor:
    """In the state dtype, in which sums are kept; complex numbers in that of their parts."""
    if x.is_complex():
        return x.to(torch.complex128 if x.dtype == torch.complex128 else torch.complex64)
    return x.to(F.state_dtype(x.dtype))


class Timed(nn.Module):
    """A module that knows how many steps are run; the network's settings set `timesteps`."""

    def __init__(self, timesteps: int = 1) -> None:
        super().__init__()
        self.timesteps = timesteps

    def by_step(self, x: Tensor) -> Tensor:
        """[T*B, ...] as [T, B, ...]."""
        steps = steps_now(self.timesteps)
        return x.unflatten(0, (steps, x.shape[0] // steps))


class TimeBroadcast(Timed):
    """Repeats a static tensor [B, ...] over time, [T*B, ...], where it meets a spiking one. Frames
    are such a tensor already.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x if frames_now() else over_time(x, steps_now(self.timesteps))


class RunningMean(Timed):
    """The mean of x(1), ..., x(t) at every step t: [T*B, ...] to [T*B, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        steps, now = wide(self.by_step(x)), portion()
        total = steps.cumsum(0)
        if now is not None:
            before = now.potentials.get(self)
            if before is not None:
                total = total + before
            now.potentials[self] = total[-1].clone()
        return (total / _times(total)).to(x.dtype).flatten(0, 1)


class Difference(Timed):
    """t m(t) - (t-1) m(t-1) of running means m, [T*B, ...] to [T*B, ...]: what comes at step t."""

    def forward(self, x: Tensor) -> Tensor:
        steps, now = wide(self.by_step(x)), portion()
        total = steps * _times(steps)
        before = None if now is None else now.potentials.get(self)
        if now is not None:
            now.potentials[self] = total[-1].clone()
        first = total[:1] if before is None else total[:1] - before
        return torch.cat([first, total[1:] - total[:-1]]).to(x.dtype).flatten(0, 1)


class UnfitOverTime(Timed):
    """Which samples of [T*B, ...] have NaN or infinity at any step; bool [B]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.by_step(odd(x)).any(0)


def _times(x: Tensor) -> Tensor:
    """The number of every step of [T, ...], which broadcasts to it."""
    now = portion()
    first = 1 if now is None else now.first
    times = torch.arange(first, first + x.shape[0], device=x.device, dtype=x.real.dtype)
    return times.view(-1, *[1] * (x.dim() - 1))
