"""Common operations that cannot stand between neurons. Each says why, and what to use instead."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from .base import Call, Refusal, Rule, register


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
