"""Layers that multiply by weights: convolutions, Linear, products with a parameter matrix."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.nn import functional as TF

from ..graphs import attribute
from .base import Call, Memory, Refusal, Rule, for_dimensions, register, space_of


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

    def check(self, call: Call) -> Refusal | None:
        weights = (call.argument(1, "weight"), call.argument(2, "bias"))
        if any(value in call.facts.batched for value in weights if isinstance(value, fx.Node)):
            return Refusal(
                "has weights that depend on the model's input",
                "compute them from parameters alone",
            )
        return None


@register
class MatrixProduct(Rule):
    """mean_t(s(t) W) = mean_t(s(t)) W for a parameter matrix W [K, N]."""

    functions = (operator.matmul, torch.matmul)
    methods = ("matmul",)
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        weight = call.argument(1, "other")
        parameter = isinstance(weight, fx.Node) and weight.op == "get_attr"
        if parameter and attribute(call.root, str(weight.target)).dim() == 2:
            return None
        return Refusal(
            "multiplies by what is no parameter of two dimensions",
            "only x @ W with a parameter W [K, N] is linear in the spikes",
        )
