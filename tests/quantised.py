"""The quantised ANN, by replacing torch's functions while the source model runs: the reference of
what convert() must equal. It shares no code with cos_ext's conversion, but for the order of call
sites. No tests here.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

from cos_ext.conversion.tracing import trace

LEVELS = 5


class Quantised(TorchFunctionMode):
    """Every rectifier that is called, by module, function or method, becomes the quantised one of
    the next threshold.
    """

    def __init__(self, thresholds):
        self.thresholds = iter(thresholds)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_"):
            x, theta = args[0], next(self.thresholds)
            with torch._C.DisableTorchFunctionSubclass():
                y = torch.clamp(torch.floor(x * LEVELS / theta + 0.5) / LEVELS, 0, 1) * theta
                return x.copy_(y) if name.endswith("_") or (kwargs or {}).get("inplace") else y
        return func(*args, **(kwargs or {}))


def thresholds_of(model, inputs):
    """A threshold for every call site, some per channel, that about a tenth of the inputs exceed;
    also the order of calls.
    """
    traced = trace(model)
    found = {}
    handles = [
        module.register_forward_pre_hook(
            lambda m, args, site=site: found.__setitem__(site, args[0].detach().clone())
        )
        for site, module in traced.sites.items()
    ]
    traced.module(*(x.clone() for x in inputs))
    for handle in handles:
        handle.remove()
    thresholds = {}
    for number, (site, x) in enumerate(found.items()):
        theta = x.flatten().quantile(0.9).clamp_min(0.05)
        if number % 2 and x.dim() == 4:  # per channel
            theta = theta * (1 + torch.rand(x.shape[1], 1, 1, dtype=x.dtype))
        thresholds[site] = theta
    return thresholds
