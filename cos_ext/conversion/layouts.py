"""Making a rewritten graph run in any memory format. Which one is chosen in the room network."""

from __future__ import annotations

import torch

from .state import Conversion

RESHAPES = {"view": "reshape", "view_as": "reshape_as"}


class AnyLayout:
    """Makes x.reshape(...) of x.view(...), which a tensor in channels_last does not have. Nothing
    writes through a view here: RefuseWrites has seen to that.
    """

    def apply(self, conversion: Conversion) -> None:
        for node in conversion.graph.nodes:
            arguments = (*node.args, *node.kwargs.values())
            of_dtype = any(isinstance(value, torch.dtype) for value in arguments)
            if node.op == "call_method" and node.target in RESHAPES and not of_dtype:
                node.target = RESHAPES[node.target]
                if "size" in node.kwargs:
                    node.kwargs = {"shape": node.kwargs["size"]}
