"""Operations that move numbers and change none: shapes, orders, indexing, joining, padding."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as TF

from ..sizes import Size
from .base import Call, Memory, Refusal, Rule, for_dimensions, register, space_of

FOLDED = "into which time is folded"


def per_sample(call: Call, dims: Any, source: fx.Node | None = None) -> Refusal | None:
    """Refuse dimensions that are, or may be, the batch; a negative one needs a known rank."""
    dims = list(dims) if isinstance(dims, (tuple, list)) else [dims]
    rank = call.rank_of(source or call.source)

    def within(dim: Any) -> bool:
        if not isinstance(dim, int):
            return False
        return dim >= 1 or (dim < 0 and rank is not None and dim + rank >= 1)

    if dims and all(within(dim) for dim in dims):
        return None
    counted = all(isinstance(dim, int) and dim < 0 for dim in dims)
    advice = "count from the front, or pass example_input" if counted and dims else "name others"
    return Refusal(f"dim {dims} may be the batch, {FOLDED}", advice)


@register
class Keep(Rule):
    """The same tensor, or the same numbers in another order in memory."""

    methods = ("contiguous", "detach")
    modules = (nn.Identity,)
    memory = Memory.INPUT


@register
class Cast(Rule):
    """The same numbers in another floating-point dtype."""

    methods = ("float", "double", "half", "bfloat16", "to", "type_as")
    memory = Memory.INPUT  # where it has the dtype

    def check(self, call: Call) -> Refusal | None:
        others = (*call.node.args[1:], *call.node.kwargs.values())
        dtypes = [each for each in others if isinstance(each, torch.dtype)]
        plain = all(not isinstance(x, fx.Node) or call.facts.is_plain(x) for x in others)
        alike = call.node.target == "type_as" or plain
        if alike and all(dtype.is_floating_point for dtype in dtypes):
            return None
        return Refusal("casts to what is not known to be floating-point", "name the dtype")

    def leads(self, call: Call) -> bool:
        return True


@register
class Copy(Rule):
    """A copy."""

    functions = (torch.clone,)
    methods = ("clone",)
    memory = Memory.OWN


@register
class Shuffle(Rule):
    """A fixed order of the channels and positions of each sample."""

    modules = (nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)

    def rank(self, call: Call) -> int | None:
        return 4 if isinstance(call.module, nn.PixelShuffle) else call.rank


@register
class PadModule(Rule):
    """Padding of each sample's space: affine."""

    modules = for_dimensions("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad")
    memory = Memory.OWN

    def rank(self, call: Call) -> int | None:
        assert call.module is not None
        return space_of(call.module) + 2


@register
class Pad(Rule):
    """F.pad by plain numbers, in dimensions after the batch: affine."""

    functions = (TF.pad,)
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        pad, rank = call.argument(1, "pad"), call.rank
        if not isinstance(pad, (tuple, list)) or not all(map(call.facts.is_plain, pad)):
            return Refusal("pads by computed numbers", "pad by numbers written out")
        fits = len(pad) // 2 < rank if rank is not None else len(pad) <= 4
        if fits:
            return None
        return Refusal(
            f"may pad the batch, {FOLDED}", "pad fewer dimensions, or pass example_input"
        )


def rank_after_flatten(start: Any, end: Any) -> int | None:
    """The rank of what is flattened to its last dimension; None: unknown."""
    return start + 1 if isinstance(start, int) and start >= 0 and end == -1 else None


@register
class FlattenModule(Rule):
    """nn.Flatten of dimensions after the batch."""

    modules = (nn.Flatten,)
    memory = Memory.INPUT

    def check_module(self, module: nn.Module) -> Refusal | None:
        assert isinstance(module, nn.Flatten)
        if module.start_dim >= 1:
            return None
        return Refusal(
            f"start_dim={module.start_dim} may merge the batch, {FOLDED}", "use start_dim >= 1"
        )

    def rank(self, call: Call) -> int | None:
        assert isinstance(call.module, nn.Flatten)
        return rank_after_flatten(call.module.start_dim, call.module.end_dim)


