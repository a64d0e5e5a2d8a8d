"""A torch.fx graph as a function. What is in the graph is the callers' business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


def as_function(graph: fx.Graph) -> Callable[..., Any]:
    """A graph as a function of the module whose submodules it calls, and its inputs: a GraphModule
    would register them a second time.
    """
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<cos_ext.network.graphs>", "exec"), names)
    return names["forward"]
