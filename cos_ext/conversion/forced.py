"""What stands in for activations while a network is checked: the ANN's with few levels, and neurons
whose spikes are made to be those. What is compared is in verify.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as TF

from .._neuron.layer import sizes_of
from .._neuron.runs import note_call
from ..neuron import IFNode
from ..qcfs import quantise

# How far two ways to compute one tensor may be apart, of its largest number: many roundings.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are equal but for the rounding of their dtype."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not theirs.is_floating_point() or not theirs.numel():
        return torch.equal(ours, theirs)
    odd = theirs.isfinite().logical_not()
    if odd.any():
        if not torch.equal(
            ours.where(odd, 0).nan_to_num(0.5), theirs.where(odd, 0).nan_to_num(0.5)
        ):
            return False
        ours, theirs = ours.where(~odd, 0), theirs.where(~odd, 0)
    largest = theirs.abs().max()
    return bool((ours - theirs).abs().max() <= TOLERANCE[theirs.dtype] * largest)


class Quantised(nn.Module):
    """An activation of few levels, as exactly calibrated neurons have it; QCFS with any θ.

    The threshold is chosen at the first call: about a tenth of the positive inputs exceed it, and
    it differs from channel to channel where thresholds do.
    """

    def __init__(self, levels: int, shape: torch.Size, signed: bool = False) -> None:
        super().__init__()
        self.levels, self.shape, self.signed, self.dead = levels, shape, signed, False
        self.threshold: Tensor | None = None
        self.inputs: Tensor | None = None  # as they were: what follows may work in place

    def forward(self, x: Tensor) -> Tensor:
        if self.threshold is None:
            sizes = x.abs() if self.signed else x
            positive = sizes[sizes > 0].float()
            some = positive[:: max(1, positive.numel() // 10**5)]
            theta = some.quantile(0.9) if some.numel() else positive.new_ones(())
            # No sum of inputs meets it by accident.
            spread = torch.linspace(1.001, 1.5, max(self.shape.numel(), 1), device=x.device)
            spread = spread if self.shape.numel() > 1 else spread[:1]
            self.threshold = (theta * spread.view(self.shape)).to(x.dtype)
        self.inputs = x.clone()
        out = self.quantised(x)
        self.dead = bool((out == out.flatten()[0]).all())
        return out

    def quantised(self, x: Tensor) -> Tensor:
        """The level of every number, down to -θ where neurons are signed."""
        assert self.threshold is not None
        if not self.signed:
            return quantise(x, self.threshold, self.levels)
        level = (x * self.levels / self.threshold + 0.5).floor()
        return self.threshold * (level.clamp(-self.levels, self.levels) / self.levels)


class Forced(nn.Module):
    """Neurons that run, and whose spikes are then those of an activation of the ANN.

    Whether their currents and their counts are those of the ANN is noted in `why_not`.
    """

    def __init__(self, node: IFNode, ann: Quantised, pool: nn.Module | None) -> None:
        super().__init__()
        assert ann.threshold is not None and ann.inputs is not None  # the ANN has run
        self.node, self.ann, self.levels, self.why_not = node, (ann,), ann.levels, ""
        self.expected = ann.inputs if pool is None else pool(ann.inputs)
        node.v_threshold = ann.threshold
        node.v_init = ann.threshold / 2

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        note_call(self, x)  # a model that is walked counts them
        if x.shape[0] != len(self.expected) * (1 if self.node.static_input else self.levels):
            self.why_not = self.why_not or "its neurons are given a batch of another size"
            return torch.zeros_like(x)
        currents = self.node._currents(x, residual)[0].clone()
        if not self.node.static_input:
            currents = currents.unflatten(0, (self.levels, -1)).mean(0)
        out = self.node(x, residual)
        if not agree(currents, self.expected):
            self.why_not = self.why_not or "its neurons are given other currents than the ANN's"
            return out
        counts = self._counts()
        spikes = self._spikes(counts)
        if out.shape != spikes.shape:
            assert self.node.pool is not None  # only pooled spikes have another shape
            window = sizes_of(spikes.shape, self.node.pool)
            spikes, counts = TF.avg_pool2d(spikes, window), TF.avg_pool2d(counts, window)
        rate = out.unflatten(0, (self.levels, -1)).mean(0)
        theta = self.node.v_threshold
        # A sum beside a level may fall on either side of it: more than a few do not.
        wrong = (rate - theta * counts / self.levels).abs() > 0.25 * theta.max() / self.levels
        if wrong.float().mean() > 0.02 and wrong.sum() > 1:
            self.why_not = self.why_not or "its neurons emit other counts than the ANN's levels"
        return out.copy_(spikes)

    def _counts(self) -> Tensor:
        level = self.ann[0].quantised(self.expected)
        return (level * self.levels / self.node.v_threshold).round()

    def _spikes(self, counts: Tensor) -> Tensor:
        """As many spikes as there are levels, each neuron's from a step of its own on."""
        steps = torch.arange(self.levels, device=counts.device).view(-1, *[1] * counts.dim())
        first = torch.arange(counts.numel(), device=counts.device).view_as(counts) * 7 // 3
        fired = (steps + first) % self.levels < counts.abs()
        theta = self.node.v_threshold * counts.sign()
        return (fired * theta).to(counts.dtype).flatten(0, 1)
