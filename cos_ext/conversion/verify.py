"""Checks of a conversion on an example: that the graph is the model, sample by sample, and the
network the quantised ANN.

They know nothing of the rules by which it was converted. On one sample of the example and on
another made from it, in the model's own dtype, and without a copy of its weights. What is checked
is the structure.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._batches import Inputs
from ..network.modules import Walked
from ..network.network import SpikingNetwork
from ..network.outputs import CONSTANT, STEPS, flattened
from ..network.pooling import average_of
from .copying import beside
from .counterparts import counterparts
from .forced import Forced, Quantised, agree
from .graphs import set_module
from .max_pooling import OF_SPIKES
from .report import ConversionError
from .state import Conversion

LEVELS = 2  # of the quantised ANN, and steps of the network, in the check
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)


class VerifyTrace:
    """Checks on the example that the traced graph is the model, sample by sample.

    Tracing cannot see everything, and an operation that mixes the samples of a batch would mix the
    time-steps. Leaves the model's output on the sample.
    """

    @torch.no_grad()
    def apply(self, conversion: Conversion) -> None:
        if conversion.examples is None:
            return
        name, names = conversion.name, conversion.inputs
        sample = tuple(x[:1] for x in conversion.examples)
        other = _others(sample)
        model, ours = beside(conversion.source), beside(conversion.model)
        expected, spec = pytree.tree_flatten(self._expected(conversion, model, sample))
        try:
            both = _run(ours, tuple(torch.cat(pair) for pair in zip(sample, other)), names)
            alone = pytree.tree_leaves(_run(model, other, names))
        except FAILURES as error:
            raise ConversionError(
                f"{name} does not take a batch of two samples: {error}; it must take any number"
            ) from error
        both, found = pytree.tree_flatten(_as_model(conversion, both))
        if found != spec or len(alone) != len(expected):
            raise ConversionError(
                f"the output of {name} has another structure for two samples, or traced, than for "
                "one; give the same tensors [B, ...] for any batch"
            )
        kinds = [_kind(*each) for each in zip(both, expected, alone)]
        if None in kinds:
            untraced = conversion.traced.why_not
            why = f"\nit cannot be traced: {untraced}" if untraced else ""
            alone = pytree.tree_leaves(_as_model(conversion, _run(ours, sample, names)))
            if not all(map(_same, alone, expected)):
                raise ConversionError(
                    f"the traced graph of {name} differs from the model on example_input; look for "
                    "in-place operations on tensors that are read again, for a batch of one that "
                    "is treated apart, and for questions about types, dtypes and gradients, which "
                    f"torch.fx answers as for no tensor{why}"
                )
            raise ConversionError(
                f"the output of {name} for a sample depends on the other samples of the batch; "
                f"compute it from each sample alone, since time is folded into the batch{why}"
            )
        conversion.expected = tuple(expected)
        if conversion.traced.graph is None:  # else the graph tells
            outputs = conversion.outputs
            known = tuple(k for n, k in enumerate(kinds) if k and n not in outputs.others)
            conversion.outputs = dataclasses.replace(outputs, kinds=known)

    @staticmethod
    def _expected(conversion: Conversion, model: nn.Module, sample: tuple[Tensor, ...]) -> Any:
        name, untraced = conversion.name, conversion.traced.graph is None
        try:
            expected = _run(model, sample, conversion.inputs)
            tensors, outputs = flattened(expected)
        except FAILURES as error:
            raise ConversionError(
                f"{name} does not run on the first sample of example_input: {error}"
            ) from error
        if untraced and not all(x.is_floating_point() for x in tensors):
            raise ConversionError(
                f"the output of {name} has tensors of {sorted({str(x.dtype) for x in tensors})}, "
                "and it cannot be traced; give the floating-point numbers that they come from"
            )
        conversion.outputs = outputs if untraced else conversion.outputs
        return expected


class VerifyNetwork:
    """Checks that T = rho = 2 steps, calibrated exactly, are the ANN with activations of 2 levels.

    Layer by layer: the mean currents of every site are those of the ANN, and whatever the neurons
    made of them, they hand on as many spikes as the ANN's activation has levels, in an order of
    their own. So rounding at one layer does not change what the next one sees. The ANN is the one
    after folding, which is compared with the model first.
    """

    @torch.no_grad()
    def apply(self, conversion: Conversion) -> None:
        if conversion.examples is None:
            return
        sample = tuple(x[:1] for x in conversion.examples)
        snn, ann = beside(conversion.network), beside(conversion.reference)
        assert isinstance(snn, SpikingNetwork)
        self._check_fold(conversion, ann, sample)
        pair = tuple(torch.cat(both) for both in zip(sample, _others(sample)))
        if not self._average_approximations(conversion, snn, ann):
            return
        quantised = self._quantise(conversion, snn, ann)
        theirs = pytree.tree_leaves(_as_model(conversion, _run(ann, pair, conversion.inputs)))
        forced = self._force(snn, quantised)
        try:
            snn.readout = cast(
                nn.ModuleList | None, conversion.readout and beside(conversion.readout)
            )
            ours = pytree.tree_leaves(snn.rate(*pair))
        except FAILURES as error:
            raise ConversionError(
                f"the converted network does not run on example_input: {error}", conversion.report
            ) from error
        for site, each in forced.items():
            if each.why_not:
                raise _wrong(conversion, f"at {site}: {each.why_not}")
        for mine, wanted in zip(ours, theirs, strict=True):
            if not _same(mine, wanted):
                same = getattr(mine, "shape", None) == getattr(wanted, "shape", ())
                apart = (mine.double() - wanted.double()).abs().max().item() if same else None
                size = "one of shapes" if apart is None else apart
                raise _wrong(conversion, f"in its output (largest difference {size})")
        dead = [site for site, each in quantised.items() if each.dead]
        if dead and conversion.traced.graph is None:
            raise ConversionError(
                f"example_input does not exercise {dead}: all its activations are equal there, so "
                "that a model that cannot be traced cannot be checked on it; take another example",
                conversion.report,
            )

    @staticmethod
    def _check_fold(conversion: Conversion, ann: nn.Module, sample: tuple[Tensor, ...]) -> None:
        expected = conversion.expected
        assert expected is not None
        if not conversion.folded:
            return  # it is the graph that has been compared
        ours = _as_model(conversion, _run(ann, sample, conversion.inputs))
        if not all(map(_same, pytree.tree_leaves(ours), expected)):
            raise ConversionError(
                "the model with its BatchNorm folded differs from the model on example_input; pass "
                "fold_batchnorm=False",
                conversion.report,
            )

    @staticmethod
    def _quantise(
        conversion: Conversion, snn: SpikingNetwork, ann: nn.Module
    ) -> dict[str, Quantised]:
        """Put activations of few levels into the ANN; by site."""
        made = {}
        for site, node in snn.nodes().items():
            if site not in conversion.copies:
                signed = site in snn.options["signed"]
                made[site] = Quantised(LEVELS, node.v_threshold.shape, signed)
                set_module(ann, site, made[site])
        return made

    @staticmethod
    def _force(snn: SpikingNetwork, quantised: dict[str, Quantised]) -> dict[str, Forced]:
        """Have the network's neurons hand on the ANN's activations, as spikes; by site."""
        snn._configure(LEVELS, LEVELS, None, "calibrated", {})
        snn._memory_limit = None
        root = snn.module.model if isinstance(snn.module, Walked) else snn.module
        known, forced = counterparts(snn, quantised), {}
        for site, (own, pool) in known.items():
            forced[site] = Forced(snn.nodes()[site], quantised[own], pool)
        for site, module in forced.items():
            set_module(root, site, module)
        return forced

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
                        f"{entry.site} cannot be checked: {average}; write another pooling",
                        conversion.report,
                    )
                return False
            set_module(ann, entry.site, average)
            if spikes:
                root = snn.module.model if isinstance(snn.module, Walked) else snn.module
                set_module(root, entry.site, average)
        return True


def _wrong(conversion: Conversion, what: str) -> ConversionError:
    return ConversionError(
        f"the converted network is not the quantised ANN on example_input, {what}; what it "
        "computes cannot be vouched for, please report it",
        conversion.report,
    )


def _run(module: nn.Module, inputs: tuple[Tensor, ...], names: Inputs) -> Any:
    return names.call(module, [x.clone() for x in inputs])


def _as_model(conversion: Conversion, given: Any) -> Any:
    """What a traced graph gives, which is flat, in the structure in which the model gives it."""
    return given if conversion.traced.graph is None else conversion.outputs.full(given)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return agree(ours, theirs)
    return type(ours) is type(theirs) and bool(ours == theirs)


def _kind(both: Any, first: Any, second: Any) -> str | None:
    """What a leaf is, by that of two samples and by those of either; None: no leaf of ours."""
    if _same(both, first) and _same(both, second):
        return CONSTANT
    if not all(isinstance(x, Tensor) and x.dim() for x in (both, first, second)):
        return None
    if first.shape[1:] != second.shape[1:] or not agree(both, torch.cat([first, second])):
        return None
    return STEPS


def _others(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Another sample for each input: neither a copy nor a multiple, which could hide a dependence
    of one sample on another.
    """
    generator = torch.Generator().manual_seed(1)
    made = []
    for x in inputs:
        turned = x.flatten().flip(0).view_as(x)
        if x.is_floating_point():
            spread = x.std().item() if x.numel() > 1 and x.std() > 0 else 1.0
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            turned = turned + spread * noise.to(x)
        made.append(turned)
    return tuple(made)
