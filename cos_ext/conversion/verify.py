"""Checks of a conversion on an example: that the graph is the model, sample by sample, and the
network the quantised ANN.

They know nothing of the rules by which it was converted.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, fx, nn

from ..network.modules import Walked
from ..network.network import SpikingNetwork
from ..network.pooling import average_of
from ..qcfs import quantise
from .report import ConversionError
from .tracing import Traced, set_module


class _Quantised(nn.Module):
    """What exactly calibrated neurons with threshold θ compute in `levels` steps; QCFS with any
    θ.
    """

    def __init__(self, threshold: Tensor, levels: int) -> None:
        super().__init__()
        self.threshold, self.levels = threshold, levels

    def forward(self, x: Tensor) -> Tensor:
        return quantise(x, self.threshold, self.levels)


def _differ(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape != theirs.shape or not torch.allclose(
        ours, theirs, rtol=1e-6, atol=1e-9, equal_nan=True
    )


def _in_float64(
    module: nn.Module, examples: tuple[Tensor, ...]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    # In float32 a sum may be rounded across a level of a quantised activation, which proves
    # nothing.
    return copy.deepcopy(module).double(), tuple(
        x.double() if x.is_floating_point() else x for x in examples
    )


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
def check_model(model: nn.Module, traced: Traced, examples: tuple[Tensor, ...]) -> Tensor:
    """ConversionError unless the traced graph is the model, sample by sample, on the example.
    Returns the model's output.

    Tracing cannot see everything, and an operation that mixes the samples of a batch would mix the
    time-steps.
    """
    name = type(model).__name__
    model, inputs = _in_float64(
        model.eval() if not model.training else copy.deepcopy(model).eval(), examples
    )
    ours, _ = _in_float64(traced.module, ())

    def run(module: nn.Module, values: tuple[Tensor, ...]) -> Tensor:
        return module(*(x.clone() for x in values))

    try:
        expected = run(model, inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(
            f"{name} does not run on example_input in float64: {error}"
        ) from error
    if not isinstance(expected, Tensor):
        raise ConversionError(
            f"the output of {name} must be one tensor, got {type(expected).__name__}"
        )
    if _differ(run(ours, inputs), expected):
        raise ConversionError(
            f"the traced graph of {name} differs from the model on example_input; look for "
            "in-place operations on tensors "
            "that are read again"
        )
    other = _others(inputs)
    try:
        both = run(ours, tuple(torch.cat(pair) for pair in zip(inputs, other)))
        alone = run(model, other)
    except (RuntimeError, ValueError) as error:
        raise ConversionError(
            f"{name} does not take a batch twice as large as example_input: {error}"
        ) from error
    if _differ(both, torch.cat([expected, alone])):
        raise ConversionError(
            f"the output of {name} for a sample depends on the other samples of the batch"
        )
    return expected


@torch.no_grad()
def check_network(
    network: SpikingNetwork,
    reference: nn.Module,
    traced: Traced,
    examples: tuple[Tensor, ...],
    expected: Tensor,
) -> None:
    """ConversionError unless T = rho = 4 steps, calibrated exactly, are the ANN with activations of
    4 levels, in float64.

    Args:
        reference: the ANN after folding and before neurons; `expected` is the source model's output
            on the example.

    On the example and on further inputs made from it, at thresholds that these inputs exercise:
    what is checked is the structure, and with thresholds that nothing reaches it would pass unseen.
    """
    levels, report = 4, network.report
    snn, inputs = _in_float64(network, examples)
    ann, _ = _in_float64(reference, ())
    eps = max(
        [torch.finfo(p.dtype).eps for p in network.parameters() if p.is_floating_point()],
        default=1e-12,
    )
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    folded = ann(*(x.clone() for x in inputs))
    if folded.shape != expected.shape or (folded - expected).abs().max() > 1e4 * eps * scale:
        raise ConversionError(
            "the model with its BatchNorm folded differs from the model on example_input", report
        )
    inputs = tuple(torch.cat(pair) for pair in zip(inputs, _others(inputs)))
    copies, nodes = network.options["copies"], snn.nodes()
    thresholds = _exercised(ann, [site for site in nodes if site not in copies], inputs)
    dead = []
    for site, node in nodes.items():
        theta = thresholds[copies.get(site, site)]
        node.v_threshold = theta.expand(node.v_threshold.shape).clone()
        if site not in copies:
            # A threshold of its own for every channel, where there are such.
            node.v_threshold *= 1 + torch.linspace(
                0, 0.5, node.v_threshold.numel(), dtype=torch.float64
            ).view_as(node.v_threshold)
            quantised = _Quantised(node.v_threshold, levels)
            quantised.register_forward_hook(
                lambda m, i, o, site=site: (
                    dead.append(site) if (o == o.flatten()[0]).all() else None
                )
            )
            set_module(ann, site, quantised)
    for site, source in copies.items():
        nodes[site].v_threshold = nodes[source].v_threshold.clone()
    for node in nodes.values():
        node.v_init = node.v_threshold / 2
    # Poolings that are approximations are compared as averages, on both sides.
    for entry in report.entries:
        spikes = entry.reason == "maximum over the spikes of each step"
        if entry.status != "replaced" and not spikes:
            continue
        average = average_of(ann.get_submodule(entry.site))
        if isinstance(average, str):
            if traced.graph is None:
                raise ConversionError(f"{entry.site} cannot be checked: {average}", report)
            return
        set_module(ann, entry.site, average)
        if spikes:
            root = snn.module.model if isinstance(snn.module, Walked) else snn.module
            set_module(root, entry.site, average)
    snn._configure(levels, levels, None, "calibrated", {})
    try:
        ours = snn.rate(*inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(
            f"the converted network does not run on example_input: {error}", report
        ) from error
    theirs = ann(*inputs)
    if _differ(ours, theirs):
        error = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else math.inf
        raise ConversionError(
            "the converted network is not the quantised ANN on example_input (largest difference "
            f"{error:.3g}); what it computes cannot be vouched for",
            report,
        )
    if dead and traced.graph is None:
        raise ConversionError(
            f"example_input does not exercise {dead}: all its activations are equal there, so that "
            "a model that cannot "
            "be traced cannot be checked on it",
            report,
        )


def _others(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Further inputs: neither copies nor multiples, which could hide a dependence of one sample on
    another.
    """
    generator = torch.Generator().manual_seed(1)
    made = []
    for x in inputs:
        if x.is_floating_point():
            spread = x.std().item() if x.numel() > 1 and x.std() > 0 else 1.0
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            made.append(x.flip(0) + spread * noise)
        else:
            made.append(x.flip(0))
    return tuple(made)


def _exercised(ann: nn.Module, sites: list[str], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """A threshold for each site that about a tenth of its positive inputs exceed, and that no sum
    of inputs meets by accident.
    """
    found: dict[str, Tensor] = {}

    def note(module: nn.Module, args: tuple, site: str) -> None:
        positive = args[0][args[0] > 0]
        found[site] = (
            positive.quantile(0.9)
            if 0 < positive.numel() < 2**24
            else positive.mean()
            if positive.numel()
            else args[0].new_ones(())
        )

    hooks = [
        ann.get_submodule(site).register_forward_pre_hook(lambda m, a, site=site: note(m, a, site))
        for site in sites
    ]
    try:
        ann(*(x.clone() for x in inputs))
    finally:
        for hook in hooks:
            hook.remove()
    generator = torch.Generator().manual_seed(0)
    return {
        site: theta * (1 + 1e-3 * torch.rand((), generator=generator, dtype=torch.float64))
        for site, theta in found.items()
    }
