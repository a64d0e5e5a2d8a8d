"""Sizes of tensors and numbers computed from them. What a number knows of the batch is reasoned
about in ../sizes.py; here it is read off the calls.
"""

from __future__ import annotations

import math
import operator

from torch import fx

from ..sizes import Size, computed, dimension
from .base import NO_RULE, WRITE_ONE, Call, Memory, Refusal, Rule, register

# Functions that make numbers of numbers.
ARITHMETIC = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.floordiv,
    operator.truediv,
    operator.mod,
    operator.neg,
    int,
    float,
    math.ceil,
    math.floor,
    math.sqrt,
)
# Attributes of a tensor that are no tensors and do not know the batch.
PLAIN_ATTRIBUTES = ("ndim", "dtype", "device")


def arithmetic(call: Call) -> Size | None:
    """What the result of + - * / and the like knows, where all operands are numbers."""
    numbers = [call.facts.numbers.get(source) for source in call.sources]
    if call.node.target not in ARITHMETIC or None in numbers:
        return None
    return computed(number for number in numbers if number is not None)


def of_tensor(call: Call, known: Size) -> Size | None:
    """What a size of the call's first argument knows; None where that is no tensor."""
    source = call.node.args[0] if call.node.args else None
    if not isinstance(source, fx.Node) or source in call.facts.numbers:
        return None
    if source not in call.facts.batched:
        return Size.PLAIN  # of a parameter, which has no batch
    return batch_of(call, source) if known is Size.BATCH else known


def batch_of(call: Call, tensor: fx.Node) -> Size:
    """A first size is the batch only where the first dimension is."""
    return Size.BATCH if tensor in call.facts.leading else Size.MIXED


def is_size(node: fx.Node) -> bool:
    """Whether a node reads of a tensor what no number in it changes."""
    if node.op == "call_method":
        return node.target in (*Shape.methods, *Dimensions.methods, *Elements.methods)
    return node.target is getattr and node.args[1] in ("shape", *PLAIN_ATTRIBUTES)


class Number(Rule):
    """Makes numbers. One that knows the batch is refused where it is used, not where it is made."""

    def check(self, call: Call) -> Refusal | None:
        return Refusal(f"{NO_RULE} function", WRITE_ONE)


@register
class Shape(Number):
    """x.size() and x.size(dim)."""

    methods = ("size",)

    def number(self, call: Call) -> Size | None:
        dim = call.argument(1, "dim")
        rank = call.rank_of(call.node.args[0])
        return of_tensor(call, Size.SHAPE if dim is None else dimension(dim, rank))


@register
class Dimensions(Number):
    """x.dim(), the same for every batch."""

    methods = ("dim", "ndimension")

    def number(self, call: Call) -> Size | None:
        return of_tensor(call, Size.PLAIN)


@register
class Elements(Number):
    """x.numel(), which has the batch as a factor."""

    methods = ("numel",)

    def number(self, call: Call) -> Size | None:
        return of_tensor(call, Size.MIXED)


@register
class Attribute(Number):
    """x.shape, x.ndim, x.dtype and x.device, which are numbers; the parts of complex numbers, and
    matrices turned. No other attribute has a rule.
    """

    functions = (getattr,)
    memory = Memory.INPUT

    def number(self, call: Call) -> Size | None:
        name = call.node.args[1]
        if name == "shape":
            return of_tensor(call, Size.SHAPE)
        return of_tensor(call, Size.PLAIN) if name in PLAIN_ATTRIBUTES else None

    def check(self, call: Call) -> Refusal | None:
        name = call.node.args[1]
        if name in ("real", "imag") or (name == "mT" and (call.rank or 0) >= 3):
            return None
        return Refusal(f"no rule converts the attribute {name}", WRITE_ONE)


@register
class Arithmetic(Number):
    """//, %, int(), float() and roundings of numbers; of tensors they are not linear."""

    functions = (operator.floordiv, operator.mod, int, float, math.ceil, math.floor, math.sqrt)

    def number(self, call: Call) -> Size | None:
        return arithmetic(call)
