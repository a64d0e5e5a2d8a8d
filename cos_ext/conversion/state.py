"""What the passes of a conversion hand on to each other. No decisions here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from .._batches import Inputs
from ..general import Neuron
from ..network.modules import Walked
from ..network.network import SpikingNetwork
from ..network.outputs import ONE, Outputs
from ..neuron import IFNode
from .facts import Facts
from .report import ConversionReport, Entry
from .rules import Refusal
from .tracing import Traced

OF_MEANS = "computed on running means, no spikes"


@dataclass(frozen=True)
class Settings:
    """What the user asked for: the arguments of :func:`cos_ext.convert`."""

    timesteps: int
    rho: int = 0
    iterations: int | None = 1
    emission: str = "calibrated"
    calibration: str = "cos"
    execution: str = "steps"
    thresholds: Mapping[str, float | Tensor] = field(default_factory=dict)
    max_pool: str = "error"
    fold_batchnorm: bool | str = True
    fuse: bool | str = True
    readout: str = "error"
    memory_format: str = "auto"
    trainable: bool = False
    neuron: Neuron | None = None
    nonlinear: str = "difference"
    spikes: str = "activations"


@dataclass
class Conversion:
    """A conversion on its way. A pass reads what earlier passes left, and adds its own.

    source: the user's model, never modified. settings, examples: convert()'s arguments.
    inputs: which of forward's arguments are inputs. runs: it is traced by running it, not by
    torch.fx.

    traced, expected: from Trace, the copy that is rewritten and the leaves of the model's output on
    the example. outputs: their structure, and what becomes of each.
    facts: what is known of the values in the graph. unfolded: by BatchNorm, why it was not folded.
    folded: by layer, the entry of the BatchNorm that it took in. reference: the ANN after folding.
    neurons, averages, before: what Rewrite puts in; a max pooling becomes an average, or moves
    before its neurons. differences: calls that are computed on running means; by_means: modules, in
    a model that is walked. copies: further neurons of a site, pooled before. readout: what was cut
    off the end. shapes: on the example. refused: calls, and what reads them. first_sizes, walked:
    of a model that cannot be traced. network: the result.
    """

    source: nn.Module
    settings: Settings
    examples: tuple[Tensor, ...] | None = None
    inputs: Inputs = None  # type: ignore[assignment]  # set below
    runs: bool = False
    report: ConversionReport = field(default_factory=ConversionReport)
    traced: Traced = field(init=False)
    expected: tuple[Any, ...] | None = None
    outputs: Outputs = ONE
    facts: Facts = field(default_factory=Facts)
    unfolded: dict[str, str] = field(default_factory=dict)
    folded: dict[str, Entry] = field(default_factory=dict)
    reference: nn.Module = field(init=False)
    neurons: dict[str, IFNode] = field(default_factory=dict)
    averages: dict[str, nn.Module] = field(default_factory=dict)
    before: dict[fx.Node, nn.Module] = field(default_factory=dict)
    differences: set[fx.Node] = field(default_factory=set)
    by_means: dict[str, nn.Module] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    readout: nn.ModuleList | None = None
    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)
    refused: set[fx.Node] = field(default_factory=set)
    first_sizes: dict[str, Fraction] = field(default_factory=dict)
    walked: Walked | None = None
    network: SpikingNetwork = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = self.inputs or Inputs.of(self.source)

    @property
    def name(self) -> str:
        """What messages call the model."""
        return type(self.source).__name__

    @property
    def model(self) -> nn.Module:
        """The copy of the model that is rewritten."""
        return self.traced.module

    @property
    def graph(self) -> fx.Graph:
        """The copy's graph; there is none where the model could not be traced."""
        assert isinstance(self.traced.module, fx.GraphModule)
        return self.traced.module.graph

    def add(self, site: str, kind: str, status: str, reason: str = "", threshold: str = "") -> None:
        self.report.entries.append(Entry(site, kind, status, threshold, reason))

    def refuse(self, site: str, kind: str, why: Refusal, node: fx.Node | None = None) -> None:
        """Enter an offender, once, with the line of the source that made the node."""
        if node is not None:
            self.refused.add(node)
        line = self.traced.lines.get(node.name, "") if node is not None else ""
        reason = f"{why} [{line}]" if line else str(why)
        entry = Entry(site, kind, "unsupported", "", reason)
        if entry not in self.report.entries:
            self.report.entries.append(entry)


class Pass(Protocol):
    """One step of a conversion."""

    def apply(self, conversion: Conversion) -> None: ...