@register
class Flatten(Rule):
    """x.flatten(start, end) with start >= 1."""

    functions = (torch.flatten,)
    methods = ("flatten",)
    memory = Memory.INPUT

    def check(self, call: Call) -> Refusal | None:
        return per_sample(call, call.argument(1, "start_dim", 0))

    def rank(self, call: Call) -> int | None:
        start, end = call.argument(1, "start_dim", 0), call.argument(2, "end_dim", -1)
        return rank_after_flatten(start, end)


@register
class UnflattenModule(Rule):
    """nn.Unflatten of a dimension after the batch."""

    modules = (nn.Unflatten,)

    def check_module(self, module: nn.Module) -> Refusal | None:
        assert isinstance(module, nn.Unflatten)
        if isinstance(module.dim, int) and module.dim >= 1:
            return None
        return Refusal(f"may split the batch, {FOLDED}", "use dim >= 1")

    def rank(self, call: Call) -> int | None:
        return None


@register
class Unflatten(Rule):
    """x.unflatten(dim, sizes) of a dimension after the batch."""

    functions = (torch.unflatten,)
    methods = ("unflatten",)
    memory = Memory.INPUT

    def check(self, call: Call) -> Refusal | None:
        sizes = call.argument(2, "sizes")
        if not isinstance(sizes, (tuple, list)) or not all(map(call.facts.is_plain, sizes)):
            return Refusal("to computed sizes", "write the sizes out")
        return per_sample(call, call.argument(1, "dim"))

    def rank(self, call: Call) -> int | None:
        sizes = call.argument(2, "sizes")
        if call.rank is None or not isinstance(sizes, (tuple, list)):
            return None
        return call.rank + len(sizes) - 1


def first_of(number: fx.Node) -> fx.Node | None:
    """The tensor whose first size a number is: x.size(0), x.shape[0]; None: it is another."""
    if number.target == "size" and number.args[1:] == (0,):
        return number.args[0]  # type: ignore[return-value]
    sizes = number.args[0] if number.target is operator.getitem else None
    if not isinstance(sizes, fx.Node) or number.args[1] != 0:
        return None
    all_sizes = sizes.target == "size" and len(sizes.args) == 1
    shape = sizes.target is getattr and sizes.args[1] == "shape"
    return sizes.args[0] if all_sizes or shape else None  # type: ignore[return-value]


@register
class View(Rule):
    """x.view(B, ...) and x.reshape(B, ...): the batch stays a dimension of its own.

    The first size may be -1, or the size of any tensor's batch. The latter is rewritten as the
    tensor's own first size: that of a static tensor has no time in it.
    """

    functions = (torch.reshape,)
    methods = ("view", "reshape")
    memory = Memory.INPUT

    @staticmethod
    def shape(call: Call) -> tuple[Any, ...]:
        node = call.node
        shape: Any = node.args[1:] or (node.kwargs.get("shape", node.kwargs.get("size", ())),)
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = shape[0]
        return tuple(shape)

    def free_sizes(self, call: Call) -> tuple[Any, ...]:
        return self.shape(call)[:1]

    def takes_own_batch(self, call: Call) -> bool:
        first, facts = self.shape(call)[0], call.facts
        if not isinstance(first, fx.Node):
            return False
        if facts.numbers.get(first) is Size.BATCH and call.source in facts.leading:
            return True
        sized, pieces = first_of(first), facts.pieces  # as many pieces of every sample
        return sized in pieces and pieces[sized] == pieces.get(call.source)  # type: ignore[arg-type]

    def check(self, call: Call) -> Refusal | None:
        shape = self.shape(call)
        if len(shape) < 2 or not all(map(call.facts.is_plain, shape[1:])):
            return Refusal(
                f"to shape {shape}: the batch must be a dimension of its own, and the others plain "
                "numbers",
                "begin with x.size(0) or -1, write the other sizes out, or use flatten(1)",
            )
        if self.takes_own_batch(call) or (shape[0] == -1 and -1 not in shape[1:]):
            return None
        remedy = "begin with x.size(0) or -1, or use flatten(1)"
        if -1 in shape[1:]:
            remedy = (
                "begin with the size(0) of this very tensor, or with -1 and the others written out"
            )
        return Refusal(f"its first size {shape[0]} fixes the batch, {FOLDED}", remedy)

    def rank(self, call: Call) -> int | None:
        shape = self.shape(call)
        plain = all(map(call.facts.is_plain, shape[1:]))
        return len(shape) if len(shape) >= 2 and plain else None

    def leads(self, call: Call) -> bool:
        # view(-1, ...) may cut samples in pieces.
        return self.check(call) is None and self.shape(call)[0] != -1

    def rewrite(self, call: Call) -> None:
        if self.check(call) is not None or not self.takes_own_batch(call):
            return
        node, old = call.node, self.shape(call)[0]
        with node.graph.inserting_before(node):
            own = node.graph.call_method("size", (call.source, 0))
        call.facts.numbers[own] = Size.BATCH

        def other(value: fx.Node) -> fx.Node:
            return own if value is old else value

        node.args = fx.node.map_arg(node.args, other)
        node.kwargs = fx.node.map_arg(node.kwargs, other)


