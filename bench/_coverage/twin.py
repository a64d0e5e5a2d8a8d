"""What "exact" is held against: the network as its author wrote it, with quantisers put in while it
runs.

Nothing of cos_ext is used here, neither its tracing nor its rules nor its kernels, so that an error
of theirs cannot hide in what judges them. Thresholds are taken in the order of the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as TF
from torch.overrides import TorchFunctionMode

RELU = (TF.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
CLAMP = (torch.clamp, torch.clip, torch.clamp_, torch.clip_)
CLAMP += (torch.Tensor.clamp, torch.Tensor.clip, torch.Tensor.clamp_, torch.Tensor.clip_)
CLAMP_MIN = (torch.clamp_min, torch.clamp_min_, torch.Tensor.clamp_min, torch.Tensor.clamp_min_)
HARDTANH = (TF.hardtanh, TF.hardtanh_)
THRESHOLD = (TF.threshold, TF.threshold_, torch.threshold)
# Their outputs get signed neurons, where convert() makes them differences over time.
CURVES = (TF.gelu, TF.silu, TF.leaky_relu, TF.leaky_relu_, TF.prelu, TF.elu, TF.elu_, TF.selu)
CURVES += (TF.celu, TF.mish, TF.hardswish, TF.softplus)


def quantised(x: Tensor, theta: Tensor, steps: int, signed: bool = False) -> Tensor:
    """θ clip(floor(T x / θ + 1/2) / T, 0, 1), or from -1: the rate of T exact steps."""
    level = torch.floor(steps * x / theta + 0.5).clamp(-steps if signed else 0, steps)
    return theta * level / steps


class Twin(TorchFunctionMode):
    """Puts a quantiser behind every rectifier that is called inside.

    thresholds: one a site, in the order of the calls; None: only count the sites, and change
    nothing. curves: quantise what GELU, SiLU and the like return, too, with a sign.
    """

    def __init__(
        self, thresholds: Sequence[Tensor] | None, steps: int, *, curves: bool = False
    ) -> None:
        super().__init__()
        self.thresholds, self.steps, self.curves = thresholds, steps, curves
        self.calls: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        signed = self.curves and func in CURVES
        if not signed and not is_rectifier(func, args, kwargs):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        self.calls.append(name)
        out = func(*args, **kwargs)
        if self.thresholds is None or len(self.calls) > len(self.thresholds):
            return out
        theta = self.thresholds[len(self.calls) - 1].to(out)
        rate = quantised(out, theta, self.steps, signed)
        # What works in place is read under its old name, too.
        x = args[0] if args else kwargs.get("input")
        return out.copy_(rate) if isinstance(x, Tensor) and out is x else rate


def is_rectifier(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call computes min(max(x, 0), b), b = infinity included."""

    def given(position: int, name: str, default: Any = None) -> Any:
        return args[position] if len(args) > position else kwargs.get(name, default)

    if func in RELU or func is TF.relu6:
        return True
    if func in CLAMP:
        return zero(given(1, "min")) and (given(2, "max") is None or positive(given(2, "max")))
    if func in CLAMP_MIN:
        return zero(given(1, "min"))
    if func in HARDTANH:
        return zero(given(1, "min_val", -1.0)) and positive(given(2, "max_val", 1.0))
    if func in THRESHOLD:
        return zero(given(1, "threshold")) and zero(given(2, "value"))
    return False


def zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0
