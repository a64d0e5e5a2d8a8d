"""Operations that have a rule before the first neurons only. There anything may stand; the rule
tells that the result has its batch where the input has it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as TF

from .base import NO_RULE, WRITE_ONE, Call, Refusal, Rule, register

# Rectifiers have rules of their own.
NAMES = (
    "float",
    "double",
    "half",
    "to",
    "type",
    "sigmoid",
    "tanh",
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


def _functions() -> tuple[Callable[..., Any], ...]:
    names = (*NAMES, *(f"{name}_" for name in NAMES))
    found = [getattr(place, name, None) for place in (torch, TF) for name in names]
    return tuple(dict.fromkeys(function for function in found if callable(function)))


@register
class ElementByElement(Rule):
    """A function of one tensor, element by element or along the channels: the batch stays."""

    functions = (*_functions(), operator.pow)
    methods = (*NAMES, *(f"{name}_" for name in NAMES))

    def check(self, call: Call) -> Refusal | None:
        return Refusal(f"{NO_RULE} function", WRITE_ONE)

    def rank(self, call: Call) -> int | None:
        return call.rank if len(call.sources) == 1 else None

    def leads(self, call: Call) -> bool:
        return len(call.sources) == 1
