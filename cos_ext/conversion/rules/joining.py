"""Taking tensors apart and putting them together: indexing, chunks, concatenation, stacking."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..sizes import Size, item
from .base import Call, Memory, Refusal, Rule, register
from .shapes import FOLDED, per_sample
from .sizes import batch_of

COMPUTED_LIST = Refusal("joins a computed list", "write the list of tensors out")


def first_part(call: Call) -> fx.Node | None:
    """The first of the tensors to be joined whose rank is known."""
    parts = call.argument(0, "tensors", ())
    if isinstance(parts, fx.Node):
        return None
    return next((part for part in parts if call.rank_of(part) is not None), None)


@register
class Cat(Rule):
    """Concatenation along a dimension after the batch."""

    functions = (torch.cat, torch.concat, torch.concatenate)
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        dim = call.argument(1, "dim", 0)
        parts = call.argument(0, "tensors", ())
        if isinstance(parts, fx.Node):
            if parts in call.facts.lists and isinstance(dim, int) and dim >= 1:
                return None
            return COMPUTED_LIST
        return per_sample(call, dim, first_part(call))

    def rank(self, call: Call) -> int | None:
        if isinstance(call.argument(0, "tensors", ()), fx.Node):
            return call.rank
        return call.rank_of(first_part(call)) or call.rank


@register
class Stack(Rule):
    """A new dimension after the batch."""

    functions = (torch.stack,)
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        dim, parts = call.argument(1, "dim", 0), call.argument(0, "tensors", ())
        if not (isinstance(dim, int) and dim >= 1):
            return Refusal(f"dim {dim} may be the batch", "count from the front")
        if isinstance(parts, fx.Node) and parts not in call.facts.lists:
            return COMPUTED_LIST
        return None

    def rank(self, call: Call) -> int | None:
        first = call.rank_of(first_part(call))
        return None if first is None else first + 1


@register
class Split(Rule):
    """A list of pieces along a dimension after the batch."""

    functions = (torch.chunk, torch.split)
    methods = ("chunk", "split")
    memory = Memory.INPUT
    makes_list = True

    def check(self, call: Call) -> Refusal | None:
        numbers = (s for s in call.sources if s in call.facts.numbers)
        if not all(map(call.facts.is_plain, numbers)):
            return Refusal("splits by computed numbers", "split by numbers written out")
        return per_sample(call, call.argument(2, "dim", 0))


@register
class Unbind(Rule):
    """A list of the slices along a dimension after the batch."""

    functions = (torch.unbind,)
    methods = ("unbind",)
    memory = Memory.INPUT
    makes_list = True

    def check(self, call: Call) -> Refusal | None:
        return per_sample(call, call.argument(1, "dim", 0))

    def rank(self, call: Call) -> int | None:
        return None if call.rank is None else call.rank - 1


@register
class Item(Rule):
    """x[:, ...] with numbers, slices and None; an element of a list of tensors; one size."""

    functions = (operator.getitem,)
    memory = Memory.INPUT

    def number(self, call: Call) -> Size | None:
        source, index = call.node.args
        if not isinstance(source, fx.Node) or source not in call.facts.numbers:
            return None
        known = call.facts.numbers[source]
        if known is not Size.SHAPE:
            return item(known, index, None)
        tensor = source.args[0]
        assert isinstance(tensor, fx.Node)
        found = item(known, index, call.rank_of(tensor))
        return batch_of(call, tensor) if found is Size.BATCH else found

    def parts(self, call: Call) -> tuple[Any, ...]:
        """The index by dimension; an ellipsis in front stands for the batch too."""
        index: Any = call.node.args[1]
        parts = index if isinstance(index, tuple) else (index,)
        if parts[:1] == (Ellipsis,) and call.rank is not None and len(parts) <= call.rank:
            return (slice(None), *parts)
        return parts

    def check(self, call: Call) -> Refusal | None:
        if call.source in call.facts.lists:
            if isinstance(call.node.args[1], int):
                return None
            return Refusal(
                "a slice of a list of tensors has no rule", "take its elements one by one"
            )
        parts = self.parts(call)
        if not (parts and isinstance(parts[0], slice) and parts[0] == slice(None)):
            return Refusal(f"indexing could pick from the batch, {FOLDED}", "begin with [:, ...]")
        allowed = (int, slice, type(None), type(Ellipsis))
        if not all(isinstance(p, allowed) and not isinstance(p, bool) for p in parts):
            return Refusal(
                "indexing by tensors or by computed numbers has no rule",
                "index by numbers written out",
            )
        return None

    def rank(self, call: Call) -> int | None:
        if call.rank is None or call.source in call.facts.lists or self.check(call) is not None:
            return call.rank
        parts = self.parts(call)
        taken = sum(isinstance(part, int) for part in parts)
        return call.rank - taken + sum(part is None for part in parts)
