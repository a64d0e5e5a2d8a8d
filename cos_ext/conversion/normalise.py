"""Bringing a traced graph into one form before anything is decided: modules for functional max
pooling, no dead code, and what an example tells of it.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..network.pooling import MAX_POOL_FUNCTIONS
from .facts import Facts, shapes_on
from .graphs import argument, become_module
from .state import Conversion


class NormaliseCalls:
    """Makes functional max pooling a call of a module, as activations are since tracing."""

    def apply(self, conversion: Conversion) -> None:
        for node in list(conversion.graph.nodes):
            made = MAX_POOL_FUNCTIONS.get(node.target) if node.op == "call_function" else None
            if made is None or argument(node, 6, "return_indices", False) is not False:
                continue
            arguments = self._arguments(node, made.__name__.startswith("Adaptive"))
            if not any(isinstance(value, fx.Node) for value in arguments):
                become_module(conversion.model, node, node.name, made(*arguments))

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
            shapes = shapes_on(module, conversion.examples)
            conversion.facts = Facts.of_example(shapes, conversion.examples[0].shape[0])
