"""The tensors of a neuron, θ and v(0): made from what a user gives, and read from a state dict; and
where a run starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from .._functional.arguments import is_real
from .._functional.checks import check_not_nan
from .._numbers import real
from .continuing import fitting
from .runs import portion

LEARNED = ("v_threshold", "v_init")


def parameter(name: str, value: float | Tensor) -> Tensor:
    """A number in torch's default dtype, or a copy of a floating-point tensor without its graph.

    Raises:
        TypeError: value is neither.
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {value.dtype}")
        return value.detach().clone()
    return torch.tensor(
        real(name, value, nan=True, or_=" or a tensor"), dtype=torch.get_default_dtype()
    )


def check_set(name: str, value: object) -> None:
    """Validate the values of a tensor that becomes θ or v(0). Synchronises with its device.

    Raises:
        TypeError: a threshold is not floating-point.
        ValueError: a threshold is not positive and finite, or a v(0) is NaN.
    """
    if not isinstance(value, Tensor) or value.is_meta or not is_real(value):
        return  # nn.Module says what else may come
    (F.check_values if name == "v_threshold" else check_not_nan)(name, value)


def learn(node: nn.Module, names: Sequence[str]) -> None:
    """Make parameters of these buffers of a node.

    Raises:
        ValueError: a name is none of ``LEARNED``.
    """
    for name in names:
        if isinstance(names, str) or name not in LEARNED:
            raise ValueError(f"learn must be a sequence of {LEARNED}, got {names!r}")
    for name in dict.fromkeys(names):
        value = node._buffers.pop(name)
        node.register_parameter(name, nn.Parameter(value))  # type: ignore[arg-type]  # it is there


def own(node: nn.Module, name: str) -> Any:
    """A tensor of a node, or None; a buffer in a fraction of the time that nn.Module takes."""
    buffers = node._buffers
    return buffers[name] if name in buffers else getattr(node, name)


def light_bias(bias: Tensor | None) -> Tensor:
    """The current that calibration "light" adds at every step.

    Raises:
        RuntimeError: it has not been fitted.
    """
    if bias is None:
        raise RuntimeError(
            'calibration is "light" and this layer has no fitted bias; call cos_ext.fit_light first'
        )
    return bias


def operands(
    dtype: torch.dtype, scale: Tensor | None, bias: Tensor | None, current: Tensor | None
) -> dict[str, Tensor]:
    """scale, and bias + current, as the kernels take them for currents of this dtype; each where
    there is one.
    """
    if scale is bias is current is None:
        return {}
    if bias is not None and current is not None:
        current = bias + current
    given = {"scale": scale, "bias": bias if current is None else current}
    kept = {name: tensor for name, tensor in given.items() if tensor is not None}
    state = F.state_dtype(dtype)
    return {k: t if t.dtype in (dtype, state) else t.to(state) for k, t in kept.items()}


def check_loaded(state: Mapping[str, Any], prefix: str, own: Mapping[str, Tensor | None]) -> None:
    """Validate the tensors of a node in a state dict, rounded to the dtypes of its ``own``.

    Raises:
        ValueError: a threshold is not positive and finite, or a v(0) or a bias is NaN.
    """
    checks: dict[str, Callable[[str, Tensor], None]] = {
        "v_threshold": F.check_values,
        "v_init": check_not_nan,
        "bias": check_not_nan,
    }
    for name, check in checks.items():
        loaded, current = state.get(prefix + name), own[name]
        if isinstance(loaded, Tensor) and not loaded.is_meta and current is not None:
            check(prefix + name, loaded.detach().to(current.dtype))


def load_into(
    node: nn.Module, state: Mapping[str, Any], prefix: str, own: Mapping[str, Tensor | None]
) -> None:
    """Validate the tensors of a node in a state dict; a v(0) of another shape gets room.

    Raises:
        ValueError: as for :func:`check_loaded`.
    """
    check_loaded(state, prefix, own)
    start, theta, current = state.get(prefix + "v_init"), own["v_threshold"], own["v_init"]
    assert theta is not None and current is not None
    if isinstance(start, Tensor) and start.shape != current.shape and fit_together(start, theta):
        # fit_v_init gives it a shape of its own.
        made = current.new_zeros(start.shape)
        learns = isinstance(current, nn.Parameter)
        node.v_init = nn.Parameter(made, requires_grad=current.requires_grad) if learns else made


def fit_together(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors broadcast with each other."""
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a.shape), reversed(b.shape)))


def start_of(node: nn.Module, x_seq: Tensor, v_init: Tensor) -> Tensor:
    """What neurons start from: in a portion the potential that they left, else v_init.

    Raises:
        ValueError: what they left does not fit x_seq.
    """
    now = portion()
    kept = None if now is None else now.potentials.get(node)
    return v_init if kept is None else fitting(kept, x_seq, x_seq.shape[1:])
