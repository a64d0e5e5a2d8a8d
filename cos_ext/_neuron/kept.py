"""θ and v(0) of a node as the kernels take them, looked at once and kept until they change.

So a call reads no value of a tensor, and converts none. What a node may be given at all is in
parameters.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional as F
from .._functional.arguments import has_values
from .._functional.checks import differentiates
from .parameters import own


class Kept(NamedTuple):
    """θ and v(0) for currents of one dtype, and what they were made of.

    Converted ones are good in one place only (see :func:`_place`), and where nobody needs a
    gradient of what they were made of.
    """

    dtype: torch.dtype
    theta: Tensor
    v_init: Tensor
    own: tuple[Tensor, Tensor]  # the node's
    state: tuple[int, int, int, int]
    memory: tuple[Tensor, Tensor]  # the node's, held so that their addresses are not given anew
    converted: bool
    place: int | None

    def serves(self, theta: Tensor, v_init: Tensor, dtype: torch.dtype) -> bool:
        """Whether they are those of a node's tensors as these are now."""
        return (
            self.dtype is dtype
            and self.own[0] is theta
            and self.own[1] is v_init
            and self.state == _state(theta, v_init)
            and (not self.converted or self._serve_here())
        )

    def _serve_here(self) -> bool:
        place = _place(self.own[0])
        return place is not None and place == self.place and not differentiates(self.own)


def parameters_for(node: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """θ and v(0) of an IFNode in dtypes that the kernels take beside currents of this one.

    θ is rounded to the currents' dtype: that is how the spikes carry it, and a reset takes off what
    was sent. On a CPU the values of a buffer are looked at when they have changed, those of a
    parameter at every call. What is written through ``.data`` is not counted as a change.

    Raises:
        ValueError: a threshold is not positive and finite in this dtype.
    """
    theta, v_init = own(node, "v_threshold"), own(node, "v_init")
    if torch.compiler.is_compiling():
        return _in_dtypes(theta, v_init, dtype)
    kept: Kept | None = node._kept
    if kept is not None and kept.serves(theta, v_init, dtype):
        return kept.theta, kept.v_init
    if has_values(theta):
        F.check_values("v_threshold", theta, dtype)
    state = F.state_dtype(dtype)
    converted = not (theta.dtype == dtype == state and v_init.dtype == state)
    place = _place(theta)
    if converted and (place is None or differentiates((theta, v_init))):
        return _in_dtypes(theta, v_init, dtype)
    with torch.inference_mode(False), torch.no_grad():
        made = (theta.to(dtype).to(state), v_init.to(state)) if converted else (theta, v_init)
        learns = isinstance(theta, nn.Parameter) or isinstance(v_init, nn.Parameter)
        # A fused optimizer writes parameters without a trace.
        if not learns and all(map(_counts, (theta, v_init, *made))):
            both, memory = (theta, v_init), (theta.detach(), v_init.detach())
            node._kept = Kept(dtype, *made, both, _state(*both), memory, converted, place)
    return made


def _in_dtypes(theta: Tensor, v_init: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """θ and v(0), converted where they must be, as a gradient goes through them."""
    state = F.state_dtype(dtype)
    start = v_init if v_init.dtype in (dtype, state) else v_init.to(state)
    return theta.to(dtype), start


def _state(theta: Tensor, v_init: Tensor) -> tuple[int, int, int, int]:
    """What differs when one of them was written to, or given other memory."""
    return theta._version, theta.data_ptr(), v_init._version, v_init.data_ptr()


def _counts(tensor: Tensor) -> bool:
    """Whether what is written to a tensor is counted, and it outlives the call: it is plain."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return type(tensor) is Tensor and not wrapped and not tensor.is_inference()


def _place(theta: Tensor) -> int | None:
    """Where a conversion is done before what follows: a CPU, or a stream.

    None: nowhere else. Somebody records what runs here, a trace or a CUDA graph, and it should
    convert again whenever that is run.
    """
    if torch.jit.is_tracing():
        return None
    if not theta.is_cuda:
        return 0
    if torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream(theta.device).cuda_stream
