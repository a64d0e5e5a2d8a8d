"""The torch.fx tracer: what is a leaf, and writes in place. What a trace is made into is in
tracing.py; how a model is traced where torch.fx fails, in recorder.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from ..network.outputs import Outputs, flattened
from ..neuron import IFNode
from ..qcfs import QCFS
from .rules.normalisation import BatchNormAny

# torch's own modules that are traced into: others of torch.nn are leaves.
TRANSFORMERS = (
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
)


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
            result, info = forward(*args), getattr(self.graph._codegen, "pytree_info", None)
            if info is not None:  # defaults that are tuples or dicts have fx flatten everything
                result = pytree.tree_unflatten(result, info.out_spec)
                self.graph.set_codegen(fx.graph.CodeGen())
            tensors, self.outputs = flattened(result)
            return tensors

        return flat, args

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        own = (QCFS, IFNode, BatchNormAny)
        leaf = isinstance(module, own) or super().is_leaf_module(module, qualified_name)
        return leaf and not isinstance(module, TRANSFORMERS)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)
