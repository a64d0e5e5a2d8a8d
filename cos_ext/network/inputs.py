"""What a network takes: tensors of one batch size, in its dtype, or sequences of them. Nothing is
run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import Inputs
from .._neuron.runs import frames_now


def as_inputs(
    example: Tensor | tuple[Tensor, ...] | list[Tensor], name: str = "example_input"
) -> tuple[Tensor, ...]:
    """One input or several as a tuple.

    Raises:
        TypeError: there are none, or one is no tensor.
        ValueError: an input has no dimensions or no sample.
    """
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    wrong = [type(x).__name__ for x in inputs if not isinstance(x, torch.Tensor)]
    if wrong or not inputs:
        raise TypeError(
            f"{name} must be a tensor or a tuple of tensors, got "
            f"{', '.join(wrong) or 'an empty tuple'}"
        )
    return inputs


def example_of(
    model: nn.Module, example: Tensor | Sequence[Tensor | None] | Mapping[str, Tensor]
) -> tuple[Inputs, tuple[Tensor, ...]]:
    """Which inputs of a model an example has, by position or by name, and those in their order.

    Raises:
        TypeError: it is neither tensors nor a mapping of them, or not what forward takes.
        ValueError: an input has no dimensions or no sample, or batches of several sizes.
    """
    if isinstance(example, Mapping):
        inputs = Inputs.of(model, example)
        tensors = as_inputs([example[name] for name in inputs.names])
    else:
        given: list[Any] = list(example) if isinstance(example, (tuple, list)) else [example]
        tensors = as_inputs([x for x in given if x is not None] if len(given) > 1 else given)
        inputs = Inputs.of_positions(model, given)
    if any(x.dim() == 0 or x.shape[0] == 0 for x in tensors):
        raise ValueError(
            "example_input must be [B, ...] with at least one sample, got shapes "
            f"{[tuple(x.shape) for x in tensors]}"
        )
    batch_size(tensors)
    return inputs, tensors


def batch_size(inputs: tuple[Tensor, ...]) -> int:
    """The first size that all inputs share, 0 without inputs.

    Raises:
        TypeError: an input is no tensor.
        ValueError: an input has no dimensions, or their batches differ in size.
    """
    wrong = [type(x).__name__ for x in inputs if not isinstance(x, Tensor)]
    if wrong:
        raise TypeError(f"inputs must be tensors [B, ...], got {', '.join(wrong)}")
    if any(x.dim() == 0 for x in inputs):
        raise ValueError("inputs must be [B, ...], got a tensor without dimensions")
    batch = inputs[0].shape[0] if inputs else 0
    if any(x.shape[0] != batch for x in inputs):
        raise ValueError(f"inputs must have one batch size, got {[x.shape[0] for x in inputs]}")
    return batch


def check_shapes(
    inputs: tuple[Tensor, ...],
    ranks: Sequence[tuple[int, int | None] | None],
    shapes: Sequence[tuple[int, ...]],
    lead: tuple[str, ...] = ("B",),
) -> None:
    """ValueError where an input has fewer or more dimensions than what reads it wants with a batch,
    or another shape than the one for which the model was traced. A convolution takes a single
    sample, too, and would take time for its channels.

    lead: the dimensions before a sample's: "B", or "T" and "B" of a sequence.
    """
    more = len(lead) - 1
    single = "x[:, None]" if more else "x[None], a sequence [T, B, ...] to run()"
    for number, (x, shape) in enumerate(zip(inputs, shapes)):
        if tuple(x.shape[len(lead) :]) != shape:
            raise ValueError(
                f"input {number} must be [{', '.join((*lead, *map(str, shape)))}], got shape "
                f"{tuple(x.shape)}: the model's control flow depends on shapes, and was followed "
                "for those of example_input; convert it with an example of this shape"
            )
    for number, (x, rank) in enumerate(zip(inputs, ranks)):
        least, most = rank or (0, None)
        if x.dim() - more < least or (most is not None and x.dim() - more > most):
            wanted = f"{least + more}" if most == least else f"at least {least + more}"
            raise ValueError(
                f"input {number} must have {wanted} dimensions, [{', '.join(lead)}, ...], got "
                f"shape {tuple(x.shape)}; give a single sample as {single}"
            )


def check_sequences(inputs: tuple[Tensor, ...], steps: int, why: str) -> None:
    """ValueError where inputs are no sequences [T, B, ...] of so many frames of one batch.

    why: so many, in words.
    """
    for number, x in enumerate(inputs):
        if x.dim() < 2 or x.shape[0] != steps:
            raise ValueError(
                f"input {number} must be a sequence [T, B, ...] of {steps} frames ({why}), got "
                f"shape {tuple(x.shape)}; time is not folded into the batch here: "
                "x.unflatten(0, (T, B)) undoes that, and x.expand(T, *x.shape) repeats an image"
            )
    if len({x.shape[1] for x in inputs}) > 1:
        raise ValueError(f"inputs must have one batch size, got {[x.shape[1] for x in inputs]}")


def folded(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs as the model takes them: sequences, which a run has as [B, T, ...], as frames
    [T*B, ...].
    """
    if frames_now() is None:
        return inputs
    return tuple(x.transpose(0, 1).flatten(0, 1) for x in inputs)


def in_dtype_of(network: nn.Module, x: Tensor) -> Tensor:
    """A floating-point input in the network's dtype, where all its tensors have one."""
    if not x.is_floating_point():
        return x
    first = next((p.dtype for p in network.parameters() if p.is_floating_point()), x.dtype)
    if first == x.dtype:
        return x
    tensors = (*network.parameters(), *network.buffers())
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return x.to(first) if dtypes == {first} else x
