"""Surrogate gradients: what stands for the derivative of a neuron's step function when it learns.

Each is a function of u = (m - θ)/θ, by how much a potential m exceeds the threshold θ. At θ = 1 the
formulas and defaults are those of SpikingJelly, FastSigmoid's those of snntorch. The kernels have
them too (csrc/core/surrogate.h); how neurons use them is in _functional/gradients.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._numbers import real

__all__ = ["ATan", "FastSigmoid", "Rectangle", "Sigmoid", "Surrogate", "Triangle"]


class Surrogate(ABC):
    """A step function of u with a gradient of its own.

    Called with u, any shape, it returns 1 where u >= 0, else 0, in u's dtype; backwards it
    multiplies with :meth:`derivative`.

    Args:
        alpha: > 0; the larger, the steeper.

    Raises:
        TypeError, ValueError: alpha is no number, or not positive and finite.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = real("alpha", alpha, nan=True)
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be positive and finite, got {alpha}")

    @abstractmethod
    def derivative(self, u: Tensor) -> Tensor:
        """The surrogate of the derivative at u, in its shape and dtype."""

    def __call__(self, u: Tensor) -> Tensor:
        return _Step.apply(u, self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha:g})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.alpha == self.alpha

    def __hash__(self) -> int:
        return hash((type(self), self.alpha))


def check_surrogate(value: object) -> Callable[[Tensor], Tensor]:
    """A surrogate; None is the default. TypeError: it is no function, or a class of them."""
    if value is None:
        return ATan()
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            "surrogate must be one of cos_ext.surrogate, such as Triangle(), or a function of a "
            f"tensor, got {value!r}"
        )
    return value


class ATan(Surrogate):
    """α/2 / (1 + (π α u / 2)²): Fang et al., "Incorporating learnable membrane time constant", ICCV
    2021.
    """

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__(alpha)

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u) ** 2)


class Sigmoid(Surrogate):
    """α σ(αu) (1 - σ(αu)), the derivative of a sigmoid: Zenke, Ganguli, "SuperSpike", Neural
    Computation 2018.
    """

    def __init__(self, alpha: float = 4.0) -> None:
        super().__init__(alpha)

    def derivative(self, u: Tensor) -> Tensor:
        # Of |u|, which loses no digits far from 0.
        e = torch.exp(-(self.alpha * u).abs())
        return self.alpha * e / (1 + e) ** 2


class Triangle(Surrogate):
    """max(0, α - α² abs(u)): Esser et al., "Convolutional networks for fast, energy-efficient
    neuromorphic computing", PNAS 2016. SpikingJelly's PiecewiseQuadratic.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def derivative(self, u: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * u.abs()).clamp(min=0)


class Rectangle(Surrogate):
    """α where abs(u) < 1/(2α), else 0: Wu et al., "Spatio-temporal backpropagation", Frontiers in
    Neuroscience 2018. SpikingJelly's Rect.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha * (u.abs() < 0.5 / self.alpha).to(u.dtype)


class FastSigmoid(Surrogate):
    """1 / (1 + α abs(u))²: the derivative of a fast sigmoid, Zenke, Ganguli, "SuperSpike", Neural
    Computation 2018. snntorch's fast_sigmoid with slope α.
    """

    def __init__(self, alpha: float = 25.0) -> None:
        super().__init__(alpha)

    def derivative(self, u: Tensor) -> Tensor:
        return 1 / (1 + self.alpha * u.abs()) ** 2


# Those that the kernels have, in the order of csrc/job.h; a class made of one of them is none.
KERNELS: tuple[type[Surrogate], ...] = (ATan, Sigmoid, Triangle, Rectangle, FastSigmoid)


class _Step(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, surrogate: Surrogate) -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.surrogate = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(u), None
