"""Data that measurements and fits read: what batches must be, and the inputs in one.

Also where a module computes, which says where they go. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer is; the CPU where it has none."""
    return next(
        (tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu")
    )


def check_batches(batches: Any) -> None:
    """Validate that batches is an iterable that may yield batches.

    Raises:
        TypeError: it is a tensor, a string, a mapping, or not iterable.
    """
    if isinstance(batches, (Tensor, str, bytes, Mapping)) or not hasattr(batches, "__iter__"):
        raise TypeError(
            "batches must be an iterable of batches (a list, a DataLoader), got "
            f"{type(batches).__name__}"
        )


def number_of_inputs(graph: torch.fx.Graph | None) -> int:
    """How many inputs a batch has: as many as forward has arguments without a default.

    1 where the model is not traced, and graph is None.
    """
    if graph is None:
        return 1
    placeholders = [
        node for node in graph.nodes if node.op == "placeholder" and not node.target.startswith("*")
    ]
    return max(sum(not node.args for node in placeholders), 1)


def model_inputs(batch: Any, wanted: int) -> list[Tensor]:
    """The inputs in an element of batches, without what follows them, such as labels.

    Args:
        batch: a tensor, or a tuple or list that begins with tensors.
        wanted: how many inputs the model has.

    Raises:
        TypeError: the element, or one of its first members, is no tensor.
        ValueError: there are fewer members than wanted, or no batch dimension.
    """
    elements = [batch] if isinstance(batch, Tensor) else batch
    if not isinstance(elements, (tuple, list)) or not all(
        isinstance(element, Tensor) for element in elements[:wanted]
    ):
        kinds = (
            f" of {[type(element).__name__ for element in elements]}"
            if isinstance(elements, (tuple, list))
            else ""
        )
        raise TypeError(
            f"batches must yield tensors, or tuples that begin with {wanted} of them, "
            f"got {type(batch).__name__}{kinds}"
        )
    if len(elements) < wanted or not elements:
        raise ValueError(
            f"batches must yield the model's {wanted} input(s), got {len(elements)} element(s)"
        )
    if elements[0].dim() == 0:
        raise ValueError(
            "batches must yield tensors with a batch dimension, got one without dimensions"
        )
    return list(elements[:wanted])
