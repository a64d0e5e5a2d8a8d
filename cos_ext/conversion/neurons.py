"""Making the neurons of a call site. Where they go in is the business of the passes."""

from __future__ import annotations

import torch
from torch import nn

from ..general import SIGNED
from ..neuron import IFNode
from ..qcfs import QCFS
from .rules import Refusal
from .rules.rectifiers import Signed, clip_of
from .state import Conversion

NO_THRESHOLD = Refusal(
    "has no threshold of its own",
    "give one in thresholds={...} (cos_ext.calibrate_thresholds finds them)",
)


def make_neuron(
    conversion: Conversion, site: str, module: nn.Module, *, static: bool, inplace: bool
) -> Refusal | None:
    """Make the neurons of a call site and their line in the report, or say why there can be none.

    static: their input is the same at every step, and read once. inplace: they may write over it.
    """
    clip, thresholds = clip_of(module), conversion.settings.thresholds
    own = module.threshold.detach() if isinstance(module, QCFS) else clip
    given = thresholds.get(site, own)
    if given is None:
        return NO_THRESHOLD
    parameters = (*module.parameters(), *conversion.model.parameters())
    reference = next((p for p in parameters if p.is_floating_point()), None)
    if isinstance(given, float) and reference is not None:
        # A float64 model's θ is not rounded to torch's default.
        given = torch.tensor(given, dtype=reference.dtype)
    try:
        # timesteps is set by the network; static_input needs one from the start.
        kind = SIGNED if isinstance(module, Signed) else None
        neuron = IFNode(given, timesteps=1, static_input=static, inplace=inplace, neuron=kind)
        if reference is not None:
            neuron.to(device=reference.device, dtype=reference.dtype)
    except (TypeError, ValueError) as error:
        return Refusal(
            str(error), "see the docstring of cos_ext.convert for what thresholds may be"
        )
    theta = neuron.v_threshold
    if theta.dim() == 0:
        shown = f"{theta.item():.6g}"
    else:
        shown = f"{theta.min().item():.4g}..{theta.max().item():.4g}"
    origin = "from thresholds" if site in thresholds else "learned" if clip is None else "its clip"
    reason = f"{origin}; static input, read once" if static else origin
    asked = conversion.settings.neuron
    if asked is not None and asked.falls and kind is None:
        reason += "; may send less than 0 in all, as no rectifier does"
    neuron.in_network = True
    conversion.neurons[site] = neuron
    conversion.add(site, conversion.traced.origin[site], "converted", reason, shown)
    return None
