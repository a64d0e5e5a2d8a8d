"""SpikingJelly's integrate-and-fire neuron on this library's kernels.

The contract is that of its ``activation_based.neuron.IFNode``. Where it is installed this is a
subclass, so that its own tools know the neurons; memories then are its, else those of _memory.py.
The neuron of this library is in cos_ext/neuron.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import surrogate as kernels
from .._neuron.continuing import run_on
from .._numbers import real
from ..surrogate import KERNELS, Surrogate

try:
    from spikingjelly.activation_based.base import MemoryModule
    from spikingjelly.activation_based.neuron import IFNode as Base
except ImportError:
    from ._memory import MemoryModule

    Base = MemoryModule

__all__ = ["IFNode"]

# The names that SpikingJelly takes. Here every one means the same kernels.
BACKENDS = {"s": ("torch", "cupy"), "m": ("torch", "cupy", "triton", "inductor")}
# Those of its surrogates that the kernels have, by name.
FUSED: dict[str, type[Surrogate]] = {
    "ATan": kernels.ATan,
    "Sigmoid": kernels.Sigmoid,
    "PiecewiseQuadratic": kernels.Triangle,
    "Rect": kernels.Rectangle,
}


class IFNode(Base):
    """Integrate-and-fire neurons that stand where SpikingJelly's ``neuron.IFNode`` does.

    Spikes are 0 or 1. The potential ``v`` is 0, or ``v_reset``, until the first call, then a tensor
    ``[*neurons]`` in the input's dtype. It goes on from call to call, in both step modes and with
    its graph, until :meth:`reset`. Where the next input has another shape, it starts anew.

    Args:
        v_threshold: θ, a float.
        v_reset: the potential after a spike; None for soft reset, where θ is taken off.
        surrogate_function: what stands for the step function's derivative, a function of m - θ.
            SpikingJelly's ``ATan``, ``Sigmoid``, ``PiecewiseQuadratic`` and ``Rect`` go through the
            kernels, and so do those of :mod:`cos_ext.surrogate`, FastSigmoid where θ is 1. Any
            other function, and these with ``spiking=False``, is called at every step; what it
            returns is the output. None is SpikingJelly's default, a Sigmoid with alpha 4.
        detach_reset: no gradient through the spikes that reset the potential.
        step_mode: "s": the input is one step, ``[*neurons]``. "m": it is ``[T, *neurons]``.
        backend: a name that SpikingJelly takes; all of them mean the same kernels.
        store_v_seq: keep the potentials after every step in ``v_seq``, ``[T, *neurons]``; in step
            mode "s" those since :meth:`reset`. The steps are then computed one by one.

    In float16 and bfloat16 the potential is float32 within a call and rounded after it, and θ is
    rounded to the input's dtype.

    Raises:
        TypeError: v_threshold or v_reset is no number, or surrogate_function no function.
        ValueError: another step mode.
        NotImplementedError: another backend.
    """

    v: Any  # a float, then a Tensor
    v_threshold: Any  # a float; SpikingJelly's set_threshold_margin makes it a tensor
    v_seq: Tensor | None

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        MemoryModule.__init__(self)  # what else Base has is here
        self.v_threshold = real("v_threshold", v_threshold)
        self.v_reset = None if v_reset is None else real("v_reset", v_reset)
        self.register_memory("v", 0.0 if self.v_reset is None else self.v_reset)
        function = kernels.Sigmoid(4.0) if surrogate_function is None else surrogate_function
        if not callable(function) or isinstance(function, type):
            raise TypeError(
                "surrogate_function must be a function of m - θ, such as surrogate.ATan() of "
                f"SpikingJelly or cos_ext, got {function!r}"
            )
        self.surrogate_function = function
        self.detach_reset = bool(detach_reset)
        self.step_mode = step_mode
        self.backend = backend
        self.store_v_seq = store_v_seq

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """The names that ``backend`` may be, by the step mode."""
        return BACKENDS[self.step_mode]

    @property
    def backend(self) -> str:
        """A name; it changes nothing."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        if value not in self.supported_backends:
            raise NotImplementedError(
                f"backend must be one of {self.supported_backends} in step mode "
                f"{self.step_mode!r}, got {value!r}"
            )
        self._backend = value

    @property
    def store_v_seq(self) -> bool:
        """Whether ``v_seq`` is kept; setting it forgets what was kept."""
        return self._store_v_seq

    @store_v_seq.setter
    def store_v_seq(self, value: bool) -> None:
        self._store_v_seq, self.v_seq = bool(value), None

    def reset(self) -> None:
        """Back to the potential before the first call."""
        MemoryModule.reset(self)
        self.v_seq = None

    def detach(self) -> None:
        """Keep the potential and cut it from the steps that led to it."""
        MemoryModule.detach(self)
        self.v_seq = None if self.v_seq is None else self.v_seq.detach()

    def forward(self, x: Tensor) -> Tensor:
        """The spikes of one step or of T, by ``step_mode``; in x's shape and dtype."""
        if self.step_mode == "s":
            return self.single_step_forward(x)
        return self.multi_step_forward(x)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """The spikes of one step, ``[*neurons]``, whatever ``step_mode`` says."""
        (spikes,), (self.v,) = self.single_step_functional_forward((x,), (self.v,))
        if self.store_v_seq:
            before, own = self.v_seq, self.v.unsqueeze(0)
            fits = before is not None and before.shape[1:] == own.shape[1:]
            self.v_seq = torch.cat([before, own]) if fits else own.clone()  # type: ignore[list-item]
        return spikes

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """The spikes of T steps, ``[T, *neurons]``, whatever ``step_mode`` says."""
        if not self.store_v_seq or not x_seq.dim() or not len(x_seq):
            (spikes,), (self.v,) = self.multi_step_functional_forward((x_seq,), (self.v,))
            return spikes
        sent, potentials = [], []
        for x in x_seq:
            (spikes,), (self.v,) = self.single_step_functional_forward((x,), (self.v,))
            sent.append(spikes)
            potentials.append(self.v)
        self.v_seq = torch.stack(potentials)
        return torch.stack(sent)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **_: Any
    ) -> tuple[tuple[Tensor], tuple[Tensor]]:
        """One step that touches no memory: ``(x,), (v,)`` to ``(spikes,), (v,)``."""
        (spikes,), after = self.multi_step_functional_forward((inputs[0].unsqueeze(0),), states)
        return (spikes[0],), after

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **_: Any
    ) -> tuple[tuple[Tensor], tuple[Tensor]]:
        """T steps that touch no memory: ``(x_seq,), (v,)`` to ``(spikes,), (v,)``."""
        x_seq, known = inputs[0], self._kernel()
        if not x_seq.dim() or not len(x_seq):
            raise ValueError(f"x_seq must be [T, *neurons] with 1 <= T, got {tuple(x_seq.shape)}")
        start = self._start(x_seq[0], states[0])
        if known is None:
            return self._plain(x_seq, start)
        theta = x_seq.new_full((), self.v_threshold)
        spikes, v = run_on(x_seq, theta, start, self.v_reset, known, self.detach_reset)
        return (spikes if self.v_threshold == 1 else spikes / theta,), (v.to(x_seq.dtype),)

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Tensor]:
        """The potential to start from, in the shape and dtype of one step."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        start = self._start(x, states[0])
        return (start if isinstance(start, Tensor) else torch.full_like(x, start),)

    def _start(self, x: Tensor, v: float | Tensor) -> float | Tensor:
        """What a step x starts from: v, or where it has another shape the potential of a reset."""
        if isinstance(v, Tensor):
            return v.to(x) if v.shape == x.shape else self.v_reset or 0.0
        return v

    def _kernel(self) -> Surrogate | None:
        """The kernels' surrogate that is ``surrogate_function``; None where there is none.

        That is a function of m - θ, the kernels' one k of u = (m - θ)/θ, and g(m - θ) is k(u)/θ.
        """
        function, theta = self.surrogate_function, self.v_threshold
        alpha, kind = getattr(function, "alpha", None), type(function)
        if not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
            return None
        if not isinstance(alpha, (int, float)) or not 0 < alpha * theta < math.inf:
            return None
        if kind is kernels.FastSigmoid and theta != 1:
            return None  # it is not α times a function of αu: no other α gives θ times it
        if kind in KERNELS:
            return kind(alpha * theta)
        theirs = kind.__module__.startswith("spikingjelly.") and getattr(function, "spiking", False)
        return FUSED[kind.__name__](alpha * theta) if theirs and kind.__name__ in FUSED else None

    def _plain(self, x_seq: Tensor, v: Any) -> tuple[tuple[Tensor], tuple[Tensor]]:
        """The steps in plain torch, for any surrogate and threshold."""
        theta, sent = self.v_threshold, []
        for x in x_seq:
            m = v + x
            s = self.surrogate_function(m - theta)
            sent.append(s)
            r = s.detach() if self.detach_reset else s
            v = m - r * theta if self.v_reset is None else (1 - r) * m + r * self.v_reset
        return (torch.stack(sent),), (v,)

    def extra_repr(self) -> str:
        """The settings, as SpikingJelly shows them."""
        return (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"detach_reset={self.detach_reset}, step_mode={self.step_mode}, backend={self.backend}"
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v.detach() if isinstance(v, Tensor) else v for k, v in self._memories.items()}
        v_seq = None if self.v_seq is None else self.v_seq.detach()
        return {**self.__dict__, "_memories": kept, "v_seq": v_seq}  # copies have no graph
