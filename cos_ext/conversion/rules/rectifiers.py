"""Rectifiers: what integrate-and-fire neurons stand for. Tracing makes a module of its own of every
call; the neurons themselves are made in ../neurons.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as TF

from ...qcfs import QCFS
from ..graphs import argument
from .base import Call, Refusal, Rule, register, rule_for

NOT_FROM_ZERO = Refusal(
    "does not start at 0",
    'clip to [0, b] with a number b > 0, or leave nonlinear at "difference"',
)


class Rectifier(Rule):
    """min(max(x, 0), b): C*/rho spikes of θ at constant current are its staircase, b = ∞ included.

    Tracing replaces the calls for which `stand_in` gives a module. What is left of a function or
    method is no rectifier, and refused where it spikes.
    """

    def starts_at_zero(self, module: nn.Module) -> bool:
        """Whether this module is max(x, 0), clipped or not."""
        return True

    def stand_in(self, node: fx.Node) -> nn.Module | None:
        """The module that computes what a function or method does; None: it is no rectifier."""
        return None

    def check_module(self, module: nn.Module) -> Refusal | None:
        return NOT_FROM_ZERO

    def check(self, call: Call) -> Refusal | None:
        return NOT_FROM_ZERO

    def check_sample_module(self, module: nn.Module) -> Refusal | None:
        return None  # a function of each number

    def check_sample(self, call: Call) -> Refusal | None:
        return None if len(call.facts.tensors(call.node)) == 1 else NOT_FROM_ZERO

    def leads(self, call: Call) -> bool:
        return len(call.sources) == 1


def is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def clipped(low: Any, high: Any, inplace: Any) -> nn.Module | None:
    """nn.Hardtanh for min(max(x, 0), high), where that is what the numbers say."""
    if not is_zero(low) or not isinstance(high, (int, float)) or not high > 0:
        return None
    return nn.Hardtanh(0.0, float(high), inplace)


def named_in_place(node: fx.Node) -> bool:
    """Whether a function or method with this name works in place."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).endswith("_")


@register
class Relu(Rectifier):
    """max(x, 0)."""

    modules = (nn.ReLU,)
    functions = (TF.relu, torch.relu, torch.relu_, TF.relu_)
    methods = ("relu", "relu_")

    def stand_in(self, node: fx.Node) -> nn.Module | None:
        inplace = named_in_place(node)
        if node.target is TF.relu:
            inplace = argument(node, 1, "inplace", False)
        return nn.ReLU(inplace) if isinstance(inplace, bool) else None


@register
class Relu6(Rectifier):
    """min(max(x, 0), 6)."""

    modules = (nn.ReLU6,)
    functions = (TF.relu6,)

    def stand_in(self, node: fx.Node) -> nn.Module | None:
        inplace = argument(node, 1, "inplace", False)
        return nn.ReLU6(inplace) if isinstance(inplace, bool) else None


@register
class Hardtanh(Rectifier):
    """min(max(x, a), b), a rectifier where a = 0 < b."""

    modules = (nn.Hardtanh,)
    functions = (TF.hardtanh, TF.hardtanh_)

    def starts_at_zero(self, module: nn.Module) -> bool:
        assert isinstance(module, nn.Hardtanh)
        return module.min_val == 0 and module.max_val > 0

    def stand_in(self, node: fx.Node) -> nn.Module | None:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        return clipped(low, high, argument(node, 3, "inplace", False) or named_in_place(node))


@register
class Clamp(Rectifier):
    """min(max(x, a), b), a rectifier where a = 0 < b, or a = 0 alone."""

    functions = (torch.clamp, torch.clip, torch.clamp_, torch.clip_)
    methods = ("clamp", "clip", "clamp_", "clip_")

    def stand_in(self, node: fx.Node) -> nn.Module | None:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
        if is_zero(low) and high is None:
            return nn.ReLU(named_in_place(node))
        return clipped(low, high, named_in_place(node))


@register
class ClampMin(Rectifier):
    """max(x, a), a rectifier where a = 0."""

    functions = (torch.clamp_min, torch.clamp_min_)
    methods = ("clamp_min", "clamp_min_")

    def stand_in(self, node: fx.Node) -> nn.Module | None:
        return nn.ReLU(named_in_place(node)) if is_zero(argument(node, 1, "min")) else None


@register
class Threshold(Rectifier):
    """x where x > a, else v: a rectifier where a = v = 0."""

    modules = (nn.Threshold,)
    functions = (TF.threshold, TF.threshold_, torch.threshold)  # type: ignore[attr-defined]

    def starts_at_zero(self, module: nn.Module) -> bool:
        assert isinstance(module, nn.Threshold)
        return module.threshold == 0 and module.value == 0

    def stand_in(self, node: fx.Node) -> nn.Module | None:
        if not is_zero(argument(node, 1, "threshold")) or not is_zero(argument(node, 2, "value")):
            return None
        inplace = argument(node, 3, "inplace", False) or named_in_place(node)
        return nn.ReLU(inplace) if isinstance(inplace, bool) else None


class Signed(nn.Module):
    """The identity, where signed neurons are to stand: x to within [-b, b] by levels."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@register
class SignedSite(Rectifier):
    """Signed neurons at constant current are the staircase of min(max(x, -b), b)."""

    modules = (Signed,)


@register
class Staircase(Rectifier):
    """The quantised rectifier that COS trains with: θ clip(floor(x L / θ + 1/2) / L, 0, 1)."""

    modules = (QCFS,)


def is_rectifier(module: nn.Module) -> bool:
    """Whether neurons can stand for a module; a subclass or patched forward computes anything."""
    rule = rule_for(type(module))
    if not isinstance(rule, Rectifier) or "forward" in vars(module):
        return False
    return rule.starts_at_zero(module)


def clip_of(module: nn.Module) -> float | None:
    """Where the activation saturates: b of min(max(x, 0), b); None for nn.ReLU and QCFS."""
    return float(module.max_val) if isinstance(module, nn.Hardtanh) else None
