"""Who takes part in a case: builds the network of every row, and checks that they agree.

Time and memory are not taken here.
"""

from __future__ import annotations

import copy
import operator
from pathlib import Path

import torch
from _shared.checkpoints import DEMO_CHECKPOINT, folded, load, set_module
from _shared.timing import Call
from torch import nn

import cos_ext
from cos_ext import calibrate_thresholds, convert, data, models

from . import peer
from .cases import (
    ANN,
    CAPTURED,
    COMPILED,
    DENSE,
    FLOOR,
    LAYOUTS,
    NETWORKS,
    PEER,
    PLAIN,
    SHIPPED,
    TRAINED,
    Case,
    Missing,
)
from .neurons import Handed, PlainNeurons


class Contestants:
    """What makes the rows of one case; the same weights, thresholds and images in every process."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.real = case.network in (SHIPPED, TRAINED)
        make = self._real if self.real else self._random
        self.ann, images, self.thresholds = make()
        self.calibration_images = [images[: min(case.batch, 4)]]
        self.images = images[-case.batch :].to(case.device, case.torch_dtype)
        self.networks: dict[str, cos_ext.SpikingNetwork] = {}

    def _real(self) -> tuple[nn.Module, torch.Tensor, None]:
        case = self.case
        ann, record = load(Path(case.checkpoint) if case.checkpoint else DEMO_CHECKPOINT)
        images = data.load(record["dataset"], case.data or None, size=case.size)
        return ann.requires_grad_(False), next(iter(images.batches(case.batch)))[0], None

    def _random(self) -> tuple[nn.Module, torch.Tensor, dict[str, float | torch.Tensor]]:
        torch.manual_seed(0)
        case = self.case
        classes, stem = (10, "cifar") if case.size < 100 else (1000, "imagenet")
        ann = models.build(case.network, classes, stem=stem, activation=nn.ReLU)
        ann = ann.eval().requires_grad_(False)
        images = torch.randn(case.batch + min(case.batch, 4), 3, case.size, case.size)
        thresholds = calibrate_thresholds(
            ann,
            [images[: min(case.batch, 4)]],
            method="percentile",
            percentile=99.0,
            progress=False,
        )
        return ann, images, thresholds

    def network(self, row: str = "cos_ext") -> cos_ext.SpikingNetwork:
        if row not in self.networks:
            network = convert(
                self.ann,
                timesteps=self.case.timesteps,
                rho=self.case.rho,
                thresholds=self.thresholds,
                **NETWORKS[row],
            )
            if row == DENSE:
                network.convolution = "dense"
            self.networks[row] = network.to(self.case.device, self.case.torch_dtype)
        # What no memory format changes is shared: a VGG-16's Linear layers hold half a gigabyte.
        shared = {id(p): p for p in self.networks[row].parameters() if p.dim() != 4}
        return copy.deepcopy(self.networks[row], shared)

    @staticmethod
    def variants(row: str) -> list[str]:
        """The forms of a row, of which the fastest is measured: layouts, and for the peer step
        modes.
        """
        if row == PEER:
            return [f"{mode} {layout}" for mode in "ms" for layout in LAYOUTS]
        return list(LAYOUTS)

    def make(self, row: str, variant: str) -> Call:
        """A call that runs a variant of the row once. Raises Missing where it cannot be run
        here.
        """
        *mode, layout = variant.split()
        images = self.images.to(memory_format=LAYOUTS[layout])
        if row == PEER:
            module = peer.converted(self._relu(), self.calibration_images, self.case, *mode)
            module = module.to(memory_format=LAYOUTS[layout])
            return peer.run(module, images, self.case.timesteps, *mode)
        if row == CAPTURED and self.case.device != "cuda":
            raise Missing("a graph needs CUDA")
        module = self._module(row).to(memory_format=LAYOUTS[layout])
        if row == CAPTURED:
            captured = module.capture(images)
            return lambda: captured(images)
        if row == COMPILED:
            module = torch.compile(module, dynamic=False)
        return lambda: module(images)

    def _module(self, row: str) -> nn.Module:
        if row == ANN:
            return folded(self.ann, relu=True).to(self.case.device, self.case.torch_dtype)
        if row == FLOOR:
            return self._floor()
        if row in (PLAIN, COMPILED):
            return self._plain(stacked=row == COMPILED)
        return self.network(row)

    def _relu(self) -> nn.Module:
        """The ANN as the peer converts it."""
        return folded(self.ann, relu=True) if self.real else self.ann

    def _unfused(self) -> tuple[nn.Module, dict[str, cos_ext.IFNode]]:
        network = self.network("cos_ext")  # without fusion: every layer is a module of its own
        network.convolution = "dense"
        return network.module, network.nodes()

    def _floor(self) -> nn.Module:
        module, nodes = self._unfused()
        for site, node in nodes.items():
            set_module(module, site, Handed(self.case.steps, node.static_input))
        # Without dead code elimination: the convolutions of the other operand still run.
        for node in [n for n in module.graph.nodes if n.target is operator.add]:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        module.recompile()
        return module

    def _plain(self, stacked: bool = False) -> nn.Module:
        module, nodes = self._unfused()
        steps, rho = self.case.steps, self.case.rho
        for site, node in nodes.items():
            plain = PlainNeurons(
                node.v_threshold, node.v_init, steps, rho, node.static_input, stacked
            )
            set_module(module, site, plain)
        return module

    # Checks

    @torch.inference_mode()
    def check(self, rows: list[str]) -> None:
        """Plain neurons give EQUAL outputs; fused and counted networks agree with theirs in
        float64. Or SystemExit.
        """
        some = self.images[: min(len(self.images), 4)]
        for layout in LAYOUTS:
            self._check_plain(some, layout)
        wide = some[:1].double()
        found: dict[str, torch.Tensor] = {}
        for row in (row for row in rows if row in NETWORKS):
            twin = row.removesuffix(", fused").replace("counts", "even")
            if twin == row:
                continue
            for name in {row, twin} - found.keys():
                # A copy of its own: parameters of self.network's are shared.
                found[name] = copy.deepcopy(self.network(name)).double()(wide)
            near = 1e-9 * found[twin].abs().max().item()
            if not torch.allclose(found[row], found[twin], rtol=1e-9, atol=near):
                raise SystemExit(f"{self.case}: {row} and {twin} differ in float64")

    def _check_plain(self, images: torch.Tensor, layout: str) -> None:
        images = images.to(memory_format=LAYOUTS[layout])
        network = self.network("cos_ext").to(memory_format=LAYOUTS[layout])
        network.convolution = "dense"  # sums in another order would move spikes
        ours = network(images)
        (plain,) = self._plain().to(memory_format=LAYOUTS[layout])(images)
        plain = plain.unflatten(0, (self.case.steps, -1))[: self.case.timesteps]
        if not torch.equal(ours, plain):
            raise SystemExit(f"{self.case}: cos_ext and plain torch operations differ ({layout})")

    @torch.inference_mode()
    def spike_rate(self) -> float:
        """Spikes per neuron and step, over all layers, in the first images of the batch."""
        network = self.network("cos_ext")
        layers = network.statistics([self.images[:4]], progress=False).layers.values()
        places = sum(layer.neurons * layer.timesteps for layer in layers)
        return sum(layer.spikes for layer in layers) / places
