"""Pooling and interpolation. What becomes of a max pooling of spikes is the user's choice, made in
../max_pooling.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as TF

from ...network.pooling import TORCH_MAX_POOLS, MaxOver
from .base import Call, Memory, Refusal, Rule, for_dimensions, register, space_of
from .shapes import per_sample


@register
class AveragePool(Rule):
    """An average over a window of each sample: linear."""

    modules = for_dimensions("AvgPool", "AdaptiveAvgPool")
    memory = Memory.OWN

    def rank(self, call: Call) -> int | None:
        assert call.module is not None
        return space_of(call.module) + 2


@register
class MaxPool(Rule):
    """The maximum does not commute with the mean over time; `max_pool` of convert() decides."""

    modules = TORCH_MAX_POOLS
    memory = Memory.OWN

    def rank(self, call: Call) -> int | None:
        assert call.module is not None
        return space_of(call.module) + 2


@register
class MaxOverDims(MaxPool):
    """The maximum over whole dimensions of a sample, as of PointNet; a max pooling."""

    modules = (MaxOver,)  # type: ignore[assignment]
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        assert isinstance(call.module, MaxOver)
        return per_sample(call, call.module.dims)

    def rank(self, call: Call) -> int | None:
        assert isinstance(call.module, MaxOver)
        if call.rank is None or call.module.keepdim:
            return call.rank
        return call.rank - len(call.module.dims)


@register
class Upsample(Rule):
    """Interpolation with fixed weights: linear, sample by sample."""

    modules = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
    memory = Memory.OWN


@register
class PoolingCall(Rule):
    """Average pooling, interpolation and pixel shuffling as functions of one tensor: linear."""

    functions = (
        TF.avg_pool1d,
        TF.avg_pool2d,
        TF.avg_pool3d,
        TF.adaptive_avg_pool1d,
        TF.adaptive_avg_pool2d,
        TF.adaptive_avg_pool3d,
        TF.interpolate,
        TF.pixel_shuffle,
        TF.pixel_unshuffle,
    )
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        first = call.argument(0, "input")
        if any(source is not first for source in call.facts.tensors(call.node)):
            return Refusal("takes a further tensor", "give its other arguments as numbers")
        return None


@register
class Mean(Rule):
    """A mean or sum over dimensions of one sample: linear."""

    functions = (torch.mean, torch.sum)
    methods = ("mean", "sum")
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        return per_sample(call, call.argument(1, "dim", ()))

    def rank(self, call: Call) -> int | None:
        dims = call.argument(1, "dim", ())
        if self.check(call) is not None or call.rank is None:
            return None
        if call.argument(2, "keepdim", False) is True:
            return call.rank
        return call.rank - (len(dims) if isinstance(dims, (tuple, list)) else 1)
