"""Spiking networks of NIR graphs. Writing them is in nir_writing.py, what their neurons mean in
nir_neurons.py.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conversion.pipeline import convert
from ..general import Neuron
from ..network.network import SpikingNetwork
from .nir_neurons import Read, compressed, positive_step, read

NEURONS = ("IF", "LIF")
# What has no counterpart, and why.
REFUSED = {
    "CubaLIF": "its neurons keep a current beside their potential",
    "CubaLI": "it sends potentials, not spikes",
    "I": "it sends potentials, not spikes",
    "LI": "it sends potentials, not spikes",
    "Threshold": "it has no potential",
    "Delay": "it keeps its input for some steps",
    "Conv1d": "1-d convolutions are not read",
    "NIRGraph": "it is a graph of its own",
}


def from_nir(
    source: str | os.PathLike[str] | Any, *, timesteps: int, dt: float = 1.0
) -> SpikingNetwork:
    """The spiking network of a NIR graph, of neurons with hard reset, v(0) = 0 and no calibration.

    It has one input and one output, and no circles. :func:`cos_ext.to_nir` says which equations
    neurons have. They send 1, or what a Scale makes of it where they have no other reader.

    Args:
        source: a ``nir.NIRGraph``, or the path of a file.
        timesteps: the T of the network.
        dt: the length of a step, > 0.

    Returns:
        A :class:`cos_ext.SpikingNetwork`, float32, or float64 where weights are.

    Raises:
        ImportError: nir is not installed (extra ``nir``).
        FileNotFoundError: there is no such file.
        TypeError, ValueError: source is no graph, or a damaged file; nodes that have no
            counterpart, all of them listed by name; timesteps or dt is out of range.
        ConversionError: it has no neurons.
    """
    if importlib.util.find_spec("nir") is None:
        raise ImportError("from_nir needs nir: pip install '.[nir]'")
    graph, dt = _graph(source), positive_step(dt)
    model = _Model(graph, dt).eval()
    thresholds = {site: found.theta for site, found in model.neurons.items()}
    network = convert(model, timesteps=timesteps, thresholds=thresholds)
    for site, node in network.nodes().items():
        found, sent = model.neurons[site], model.sent.get(site, torch.ones(()))
        node.v_threshold = found.theta  # convert() takes one number for a float32
        node.v_init = torch.zeros_like(found.theta)
        node.v_reset = found.v_reset
        of_theta = bool((sent == found.theta).all())
        if found.leak != 1 or not of_theta:
            neuron = Neuron(leak=found.leak, emitted=None if of_theta else sent)
            network.set_layer(site, neuron=neuron)
    return network


def _graph(source: Any) -> Any:
    import nir

    if isinstance(source, nir.NIRGraph):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source must be a nir.NIRGraph or the path of a file, got {type(source).__name__}"
        )
    if not os.path.exists(source):
        raise FileNotFoundError(f"there is no file {os.fspath(source)}")
    try:
        # nir 1.0.8 takes the channels of one group for those of all, and refuses such graphs.
        found = nir.read(source, type_check=False)
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(f"{os.fspath(source)} is damaged or no NIR file: {error}") from error
    if not isinstance(found, nir.NIRGraph):
        raise ValueError(f"{os.fspath(source)} has a {type(found).__name__}, no graph")
    return found


class Scaled(nn.Module):
    """A product with a constant."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _Model(nn.Module):
    """A graph as an ANN, with a ReLU for neurons.

    Attributes:
        neurons: what they are, by call site.
        sent: the value of their spikes, where that is not 1.
    """

    def __init__(self, graph: Any, dt: float) -> None:
        super().__init__()
        names = _in_order(graph)
        sources = {name: [a for a, b in graph.edges if b == name] for name in names}
        keys = {name: f"{name.replace('.', '_')}_{i}" for i, name in enumerate(names)}
        self.neurons: dict[str, Read] = {}
        self.sent: dict[str, Tensor] = {}
        self.steps: list[tuple[str, list[str]]] = []
        layers, refused, dtype = {}, [], _dtype_of(graph)
        for name in names:
            node, key = graph.nodes[name], keys[name]
            only = _only_reads(name, sources)
            if _kind(node) == "Scale" and _kind(graph.nodes.get(only)) in NEURONS:
                # What their spikes are multiplied with alone.
                self.sent[_site(keys[only])] = compressed(node.scale).to(dtype)
                layer: nn.Module | str = nn.Identity()
            elif _kind(node) in NEURONS:
                layer = self._neurons(_site(key), read(node, dt, dtype))
            else:
                layer = _layer(node, dtype)
            if isinstance(layer, str):
                refused.append(f"{name} ({_kind(node)}): {layer}")
                continue
            layers[key] = layer
            self.steps.append((key, [keys[each] for each in sources[name]]))
        if refused:
            raise ValueError("the graph cannot be read:\n" + "\n".join(f"  {r}" for r in refused))
        self.nodes = nn.ModuleDict(layers)

    def _neurons(self, site: str, found: Read | str) -> nn.Module | str:
        if isinstance(found, str):
            return found
        self.neurons[site] = found
        even = bool((found.gain == 1).all())
        return nn.Sequential(nn.Identity() if even else Scaled(found.gain), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        for key, sources in self.steps:
            given = [values[each] for each in sources] or [x]
            total = given[0]
            for each in given[1:]:
                total = total + each
            values[key] = x = self.nodes[key](total)
        return x


def _site(key: str) -> str:
    """The call site of the neurons of a node."""
    return f"nodes.{key}.1"


def _kind(node: Any) -> str:
    return type(node).__name__


def _only_reads(name: str, sources: dict[str, list[str]]) -> str:
    """The one node that a node reads, where nobody else reads that; else no name."""
    if len(sources[name]) != 1:
        return ""
    (source,) = sources[name]
    return source if sum(source in each for each in sources.values()) == 1 else ""


def _in_order(graph: Any) -> list[str]:
    """The names of the nodes, each after those that it reads; Output last.

    Raises:
        ValueError: there is a circle, or not one Input and one Output, or a node that reads none.
    """
    kinds = [_kind(node) for node in graph.nodes.values()]
    for kind in ("Input", "Output"):
        if kinds.count(kind) != 1:
            raise ValueError(f"the graph must have one {kind}, got {kinds.count(kind)}")
    sources = {name: {a for a, b in graph.edges if b == name} for name in graph.nodes}
    alone = [n for n, read in sources.items() if not read and _kind(graph.nodes[n]) != "Input"]
    if alone:
        raise ValueError(f"the graph must lead from its Input to every node, not so {alone}")
    order: list[str] = []
    while len(order) < len(sources):
        ready = [n for n, read in sources.items() if n not in order and read <= set(order)]
        if not ready:
            circle = sorted(set(sources) - set(order))
            raise ValueError(f"the graph must have no circles, got one among {circle}")
        order += ready
    order.sort(key=lambda name: _kind(graph.nodes[name]) == "Output")
    return order


def _dtype_of(graph: Any) -> torch.dtype:
    weights = [node.weight.dtype for node in graph.nodes.values() if hasattr(node, "weight")]
    return torch.float64 if np.float64 in weights else torch.float32


def _layer(node: Any, dtype: torch.dtype) -> nn.Module | str:
    """The layer of a node that has no neurons, or why there is none."""
    kind = _kind(node)
    if kind in ("Input", "Output"):
        return nn.Identity()
    if kind in ("Affine", "Linear"):
        return _linear(node, dtype)
    if kind == "Conv2d":
        return _conv(node, dtype)
    if kind in ("AvgPool2d", "SumPool2d"):
        sizes = (_two(node.kernel_size), _two(node.stride), _two(node.padding))
        return nn.AvgPool2d(*sizes, divisor_override=1 if kind == "SumPool2d" else None)
    if kind == "Flatten":
        # NIR counts without the batch.
        first, last = int(node.start_dim), int(node.end_dim)
        return nn.Flatten(first + (first >= 0), last + (last >= 0))
    if kind == "Scale":
        return Scaled(torch.as_tensor(node.scale).to(dtype))
    return REFUSED.get(kind, "cos_ext has no counterpart")


def _linear(node: Any, dtype: torch.dtype) -> nn.Module | str:
    if node.weight.ndim != 2:
        return f"its weight must be a matrix, got shape {node.weight.shape}"
    bias = getattr(node, "bias", None)
    outputs, inputs = node.weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, dtype=dtype)
    return _filled(layer, node.weight, bias)


def _conv(node: Any, dtype: torch.dtype) -> nn.Module | str:
    groups, padding = int(node.groups), node.padding
    outputs, each, *kernel = node.weight.shape
    layer = nn.Conv2d(
        each * groups,
        outputs,
        tuple(kernel),
        _two(node.stride),
        padding if isinstance(padding, str) else _two(padding),
        _two(node.dilation),
        groups,
        dtype=dtype,
    )
    return _filled(layer, node.weight, node.bias)


def _filled(layer: Any, weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))
    return layer


def _two(sizes: Any) -> tuple[int, int]:
    """One size or two, as NumPy or Python has them."""
    first, second = np.broadcast_to(np.asarray(sizes), 2).tolist()
    return int(first), int(second)
