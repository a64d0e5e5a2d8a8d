"""NaN and infinite inputs: neurons would swallow them, so that the network's output has to show
them. Nothing is raised here: an input on a GPU is not waited for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._neuron.finite import unfit
from .._neuron.runs import frames_now, portion


class Unfit(nn.Module):
    """Which samples of a static tensor [B, ...] have NaN or +inf, or, where it meets spikes in
    sums, -inf; bool [B]. Of frames [T*B, ...]: which samples have a frame that does.
    """

    def __init__(self, sums: bool = False) -> None:
        super().__init__()
        self.sums = sums

    def forward(self, x: Tensor) -> Tensor:
        marks, frames = unfit(x), frames_now() or 1
        if self.sums and (x.is_floating_point() or x.is_complex()):
            marks = marks | unfit(-x)
        by_frame = marks.shape[0] % frames == 0
        return marks.view(frames, -1).any(0) if by_frame else marks


class Shown(nn.Module):
    """`out` [T*B, ...], NaN for the samples that are marked in one of `marks`.

    Each mark is bool [B], or [B*k] where samples come in pieces. Of another size, where no sample
    is known, one marks all. `batch` is B, or T*B of frames. Where steps are run in portions, a
    sample stays marked: neurons have swallowed what it had, so that no later output is right.

    inplace: may write over `out`.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, out: Tensor, batch: int, *marks: Tensor) -> Tensor:
        batch //= frames_now() or 1
        if batch == 0:
            return out
        marked = out.new_zeros(batch, dtype=torch.bool)
        for mark in marks:
            by_sample = mark.shape[0] % batch == 0
            marked = marked | (mark.view(batch, -1).any(1) if by_sample else mark.any())
        if (now := portion()) is not None:
            marked = now.potentials[self] = marked | now.potentials.get(self, False)
        by_step = out.unflatten(0, (-1, batch))
        fill = by_step.masked_fill_ if self.inplace else by_step.masked_fill
        return fill(marked.view(1, batch, *[1] * (out.dim() - 1)), math.nan).flatten(0, 1)
