"""Bringing a traced graph into one form before anything is decided: modules for functional max
pooling, the batch in front where it was second, no dead code, and what an example tells of it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..network.pooling import MAX_POOL_FUNCTIONS, MaxOver
from .facts import Facts, shapes_on
from .graphs import argument, become_module
from .state import Conversion

_SUMS, _MEANS = (torch.sum, "sum"), (torch.mean, "mean")


class NormaliseCalls:
    """Makes functional max pooling a call of a module, as activations are since tracing."""

    def apply(self, conversion: Conversion) -> None:
        for node in list(conversion.graph.nodes):
            if node.op in ("call_function", "call_method"):
                self._maximum(conversion, node)
        for node in list(conversion.graph.nodes):
            if node.target in (torch.permute, "permute"):
                self._pieces(node)
            elif node.target in (*_SUMS, *_MEANS):
                self._stacked(node)
        for node in list(conversion.graph.nodes):
            made = MAX_POOL_FUNCTIONS.get(node.target) if node.op == "call_function" else None
            if made is None or argument(node, 6, "return_indices", False) is not False:
                continue
            if self._is_whole(node, node.args[1:2] or (node.kwargs.get("kernel_size"),)):
                dims = tuple(range(2, 2 + int(made.__name__[-2])))
                become_module(conversion.model, node, node.name, MaxOver(dims, keepdim=True))
                continue
            arguments = self._arguments(node, made.__name__.startswith("Adaptive"))
            if not any(isinstance(value, fx.Node) for value in arguments):
                become_module(conversion.model, node, node.name, made(*arguments))

    @staticmethod
    def _pieces(node: fx.Node) -> None:
        """qkv.permute(2, 0, 3, 1, 4), whose first dimension is taken apart at once: each piece is
        selected first, so that the batch stays in front.
        """
        given: Any = node.args[1:] or (node.kwargs.get("dims", ()),)
        dims = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        plain = all(type(dim) is int and dim >= 0 for dim in dims)
        if not plain or len(dims) < 2 or dims[0] == 0 or dims[1] != 0:
            return
        first = (torch.unbind, "unbind")
        lists = [u for u in node.users if u.target in first and argument(u, 1, "dim", 0) == 0]
        items = [item for user in lists for item in user.users]
        items += [user for user in node.users if user not in lists]
        if not all(item.target is operator.getitem and type(item.args[1]) is int for item in items):
            return
        rest = [dim - (dim > dims[0]) for dim in dims[1:]]
        source, graph = argument(node, 0, "input"), node.graph
        for item in items:
            with graph.inserting_before(item):
                piece = graph.call_method("select", (source, dims[0], item.args[1]))
                turned = graph.call_method("permute", (piece, *rest))
            for made in (piece, turned):
                made.meta = dict(node.meta)
            item.replace_all_uses_with(turned)
            graph.erase_node(item)
        for user in (*lists, node):
            graph.erase_node(user)

    @staticmethod
    def _stacked(node: fx.Node) -> None:
        """torch.stack(parts).sum(0): the parts are stacked behind the batch, and summed there."""
        source, given = argument(node, 0, "input"), argument(node, 1, "dim")
        if not isinstance(source, fx.Node) or source.target is not torch.stack:
            return
        parts, dim = argument(source, 0, "tensors"), argument(source, 1, "dim", 0)
        keeps = argument(node, 2, "keepdim", False) or "out" in source.kwargs
        if (dim, keeps) != (0, False) or given not in (0, (0,), [0]) or len(source.users) != 1:
            return
        others = {name: value for name, value in node.kwargs.items() if name in ("dtype", "out")}
        source.args, source.kwargs = (parts, 1), {}
        node.args, node.kwargs = (source, 1), others

    @staticmethod
    def _maximum(conversion: Conversion, node: fx.Node) -> None:
        """x.amax(dims), x.max(dim).values and x.max(dim)[0]: the maximum over whole dimensions."""
        whole = node.target in (torch.amax, "amax")
        dims, keepdim = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
        plain = all(
            type(dim) is int for dim in (dims if isinstance(dims, (tuple, list)) else [dims])
        )
        if not plain or not isinstance(keepdim, bool):
            return
        made = MaxOver(tuple(dims) if isinstance(dims, (tuple, list)) else dims, keepdim)
        if whole:
            become_module(conversion.model, node, node.name, made)
            return
        values = [user for user in node.users if user.args[1:] in ((0,), ("values",))]
        if node.target not in (torch.max, "max") or len(values) != len(node.users):
            return
        become_module(conversion.model, node, node.name, made)
        for user in values:
            user.replace_all_uses_with(node)
            conversion.graph.erase_node(user)

    @staticmethod
    def _is_whole(node: fx.Node, kernel: tuple[Any, ...]) -> bool:
        """Whether a pooling's window is the whole space: h.size(2), h.shape[2:]."""
        source = argument(node, 0, "input")
        others = [("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False)]
        only = all(argument(node, 2 + i, *other) == other[1] for i, other in enumerate(others))
        (sizes,) = kernel
        if isinstance(sizes, fx.Node) and sizes.target is operator.getitem:
            shape, index = sizes.args
            if index == slice(2, None, None):
                return only and _is_shape(shape, source)
        each = list(sizes) if isinstance(sizes, (tuple, list)) else [sizes]
        return only and all(_is_size(size, source, 2 + i) for i, size in enumerate(each))

    @staticmethod
    def _arguments(node: fx.Node, adaptive: bool) -> list[Any]:
        """The arguments of the module's constructor."""
        if adaptive:
            return [argument(node, 1, "output_size")]
        return [
            argument(node, 1, "kernel_size"),
            argument(node, 2, "stride"),
            argument(node, 3, "padding", 0),
            argument(node, 4, "dilation", 1),
            False,  # return_indices
            argument(node, 5, "ceil_mode", False),
        ]


def _is_shape(value: Any, source: Any) -> bool:
    """Whether a value is source.shape or source.size()."""
    if not isinstance(value, fx.Node) or value.args[:1] != (source,):
        return False
    rest = value.args[1:]
    return (value.target is getattr and rest == ("shape",)) or (value.target == "size" and not rest)


def _is_size(value: Any, source: Any, dim: int) -> bool:
    """Whether a value is source.size(dim) or source.shape[dim]."""
    if not isinstance(value, fx.Node):
        return False
    if value.target == "size":
        return bool(value.args == (source, dim))
    if value.target is not operator.getitem:
        return False
    shape, index = value.args
    return bool(index == dim) and _is_shape(shape, source)


class Observe:
    """Drops dead code, and notes ranks and batches on the example, where there is one."""

    def apply(self, conversion: Conversion) -> None:
        module = conversion.traced.module
        assert isinstance(module, fx.GraphModule)
        if (
            not conversion.report.unsupported()
        ):  # else what was written in place would count as dead
            module.graph.eliminate_dead_code()
            module.recompile()
        if conversion.examples is not None:
            shapes = conversion.shapes = shapes_on(module, conversion.examples)
            conversion.facts = Facts.of_example(shapes, conversion.examples[0].shape[0])
