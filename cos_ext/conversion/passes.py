"""The passes that make a spiking network of a trained ANN, in order. What each does is in its own
file, but for the first, the last, and the one that refuses; what may stand between neurons is
decided by the rules in rules/.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from ..network.inputs import example_of
from ..network.layout import lay_out, own_format
from ..network.network import SpikingNetwork
from .by_module import ClassifyModules, ReplaceModules
from .classify import Classify
from .differences import PlaceDifferences
from .finite import CheckComputed, ShowUnfit
from .fold import FoldBatchNorm
from .fuse import Fuse
from .graphs import called
from .layouts import AnyLayout
from .max_pooling import ChooseMaxPooling
from .normalise import NormaliseCalls, Observe
from .ownership import RefuseWrites
from .readout import CutReadout
from .report import ConversionError
from .rewrite import Rewrite
from .spiking import FindLayersOfSpikes
from .state import Conversion, Pass, Settings
from .tracing import trace
from .trainable import MakeTrainable
from .verify import VerifyNetwork, VerifyTrace
from .work import CountWork

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Trace:
    """Traces a copy of the model, or finds that only an example can vouch for it."""

    def apply(self, conversion: Conversion) -> None:
        name, inputs = conversion.name, conversion.inputs
        examples = dict(zip(inputs.names, conversion.examples or ()))
        spikes = conversion.settings.spikes
        traced = conversion.traced = trace(
            conversion.source, inputs, examples, spikes=spikes, runs=conversion.runs
        )
        conversion.outputs = traced.outputs or conversion.outputs
        if conversion.examples is not None:
            return
        if traced.graph is None:
            raise ConversionError(
                f"{name} cannot be traced by torch.fx ({traced.why_not}); pass example_input, on "
                "whose shapes it is run and traced"
            )
        if traced.asks:
            raise ConversionError(
                f"forward of {', '.join(traced.asks)} asks for types (isinstance, is_tensor), "
                "which torch.fx answers as for no tensor; pass example_input, on which the traced "
                "graph is compared with the model"
            )


class RefuseOffenders:
    """Ends the conversion where anything was refused, with everything that was."""

    def apply(self, conversion: Conversion) -> None:
        report, sites = conversion.report, conversion.traced.sites
        offenders = report.unsupported()
        if offenders:
            listed = "\n".join(f"  {e.site} ({e.kind}): {e.reason}" for e in offenders)
            untraced = conversion.traced.why_not
            listed += f"\nit cannot be traced: {untraced}" if untraced else ""
            raise ConversionError(
                f"{conversion.name} cannot be converted; {len(offenders)} offending:\n{listed}",
                report,
            )
        unknown = sorted(set(conversion.settings.thresholds) - set(sites))
        if unknown:
            raise ValueError(
                f"thresholds names {unknown}, which are no activation call sites; those are "
                f"{list(sites)}"
            )


class Build:
    """Makes the network of the rewritten model, in eval mode, without gradients."""

    def apply(self, conversion: Conversion) -> None:
        settings = conversion.settings
        module: nn.Module | None = conversion.walked
        if module is None:
            module = fx.GraphModule(conversion.model, conversion.graph, conversion.name)
        options = {
            "nonlinear": settings.nonlinear,
            "max_pool": settings.max_pool,
            "fold_batchnorm": settings.fold_batchnorm,
            "fuse": settings.fuse,
            "sites": tuple(conversion.traced.sites),
            "spikes": settings.spikes,
            "signed": conversion.traced.signed,
            "copies": conversion.copies,
            "readout": settings.readout,
            "memory_format": settings.memory_format,
            "own_format": own_format(conversion.source),
            "inputs": conversion.inputs,
            "outputs": conversion.outputs,
            "ranks": _ranks(conversion),
            "shapes": conversion.traced.shapes,
            "ran_on": conversion.traced.ran_on,
        }
        conversion.network = SpikingNetwork(
            module.eval().requires_grad_(False),
            conversion.report,
            settings.timesteps,
            settings.rho,
            settings.iterations,
            options,
            settings.emission,
            settings.calibration,
        ).eval()
        lay_out(conversion.network)
        if settings.readout == "mean":
            conversion.network.readout = conversion.readout


def _ranks(conversion: Conversion) -> tuple[tuple[int, int | None] | None, ...]:
    """The fewest and the most dimensions (None: any) that each input may have for the convolutions
    and Linear layers that read it.
    """
    if conversion.walked is not None:
        return ()
    ranks: list[tuple[int, int | None] | None] = []
    for node in conversion.graph.nodes:
        if node.op == "placeholder":
            readers = [called(conversion.model, u) for u in node.users if u.op == "call_module"]
            convolved = [m.weight.dim() for m in readers if isinstance(m, CONVOLUTIONS)]
            linear = any(isinstance(m, nn.Linear) for m in readers)
            of_linear = (2, None) if linear else None
            ranks.append((convolved[0], convolved[0]) if convolved else of_linear)
    return tuple(ranks)


BEFORE: tuple[Pass, ...] = (Trace(), CheckComputed(), VerifyTrace())
BY_GRAPH: tuple[Pass, ...] = (
    NormaliseCalls(),
    RefuseWrites(),
    Observe(),
    FoldBatchNorm(),
    CutReadout(),
    Classify(),
    ChooseMaxPooling(),
    RefuseOffenders(),
    Rewrite(),
    PlaceDifferences(),
    CountWork(),
    Fuse(),
    AnyLayout(),
    ShowUnfit(),
    FindLayersOfSpikes(),
    Build(),
    VerifyNetwork(),
    MakeTrainable(),
)
BY_MODULE: tuple[Pass, ...] = (
    ClassifyModules(),
    RefuseOffenders(),
    ReplaceModules(),
    Build(),
    VerifyNetwork(),
    MakeTrainable(),
)


def converted(model: nn.Module, settings: Settings, example_input: Any) -> SpikingNetwork:
    """The network of a model.

    Where the graph of torch.fx has offenders, and an example is given, the model is run on its
    shapes, and traced again: sizes that forward computes are plain numbers then.

    Raises:
        ConversionError: what :func:`cos_ext.convert` says; of two attempts the first one's.
    """
    conversion = Conversion(model, settings)
    if example_input is not None:
        conversion.inputs, conversion.examples = example_of(model, example_input)
    try:
        return _passed(conversion)
    except ConversionError:
        refused = conversion.report.unsupported() and conversion.traced.graph is not None
        if not refused or conversion.examples is None or conversion.traced.ran_on:
            raise
        again = Conversion(model, settings, conversion.examples, conversion.inputs, runs=True)
        try:
            return _passed(again)
        except ConversionError:
            pass
        raise


def _passed(conversion: Conversion) -> SpikingNetwork:
    for step in BEFORE:
        step.apply(conversion)
    for step in BY_MODULE if conversion.traced.graph is None else BY_GRAPH:
        step.apply(conversion)
    return conversion.network
