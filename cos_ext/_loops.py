"""The loop over batches that measurements and fits share: a progress bar, the inputs on a device,
and a refusal of data without a sample.

What is done with the inputs is the callers' business. Nothing here knows a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ._batches import Inputs, model_inputs


def moved(batch: Any, wanted: Inputs, device: torch.device, *, copy: bool = False) -> list[Tensor]:
    """The `wanted` tensors of a batch on `device`.

    copy: always in memory of their own. A model that works in place may write over what it is
    given.
    """
    inputs = model_inputs(batch, wanted)
    return [tensor.to(device, non_blocking=True, copy=copy) for tensor in inputs]


def inputs_on(
    device: torch.device,
    batches: Iterable[Any],
    wanted: Inputs,
    *,
    title: str,
    progress: bool,
    copy: bool = False,
    one_size: bool = False,
) -> Iterator[list[Tensor]]:
    """The inputs of every batch that has a sample, on `device`, in the order of the batches.

    Args:
        device: where they are wanted.
        batches: see :func:`cos_ext._batches.check_batches`; read once.
        wanted: the inputs in a batch.
        title: of the progress bar.
        progress: a progress bar on stderr.
        copy: see :func:`moved`.
        one_size: refuse a batch whose inputs differ in their first size.

    Raises:
        TypeError, ValueError: a batch is not what it must be.
        ValueError: the inputs of a batch differ in size, or no batch had a sample. The latter is
            known, and raised, at the end.
    """
    empty = True
    for batch in tqdm(batches, desc=title, disable=not progress, leave=False):
        inputs = moved(batch, wanted, device, copy=copy)
        sizes = [x.shape[0] for x in inputs] if one_size else []
        if len(set(sizes)) > 1:
            raise ValueError(f"inputs must have one batch size, got {sizes}")
        if inputs[0].shape[0]:
            empty = False
            yield inputs
    if empty:
        raise ValueError("batches must yield at least one sample, it yielded none")