@register
class Transpose(Rule):
    """An exchange of two dimensions after the batch."""

    functions = (torch.transpose, torch.swapaxes, torch.swapdims)
    methods = ("transpose", "swapaxes", "swapdims")
    memory = Memory.INPUT

    def check(self, call: Call) -> Refusal | None:
        return per_sample(call, [call.argument(1, "dim0"), call.argument(2, "dim1")])


@register
class Permute(Rule):
    """Another order of the dimensions, the batch first."""

    functions = (torch.permute,)
    methods = ("permute",)
    memory = Memory.INPUT

    def check(self, call: Call) -> Refusal | None:
        dims: Any = call.node.args[1:] or (call.node.kwargs.get("dims", ()),)
        if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
            dims = dims[0]
        if dims and dims[0] == 0:
            return None
        return Refusal(f"moves the batch, {FOLDED}", "leave dimension 0 in front")


@register
class Turn(Rule):
    """Positions moved along dimensions after the batch: torch.roll."""

    functions = (torch.roll,)
    methods = ("roll",)
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        return per_sample(call, call.argument(2, "dims", ()))


@register
class Select(Rule):
    """x.select(dim, index) with a plain index, of a dimension after the batch."""

    functions = (torch.select,)
    methods = ("select",)
    memory = Memory.INPUT

    def check(self, call: Call) -> Refusal | None:
        if not call.facts.is_plain(call.argument(2, "index")):
            return Refusal("picks by a computed number", "index by a number written out")
        return per_sample(call, call.argument(1, "dim"))

    def rank(self, call: Call) -> int | None:
        return None if call.rank is None else call.rank - 1


@register
class Narrow(Select):
    """x.narrow(dim, start, length) with plain numbers, of a dimension after the batch."""

    functions = (torch.narrow,)  # type: ignore[assignment]
    methods = ("narrow",)

    def check(self, call: Call) -> Refusal | None:
        numbers = (call.argument(2, "start"), call.argument(3, "length"))
        if not all(map(call.facts.is_plain, numbers)):
            return Refusal("picks by computed numbers", "index by numbers written out")
        return per_sample(call, call.argument(1, "dim"))

    def rank(self, call: Call) -> int | None:
        return call.rank


@register
class Squeeze(Rule):
    """x.squeeze(dim) of a dimension after the batch."""

    functions = (torch.squeeze,)
    methods = ("squeeze",)
    memory = Memory.INPUT

    def check(self, call: Call) -> Refusal | None:
        dims = call.argument(1, "dim", ())
        if dims != ():
            return per_sample(call, dims)
        return Refusal("without a dimension may squeeze the batch", "name the dimension")

    def rank(self, call: Call) -> int | None:
        return None  # it depends on whether the size is 1


@register
class Unsqueeze(Rule):
    """x.unsqueeze(dim) with dim >= 1."""

    functions = (torch.unsqueeze,)
    methods = ("unsqueeze",)
    memory = Memory.INPUT

    def check(self, call: Call) -> Refusal | None:
        dim = call.argument(1, "dim")
        if isinstance(dim, int) and dim >= 1:
            return None
        return Refusal("may come before the batch", "count from the front")

    def rank(self, call: Call) -> int | None:
        return None if call.rank is None else call.rank + 1
