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
        nn.Hardsigmoid,
        nn.Softplus,
    )
    why = Refusal(
        "integrate-and-fire neurons can only stand for a rectifier that starts at 0",
        "train with nn.ReLU or cos_ext.QCFS instead",
    )


class Readout(Refused):
    """Monotone in its inputs, and not linear."""

    memory = Memory.OWN
    why = Refusal(
        "is not linear in its input",
        'as the last step of a network pass readout="drop" (the order of the outputs is the same) '
        'or readout="mean" (rate() applies it to the mean), and do what follows it, but a change '
        "of shape, outside of the model; between layers train with nn.ReLU",
    )


@register
class Softmax(Readout):
    """exp(x) / Σ exp(x)."""

    modules = (nn.Softmax, nn.LogSoftmax)
    functions = (torch.softmax, torch.log_softmax, TF.softmax, TF.log_softmax)
    methods = ("softmax", "log_softmax")


@register
class Softmin(Readout):
    """exp(-x) / Σ exp(-x): the order of its outputs is the reverse."""

    modules = (nn.Softmin,)
    functions = (TF.softmin,)
    why = Refusal(
        "is not linear in its input",
        "at the end of a network negate the last layer's weights and use Softmax, which readout= "
        "can leave out",
    )


@register
class Sigmoid(Readout):
    """1 / (1 + exp(-x)), and its sister."""

    modules = (nn.Sigmoid, nn.Tanh)
    functions = (torch.sigmoid, TF.sigmoid, torch.tanh, TF.tanh)
    methods = ("sigmoid", "tanh")

    def rank(self, call: Call) -> int | None:
        return call.rank

    def leads(self, call: Call) -> bool:
        return True


@register
class Staircase(Refused):
    """Rounds: a staircase that is written out."""

    functions = (torch.floor, torch.round, torch.ceil, torch.trunc, torch.sign, torch.heaviside)
    methods = ("floor", "round", "ceil", "trunc", "sign", "floor_", "round_")
    why = Refusal(
        "rounds, which is not linear in the spikes",
        "a quantised activation must be cos_ext.QCFS(levels, threshold), which neurons stand for",
    )

    def rank(self, call: Call) -> int | None:
        return call.rank

    def leads(self, call: Call) -> bool:
        return len(call.sources) == 1


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
