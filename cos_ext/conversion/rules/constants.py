"""Constants that meet spikes: products with a fixed matrix, and what is made or repeated for every
sample of a batch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as TF

from ..graphs import attribute
from ..sizes import Size
from .base import Call, Memory, Refusal, Rule, register
from .shapes import FOLDED, per_sample

ONE_CONSTANT = Refusal(
    "multiplies tensors that both depend on the model's input",
    'leave nonlinear at "difference": only a product with a parameter, or what is computed from '
    "parameters, is linear in the spikes",
)
FRONT = Refusal(
    f"multiplies tensors whose batch is not known to meet, {FOLDED}",
    "give both the same number of dimensions, 3 or more, the batch in front, or pass example_input",
)


def constant(call: Call, value: Any) -> Tensor | None:
    """A tensor that is computed from parameters alone; None where it is not."""
    if not isinstance(value, fx.Node) or value in call.facts.batched or value.op == "placeholder":
        return None
    if value.op == "get_attr":
        found = attribute(call.root, str(value.target))
        return found if isinstance(found, Tensor) else None

    def run(source: fx.Node) -> Any:
        found = constant(call, source)
        if found is None:
            raise ValueError("it is no tensor")
        return found

    try:
        with torch.no_grad():
            args, kwargs = fx.node.map_arg((value.args, value.kwargs), run)
            if value.op == "call_module":
                found = call.root.get_submodule(str(value.target))(*args, **kwargs)
            elif value.op == "call_method":
                found = getattr(args[0], str(value.target))(*args[1:], **kwargs)
            else:
                found = value.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # of the model's own code
        return None
    return found if isinstance(found, Tensor) else None


@register
class MatrixProduct(Rule):
    """mean_t(A s(t) W) = A mean_t(s(t)) W for constants A and W that leave the batch in front.

    Of two tensors that have a batch every sample has a product of its own.
    """

    functions = (operator.matmul, torch.matmul, torch.mm, torch.bmm)
    methods = ("matmul", "mm", "bmm")
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        first, second = call.argument(0, "input"), call.argument(1, "other")
        left, right = constant(call, first), constant(call, second)
        if (left is None) == (right is None):
            return ONE_CONSTANT
        rank = call.rank_of(second if left is not None else first)
        matrix = left if left is not None else right
        assert matrix is not None
        if matrix.dim() <= 2 and right is not None:
            return None  # x @ W, whatever x
        if rank is None:
            return Refusal("multiplies a tensor of unknown dimensions", "pass example_input")
        least = 3 if left is not None else 2
        beside = matrix.dim() < rank or (matrix.dim() == rank and matrix.shape[0] == 1)
        if rank >= least and beside:
            return None
        return Refusal(
            f"sums over the batch, or multiplies it by matrices of its own, {FOLDED}",
            "give the constant fewer dimensions than the tensor [B, ...]",
        )

    def check_sample(self, call: Call) -> Refusal | None:
        refusal = self.check(call)
        return samples_meet(call) if refusal is ONE_CONSTANT else refusal

    def leads(self, call: Call) -> bool:
        return self.check_sample(call) is None

    def rank(self, call: Call) -> int | None:
        first, second = call.argument(0, "input"), call.argument(1, "other")
        left, right = constant(call, first), constant(call, second)
        if left is None and right is None:
            return call.rank
        matrix = left if left is not None else right
        rank = call.rank_of(second if left is not None else first)
        if matrix is None or rank is None:
            return None
        return rank - 1 if matrix.dim() == 1 else rank


def samples_meet(call: Call) -> Refusal | None:
    """Refuse products of tensors where the batch of one may meet another dimension of the other."""
    batched = [x for x in call.facts.tensors(call.node) if x in call.facts.batched]
    ranks = {call.rank_of(x) for x in batched}
    (rank,) = ranks if len(ranks) == 1 else (None,)
    return None if rank is not None and rank >= 3 else FRONT


@register
class Attention(Rule):
    """softmax(q k^T / √d) v of each sample, the batch in front."""

    functions = (TF.scaled_dot_product_attention,)
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        return ONE_CONSTANT

    def check_sample(self, call: Call) -> Refusal | None:
        if call.argument(4, "dropout_p", 0.0) != 0:
            return Refusal("is active in evaluation too", "pass dropout_p=0.0 there")
        mask = call.argument(3, "attn_mask")
        spiking = isinstance(mask, fx.Node) and mask in call.facts.spiking
        if spiking:
            return Refusal("has a mask that depends on spikes", "compute it from the input")
        return samples_meet(call)

    def leads(self, call: Call) -> bool:
        return samples_meet(call) is None


@register
class Einsum(Rule):
    """A sum of products in which the batch is a letter of its own."""

    functions = (torch.einsum,)
    memory = Memory.OWN

    @staticmethod
    def terms(call: Call) -> tuple[list[str], str, tuple[Any, ...]] | None:
        """The letters of the operands and of the result; None where the equation is another."""
        equation, *operands = call.node.args
        if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
            operands = list(operands[0])
        if not isinstance(equation, str) or "->" not in equation or "." in equation:
            return None
        given, result = equation.replace(" ", "").split("->")
        terms = given.split(",")
        return (terms, result, tuple(operands)) if len(terms) == len(operands) else None

    def check(self, call: Call) -> Refusal | None:
        found = self.terms(call)
        if found is None:
            return Refusal(
                "an equation without -> or with ... has no rule", 'write all letters: "bnk,km->bnm"'
            )
        terms, _, operands = found
        batched = [term for term, value in zip(terms, operands) if constant(call, value) is None]
        return ONE_CONSTANT if len(batched) != 1 else self.check_sample(call)

    def check_sample(self, call: Call) -> Refusal | None:
        found = self.terms(call)
        if found is None:
            return self.check(call)
        terms, result, operands = found
        batched = [term for term, value in zip(terms, operands) if constant(call, value) is None]
        batch = batched[0][:1] if batched else ""
        alone = sum(term.count(batch) for term in terms) == len(batched)
        first = all(term[:1] == batch for term in (*batched, result))
        if batch and alone and first and result.count(batch) == 1:
            return None
        return Refusal(
            f"does not leave the batch a dimension of its own, {FOLDED}",
            "let the first letter of the tensor [B, ...] be the first of the result alone",
        )

    def rank(self, call: Call) -> int | None:
        found = self.terms(call)
        return None if found is None else len(found[1])

    def leads(self, call: Call) -> bool:
        return self.check_sample(call) is None


@register
class Fourier(Rule):
    """A discrete Fourier transform: a product with a fixed matrix, along dimensions of a sample."""

    lines = (torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft)
    planes = (torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2)
    spaces = (torch.fft.fftn, torch.fft.ifftn, torch.fft.rfftn, torch.fft.irfftn)
    functions = (*lines, *planes, *spaces)
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        usual = -1 if call.node.target in self.lines else (-2, -1)
        dims = call.argument(2, "dim", None if call.node.target in self.spaces else usual)
        return per_sample(call, dims)


class ForEverySample(Rule):
    """A constant, the same for every sample: made or repeated as often as there are samples.

    The size may be that of any batch; with a spiking tensor's, there is one for every step, too.
    """

    memory = Memory.OWN
    first = 1  # where the sizes begin

    def sizes(self, call: Call) -> tuple[Any, ...]:
        sizes: Any = call.node.args[self.first :] or (call.node.kwargs.get("size", ()),)
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = sizes[0]
        return tuple(sizes)

    def free_sizes(self, call: Call) -> tuple[Any, ...]:
        return self.sizes(call)[:1] if self.check(call) is None else ()

    def check(self, call: Call) -> Refusal | None:
        sizes, numbers = self.sizes(call), call.facts.numbers
        if not sizes or not all(map(call.facts.is_plain, sizes[1:])):
            return Refusal("to computed sizes", "write the sizes after the batch out")
        if isinstance(sizes[0], fx.Node) and numbers.get(sizes[0]) is Size.BATCH:
            return None
        return Refusal(
            f"its first size {sizes[0]} fixes the batch, {FOLDED}", "begin with x.size(0)"
        )

    def rank(self, call: Call) -> int | None:
        return len(self.sizes(call)) or None

    def leads(self, call: Call) -> bool:
        return self.check(call) is None

    def per_sample(self, call: Call) -> bool:
        return call.source is None or call.source not in call.facts.batched


@register
class Repeated(ForEverySample):
    """c.expand(B, ...) and c.repeat(B, ...) of a constant c; of a spiking tensor c.expand(-1, ...),
    which repeats within samples.
    """

    methods = ("expand", "repeat")
    memory = Memory.UNKNOWN  # expanding repeats without a copy

    def check(self, call: Call) -> Refusal | None:
        if call.source is None or call.source not in call.facts.batched:
            return super().check(call)
        sizes, rank = self.sizes(call), call.rank
        if not sizes or not all(map(call.facts.is_plain, sizes[1:])):
            return Refusal("to computed sizes", "write the sizes after the batch out")
        keeps = -1 if call.node.target == "expand" else 1
        spiking = call.source in call.facts.spiking
        own = isinstance(sizes[0], fx.Node) and call.facts.numbers.get(sizes[0]) is Size.BATCH
        own = own and keeps == -1 and (sizes[0] in call.facts.spiking) == spiking
        if rank == len(sizes) and (sizes[0] == keeps or own):
            return None
        return Refusal(
            f"may repeat the batch, {FOLDED}",
            f"give as many sizes as it has dimensions, the first {keeps}, and an example_input",
        )


@register
class RepeatedLike(ForEverySample):
    """c.expand_as(x) of a constant c or, with as many dimensions, of a tensor; torch.zeros_like(x)
    and the like: of x it takes the shape alone, with a batch for every step where x spikes.
    """

    functions = (torch.zeros_like, torch.ones_like)
    methods = ("expand_as",)
    memory = Memory.UNKNOWN

    def sizes(self, call: Call) -> tuple[Any, ...]:
        return ()

    def check(self, call: Call) -> Refusal | None:
        *repeated, like = call.facts.tensors(call.node)
        batched, rank = call.facts.batched, call.rank_of(like)
        within = rank is not None and all(call.rank_of(x) == rank for x in repeated)
        if like in batched and (within or not batched.intersection(repeated)):
            return None
        return Refusal(
            "may repeat the batch of one tensor along another dimension",
            "give both the same number of dimensions, and an example_input",
        )

    def rank(self, call: Call) -> int | None:
        return call.rank_of(call.facts.tensors(call.node)[-1])


@register
class Made(ForEverySample):
    """torch.zeros(B, ...) and the like."""

    functions = (torch.zeros, torch.ones)
    first = 0


@register
class MadeLike(ForEverySample):
    """x.new_zeros(B, ...) and the like, which take nothing of x but its dtype."""

    methods = ("new_zeros", "new_ones")
