"""What stands where the neurons were: plain torch operations, or nothing at all.

Which network they stand in is contestants.py's business.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import cos_ext

EPSILON = 1e-3


class PlainNeurons(nn.Module):
    """Calibrated IF neurons, iterations = 1, as plain torch operations over [S*B, ...] (static: [B,
    ...]).

    Hao et al. (ICLR 2023, arXiv 2302.10685), section 4: rho steps are watched, a neuron whose
    residual shows one spike too many or too few has its initial potential shifted, and S steps are
    run. stacked: spikes are collected and stacked, which torch.compile turns into fewer kernels;
    else they are written into one tensor.
    """

    def __init__(
        self,
        theta: Tensor,
        v_init: Tensor,
        steps: int,
        rho: int,
        static: bool,
        stacked: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("theta", theta.clone())
        self.register_buffer("v_init", v_init.clone())
        self.steps, self.rho, self.static, self.stacked = steps, rho, static, stacked

    def forward(self, x: Tensor) -> Tensor:
        state = cos_ext.functional.state_dtype(x.dtype)
        theta, v = self.theta.to(state), self.v_init.to(state)
        if self.static:
            x_seq = x.unsqueeze(0).expand(self.steps, *x.shape)
        else:
            x_seq = x.unflatten(0, (self.steps, -1))
        if self.rho:
            v = self._shifted(x_seq, theta, v)
        run = self._stacked_run if self.stacked else self._run
        return run(x_seq, theta, v).flatten(0, 1)

    def _shifted(self, x_seq: Tensor, theta: Tensor, start: Tensor) -> Tensor:
        """The initial potential after rho steps were watched."""
        v = start
        count = torch.zeros_like(x_seq[0], dtype=torch.int32)
        lowest, highest = (
            torch.full_like(x_seq[0], value, dtype=theta.dtype) for value in (torch.inf, -torch.inf)
        )
        for t in range(self.rho):
            m = v + x_seq[t]
            fired = m >= theta
            v = m - theta * fired
            count = count + fired
            lowest = torch.where(fired, torch.minimum(lowest, m), lowest)
            highest = torch.where(fired, highest, torch.maximum(highest, v))
        less = start - torch.maximum(theta, lowest - theta * (1 - EPSILON))
        more = start + torch.maximum(theta, theta * (1 + EPSILON) - highest)
        too_many, too_few = (v < 0) & (count > 0), (v >= theta) & (count < self.rho)
        return torch.where(too_many, less, torch.where(too_few, more, start))

    def _stacked_run(self, x_seq: Tensor, theta: Tensor, v: Tensor) -> Tensor:
        spikes = []
        for t in range(self.steps):
            m = v + x_seq[t]
            spike = torch.where(m >= theta, theta, 0.0)
            v = m - spike
            spikes.append(spike.to(x_seq.dtype))
        return torch.stack(spikes)

    def _run(self, x_seq: Tensor, theta: Tensor, v: Tensor) -> Tensor:
        if self.static:
            out = torch.empty(x_seq.shape, dtype=x_seq.dtype, device=x_seq.device)
        else:
            out = torch.empty_like(x_seq)
        for t in range(self.steps):
            m = v + x_seq[t]
            fired = m >= theta
            torch.mul(fired, theta, out=out[t])
            v = m.sub_(out[t])
        return out


class Handed(nn.Module):
    """Instead of neurons in the floor: hands its input on. Static: a tensor of the neurons' size
    that is made once.
    """

    def __init__(self, steps: int, static: bool) -> None:
        super().__init__()
        self.steps, self.static = steps, static
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.static:
            return x
        if self.kept is None:
            # Its own memory in the layout of x, so that what follows takes the same path.
            fold = torch.cat([x] * self.steps)
            layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
            self.kept = fold.contiguous(memory_format=layout)
        return self.kept


def _is_channels_last(x: Tensor) -> bool:
    return (
        x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )
