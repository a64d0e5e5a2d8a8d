"""Statistics of the shifts that the calibration finds at one site, streamed over batches.

Nothing is kept of a batch, no network is run, and nothing waits for the device before the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import functional as F
from ..neuron import IFNode

PER = ("neuron", "channel")
STATISTICS = ("mean", "median", "vote")
SIZES = 32  # bins of abs(shift)/θ for each sign, centred at 2^(k/8)
_CHUNK = 1 << 22  # shifts binned at a time, so that a large batch needs no large temporaries


class ShiftStatistic:
    """A statistic of the shifts at one site; a cell is a neuron or a channel.

    Args:
        site: the neurons' call site, for errors.
        description: "statistic" and "per", as :func:`cos_ext.fit_v_init` takes them.
        neurons: the shape of the neurons, without time and batch.
        device: where they are.

    Attributes:
        sum: [cells] for the mean (of Δ, float64) and the vote (of sign ψ, int64); [bins, cells] for
            the median (how many Δ/θ fall into each, from the lowest up).
        finite: whether all currents were; bool, on the device.
        values: how many each cell has seen.
    """

    def __init__(
        self, site: str, description: Mapping[str, Any], neurons: torch.Size, device: torch.device
    ) -> None:
        self.site, self.kind, self.per = site, description["statistic"], description["per"]
        self.neurons = neurons
        channels = torch.Size([*neurons[:1], *[1] * len(neurons[1:])])
        self.cells = neurons if self.per == "neuron" else channels
        shape, dtype = [self.cells.numel()], torch.int64
        if self.kind == "mean":
            dtype = torch.float64
        elif self.kind == "median":
            shape = [2 * SIZES + 1, *shape]
            if self.per == "neuron":  # a channel sees all its positions, and needs more
                dtype = torch.int32
        self.sum = torch.zeros(shape, dtype=dtype, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.values = 0

    def see(self, node: IFNode, x_seq: Tensor, rho: int, iterations: int | None) -> None:
        """Take in the currents ``[rho, B, *neurons]`` of a batch."""
        shape = x_seq.shape[2:]
        if shape != self.neurons and (
            self.per == "neuron" or shape[:1] != self.neurons[:1] or len(shape) != len(self.neurons)
        ):
            raise ValueError(
                f"per={self.per!r} needs the same {self.per}s on every batch: {self.site!r} has "
                f"neurons {tuple(shape)} after {tuple(self.neurons)}"
            )
        theta, v_init = node._parameters_for(x_seq)
        start, psi, _ = F.calibrate_v_init(x_seq, theta, v_init, rho=rho, iterations=iterations)
        # Where time does not change a current, one step of it is all.
        self.finite &= (x_seq[0] if x_seq.stride(0) == 0 else x_seq).isfinite().all()
        if self.kind == "vote":
            self.sum += self._reduced(psi.sign_())
        elif self.kind == "mean":
            self.sum += self._reduced(start.double() - v_init.double())
        else:
            self._bin((start.double() - v_init.double()) / theta.double())
        self.values += psi.shape[0] * (shape.numel() // max(self.cells.numel(), 1))

    def result(self, node: IFNode) -> Tensor:
        """The shift of v_init, cells in shape, float64. Waits for the device."""
        if not self.finite:
            raise ValueError(
                f"the currents of {self.site!r} must be finite, they are NaN or infinite on these "
                "batches"
            )
        theta = node.v_threshold.double()
        if self.kind == "mean":
            return (self.sum / self.values).view(self.cells)
        if self.kind == "vote":
            return theta * (self.sum.double() / self.values).view(self.cells)
        rank = (self.values - 1) // 2
        middle = (self.sum.cumsum(0) <= rank).sum(0) - SIZES  # how many bins lie below it
        size = torch.exp2((middle.abs() - 1).double() / 8)
        return theta * torch.where(middle == 0, 0.0, middle.sign() * size).view(self.cells)

    def _reduced(self, x: Tensor) -> Tensor:
        """The sum [cells] of ``[B, *neurons]``."""
        dims = [0] if self.per == "neuron" else [dim for dim in range(x.dim()) if dim != 1]
        return x.sum(dims, dtype=self.sum.dtype).flatten()

    def _bin(self, shifts: Tensor) -> None:
        cell = torch.arange(self.sum.shape[1], device=shifts.device).view(self.cells)
        one = torch.ones((), dtype=self.sum.dtype, device=shifts.device)
        for part in shifts.split(max(_CHUNK // max(self.neurons.numel(), 1), 1)):
            # Of 0 none is asked for.
            size = part.abs().log2_().mul_(8).round_().clamp_(0, SIZES - 1).add_(1)
            signed = torch.where(part == 0, 0.0, part.sign() * size)
            column = signed.nan_to_num_(0.0).long().add_(SIZES)
            index = column.mul_(self.sum.shape[1]).add_(cell).flatten()
            self.sum.view(-1).index_add_(0, index, one.expand(index.numel()))
