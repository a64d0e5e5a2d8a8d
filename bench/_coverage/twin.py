"""What "exact" is held against: the network as its author wrote it, with quantisers put in while it
runs.

Nothing of cos_ext is used here, neither its tracing nor its rules nor its kernels, so that an error
of theirs cannot hide in what judges them. Thresholds are taken in the order of the calls. Where a
tensor came from and where it goes is known from tags that calls hand on (tags.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as TF
from torch.utils._pytree import tree_map_only

from .tags import LAYERS, Tags, name_of

RELU = (TF.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
CLAMP = (torch.clamp, torch.clip, torch.clamp_, torch.clip_)
CLAMP += (torch.Tensor.clamp, torch.Tensor.clip, torch.Tensor.clamp_, torch.Tensor.clip_)
CLAMP_MIN = (torch.clamp_min, torch.clamp_min_, torch.Tensor.clamp_min, torch.Tensor.clamp_min_)
HARDTANH = (TF.hardtanh, TF.hardtanh_)
THRESHOLD = (TF.threshold, TF.threshold_, torch.threshold)


def quantised(x: Tensor, theta: Tensor, steps: int, signed: bool = False) -> Tensor:
    """θ clip(floor(T x / θ + 1/2) / T, 0, 1), or from -1: the rate of T exact steps."""
    level = torch.floor(steps * x / theta + 0.5).clamp(-steps if signed else 0, steps)
    return theta * level / steps


class Twin(Tags):
    """Puts quantisers where neurons are to stand, while it is active.

    thresholds: one a site, in the order of the calls; None: only count the sites, and change
    nothing. signed: the calls of other activations that get a quantiser with a sign, as an earlier
    run under Tags found them; none, where only rectifiers have one.
    """

    def __init__(
        self, thresholds: Sequence[Tensor] | None, steps: int, signed: frozenset[int] = frozenset()
    ) -> None:
        super().__init__()
        self.thresholds, self.steps, self.signed = thresholds, steps, signed
        self.calls: list[str] = []

    def called(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        signed = self.number in self.signed
        if not signed and not is_rectifier(func, args, kwargs):
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        rate = self.rate(out, name_of(func), signed)
        # What works in place is read under its old name, too.
        x = args[0] if args else kwargs.get("input")
        return out.copy_(rate) if isinstance(x, Tensor) and out is x else rate

    def rate(self, x: Tensor, name: str, signed: bool) -> Tensor:
        """What the quantiser of the next site makes of a tensor."""
        self.calls.append(name)
        if self.thresholds is None or len(self.calls) > len(self.thresholds):
            return x
        theta = self.thresholds[len(self.calls) - 1].to(x)
        return quantised(x, theta, self.steps, signed)


class InputsTwin(Twin):
    """Puts quantisers with a sign before layers and the operands of matrix products, whatever comes
    there after a first one; a tensor that several read has one.
    """

    def __init__(self, thresholds: Sequence[Tensor] | None, steps: int) -> None:
        super().__init__(thresholds, steps)
        # By tensor and the writes into it; the tensor is held, for ids are used again.
        self.spiked: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def called(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        name = name_of(func)
        if func is TF.multi_head_attention_forward:
            with self:  # what it calls is seen
                return attention(*args, **kwargs)
        if name in LAYERS:
            passed = args and self.passed(args[0])
            args = (self.spikes(args[0], name), *args[1:]) if passed else args
        elif name in self.PRODUCTS:

            def spiked(x: Tensor) -> Tensor:
                return self.spikes(x, name) if self.passed(x) else x

            args, kwargs = tree_map_only(Tensor, spiked, (tuple(args), kwargs))
        return func(*args, **kwargs)

    def spikes(self, x: Tensor, name: str) -> Tensor:
        key = id(x), x._version
        if key not in self.spiked:
            self.spiked[key] = x, self.rate(x, name, True)
        return self.spiked[key][1]


def attention(
    query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, *rest: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """F.multi_head_attention_forward of [N, B, E], written out; no masks."""
    weight, bias, bias_k, bias_v, zero, _, out_weight, out_bias = rest[:8]
    need_weights = kwargs.get("need_weights", True)
    masks = (kwargs.get("key_padding_mask"), kwargs.get("attn_mask"), bias_k, bias_v)
    if zero or kwargs.get("is_causal") or any(mask is not None for mask in masks):
        raise NotImplementedError("attention with a mask has no twin")
    if kwargs.get("use_separate_proj_weight"):
        weights = [kwargs[f"{each}_proj_weight"] for each in "qkv"]
    else:
        weights = list(weight.chunk(3))
    biases = [None] * 3 if bias is None else list(bias.chunk(3))

    def first(x: Tensor) -> Tensor:
        """The batch in front; of one tensor one tensor."""
        found = next((there for here, there in turned if here is x), None)
        if found is None:
            found = x.transpose(0, 1)
            turned.append((x, found))
        return found

    turned: list[tuple[Tensor, Tensor]] = []
    q, k, v = (
        TF.linear(first(x), weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases)
    )
    shown = None
    if need_weights:
        shares = ((q * (width // heads) ** -0.5) @ k.transpose(2, 3)).softmax(3)
        mixed = shares @ v
        shown = shares.mean(1) if kwargs.get("average_attn_weights", True) else shares
    else:
        mixed = TF.scaled_dot_product_attention(q, k, v)
    out = TF.linear(mixed.transpose(1, 2).flatten(2), out_weight, out_bias)
    return out.transpose(0, 1), shown


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
