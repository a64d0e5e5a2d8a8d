"""The torch.fx tracers: what is a leaf, writes in place, and control flow that depends on the
shapes of an example. What a trace is made into is in tracing.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.proxy import TraceError

from ..network.outputs import Outputs, flattened
from ..neuron import IFNode
from ..qcfs import QCFS
from .graphs import quiet_fakes
from .rules.normalisation import BatchNormAny


class _Proxy(fx.Proxy):
    """fx takes `y += z` for an addition, which hides that it changes whatever else shares y's
    memory.
    """


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return call


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class Tracer(fx.Tracer):
    """Args: buffers: record reads of buffers, as of parameters; else they are constants.

    The graph gives the tensors of the model's output as a flat tuple.

    Attributes:
        outputs: the structure around them.
    """

    record_stack_traces = True
    outputs: Outputs

    def __init__(self, buffers: bool = True) -> None:
        super().__init__()
        self.proxy_buffer_attributes = buffers

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        forward, args = super().create_args_for_root(root_fn, is_module, concrete_args)

        def flat(*args: Any) -> tuple[Any, ...]:
            tensors, self.outputs = flattened(forward(*args))
            return tensors

        return flat, args

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        own = (QCFS, IFNode, BatchNormAny)
        return isinstance(module, own) or super().is_leaf_module(module, qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Number(_Proxy):
    """Where Python wants a number, it gets the example's."""

    def __index__(self) -> int:
        assert isinstance(self.tracer, ShapeTracer)
        return int(self.tracer.number(self.node))

    __int__ = __len__ = __index__

    def __float__(self) -> float:
        assert isinstance(self.tracer, ShapeTracer)
        return float(self.tracer.number(self.node))


class ShapeTracer(Tracer):
    """Follows the branches that the shapes of an example take; never those of its values, nor of
    the size of its batch.

    Every operation is run on tensors without data, for two sizes of the batch. What differs between
    the two depends on the batch.

    Attributes:
        used: whether a number of the example decided anything.
    """

    def __init__(self, examples: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.used = False
        self._running = False  # then what is called is run, not traced
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._inputs = [
            {name: self._without_data(x, more) for name, x in examples.items()} for more in (0, 3)
        ]
        self._values: dict[fx.Node, list[Any]] = {}

    def _without_data(self, x: Tensor, more: int) -> Tensor:
        with self._mode:
            return torch.empty((x.shape[0] + more, *x.shape[1:]), dtype=x.dtype, device=x.device)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Number(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self._running = True
        try:
            with torch.no_grad(), quiet_fakes(), self._mode:
                self._values[node] = [self._run(node, which) for which in (0, 1)]
        except Exception:  # where nothing is known, nothing is decided
            pass
        finally:
            self._running = False
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _run(self, node: fx.Node, which: int) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._values[n][which])
        if node.op == "placeholder":
            return self._inputs[which][str(node.target)]
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        return operator.attrgetter(str(node.target))(self.root)

    def number(self, node: fx.Node) -> Any:
        """What Python sees where it looks at a number.

        Raises:
            TraceError: it is not known, or depends on values or on the batch.
        """
        values = self._values.get(node, [None, None])
        known = all(isinstance(value, (bool, int, float)) for value in values)
        if not known:
            raise TraceError("control flow or numbers depend on the values of tensors")
        if any(self._differs(each) for each in _ancestry(node)):
            raise TraceError("control flow or numbers depend on the size of the batch")
        self.used = True
        return values[0]

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.number(obj.node))

    def _differs(self, node: fx.Node) -> bool:
        values = self._values.get(node)
        numbers = values is not None and all(isinstance(v, (bool, int, float)) for v in values)
        return numbers and values is not None and values[0] != values[1]


def _ancestry(node: fx.Node) -> set[fx.Node]:
    found, open_ = {node}, [node]
    while open_:
        for source in open_.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                open_.append(source)
    return found
