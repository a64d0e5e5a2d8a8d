"""Checks of a conversion on an example: that the graph is the model, sample by sample, and the network the quantised ANN.

They know nothing of the rules by which it was converted.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, fx, nn

from .graph import Traced, set_module
from .network import SpikingNetwork
from .pooling import MAX_POOLS, average_of
from .qcfs import quantise
from .report import ConversionError


class _Quantised(nn.Module):
    """What exactly calibrated neurons with threshold θ compute in `levels` steps; QCFS with any θ."""

    def __init__(self, threshold: Tensor, levels: int) -> None:
        super().__init__()
        self.threshold, self.levels = threshold, levels

    def forward(self, x: Tensor) -> Tensor:
        return quantise(x, self.threshold, self.levels)


def _differ(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9, equal_nan=True)


def _in_float64(module: nn.Module, examples: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    # In float32 a sum may be rounded across a level of a quantised activation, which proves nothing.
    return copy.deepcopy(module).double(), tuple(x.double() if x.is_floating_point() else x for x in examples)


def shapes_on(module: fx.GraphModule, examples: tuple[Tensor, ...]) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor in the graph."""
    shapes: dict[fx.Node, torch.Size] = {}

    class Interpreter(fx.Interpreter):
        def run_node(self, node: fx.Node):
            value = super().run_node(node)
            if isinstance(value, Tensor):
                shapes[node] = value.shape
            return value

    with torch.no_grad():
        Interpreter(module).run(*(x.clone() for x in examples))
    return shapes


@torch.no_grad()
def check_model(model: nn.Module, traced: Traced, examples: tuple[Tensor, ...]) -> None:
    """ConversionError unless the traced graph is the model, sample by sample, on the example.

    Tracing cannot see everything, and an operation that mixes the samples of a batch would mix the time-steps.
    """
    name = type(model).__name__
    model, inputs = _in_float64(model.eval() if not model.training else copy.deepcopy(model).eval(), examples)
    ours, _ = _in_float64(traced.module, ())

    def run(module: nn.Module, values: tuple[Tensor, ...]) -> Tensor:
        return module(*(x.clone() for x in values))

    try:
        expected = run(model, inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"{name} does not run on example_input in float64: {error}") from error
    if not isinstance(expected, Tensor):
        raise ConversionError(f"the output of {name} must be one tensor, got {type(expected).__name__}")
    if _differ(run(ours, inputs), expected):
        raise ConversionError(
            f"the traced graph of {name} differs from the model on example_input; look for in-place operations on tensors "
            "that are read again"
        )
    # Positive multiples and copies would hide a dependence that a scale does not show.
    other = tuple(2 * x.flip(0) + 0.125 if x.is_floating_point() else x.flip(0) for x in inputs)
    try:
        both = run(ours, tuple(torch.cat(pair) for pair in zip(inputs, other)))
        alone = run(model, other)
    except (RuntimeError, ValueError) as error:
        raise ConversionError(f"{name} does not take a batch twice as large as example_input: {error}") from error
    if _differ(both, torch.cat([expected, alone])):
        raise ConversionError(f"the output of {name} for a sample depends on the other samples of the batch")


@torch.no_grad()
def check_network(network: SpikingNetwork, reference: nn.Module, sites: dict[str, nn.Module], max_pool: str,
                   examples: tuple[Tensor, ...]) -> None:  # fmt: skip
    """ConversionError unless T = rho = 4 steps, calibrated exactly, are the ANN with activations of 4 levels, in float64."""
    levels = 4
    snn, inputs = _in_float64(network, examples)
    ann, _ = _in_float64(reference, ())
    nodes, generator = snn.nodes(), torch.Generator().manual_seed(0)
    for site, node in nodes.items():
        # Thresholds that no sum of inputs meets by accident: a tie may be rounded either way.
        jitter = 1 + 1e-3 * torch.rand((), generator=generator, dtype=torch.float64).item()
        source = next(s for s in sites if site == s or site.startswith(f"{s}_")) if site not in sites else site
        if source != site:
            node.v_threshold.copy_(nodes[source].v_threshold)
        else:
            node.v_threshold.mul_(jitter)
            set_module(ann, site, _Quantised(node.v_threshold, levels))
        node.v_init.copy_(node.v_threshold / 2)
    if max_pool == "avg":
        for name, module in list(ann.named_modules()):
            if isinstance(module, MAX_POOLS) and any(
                e.site == name and e.status == "replaced" for e in network.report.entries
            ):
                set_module(ann, name, average_of(module))
    snn._configure(levels, levels, None, "calibrated", {})
    try:
        ours = snn.rate(*inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(
            f"the converted network does not run on example_input: {error}", network.report
        ) from error
    if max_pool == "spike" and any(e.reason == "maximum over the spikes of each step" for e in network.report.entries):
        return  # by its nature another function than the ANN's
    theirs = ann(*inputs)
    if _differ(ours, theirs):
        error = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else math.inf
        raise ConversionError("the converted network is not the quantised ANN on example_input (largest difference "
                              f"{error:.3g}); what it computes cannot be vouched for", network.report)  # fmt: skip
