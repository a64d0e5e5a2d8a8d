"""Sums and products, element by element, with broadcasting."""

from __future__ import annotations

import operator

import torch

from ..graphs import attribute
from ..sizes import Size
from .base import Call, Memory, Refusal, Rule, register
from .sizes import arithmetic


class Elementwise(Rule):
    """Several tensors, element by element: the batch of each must meet the batches of the others.

    Broadcasting aligns dimensions from the last one on. So all tensors with a batch need the same
    number of dimensions, and a constant must not reach the batch but with a size of 1.
    """

    memory = Memory.OWN

    def number(self, call: Call) -> Size | None:
        return arithmetic(call)

    def rank(self, call: Call) -> int | None:
        ranks = [call.facts.ranks[s] for s in call.sources if s in call.facts.ranks]
        return max(ranks) if ranks else None

    def leads(self, call: Call) -> bool:
        return True  # what is static keeps its batch where the ANN has it

    def check(self, call: Call) -> Refusal | None:
        facts, tensors = call.facts, call.facts.tensors(call.node)
        batched = [source for source in tensors if source in facts.batched]
        ranks = {facts.ranks[source] for source in batched if source in facts.ranks}
        if len(ranks) > 1:
            return Refusal(
                f"combines tensors of {sorted(ranks)} dimensions: the batch of one meets another "
                "dimension of the other",
                "bring them to the same number of dimensions first, with unsqueeze or flatten",
            )
        for constant in (source for source in tensors if source.op == "get_attr"):
            shape = tuple(attribute(call.root, str(constant.target)).shape)
            meets = len(shape) >= min(ranks) if ranks else len(shape) > 1
            if meets and (shape[0] != 1 or (ranks and len(shape) > min(ranks))):
                return Refusal(
                    f"combines with {constant.target} of shape {shape}, whose first dimension may "
                    "meet the batch",
                    "give it the shape of one sample, or a first dimension of 1",
                )
        return None


@register
class Sum(Elementwise):
    """mean_t(a(t) ± b(t)) = mean_t(a(t)) ± mean_t(b(t))."""

    functions = (operator.add, torch.add, operator.sub, torch.sub, torch.rsub)
    methods = ("add", "sub", "rsub")


@register
class SumInPlace(Elementwise):
    """a += b, where nothing else reads a."""

    functions = (operator.iadd, operator.isub)
    methods = ("add_", "sub_")
    memory = Memory.INPUT


@register
class Product(Elementwise):
    """mean_t(c a(t)) = c mean_t(a(t)), where at most one factor spikes."""

    functions = (operator.mul, torch.mul)
    methods = ("mul",)

    def check(self, call: Call) -> Refusal | None:
        factors = (call.argument(0, "input"), call.argument(1, "other"))
        if all(call.facts.spikes(factor) for factor in factors):
            return Refusal(
                "multiplies two spiking tensors, which is not linear in the spikes",
                'leave nonlinear at "difference", or let one factor come from before the first '
                "activation, or from parameters",
            )
        return super().check(call)

    def check_sample(self, call: Call) -> Refusal | None:
        return super().check(call)


@register
class ProductInPlace(Product):
    """a *= b, where nothing else reads a."""

    functions = (operator.imul,)  # type: ignore[assignment]
    methods = ("mul_",)
    memory = Memory.INPUT


@register
class Quotient(Elementwise):
    """mean_t(a(t) / c) = mean_t(a(t)) / c, where c does not spike and nothing is rounded."""

    functions = (operator.truediv, torch.div, torch.true_divide)
    methods = ("div",)

    def check(self, call: Call) -> Refusal | None:
        if call.argument(2, "rounding_mode") is not None:
            return Refusal("rounds, which is not linear in the spikes", "leave rounding_mode out")
        if call.facts.spikes(call.argument(1, "other")):
            return Refusal(
                "divides by a spiking tensor, which is not linear in the spikes",
                'leave nonlinear at "difference", or divide by parameters or numbers',
            )
        return super().check(call)

    def check_sample(self, call: Call) -> Refusal | None:
        rounds = call.argument(2, "rounding_mode") is not None
        return self.check(call) if rounds else super().check(call)


@register
class QuotientInPlace(Quotient):
    """a /= b, where nothing else reads a."""

    functions = (operator.itruediv,)  # type: ignore[assignment]
    methods = ("div_",)
    memory = Memory.INPUT


@register
class Negative(Rule):
    """mean_t(-a(t)) = -mean_t(a(t))."""

    functions = (operator.neg, torch.neg)
    methods = ("neg",)
    memory = Memory.INPUT

    def number(self, call: Call) -> Size | None:
        return arithmetic(call)
