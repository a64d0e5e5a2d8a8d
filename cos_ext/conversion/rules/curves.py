"""Functions of each sample alone that are not affine: between neurons they become differences on
running means (../differences.py). What becomes of rectifiers and max poolings is decided elsewhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as TF

from .base import Call, Memory, Refusal, Rule, register
from .shapes import per_sample
from .sums import Elementwise

DIFFERENCE = 'leave nonlinear at "difference"'


class Curved(Rule):
    """f(mean of x(t)) is not the mean of f(x(t)), but every sample is treated alone."""

    memory = Memory.OWN
    why: ClassVar[Refusal] = Refusal("is not linear in the spikes", DIFFERENCE)

    def check_module(self, module: nn.Module) -> Refusal | None:
        return self.why

    def check(self, call: Call) -> Refusal | None:
        return self.why

    def check_sample_module(self, module: nn.Module) -> Refusal | None:
        return None

    def check_sample(self, call: Call) -> Refusal | None:
        if call.module is not None:
            return self.check_sample_module(call.module)
        if len(call.facts.tensors(call.node)) == 1:
            return None
        return Refusal("takes a further tensor", "give its other arguments as numbers")

    def leads(self, call: Call) -> bool:
        return self.check_sample(call) is None


def functions_of(*names: str) -> tuple[Callable[..., Any], ...]:
    """torch's and torch.nn.functional's functions of these names."""
    found = [getattr(place, name, None) for place in (torch, TF) for name in names]
    return tuple(dict.fromkeys(function for function in found if callable(function)))


SMOOTH = (
    *("gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "hardswish", "softplus"),
    *("softsign", "softshrink", "hardshrink", "tanhshrink", "logsigmoid"),
)


@register
class OtherActivation(Curved):
    """An activation, element by element, that is no staircase from 0."""

    modules = (
        *(nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.Hardswish),
        *(nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.LogSigmoid),
    )
    functions = functions_of(*SMOOTH)
    methods = SMOOTH
    memory = Memory.UNLESS_WRITTEN
    why = Refusal(
        "integrate-and-fire neurons can only stand for a rectifier that starts at 0",
        f"{DIFFERENCE}, or train with nn.ReLU or cos_ext.QCFS",
    )


@register
class ChannelSlopes(OtherActivation):
    """nn.PReLU, whose slopes are parameters."""

    modules = (nn.PReLU,)  # type: ignore[assignment]
    functions = functions_of("prelu")
    methods = ("prelu",)  # type: ignore[assignment]

    def check_sample(self, call: Call) -> Refusal | None:
        if len([x for x in call.facts.tensors(call.node) if x in call.facts.batched]) == 1:
            return None
        return Refusal("has slopes that depend on the model's input", "use parameters")


@register
class Gate(Curved):
    """A sigmoid and its sisters, element by element."""

    modules = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid)
    functions = functions_of("sigmoid", "tanh", "hardsigmoid")
    methods = ("sigmoid", "tanh")
    memory = Memory.UNLESS_WRITTEN
    why = Refusal(
        "is not linear in its input",
        f'{DIFFERENCE}; or, as the last step of a network, pass readout="drop" (the order of the '
        'outputs is the same) or readout="mean" (rate() applies it to the mean), and do what '
        "follows it, but a change of shape, outside of the model",
    )


class OverDimension(Curved):
    """Along one dimension of each sample."""

    position, name = 1, "dim"
    default: ClassVar[Any] = ()

    def dims(self, call: Call) -> Any:
        if call.module is not None:
            return call.module.dim
        return call.argument(self.position, self.name, self.default)

    def check_sample_module(self, module: nn.Module) -> Refusal | None:
        dim = getattr(module, "dim", None)
        if isinstance(dim, int) and dim >= 1:
            return None
        return Refusal(f"dim={dim} may be the batch", "name another, counted from the front")

    def check_sample(self, call: Call) -> Refusal | None:
        return per_sample(call, self.dims(call))


@register
class Softmax(OverDimension):
    """exp(x) / Σ exp(x), or its logarithm."""

    modules = (nn.Softmax, nn.LogSoftmax)
    functions = functions_of("softmax", "log_softmax")
    methods = ("softmax", "log_softmax")
    why = Gate.why


@register
class Softmin(OverDimension):
    """exp(-x) / Σ exp(-x): the order of its outputs is the reverse, so that it is no readout."""

    modules = (nn.Softmin,)
    functions = (TF.softmin,)


@register
class GatedLinear(OverDimension):
    """One half of the channels times a sigmoid of the other."""

    modules = (nn.GLU,)
    functions = (TF.glu,)
    default = -1


@register
class Normalised(OverDimension):
    """F.normalize: a vector of each sample by its length."""

    functions = (TF.normalize,)
    position, default = 2, 1


class Reduced(OverDimension):
    """A dimension or more of each sample become one number."""

    keepdim: ClassVar[int] = 2  # the position of the argument

    def rank(self, call: Call) -> int | None:
        dims, rank = self.dims(call), call.rank
        if rank is None or call.argument(self.keepdim, "keepdim", False) is True:
            return rank
        return rank - (len(dims) if isinstance(dims, (tuple, list)) else 1)


@register
class SpreadOf(Reduced):
    """Variance, deviation, log of a sum of exponentials, smallest number, product."""

    functions = (torch.var, torch.std, torch.logsumexp, torch.amin, torch.prod)
    methods = ("var", "std", "logsumexp", "amin", "prod")

    def check_sample(self, call: Call) -> Refusal | None:
        if isinstance(self.dims(call), bool):
            return Refusal("takes no dimension", "name the dimensions after the batch")
        return super().check_sample(call)

    def rank(self, call: Call) -> int | None:
        # Of these the position says nothing: var(dim, unbiased, keepdim).
        known = call.node.target not in (torch.var, torch.std, "var", "std")
        return super().rank(call) if known else None


@register
class Length(Reduced):
    """A norm of vectors of each sample."""

    functions = (torch.norm, torch.linalg.norm, torch.linalg.vector_norm)
    methods = ("norm",)
    position, keepdim = 2, 3


@register
class OwnStatistics(Curved):
    """Divides by the deviation of what it normalises, sample by sample."""

    modules = (
        *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.LocalResponseNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    )
    functions = (TF.layer_norm, TF.rms_norm, TF.group_norm, TF.local_response_norm)
    why = Refusal(
        "normalises each step by its own statistics, which is not linear in the spikes",
        f"{DIFFERENCE}, or train with BatchNorm",
    )

    def check_sample(self, call: Call) -> Refusal | None:
        batched = [x for x in call.facts.tensors(call.node) if x in call.facts.batched]
        if len(batched) != 1:
            return Refusal("has a scale that depends on the model's input", "use parameters")
        shape = self._shape(call)
        if shape is None or (call.rank is not None and len(shape) < call.rank):
            return None
        return Refusal(
            f"may normalise over the batch with shape {shape}", "pass example_input to tell"
        )

    @staticmethod
    def _shape(call: Call) -> tuple[Any, ...] | None:
        """What a LayerNorm normalises; None: another norm, which knows the batch."""
        if isinstance(call.module, (nn.LayerNorm, nn.RMSNorm)):
            return tuple(call.module.normalized_shape)
        if call.node.target in (TF.layer_norm, TF.rms_norm):
            given = call.argument(1, "normalized_shape")
            return tuple(given) if isinstance(given, (tuple, list)) else (given,) * 9
        return None


@register
class PowerPool(Curved):
    """The p-th root of a sum of p-th powers."""

    modules = (nn.LPPool1d, nn.LPPool2d)
    functions = (TF.lp_pool1d, TF.lp_pool2d)


ONE_BY_ONE = (
    *("exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "abs", "square"),
    *("sin", "cos", "erf", "clamp_max", "pow"),
)


@register
class ElementByElement(Curved):
    """A function of numbers."""

    functions = (*functions_of(*ONE_BY_ONE), operator.pow, operator.abs)
    methods = ONE_BY_ONE


@register
class InPlace(ElementByElement):
    """The same, written over what it reads."""

    of_activations = functions_of(*(f"{name}_" for name in SMOOTH))
    functions = functions_of(*(f"{name}_" for name in (*SMOOTH, *ONE_BY_ONE, "sigmoid", "tanh")))
    methods = tuple(  # type: ignore[assignment]
        f"{name}_" for name in (*ONE_BY_ONE, "sigmoid", "tanh")
    )
    memory = Memory.INPUT


@register
class LargerOrSmaller(Elementwise, Curved):
    """Of two tensors, element by element."""

    functions = (torch.maximum, torch.minimum)
    methods = ("maximum", "minimum")

    def check(self, call: Call) -> Refusal | None:
        return Curved.why

    def check_sample(self, call: Call) -> Refusal | None:
        return Elementwise.check(self, call)


@register
class Recurrent(Curved):
    """A sequence [B, N, C] of each sample: its own time is another than the spikes'."""

    modules = (nn.LSTM, nn.GRU, nn.RNN)
    makes_list = True  # what it gives, and its state [layers, B, H]

    def check_sample_module(self, module: nn.Module) -> Refusal | None:
        if getattr(module, "batch_first", False):
            return None
        return Refusal("has the batch second", "make it with batch_first=True")

    def check_sample(self, call: Call) -> Refusal | None:
        assert call.module is not None
        used = [user for user in call.node.users if user.users or user.op == "output"]
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in used):
            return Refusal(
                "hands on its state, which has the batch second", "use its output: out[:, -1]"
            )
        if call.rank == 3:
            return self.check_sample_module(call.module)
        return Refusal(
            "may take the batch for its own time", "give it [B, N, C], and an example_input"
        )
