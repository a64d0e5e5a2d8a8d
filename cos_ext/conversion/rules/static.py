"""Operations that have a rule before the first neurons only. There anything may stand; the rule
tells that the result has its batch where the input has it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as TF

from .base import NO_RULE, WRITE_ONE, Call, Memory, Refusal, Rule, register
from .refused import Refused

# Rectifiers have rules of their own.
CASTS = ("float", "double", "half", "to", "type")
NAMES = (
    "exp",
    "log",
    "sqrt",
    "abs",
    "pow",
    "clamp_max",
    "gelu",
    "silu",
    "leaky_relu",
    "elu",
    "softplus",
    "sin",
    "cos",
    "square",
    "normalize",
)

IN_PLACE = tuple(f"{name}_" for name in NAMES)


def _functions(names: tuple[str, ...]) -> tuple[Callable[..., Any], ...]:
    found = [getattr(place, name, None) for place in (torch, TF) for name in names]
    return tuple(dict.fromkeys(function for function in found if callable(function)))


class OneTensor(Rule):
    """A function of one tensor, element by element or along the channels: the batch stays."""

    def check(self, call: Call) -> Refusal | None:
        return Refusal(f"{NO_RULE} function", WRITE_ONE)

    def rank(self, call: Call) -> int | None:
        return call.rank if len(call.sources) == 1 else None

    def leads(self, call: Call) -> bool:
        return len(call.sources) == 1


@register
class ElementByElement(OneTensor):
    """Makes a new tensor."""

    functions = (*_functions(NAMES), operator.pow)
    methods = NAMES
    memory = Memory.OWN


@register
class CastOrInPlace(OneTensor):
    """Gives the tensor back, where it has the dtype, or changes it."""

    functions = _functions((*CASTS, *IN_PLACE))
    methods = (*CASTS, *IN_PLACE)
    memory = Memory.INPUT


@register
class Lookup(Refused):
    """Embedding by integers, which do not spike."""

    modules = (nn.Embedding,)
    functions = (TF.embedding,)
    memory = Memory.OWN
    why = Refusal("looks up integers, no spikes", "keep it before the first activation")

    def rank(self, call: Call) -> int | None:
        return None if call.rank is None else call.rank + 1

    def leads(self, call: Call) -> bool:
        return True
