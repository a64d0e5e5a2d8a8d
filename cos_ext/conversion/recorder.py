"""Tracing by running: forward is run on tensors without data, and every call of a torch function,
a method or a leaf module becomes a node of a graph. What becomes of the batch is in two_batches.py.

Why not torch.export: see docs/contributing/tracing.md, which has the figures. In short, its graph
has aten operators where ours has the model's modules and the functions that the rules know.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.node import base_types, map_aggregate
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode

from .._batches import Inputs, device_of
from ..network.outputs import flattened
from .batch_number import BatchNumber, told
from .lines import here
from .tracer import Tracer

VALUES = "control flow or numbers depend on the values of tensors"
_LOOKS = (DataDependentOutputException, DynamicOutputShapeException)

# What Python's operators call, and what torch.fx makes of those.
_OPERATORS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "matmul": operator.matmul,
    "neg": operator.neg,
    "add_": operator.iadd,
    "sub_": operator.isub,
    "mul_": operator.imul,
    "div_": operator.itruediv,
    "__div__": operator.truediv,
    "__rdiv__": operator.truediv,
}
# What these make has numbers, though the tensor that they are asked of has none.
_NEW: dict[str, Callable[..., Tensor]] = {
    "new_zeros": torch.zeros,
    "new_ones": torch.ones,
    "new_full": torch.full,
}
# Methods whose functions have no name of their own.
_RENAMED = (Tensor.__pow__, Tensor.__ipow__)
_PLAIN = (*base_types, type(None), type(Ellipsis))


class Recorder(TorchFunctionMode):
    """One run of a model, recorded as an fx.Graph in the words that :class:`Tracer` has. The graph
    gives the tensors of the model's output as a flat tuple.

    Tensors are real objects here: isinstance(), hasattr(), len(), **kwargs and shapes are what they
    are when the model runs. Inputs and parameters have no data, so that no value can decide
    anything. Buffers and what forward makes of nothing have data: they are constants, and may.

    Attributes:
        graph: of the calls. Constants are in it, too.
        outputs: the structure around what it gives.
        results: the tensor that each node made. Of constants, as they were when they were read.
        real: nodes of tensors that have data.
        names: of the buffers.
        parts: nodes that take a tuple apart, which forward may not have asked for.
        sizes: what forward was told of shapes, in order.
        looked: one of those was the input's, or of what depends on it.

    Args:
        sizes: what it was told in two other runs; then it is told numbers that know the batch.
        news: what x.new_zeros() and the like make has data, and may be written into.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        examples: Mapping[str, Tensor],
        batch: int,
        sizes: Iterable[tuple[Any, Any]] = (),
        news: bool = True,
    ) -> None:
        super().__init__()
        self._news = news
        self.graph, self.looked = fx.Graph(), False
        self.sizes: list[Any] = []
        self._batch, self._known = batch, iter(sizes)
        self.results: dict[fx.Node, Tensor] = {}
        self.parts: set[fx.Node] = set()
        self.real: set[fx.Node] = set()
        self._nodes: dict[int, tuple[Tensor, fx.Node, int]] = {}  # holds the tensor: ids are reused
        self._buffers = {id(b): (b, name, b._version) for name, b in model.named_buffers()}
        self.names = {name for name, _ in model.named_buffers()}
        self._paths = {id(m): path for path, m in model.named_modules()}
        self._within, self._leaves = [""], 0
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        home = device_of(model)
        self._empty_parameters(model)
        self._watch(model)
        with self._fakes:
            made = [
                torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device=home)
                for x in examples.values()
            ]
        for name, x in zip(examples, made):
            self._enter(x, self.graph.placeholder(name))
        with torch.no_grad(), self:
            result = inputs.call(model, made)
            tensors, self.outputs = flattened(result)
            self.graph.output(tuple(self._plain(tensor) for tensor in tensors))

    # The model

    def _empty_parameters(self, model: nn.Module) -> None:
        """Give the model parameters without data, and their names in the graph."""
        self._parameters: dict[int, tuple[Tensor, str]] = {}
        made: dict[int, Tensor] = {}
        for path, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in made:
                    fake = made[id(parameter)] = self._fakes.from_tensor(parameter)
                    self._parameters[id(fake)] = fake, f"{path}.{name}" if path else name
                module._parameters[name] = made[id(parameter)]

    def _watch(self, model: nn.Module) -> None:
        """Note which module runs; of a leaf only that it was called."""
        judge = Tracer()

        def before(module: nn.Module, _args: Any) -> None:
            self._within.append(self._paths[id(module)])
            self._leaves += judge.is_leaf_module(module, "")

        def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self._within.pop()
            if not judge.is_leaf_module(module, ""):
                return
            self._leaves -= 1
            if not self._leaves and result is not None:  # None: it has raised
                with torch._C.DisableTorchFunction():  # what follows is no call of the model's
                    read = self._argument(tuple(args)), self._argument(dict(kwargs))
                    self._made(result, "call_module", self._paths[id(module)], *read)

        for module in model.modules():
            if module is not model:
                module.register_forward_pre_hook(before, prepend=True)
                module.register_forward_hook(after, with_kwargs=True, always_call=True)

    # Calls

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        try:
            if self._leaves:
                return function(*args, **kwargs)
            return self._call(function, args, kwargs)
        except _LOOKS as error:
            raise TraceError(VALUES) from error

    def _call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a function of torch's, or get or set an attribute of a tensor, and note it."""
        name = getattr(function, "__name__", str(function))
        if name in ("__get__", "__set__"):
            return self._attribute(function, args, gets=name == "__get__")
        if "out" in kwargs or re.fullmatch(r"__setitem__|__i\w+__|(?!_).*[^_]_", name):
            self._refuse_writes(args, kwargs)
        # Before the call, which may write into what it reads.
        read, named = self._argument(args), self._argument(kwargs)
        if self._news and name in _NEW and isinstance(args[0], FakeTensor):
            like = {"dtype": args[0].dtype, "device": args[0].device}
            result: Any = _NEW[name](*args[1:], **{**like, **kwargs})
        else:
            result = self._size(args, function(*args, **kwargs))
        if name == "__setitem__" and isinstance(args[0], FakeTensor):
            self._create("call_function", operator.setitem, read, named)
        elif _has_tensors(result):
            self._made(result, *_spelled(function, name, read, named))
        return result

    def _attribute(self, function: Any, args: tuple[Any, ...], gets: bool) -> Any:
        name = getattr(function.__self__, "__name__", "")
        if not gets and name != "requires_grad":
            raise TraceError(f"forward sets the attribute {name} of a tensor")
        result = self._size(args, function(*args))
        if _has_tensors(result):  # x.T and the like; sizes are plain numbers
            self._made(result, "call_function", getattr, (self._argument(args[0]), name), {})
        return result

    def _size(self, args: tuple[Any, ...], result: Any) -> Any:
        """What forward is told where it looks at a size of what is no parameter."""
        sizes = isinstance(result, (int, torch.Size)) and not isinstance(result, bool)
        if not sizes or not args or id(args[0]) in self._parameters:
            return result
        self.looked = self.looked or isinstance(args[0], FakeTensor)
        self.sizes.append(result)
        known = next(self._known, None)
        return result if known is None else told(result, self._batch, *known)

    def _refuse_writes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise where what depends on the input is written into a tensor that does not."""
        target = kwargs.get("out", args[0] if args else None)
        has_data = isinstance(target, Tensor) and not isinstance(target, FakeTensor)
        if has_data and any(isinstance(x, FakeTensor) for x in _tensors((args, kwargs))):
            raise TraceError("writes what depends on the input into a tensor that does not")

    # Nodes

    def _create(self, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        map_aggregate((args, kwargs), _check)
        node = self.graph.create_node(op, target, args, kwargs)
        node.stack_trace = here()
        if path := self._within[-1]:
            node.meta["nn_module_stack"] = {path: (path, None)}
        return node

    def _made(self, result: Any, op: str, target: Any, args: Any, kwargs: Any) -> None:
        """A node for a call that made tensors; for each of several one that takes it out."""
        if isinstance(result, Tensor):
            self._enter(result, self._create(op, target, args, kwargs))
        elif isinstance(result, (tuple, list)) and _has_tensors(result):
            # How many there are may be a size, which forward is told so; not of max() and the like.
            plain = op != "call_module" and type(result) in (tuple, list)
            self.looked |= plain and any(isinstance(part, FakeTensor) for part in result)
            node = self._create(op, target, args, kwargs)
            self._take_apart(result, node)
            if all(part in self.real for part in node.users):
                self.real.add(node)

    def _take_apart(self, result: Any, node: fx.Node) -> None:
        for index, part in enumerate(result):
            if not _has_tensors(part):
                continue
            item = self._create("call_function", operator.getitem, (node, index), {})
            self.parts.add(item)
            if isinstance(part, Tensor):
                self._enter(part, item)
            else:
                self._take_apart(part, item)

    def _enter(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = tensor, node, _version(tensor)
        self.results[node] = tensor
        if not isinstance(tensor, FakeTensor):
            self.real.add(node)

    def _argument(self, value: Any) -> Any:
        """An argument of a call, with nodes in the place of tensors."""
        return map_aggregate(value, self._plain)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, BatchNumber):
            return value.as_argument()
        return value.item() if hasattr(value, "item") else value  # a number of NumPy's

    def _node_of(self, tensor: Tensor) -> fx.Node:
        """The node that made a tensor as it is now.

        Raises:
            TraceError: it depends on the input, and no call was seen that made it; or it is a
                buffer into which forward writes.
        """
        seen = self._nodes.get(id(tensor))
        if id(tensor) in self._buffers:
            return self._buffer(tensor)
        if isinstance(tensor, FakeTensor):
            if seen is not None:
                return seen[1]
            if id(tensor) not in self._parameters:
                raise TraceError("a tensor was made by code that is no torch function")
            node = self._create("get_attr", self._parameters[id(tensor)][1], (), {})
        elif seen is not None and seen[2] == _version(tensor):
            node = seen[1]
            if tensor is self.results[node]:
                self.results[node] = tensor.clone()  # which later writes do not reach
            return node
        else:
            node = self._create("get_attr", f"_constant_{len(self.graph.nodes)}", (), {})
            self._enter(tensor, node)
            self.results[node] = tensor.clone()
            return node
        self._enter(tensor, node)
        return node

    def _buffer(self, tensor: Tensor) -> fx.Node:
        _, name, version = self._buffers[id(tensor)]
        if version != _version(tensor):
            raise TraceError(f"forward writes into the buffer {name}, and reads it")
        if id(tensor) not in self._nodes:
            self._enter(tensor, self._create("get_attr", name, (), {}))
        return self._nodes[id(tensor)][1]


def _spelled(
    function: Callable[..., Any], name: str, args: Any, kwargs: Any
) -> tuple[str, Any, Any, Any]:
    """A call as torch.fx has it: operators of Python, methods by name, functions."""
    method = getattr(Tensor, name, None) is function or function in _RENAMED
    if not method and not _is_descriptor(function):
        return "call_function", function, args, kwargs
    if name in _OPERATORS and len(args) <= 2 and not kwargs:
        swapped = name.startswith("__r")
        return "call_function", _OPERATORS[name], args[::-1] if swapped else args, kwargs
    if name.startswith("__"):
        if hasattr(operator, name):
            return "call_function", getattr(operator, name), args, kwargs
        if hasattr(operator, f"__{name[3:]}"):
            return "call_function", getattr(operator, f"__{name[3:]}"), args[::-1], kwargs
    return "call_method", name, args, kwargs


def _is_descriptor(function: Callable[..., Any]) -> bool:
    return type(function).__name__ in ("method_descriptor", "wrapper_descriptor")


def _check(value: Any) -> Any:
    """TraceError where something is nothing that a graph can hold."""
    if not isinstance(value, (*_PLAIN, fx.Node)):
        raise TraceError(f"a graph cannot hold an argument or output {type(value).__name__}")
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _has_tensors(value: Any) -> bool:
    return next(_tensors(value), None) is not None


def _version(tensor: Tensor) -> int:
    """Counts the writes into a tensor; those of an inference tensor are not counted."""
    return 0 if tensor.is_inference() else tensor._version
