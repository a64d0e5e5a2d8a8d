"""Neurons as functions in the ONNX sense: each kind stands in a file once, and is called by name.

Written out for every layer, the steps of a deep network are tens of thousands of nodes, which take
torch's exporter many minutes. Files are written in onnx_file.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .plain import PlainNeurons

DOMAIN = "cos_ext"
OPERANDS = ("theta", "v_init", "scale", "bias")
SIZES = (2, 3, 5, 7, 11)  # of an example: no two alike, since equal ones would be taken for one
Export = Callable[[nn.Module, tuple[Tensor, ...], Sequence[str], tuple[Any, ...]], Any]


class Kind(NamedTuple):
    """Neurons that compute the same with their own θ, v(0), scale and bias."""

    name: str
    neurons: PlainNeurons
    rank: int  # of the currents
    residual: bool


class Called(nn.Module):
    """Neurons that the exporter sees as one node."""

    def __init__(self, neurons: PlainNeurons, kinds: Kinds) -> None:
        super().__init__()
        self.neurons, self.kinds = neurons, (kinds,)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        settings = self.neurons.settings
        name = self.kinds[0].name_of(self.neurons, x.dim(), residual is not None)
        given = [t for t in (x, residual, *self.neurons.operands()) if t is not None]
        copies = settings["timesteps"] if settings["static_input"] else None
        shape = (x.shape[0] * (copies or 1), *x.shape[1:])
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{name}", given, dtype=x.dtype, shape=shape, version=1
        )


class Body(nn.Module):
    """What a kind computes, of tensors alone."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *tensors: Tensor) -> Tensor:
        x, *rest = tensors
        residual = rest.pop(0) if self.kind.residual else None
        given: dict[str, Any] = {
            name: None if own is None else rest.pop(0)
            for name, own in zip(OPERANDS, self.kind.neurons.operands())
        }
        return self.kind.neurons.run(x, residual, **given)


class Kinds:
    """The kinds of neurons of a network, found while it is exported."""

    def __init__(self) -> None:
        self.found: dict[Hashable, Kind] = {}

    def name_of(self, neurons: PlainNeurons, rank: int, residual: bool) -> str:
        """The function that neurons with currents of so many dimensions are."""
        shapes = tuple(None if t is None else tuple(t.shape) for t in neurons.operands())
        key = (tuple(neurons.settings.items()), neurons.neuron, shapes, rank, residual)
        if key not in self.found:
            self.found[key] = Kind(f"Neurons{len(self.found) + 1}", neurons, rank, residual)
        return self.found[key].name

    def functions(self, export: Export) -> list[Any]:
        """Every kind as an onnx.FunctionProto."""
        return [_function(kind, export) for kind in self.found.values()]


def _function(kind: Kind, export: Export) -> Any:
    from onnx import helper

    settings, neurons = kind.neurons.settings, kind.neurons
    steps = settings["timesteps"]
    assert steps is not None  # of a network's neurons
    sizes = _sizes(kind)
    samples = torch.export.Dim("samples")
    folded = samples if settings["static_input"] or steps == 1 else steps * samples
    free = {i: torch.export.Dim(f"size{i}") for i, size in enumerate(sizes, 1) if size is None}
    example = [size or SIZES[i] for i, size in enumerate(sizes, 1)]
    first = SIZES[0] if settings["static_input"] else SIZES[0] * steps
    operands = {name: t for name, t in zip(OPERANDS, neurons.operands()) if t is not None}
    currents = ["x", "residual"] if kind.residual else ["x"]
    inputs = (*(torch.zeros(first, *example) for _ in currents), *operands.values())
    shapes = (*({0: folded, **free} for _ in currents), *(None for _ in operands))
    model = export(Body(kind), inputs, [*currents, *operands], shapes).model_proto
    graph = model.graph
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    return helper.make_function(
        DOMAIN,
        kind.name,
        [each.name for each in graph.input],
        [each.name for each in graph.output],
        [*constants, *graph.node],
        model.opset_import,
        doc_string=str(neurons.settings),
    )


def _sizes(kind: Kind) -> list[int | None]:
    """The sizes of the neurons that a kind's tensors fix, None where any will do."""
    sizes: list[int | None] = [None] * (kind.rank - 1)
    neuron = kind.neurons.neuron
    tensors = list(kind.neurons.operands())
    if neuron is not None and isinstance(neuron.emitted, Tensor):
        tensors.append(neuron.emitted)
    for tensor in tensors:
        shape = () if tensor is None else tensor.shape
        for place, size in enumerate(reversed(shape), 1):
            if size > 1:
                sizes[-place] = size
    if neuron is not None and neuron.step_bias is not None and neuron.step_bias.dim() > 1:
        sizes[0] = neuron.step_bias.shape[1]
    return sizes
