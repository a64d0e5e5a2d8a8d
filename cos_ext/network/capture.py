"""A network's forward as a CUDA graph: recorded once, replayed with other inputs. What is recorded
is in network.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .settings import Configured

# as torch.cuda.make_graphed_callables: libraries choose and load their kernels, allocators fill
WARM_UP = 3


class CapturedForward:
    """What :meth:`SpikingNetwork.capture` returns: `captured(*inputs)` is `network(*inputs)`, by
    one launch of a graph.

    The inputs are copied into memory that the graph reads, on the current stream, and the outputs
    are copied out of memory that the next call overwrites; `clone=False` leaves that copy out. So
    calls must follow each other on one stream, and two threads need a capture each. New values
    loaded into the network's weights in place (load_state_dict) are seen.

    Raises:
        TypeError: another number of inputs, or something that is no tensor.
        ValueError: an input of another shape, dtype or device than the captured one.
        RuntimeError: the network's settings have changed since, it was moved or converted to
            another dtype, or a weight, threshold or potential was replaced: the graph would not
            know. Capture again.
    """

    def __init__(
        self,
        network: Configured,
        inputs: tuple[Tensor, ...],
        output: Any,
        replay: Callable[[], Any],
    ) -> None:
        """`replay` computes `output` from `inputs`, which it and nobody else holds on to."""
        self._network, self._inputs, self._output, self._replay = network, inputs, output, replay
        # The network makes a new one of these at every change of its settings, and when it is
        # moved.
        self._settings = network._needs
        # Held, so that what the graph reads is not freed, and compared.
        self._tensors = [
            (table, name, tensor)
            for module in network.modules()
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
        ]
        self._storages = [tensor.detach() for *_, tensor in self._tensors if tensor is not None]

    def __call__(self, *inputs: Tensor, clone: bool = True) -> Any:
        """The network's inputs, [B, ...] each, to per-step outputs [T, B, ...]; tensors of their
        own unless `clone` is False.
        """
        self._check(inputs)
        with torch.no_grad(), torch.cuda.device_of(self._inputs[0]):
            for own, given in zip(self._inputs, inputs):
                own.copy_(given, non_blocking=True)
            self._replay()
            own = self._output
            return pytree.tree_map_only(Tensor, torch.clone, own) if clone else own

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self._inputs):
            raise TypeError(
                f"the captured network takes {len(self._inputs)} inputs, got {len(inputs)}"
            )
        for index, (own, given) in enumerate(zip(self._inputs, inputs)):
            if not isinstance(given, Tensor):
                raise TypeError(f"input {index} must be a tensor, got {type(given).__name__}")
            if (given.shape, given.dtype, given.device) != (own.shape, own.dtype, own.device):
                raise ValueError(
                    f"input {index} must be {own.dtype} {tuple(own.shape)} on {own.device}, as "
                    f"captured, got {given.dtype} "
                    f"{tuple(given.shape)} on {given.device}; capture the network for it too"
                )
        same = self._network._needs is self._settings and all(
            table.get(name) is tensor for table, name, tensor in self._tensors
        )
        if not same:
            raise RuntimeError(
                "the network's settings, weights or place have changed since it was captured, and "
                "a captured graph does "
                "not see that; call capture() again"
            )


@torch.no_grad()
def capture(network: Configured, examples: tuple[Tensor, ...]) -> CapturedForward:
    """:meth:`SpikingNetwork.capture`, after torch.cuda.make_graphed_callables (torch's notes on
    CUDA graphs).
    """
    places = {tensor.device for tensor in (*network.parameters(), *network.buffers(), *examples)}
    if len(places) != 1 or next(iter(places)).type != "cuda":
        raise RuntimeError(
            "capture needs CUDA: the network and its inputs on one CUDA device, got "
            f"{sorted(map(str, places))}"
            + ("" if torch.cuda.is_available() else "; torch sees no CUDA device")
        )
    if torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled():
        raise RuntimeError(
            "capture under autocast needs torch.autocast(..., cache_enabled=False): the cached "
            "casts of weights are freed "
            "when autocast ends, and the graph would go on reading them"
        )
    (device,) = places
    with torch.cuda.device(device):
        inputs = tuple(x.detach().clone() for x in examples)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                network(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = network(*inputs)
    return CapturedForward(network, inputs, output, graph.replay)
