"""How many levels stand in a tensor of spikes where operations are counted: of general neurons, and
of what moves their spikes about.

The counting is in operation_counter.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from . import aten


class SentLevels:
    """Levels by element, up or down, beside tensors of a running network: float32, of the same
    shape and strides. Of a ladder the rungs.
    """

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    def of(self, tensor: Any) -> Tensor | None:
        """None where they are not known."""
        return self._known.get(tensor) if isinstance(tensor, Tensor) else None

    def sent(self, func: Any, args: tuple[Any, ...], spikes: Tensor) -> None:
        """Note what general neurons have sent ``[T, B, ...]``, by their operator: beside what they
        predict, which those that read them can hold.
        """
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args)}
        value = _value(given, spikes)
        sent = _surprise(spikes) if given["prediction"] else spikes.double()
        if given["rungs"]:
            # The smallest rung is θ 2^(1 - rungs); what is far below is rounding.
            levels = (sent.abs() > value * 2.0 ** -(given["rungs"] + 1)).float()
        else:
            levels = torch.where(sent == 0, 0.0, sent / value).round().abs()
        self._note(spikes, levels)

    def sent_ones(self, spikes: Tensor) -> None:
        """Note what neurons of one level have sent ``[T, B, ...]``."""
        self._note(spikes, (spikes != 0).float())

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note what an operation gave that moves elements; of another, nothing, and no more of what
        it wrote into.
        """
        written = [
            value
            for argument, value in zip(func._schema.arguments, args)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for value in written:
            self._forget(value)
        name = func._schema.name.split("::")[1]
        if written or name == "as_strided" or not (func.is_view or name in aten.MOVES):
            return
        values = [leaf for leaf in tree_leaves((args, kwargs)) if _is_value(leaf)]
        if not values or any(self.of(value) is None for value in values):
            return
        made = func(*tree_map(self._swapped, args), **tree_map(self._swapped, kwargs))
        for tensor, levels in zip(tree_leaves(out), tree_leaves(made)):
            self._known[tensor] = levels

    def _forget(self, written: Tensor) -> None:
        """Of whatever looks at the same memory."""
        place = written.untyped_storage().data_ptr()
        for tensor in list(self._known):
            if tensor.untyped_storage().data_ptr() == place:
                del self._known[tensor]

    def _swapped(self, leaf: Any) -> Any:
        return self.of(leaf) if _is_value(leaf) else leaf

    def _note(self, spikes: Tensor, levels: Tensor) -> None:
        # Of the same strides, so that whatever views the spikes can view them.
        like = torch.empty_strided(spikes.shape, spikes.stride(), device=spikes.device)
        self._known[spikes] = like.copy_(levels)


def _is_value(leaf: Any) -> bool:
    """Whether it is spikes, or may be: an index is not."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _surprise(spikes: Tensor) -> Tensor:
    """What was sent without the prediction: o(t) of o(t) + ŷ(t), where ŷ grows by o(t)/t."""
    mean, found = torch.zeros_like(spikes[0], dtype=torch.float64), []
    for t, both in enumerate(spikes.double()):
        found.append(both - mean)
        mean = mean + found[-1] / (t + 1)
    return torch.stack(found)


def _value(given: dict[str, Any], spikes: Tensor) -> Tensor:
    """What one level is, in float64, broadcasting to the spikes ``[T, B, ...]``."""
    value = given["emitted"]
    if value is None:
        value = given["v_threshold"]
    if value is None:
        value = spikes.new_tensor(given["v_threshold_value"], dtype=torch.float64)
    value = value.double()
    scales = given["step_scale"]
    if scales is not None:
        value = value * scales.reshape(-1, *[1] * (spikes.dim() - 1))
    return value
