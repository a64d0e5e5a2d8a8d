"""Spiking networks as NIR graphs: what NIR's primitives can carry, and what is refused. Reading
them is in nir_reading.py.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from .._batches import device_of
from .._files import check_target, replacing
from .._neuron.runs import Run, running
from ..conversion.fuse import SUMS, pair, pooling_of
from ..conversion.graphs import argument
from ..network.finite import Shown, Unfit
from ..network.modules import TimeBroadcast
from ..network.network import SpikingNetwork
from ..network.pooling import PooledBefore
from ..neuron import IFNode
from .nir_neurons import array, positive_step, refusal, written
from .plain import check_network, example_for

PASSED_ON = (nn.Identity, nn.Dropout, nn.Dropout2d, TimeBroadcast)


class Source(NamedTuple):
    """A node of the graph, and what its values are still to be multiplied with."""

    name: str
    factor: float


def to_nir(
    network: SpikingNetwork,
    path: str | os.PathLike[str] | None,
    example_input: Tensor | Sequence[Tensor],
    *,
    dt: float = 1.0,
    fold: bool = True,
) -> Any:
    r"""A network as a NIR graph, in a file too where a path is given.

    NIR has neurons that are reset to a value, fire where v > v_threshold, and send 1. So only
    networks of neurons with hard reset (``node.v_reset = 0.0``), v(0) = 0 and without calibration
    go into it: ``nir.IF``, or with a leak λ ``nir.LIF``,

    .. math:: r = 1/dt, \quad \text{or} \quad \tau = dt / (1 - λ), \; r = τ / dt

    by Euler's rule with steps of dt. v_threshold is the number just below θ: v is above it where
    v >= θ. Inputs and outputs of the graph are those of a step: a network that is given images is
    given the same at every step. NaN and infinite inputs are not shown in the outputs. Convolutions
    in groups are read with ``nir.read(path, type_check=False)``.

    Args:
        network: as :func:`cos_ext.convert` returns, float32 or float64.
        path: of the file (HDF5), complete or not there; None writes none.
        example_input: an input as the network takes it, for the shapes.
        dt: the length of a step, > 0.
        fold: multiply θ, or ``emitted``, into the weights that read the spikes. False, and where no
            weights do: a ``nir.Scale`` follows the neurons, which few readers of NIR know.

    Returns:
        The ``nir.NIRGraph``.

    Raises:
        ImportError: nir is not installed (extra ``nir``).
        TypeError: network is none; an input is no tensor.
        ValueError: something that NIR has no node for, all of it listed by name with the reason;
            the model could not be traced; dt is not positive.
        OSError: the file cannot be written. Whatever is raised, what was there before is there.

    Source: the Neuromorphic Intermediate Representation, Pedersen et al., Nature Communications
    2024, doi 10.1038/s41467-024-52259-9, as in package nir 1.0.8.
    """
    check_network(network)
    if importlib.util.find_spec("nir") is None:
        raise ImportError("to_nir needs nir: pip install '.[nir]'")
    dt = positive_step(dt)
    if path is not None:
        check_target(path)
    inputs = example_for(network, example_input)
    writer = _Writer(network, _shapes(network, inputs), dt, fold)
    graph = writer.graph()
    if path is not None:
        import nir

        with replacing(path) as part:
            nir.write(part, graph)
    return graph


class _Shapes(fx.Interpreter):
    """Runs a graph, and keeps the shapes of a sample."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(result.shape[1:])
        return result


@torch.no_grad()
def _shapes(network: SpikingNetwork, inputs: tuple[Tensor, ...]) -> dict[fx.Node, tuple[int, ...]]:
    module = network.module
    assert isinstance(module, fx.GraphModule)  # check_network() refuses others
    shapes = _Shapes(module)
    with running(Run(apart=True)):
        shapes.run(*(x.to(device_of(network)) for x in inputs))
    return shapes.found


