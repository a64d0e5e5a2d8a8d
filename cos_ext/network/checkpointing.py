"""Gradient checkpointing layer by layer: a network in segments that end with neurons, each of which
is computed again in the backward pass. How a network runs otherwise is in network.py.

Chen et al., "Training deep nets with sublinear memory cost", 2016.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint

from .._neuron.runs import Run, frames_now, running
from ..neuron import IFNode


class Segments:
    """A converted module in segments. Called as it is, it keeps what they hand on alone.

    Args:
        module: a converted model that could be traced; its modules are shared.

    Raises:
        ValueError: the model could not be traced.
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, fx.GraphModule):
            raise ValueError(
                "checkpointing needs a model that torch.fx traces; this one was converted module "
                "by module"
            )
        numbers, segment = {}, 0
        for node in module.graph.nodes:
            numbers[node] = segment
            if node.op == "call_module" and isinstance(module.get_submodule(node.target), IFNode):
                segment += 1
        self._parts = split_module(module, module, numbers.__getitem__)

    def __call__(self, *inputs: Tensor) -> Any:
        return _Checkpointed(self._parts).run(*inputs)


class _Checkpointed(fx.Interpreter):
    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        part = self.fetch_attr(target)
        return checkpoint(part, *args, use_reentrant=False, context_fn=_again, **kwargs)


def _again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """In the backward pass, inputs over time are such again."""
    return nullcontext(), running(Run(frames=frames_now()))
