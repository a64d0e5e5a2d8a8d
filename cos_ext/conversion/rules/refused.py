"""Common operations that cannot stand between neurons. Each says why, and what to use instead."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as TF

from .base import Call, Memory, Refusal, Rule, register


class Refused(Rule):
    """Never between neurons; before the first neurons it is static, and kept like anything else."""

    why: ClassVar[Refusal]

    def check_module(self, module: nn.Module) -> Refusal | None:
        return self.why

    def check(self, call: Call) -> Refusal | None:
        return self.why

    def leads(self, call: Call) -> bool:
        return call.module is not None  # a module of this kind keeps the batch in front


@register
class OwnStatistics(Refused):
    """Divides by the deviation of what it normalises: not linear."""

    memory = Memory.OWN

    modules = (
        nn.LayerNorm,
        nn.GroupNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
        nn.LocalResponseNorm,
    )
    why = Refusal(
        "normalises each step by its own statistics, which is not linear in the spikes",
        "train with BatchNorm instead",
    )


@register
class OtherActivation(Refused):
    """No staircase that starts at 0."""

    modules = (
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.LeakyReLU,
        nn.PReLU,
        nn.Hardswish,
        nn.Sigmoid,
        nn.Tanh,
        nn.Hardsigmoid,
        nn.Softplus,
    )
    why = Refusal(
        "integrate-and-fire neurons can only stand for a rectifier that starts at 0",
        "train with nn.ReLU or cos_ext.QCFS instead",
    )


@register
class Softmax(Refused):
    """exp(x) / Σ exp(x)."""

    memory = Memory.OWN

    modules = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
    functions = (torch.softmax, torch.log_softmax, TF.softmax, TF.log_softmax)
    methods = ("softmax", "log_softmax")
    why = Refusal(
        "is not linear in its input",
        "at the end of a network it can be left out, the order of the outputs is the same",
    )


@register
class Attention(Refused):
    """A softmax of products of spikes."""

    modules = (nn.MultiheadAttention,)
    why = Refusal("is not linear in its input", "keep it before the first activation")

    def leads(self, call: Call) -> bool:
        return False  # it may have the batch second


@register
class Recurrent(Refused):
    """Its own time would meet that of the spikes."""

    modules = (nn.LSTM, nn.GRU, nn.RNN)
    why = Refusal("keeps a state over a time of its own", "keep it before the first activation")

    def leads(self, call: Call) -> bool:
        return False  # it may have the batch second


@register
class PowerPool(Refused):
    """The p-th root of a sum of p-th powers."""

    memory = Memory.OWN

    modules = (nn.LPPool2d,)
    why = Refusal("is not linear in its input", "use average pooling instead")
