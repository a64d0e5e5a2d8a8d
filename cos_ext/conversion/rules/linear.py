"""Layers that multiply by weights: convolutions and Linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as TF

from .base import Call, Memory, Refusal, Rule, for_dimensions, register, space_of
from .constants import constant


@register
class Convolution(Rule):
    """mean_t(W * s(t) + b) = W * mean_t(s(t)) + b: with constant weights, an affine map."""

    modules = for_dimensions("Conv", "ConvTranspose")
    memory = Memory.OWN

    def rank(self, call: Call) -> int | None:
        assert call.module is not None
        return space_of(call.module) + 2


@register
class Linear(Rule):
    """mean_t(W s(t) + b) = W mean_t(s(t)) + b, over the last dimension."""

    modules = (nn.Linear,)
    memory = Memory.OWN


@register
class WeightedCall(Rule):
    """F.linear and F.conv: affine in the input, where weight and bias do not depend on it."""

    functions = (
        TF.linear,
        TF.conv1d,
        TF.conv2d,
        TF.conv3d,
        TF.conv_transpose1d,
        TF.conv_transpose2d,
        TF.conv_transpose3d,
    )
    memory = Memory.OWN

    def weights(self, call: Call) -> tuple[Any, ...]:
        return call.argument(1, "weight"), call.argument(2, "bias")

    def check(self, call: Call) -> Refusal | None:
        weights = self.weights(call)
        if any(value in call.facts.batched for value in weights if isinstance(value, fx.Node)):
            return Refusal(
                "has weights that depend on the model's input",
                "compute them from parameters alone",
            )
        return None


@register
class AddedProduct(WeightedCall):
    """torch.addmm(b, x, W) = b + x W, of x [B, K]."""

    functions = (torch.addmm,)  # type: ignore[assignment]

    def weights(self, call: Call) -> tuple[Any, ...]:
        return call.argument(0, "input"), call.argument(2, "mat2")

    def check(self, call: Call) -> Refusal | None:
        added = constant(call, call.argument(0, "input"))
        if added is not None and added.dim() > 1 and added.shape[0] != 1:
            return Refusal(
                f"adds a constant of shape {tuple(added.shape)}, whose first dimension would meet "
                "the batch",
                "give it the shape of one sample, or a first dimension of 1",
            )
        return super().check(call)
