"""Several processes: who this one is, exchanging small results, starting under torchrun. Nothing
about networks is here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist


class RemoteError(RuntimeError):
    """Another process failed, so that there is no common result. The message says which, and
    why.
    """


def is_running() -> bool:
    """Whether torch.distributed has a default group."""
    return dist.is_available() and dist.is_initialized()


def whoami(group: Any = None) -> tuple[int, int]:
    """(rank, processes) in ``group``; (0, 1) where torch.distributed is not initialised.

    None is the default group.

    Raises:
        ValueError: this process is not in the group.
    """
    if not is_running():
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group must contain this process, got a group without it")
    return rank, dist.get_world_size(group)


def gather(value: Any, group: Any = None, *, device: torch.device | None = None) -> list[Any]:
    """The values of all processes of the group, in the order of their ranks. Every process of the
    group must call it.

    Args:
        value: this process's; anything that pickles, small.
        group: None: the default group.
        device: where NCCL, which knows no host memory, may put it.
    """
    if not is_running():
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    on_gpu = device is not None and device.type == "cuda"
    with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
        dist.all_gather_object(values, value, group=group)
    return values


def launched() -> bool:
    """Whether torchrun (or another launcher with its variables) started this process as one of
    several.
    """
    return dist.is_available() and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextlib.contextmanager
def started() -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, and leave them at the end; gives (rank, processes).

    The group is gloo's, on GPUs too. What this package exchanges are host integers, and gloo can
    still say that a GPU failed.
    """
    dist.init_process_group("gloo")
    try:
        yield whoami()
    finally:
        dist.destroy_process_group()


def local_gpu() -> torch.device:
    """This process's GPU, cuda:LOCAL_RANK.

    Raises:
        ValueError: there are fewer GPUs than processes on this machine.
    """
    index, found = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= found:
        raise ValueError(
            f"there must be a GPU for every process of this machine, got LOCAL_RANK {index} with "
            f"{found} GPUs"
        )
    return torch.device("cuda", index)
