"""Checks of a conversion on an example: that the graph is the model, sample by sample, and the
network the quantised ANN.

They know nothing of the rules by which it was converted. On the example and on further inputs made
from it, at thresholds that these inputs exercise: what is checked is the structure, and with
thresholds that nothing reaches it would pass unseen.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._batches import Inputs
from ..network.modules import Walked
from ..network.network import SpikingNetwork
from ..network.pooling import average_of
from ..qcfs import quantise
from .graphs import set_module
from .max_pooling import OF_SPIKES
from .report import ConversionError
from .state import Conversion

Module = TypeVar("Module", bound=nn.Module)


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


def _in_float64(module: Module, examples: tuple[Tensor, ...]) -> tuple[Module, tuple[Tensor, ...]]:
    """Copies: in float32 a sum may be rounded across a level, which proves nothing."""
    wide = tuple(x.double() if x.is_floating_point() else x for x in examples)
    return copy.deepcopy(module).double(), wide


LEVELS = 4  # of the quantised ANN, and steps of the network, in the check


class VerifyTrace:
    """Checks on the example that the traced graph is the model, sample by sample.

    Tracing cannot see everything, and an operation that mixes the samples of a batch would mix the
    time-steps. Leaves the model's output on the example.
    """

    @torch.no_grad()
    def apply(self, conversion: Conversion) -> None:
        if conversion.examples is None:
            return
        name, source = conversion.name, conversion.source
        source = copy.deepcopy(source).eval() if source.training else source.eval()
        model, inputs = _in_float64(source, conversion.examples)
        ours, _ = _in_float64(conversion.model, ())
        expected = self._expected(name, model, inputs, conversion.inputs)
        if _differ(_run(ours, inputs, conversion.inputs), expected):
            raise ConversionError(
                f"the traced graph of {name} differs from the model on example_input; look for "
                "in-place operations on tensors that are read again"
            )
        other = _others(inputs)
        try:
            pairs = tuple(torch.cat(pair) for pair in zip(inputs, other))
            both = _run(ours, pairs, conversion.inputs)
            alone = _run(model, other, conversion.inputs)
        except (RuntimeError, ValueError) as error:
            raise ConversionError(
                f"{name} does not take a batch twice as large as example_input: {error}"
            ) from error
        if _differ(both, torch.cat([expected, alone])):
            raise ConversionError(
                f"the output of {name} for a sample depends on the other samples of the batch"
            )
        conversion.expected = expected

    @staticmethod
    def _expected(name: str, model: nn.Module, inputs: tuple[Tensor, ...], names: Inputs) -> Tensor:
        try:
            expected = _run(model, inputs, names)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConversionError(
                f"{name} does not run on example_input in float64: {error}"
            ) from error
        if not isinstance(expected, Tensor):
            raise ConversionError(
                f"the output of {name} must be one tensor, got {type(expected).__name__}"
            )
        return expected


class VerifyNetwork:
    """Checks that T = rho = 4 steps, calibrated exactly, are the ANN with activations of 4 levels,
    in float64. The ANN is the one after folding, which is compared with the model first.
    """

    @torch.no_grad()
    def apply(self, conversion: Conversion) -> None:
        if conversion.examples is None:
            return
        report, traced = conversion.report, conversion.traced.graph is not None
        snn, inputs = _in_float64(conversion.network, conversion.examples)
        ann, _ = _in_float64(conversion.reference, ())
        self._check_fold(conversion, ann, inputs)
        inputs = tuple(torch.cat(pair) for pair in zip(inputs, _others(inputs)))
        dead = self._quantise(conversion, snn, ann, inputs)
        if not self._average_approximations(conversion, snn, ann):
            return
        snn._configure(LEVELS, LEVELS, None, "calibrated", {})
        try:
            ours = snn.rate(*inputs)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConversionError(
                f"the converted network does not run on example_input: {error}", report
            ) from error
        theirs = _run(ann, inputs, conversion.inputs)
        if _differ(ours, theirs):
            same = ours.shape == theirs.shape
            difference = (ours - theirs).abs().max().item() if same else math.inf
            raise ConversionError(
                "the converted network is not the quantised ANN on example_input (largest "
                f"difference {difference:.3g}); what it computes cannot be vouched for",
                report,
            )
        if dead and not traced:
            raise ConversionError(
                f"example_input does not exercise {dead}: all its activations are equal there, so "
                "that a model that cannot be traced cannot be checked on it",
                report,
            )

    @staticmethod
    def _check_fold(conversion: Conversion, ann: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        expected = conversion.expected
        assert expected is not None
        parameters = (p for p in conversion.network.parameters() if p.is_floating_point())
        eps = max((torch.finfo(p.dtype).eps for p in parameters), default=1e-12)
        scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        folded = _run(ann, inputs, conversion.inputs)
        if folded.shape != expected.shape or (folded - expected).abs().max() > 1e4 * eps * scale:
            raise ConversionError(
                "the model with its BatchNorm folded differs from the model on example_input",
                conversion.report,
            )

    @staticmethod
    def _quantise(
        conversion: Conversion, snn: SpikingNetwork, ann: nn.Module, inputs: tuple[Tensor, ...]
    ) -> list[str]:
        """Thresholds that the inputs exercise, in both. Returns the call sites, filled as the ANN
        runs, whose activations are all equal.
        """
        copies, nodes = conversion.copies, snn.nodes()
        sites = [site for site in nodes if site not in copies]
        thresholds = _exercised(ann, sites, inputs, conversion.inputs)
        dead: list[str] = []

        def note(site: str, module: nn.Module, args: Any, out: Tensor) -> None:
            if (out == out.flatten()[0]).all():
                dead.append(site)

        for site, node in nodes.items():
            if site in copies:
                continue
            theta = thresholds[site].expand(node.v_threshold.shape).clone()
            # A threshold of its own for every channel, where there are such.
            spread = torch.linspace(0, 0.5, theta.numel(), dtype=torch.float64)
            node.v_threshold = theta * (1 + spread.view_as(theta))
            quantised = _Quantised(node.v_threshold, LEVELS)
            quantised.register_forward_hook(functools.partial(note, site))
            set_module(ann, site, quantised)
        for site, origin in copies.items():
            nodes[site].v_threshold = nodes[origin].v_threshold.clone()
        for node in nodes.values():
            node.v_init = node.v_threshold / 2
        return dead

    @staticmethod
    def _average_approximations(
        conversion: Conversion, snn: SpikingNetwork, ann: nn.Module
    ) -> bool:
        """Compare poolings that are approximations as averages, on both sides; False where there is
        no such average, and nothing can be compared.
        """
        for entry in conversion.report.entries:
            spikes = entry.reason == OF_SPIKES
            if entry.status != "replaced" and not spikes:
                continue
            average = average_of(ann.get_submodule(entry.site))
            if isinstance(average, str):
                if conversion.traced.graph is None:
                    raise ConversionError(
                        f"{entry.site} cannot be checked: {average}", conversion.report
                    )
                return False
            set_module(ann, entry.site, average)
            if spikes:
                root = snn.module.model if isinstance(snn.module, Walked) else snn.module
                set_module(root, entry.site, average)
        return True


def _run(module: nn.Module, inputs: tuple[Tensor, ...], names: Inputs) -> Tensor:
    return names.call(module, [x.clone() for x in inputs])


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


def _exercised(
    ann: nn.Module, sites: list[str], inputs: tuple[Tensor, ...], names: Inputs
) -> dict[str, Tensor]:
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
        _run(ann, inputs, names)
    finally:
        for hook in hooks:
            hook.remove()
    generator = torch.Generator().manual_seed(0)
    return {
        site: theta * (1 + 1e-3 * torch.rand((), generator=generator, dtype=torch.float64))
        for site, theta in found.items()
    }