class _Writer:
    """Makes nodes and edges of a graph, in its order."""

    def __init__(
        self,
        network: SpikingNetwork,
        shapes: Mapping[fx.Node, tuple[int, ...]],
        dt: float,
        fold: bool,
    ) -> None:
        self.network, self.shapes, self.dt, self.fold = network, shapes, dt, fold
        self.dtype = _dtype_of(network)
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[fx.Node, list[Source]] = {}
        self.refused: list[str] = []

    def graph(self) -> Any:
        """The whole graph; ValueError with everything that is refused."""
        import nir

        module = self.network.module
        assert isinstance(module, fx.GraphModule)  # check_network() refuses others
        for node in module.graph.nodes:
            if node in self.shapes or node.op == "output":
                self.sources[node] = self._of(node)
        if self.refused:
            listed = "\n".join(f"  {each}" for each in self.refused)
            raise ValueError(f"NIR cannot carry this network:\n{listed}")
        try:
            return nir.NIRGraph(self.nodes, self.edges)
        except ValueError as error:
            raise ValueError(f"nir refuses the graph: {error}") from error

    def _refuse(self, node: fx.Node, reason: str) -> list[Source]:
        name = node.target if node.op == "call_module" else node.name
        self.refused.append(f"{name}: {reason}")
        return []

    def _add(self, name: str, made: Any, sources: Sequence[Source], factor: float = 1.0) -> Source:
        """A node that reads the sources as they are."""
        name = name.replace("/", "_")
        count = sum(each == name or each.startswith(f"{name}__") for each in self.nodes)
        name = f"{name}__{count}" if count else name
        self.nodes[name] = made
        self.edges += [(source.name, name) for source in sources]
        return Source(name, factor)

    def _scaled(self, sources: Sequence[Source], shape: tuple[int, ...]) -> list[Source]:
        """The sources with no factor to come."""
        return [
            s
            if s.factor == 1
            else self._scale(s, array(torch.full(shape, s.factor, dtype=self.dtype)))
            for s in sources
        ]

    def _scale(self, source: Source, scale: np.ndarray) -> Source:
        import nir

        return self._add(f"{source.name}_scale", nir.Scale(scale), [source])

    def _of(self, node: fx.Node) -> list[Source]:
        """What stands for a node of the network's graph."""
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "output":
            return self._output(node)
        if node.op == "get_attr":
            return self._refuse(node, "NIR has no node for a constant")
        module = self._module(node)
        if isinstance(module, Unfit):
            return []
        if isinstance(module, IFNode):
            return self._neurons(node, module)
        if node.target in SUMS and argument(node, 2, "alpha", 1) == 1:
            return self._sum(node)
        source = node.all_input_nodes[0]
        known = self.sources.get(source, [])
        if isinstance(module, (*PASSED_ON, Shown)):
            return known
        if isinstance(module, nn.Linear):
            return self._linear(node, module, known)
        if isinstance(module, nn.Conv2d):
            return self._conv(node, module, known)
        if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            return self._pool(node, module, known)
        before, after = self.shapes[source], self.shapes[node]
        alone = sum(each in self.shapes for each in node.all_input_nodes) == 1
        if alone and after == (math.prod(before),) and _keeps_values(node, module):
            return self._flatten(node, known, before)
        kind = node.target if module is None else type(module).__name__
        return self._refuse(node, f"NIR has no node for {getattr(kind, '__name__', kind)}")

    def _module(self, node: fx.Node) -> nn.Module | None:
        if node.op != "call_module":
            return pooling_of(node)
        module = self.network.module.get_submodule(str(node.target))
        return module.pool if isinstance(module, PooledBefore) else module

    def _input(self, node: fx.Node) -> list[Source]:
        import nir

        if "input" in self.nodes:
            return self._refuse(node, "a second input")
        shape = np.array(self.shapes[node])
        return [self._add("input", nir.Input({"input": shape}), [])]

    def _output(self, node: fx.Node) -> list[Source]:
        import nir

        if len(node.all_input_nodes) != 1:
            return self._refuse(node, "several outputs")
        (result,) = node.all_input_nodes
        shape = self.shapes[result]
        made = nir.Output({"output": np.array(shape)})
        return [self._add("output", made, self._scaled(self.sources[result], shape))]

    def _neurons(self, node: fx.Node, neurons: IFNode) -> list[Source]:
        if reason := refusal(neurons):
            return self._refuse(node, reason)
        sources = [s for each in node.all_input_nodes for s in self.sources.get(each, [])]
        shape = self.shapes[node]
        made, sent = written(neurons, shape, self.dtype, self.dt)
        one = self._add(str(node.target), made, self._scaled(sources, shape))
        if sent.size and not (sent == sent.flat[0]).all():
            return [self._scale(one, sent)]
        one = Source(one.name, float(sent.flat[0]) if sent.size else 1.0)
        return [one] if self.fold else self._scaled([one], shape)

    def _sum(self, node: fx.Node) -> list[Source]:
        """Edges that meet in one node are added up."""
        terms = [argument(node, 0, "input"), argument(node, 1, "other")]
        if not all(isinstance(each, fx.Node) for each in terms):
            return self._refuse(node, "NIR has no node for a constant")
        sources = [s for each in terms for s in self.sources.get(each, [])]
        if len({s.name for s in sources}) < len(sources):
            return self._refuse(node, "NIR has one edge at most between two nodes, not x + x")
        shapes = {self.shapes[each] for each in terms}
        if len(shapes) > 1:
            return self._refuse(node, f"the terms of a sum have the shapes {sorted(shapes)}")
        return sources

    def _weight(
        self, weight: Tensor, sources: Sequence[Source], shape: tuple[int, ...]
    ) -> tuple[np.ndarray, Sequence[Source]]:
        """The weights, with a factor that all their sources share; and the sources."""
        factors = {source.factor for source in sources}
        if len(factors) != 1:
            return array(weight), self._scaled(sources, shape)
        return array(weight * factors.pop()), sources

    def _linear(self, node: fx.Node, layer: nn.Linear, sources: Sequence[Source]) -> list[Source]:
        import nir

        shape = self.shapes[node.all_input_nodes[0]]
        if len(shape) != 1:
            return self._refuse(node, f"NIR's Affine reads vectors, this one reads {shape}")
        weight, sources = self._weight(layer.weight.detach(), sources, shape)
        made = nir.Affine(weight, _bias(layer.bias, weight))
        return [self._add(str(node.target), made, sources)]

    def _conv(self, node: fx.Node, layer: nn.Conv2d, sources: Sequence[Source]) -> list[Source]:
        import nir

        if layer.padding_mode != "zeros":
            return self._refuse(node, f"NIR pads with zeros, this one pads {layer.padding_mode}")
        shape = self.shapes[node.all_input_nodes[0]]
        weight, sources = self._weight(layer.weight.detach(), sources, shape)
        made = nir.Conv2d(
            input_shape=None,  # found by nir, which takes a group's channels for all where it is
            weight=weight,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=_bias(layer.bias, weight),
        )
        return [self._add(str(node.target), made, sources)]

    def _pool(self, node: fx.Node, pool: Any, sources: Sequence[Source]) -> list[Source]:
        import nir

        before, after = self.shapes[node.all_input_nodes[0]][-2:], self.shapes[node][-2:]
        if isinstance(pool, nn.AvgPool2d):
            kernel, stride, padding = map(pair, (pool.kernel_size, pool.stride, pool.padding))
            if padding != (0, 0) or pool.ceil_mode or pool.divisor_override is not None:
                return self._refuse(node, "NIR says nothing of what average pooling does at edges")
        else:
            kernel = stride = (before[0] // after[0], before[1] // after[1])
            padding = (0, 0)
            if any(size % parts for size, parts in zip(before, after)):
                return self._refuse(node, f"its windows differ in size: {before} to {after}")
        made = nir.AvgPool2d(*map(np.array, (kernel, stride, padding)))
        # A mean is multiplied later as well as now.
        return self._passing(str(node.target), made, sources, self.shapes[node.all_input_nodes[0]])

    def _flatten(
        self, node: fx.Node, sources: Sequence[Source], shape: tuple[int, ...]
    ) -> list[Source]:
        import nir

        if len(shape) == 1:
            return list(sources)
        name = str(node.target) if node.op == "call_module" else node.name
        made = nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1)
        return self._passing(name, made, sources, shape)

    def _passing(
        self, name: str, made: Any, sources: Sequence[Source], shape: tuple[int, ...]
    ) -> list[Source]:
        """A linear node without weights hands on a factor that all its sources share."""
        factors = {source.factor for source in sources}
        if len(factors) == 1:
            return [self._add(name, made, sources, factors.pop())]
        return [self._add(name, made, self._scaled(sources, shape))]


def _dtype_of(network: SpikingNetwork) -> torch.dtype:
    """The dtype of a network's weights; ValueError where NIR's readers would not have it."""
    dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()} or {torch.float32}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(
            f"network must be float32 or float64 throughout, got {sorted(map(str, dtypes))}"
        )
    return dtypes.pop()


def _keeps_values(node: fx.Node, module: nn.Module | None) -> bool:
    names = ("flatten", "view", "reshape")
    name = getattr(node.target, "__name__", node.target)
    return isinstance(module, nn.Flatten) if module is not None else name in names


def _bias(bias: Tensor | None, weight: np.ndarray) -> np.ndarray:
    return np.zeros(weight.shape[0], weight.dtype) if bias is None else array(bias)
