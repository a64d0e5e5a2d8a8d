"""Batches loaded and copied to the device by a thread, ahead of the one who uses them. Nothing
about networks is here.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._numbers import whole

# What a network is given: a tensor, several, or several by name. And the labels.
Batch = tuple[Any, Tensor]


def check_depth(depth: int) -> None:
    """TypeError or ValueError unless ``depth`` is an int >= 0."""
    whole("prefetch", depth, 0)


@contextlib.contextmanager
def prefetched(
    batches: Iterable[Batch], device: torch.device, depth: int
) -> Iterator[Iterator[Batch]]:
    """An iterator over ``batches`` on ``device``, in their order.

    A thread iterates ``batches``, so that loading overlaps with what the caller does: up to
    ``depth`` batches wait, and one more is being loaded. For a CUDA device the thread also pins the
    memory and copies on a stream of its own. The caller's current stream waits for the copy, the
    host does not.

    An error of ``batches`` is raised where its batch would have come. Leaving the context ends the
    thread, after the batch that it is loading then; an interrupt (Ctrl-C) waits 1 s for it.
    The thread has no gradients; other settings that torch keeps per thread (a default device) it
    lacks.

    Args:
        batches: an iterable of (inputs [B, ...], labels [B]); inputs may be a tuple or a mapping of
            tensors.
        device: where they are wanted.
        depth: batches that may wait; 0: no thread and no pinning.

    Raises:
        TypeError: an item of ``batches`` is not a pair of tensors.
    """
    if depth == 0:
        yield (_moved(item, device, pin=False) for item in batches)
        return
    ahead: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()
    side = None
    if device.type == "cuda":
        side = torch.cuda.Stream(device)
        # The loader may read what the caller has just computed.
        side.wait_stream(torch.cuda.current_stream(device))

    def load() -> None:
        try:
            with (
                torch.no_grad(),
                torch.cuda.stream(side) if side is not None else contextlib.nullcontext(),
            ):
                for item in batches:
                    if stop.is_set():
                        return
                    batch = _moved(item, device, pin=True)
                    ahead.put((batch, side.record_event() if side is not None else None))
                    if stop.is_set():
                        return
            ahead.put(None)
        except BaseException as error:  # the caller decides what becomes of it
            if not stop.is_set():
                ahead.put(error)

    def arriving() -> Iterator[Batch]:
        while (item := ahead.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, copied = item
            if copied is not None:
                stream = torch.cuda.current_stream(device)
                stream.wait_event(copied)
                for tensor in pytree.tree_leaves(batch):
                    # Its memory belongs to the side stream, which must not reuse it yet.
                    tensor.record_stream(stream)
            yield batch

    thread = threading.Thread(target=load, name="cos_ext prefetch", daemon=True)
    thread.start()
    try:
        yield arriving()
    finally:
        stop.set()
        _emptied(ahead)
        # A batch may load for minutes. The thread is a daemon.
        interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt)
        thread.join(1 if interrupted else None)


def _emptied(ahead: queue.Queue[Any]) -> None:
    """After this a stopped thread puts at most one thing more, and there is room for it."""
    with contextlib.suppress(queue.Empty):
        while True:
            ahead.get_nowait()


def _moved(item: Any, device: torch.device, *, pin: bool) -> Batch:
    pair = isinstance(item, (tuple, list)) and len(item) == 2
    inputs: Any = item[0] if pair else None
    labels: Any = item[1] if pair else None
    leaves = pytree.tree_leaves(inputs)
    plain = isinstance(inputs, (Tensor, tuple, list, Mapping)) and len(leaves) > 0
    if not plain or not all(isinstance(part, Tensor) for part in (*leaves, labels)):
        what = (
            ", ".join(type(part).__name__ for part in item)
            if isinstance(item, (tuple, list))
            else type(item).__name__
        )
        raise TypeError(
            f"loader must yield pairs of tensors (inputs, labels), got {what}; inputs may also be "
            "several in a tuple or a mapping"
        )

    def move(part: Tensor) -> Tensor:
        # Only from pinned memory does a copy run beside the host.
        if pin and device.type == "cuda" and part.device.type == "cpu" and not part.is_pinned():
            part = part.pin_memory()
        return part.to(device, non_blocking=True)

    if isinstance(inputs, Mapping):
        return {name: move(part) for name, part in inputs.items()}, move(labels)
    if isinstance(inputs, Tensor):
        return move(inputs), move(labels)
    return tuple(map(move, inputs)), move(labels)
