"""What neurons do in a step: how many levels they send, up or down, and what they take off.

Published conversion methods are settings of one neuron. Only what it is stands here, and whether it
makes sense; it is simulated by :func:`cos_ext.functional.neuron_forward` (csrc/core/general.h).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ._numbers import real, whole

__all__ = ["Neuron"]

MOST_LEVELS = 2**20  # csrc/core/general.h
MOST_RUNGS = 8
TENSORS = ("emitted", "step_bias")


@dataclass(frozen=True, eq=False)
class Neuron:
    r"""A neuron that may send several levels in a step, and negative ones.

    .. math::
        m(t) = \lambda v(t-1) + x(t) + b(t), \quad d = m(t) - \hat y, \quad
        q = \mathrm{clip}(Q(d),\; \max(s_\min, n_\min - n),\; \min(s_\max, n_\max - n))

    It sends :math:`q\,e + \hat y`; then :math:`v(t) = d - \theta q` and n grows by q. The levels
    are

    .. math:: Q(d) = k \text{ where } d \ge u + (k-1)\theta, \quad
              Q(d) = -k \text{ where } d < -w - (k-1)\theta, \quad k \ge 1 \text{ the largest}

    With levels (0, 1) and nothing else set, it is the integrate-and-fire neuron of
    :func:`~cos_ext.functional.if_forward`, bit for bit: in float16 and bfloat16 where θ is a number
    of the dtype, for here a reset takes off what was sent.

    Args:
        levels: (s_min, s_max), the fewest and the most levels of a step; s_min <= 0, s_max >= 1,
            within 2^20, and times T within 2^24.
        upper: u in units of θ, > 0, at most 2^20.
        lower: w in units of θ, >= 0, at most 2^20: a negative level leaves where m < -w. Needed
            where s_min < 0; None where it is 0.
        strict: a negative level leaves where m < -w, or, False, where m <= -w.
        count: (n_min, n_max), bounds of the running count n; None is no bound.
        emitted: e, the value of one level. A float, or a tensor that broadcasts to the neurons;
            None is θ.
        leak: λ > 0.
        step_bias: b, ``[T]``, or ``[T, C]`` with the channels of neurons ``[B, C, ...]``, in the
            dtype of the input or the state dtype.
        step_scale: T numbers > 0 that θ is multiplied with, step by step.
        silent: the first steps, in which nothing is sent or taken off.
        prediction: differential coding: ŷ is the mean of what has been sent.
        ladder: instead of levels, how many rungs ±θ, ±θ/2, ±θ/4, ...: 1 to 8. One rung a step is
            sent, the largest with abs(d) >= ratio · rung.
        ratio: of a ladder, in (1/2, 1].
        gated: of a ladder: a negative rung is sent only where as much has been sent before.

    Raises:
        TypeError, ValueError: an argument is out of range, or does not go with another.

    Sources: the "Design: one core" that 17 published neurons were checked against; see
    :doc:`/methods/general`.

    Example:
        >>> group = Neuron(levels=(0, 4))  # group neurons of four members, θ being one's
        >>> signed = Neuron(levels=(-1, 1), lower=0.0, count=(0, 15))  # ST-BIF
    """

    levels: tuple[int, int] = (0, 1)
    upper: float = 1.0
    lower: float | None = None
    strict: bool = True
    count: tuple[int | None, int | None] = (None, None)
    emitted: float | Tensor | None = None
    leak: float = 1.0
    step_bias: Tensor | None = None
    step_scale: tuple[float, ...] | None = None
    silent: int = 0
    prediction: bool = False
    ladder: int | None = None
    ratio: float = 0.75
    gated: bool = False

    def __post_init__(self) -> None:
        low, high = _two("levels", self.levels)
        low, high = whole("s_min", low, -MOST_LEVELS, 0), whole("s_max", high, 1, MOST_LEVELS)
        fewest, most = _two("count", self.count)
        if fewest is not None:
            fewest = whole("n_min", fewest, -(2**24), 0, or_=" or None")
        if most is not None:
            most = whole("n_max", most, 0, 2**24, or_=" or None")
        self._set(levels=(low, high), count=(fewest, most))
        self._set(upper=_positive("upper", self.upper), leak=_positive("leak", self.leak))
        if self.upper > MOST_LEVELS:
            raise ValueError(f"upper must be <= {MOST_LEVELS}, got {self.upper}")
        self._check_lower()
        for name in ("strict", "prediction", "gated"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        self._set(silent=whole("silent", self.silent, 0, 2**24))
        self._check_ladder()
        self._check_values()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_lower(self) -> None:
        negative = self.levels[0] < 0
        if self.lower is None:
            if negative and self.ladder is None:
                raise ValueError("negative levels need lower, from where on they leave; got None")
            return
        if not negative:
            raise ValueError(f"lower needs negative levels, got levels={self.levels}")
        lower = real("lower", self.lower, or_=" or None")
        if not 0 <= lower <= MOST_LEVELS:
            raise ValueError(f"lower must be >= 0 and <= {MOST_LEVELS}, got {lower}")
        self._set(lower=lower)

    def _check_ladder(self) -> None:
        ratio = real("ratio", self.ratio)
        if not 0.5 < ratio <= 1:
            raise ValueError(f"ratio must lie in (1/2, 1], got {ratio}")
        self._set(ratio=ratio)
        if self.ladder is None:
            if self.gated:
                raise ValueError("gated is for a ladder; count=(0, None) bounds levels")
            return
        self._set(ladder=whole("ladder", self.ladder, 1, MOST_RUNGS, or_=" or None"))
        others = (self.levels, self.upper, self.lower, self.count)
        if others != ((0, 1), 1.0, None, (None, None)) or self.emitted is not None:
            raise ValueError("a ladder goes with no levels, upper, lower, count or emitted")

    def _check_values(self) -> None:
        emitted, bias, scale = self.emitted, self.step_bias, self.step_scale
        if emitted is not None and not isinstance(emitted, Tensor):
            emitted = real("emitted", emitted, or_=", a tensor or None")
            if math.isinf(emitted):
                raise ValueError(f"emitted must be finite, got {emitted}")
            self._set(emitted=emitted)
        if bias is not None and (not isinstance(bias, Tensor) or bias.dim() not in (1, 2)):
            raise TypeError(f"step_bias must be a tensor [T] or [T, C], got {_shown(bias)}")
        if scale is not None:
            if not isinstance(scale, (tuple, list)) or not scale:
                raise TypeError(f"step_scale must be numbers, one a step, got {scale!r}")
            self._set(step_scale=tuple(_positive("step_scale", each) for each in scale))
            if emitted is not None:
                raise ValueError("step_scale sends what it takes off; emitted must be None")

    @functools.cached_property
    def signed(self) -> Neuron:
        """This neuron with as many levels down as up; a ladder has them, but where it is gated."""
        if self.ladder is not None:
            return replace(self, gated=False)
        low, most = min(self.levels[0], -self.levels[1]), self.count[1]
        fewest = None if most is None else -most
        lower = 0.0 if self.lower is None else self.lower
        return replace(self, levels=(low, self.levels[1]), lower=lower, count=(fewest, most))

    @property
    def falls(self) -> bool:
        """Whether what it sends may add up to less than 0, as no rectifier's does."""
        if self.ladder is not None:
            return not self.gated
        return self.levels[0] < 0 and (self.count[0] is None or self.count[0] < 0)

    @property
    def goes_on(self) -> bool:
        """Whether its potential is all that it carries from step to step."""
        in_time = self.step_bias is not None or self.step_scale is not None or self.silent > 0
        counts = self.count != (None, None) or self.gated or self.prediction
        return not (in_time or counts)

    @property
    def described(self) -> dict[str, Any]:
        """What differs from the usual neuron, by name, without tensors."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            each.name: kept[each.name]
            for each in fields(self)
            if not isinstance(kept[each.name], Tensor) and kept[each.name] != each.default
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Neuron):
            return NotImplemented
        return self.described == other.described and all(
            _same(getattr(self, name), getattr(other, name)) for name in TENSORS
        )

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.described.items())))

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.described.items()]
        for name in TENSORS:
            if isinstance(getattr(self, name), Tensor):
                shown.append(f"{name}={_shown(getattr(self, name))}")
        return f"Neuron({', '.join(shown)})"

    def with_tensors(self, emitted: float | Tensor | None, step_bias: Tensor | None) -> Neuron:
        """This neuron with these values instead of its own."""
        return replace(self, emitted=emitted, step_bias=step_bias)


def _two(name: str, value: Any) -> tuple[Any, Any]:
    if isinstance(value, (str, Tensor)) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers, got {value!r}")
    return value[0], value[1]


def _positive(name: str, value: Any) -> float:
    number = real(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number}")
    return number


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return type(value).__name__


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)


SIGNED = Neuron().signed
