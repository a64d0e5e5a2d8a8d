"""What a call becomes in a CUDA graph: how many nodes, and how long they take. CUDA only."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
from collections.abc import Iterator

import torch
from _shared.timing import Call, event_pair


@contextlib.contextmanager
def capturing(graph: torch.cuda.CUDAGraph, warm_up: Call) -> Iterator[None]:
    """Captures the block into `graph`, after warm_up() on a side stream, as torch's documentation
    asks.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        warm_up()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    # thread_local: a compile worker's thread may do what capture forbids, and is none of our
    # business.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        yield


def graph_seconds(calls: list[Call]) -> float:
    """Device time of a call inside a captured graph of all of them."""
    graph, kept = torch.cuda.CUDAGraph(), []
    with capturing(graph, calls[0]):
        kept += [call() for call in calls]
    seconds = []
    for _ in range(12):
        first, last = event_pair()
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        seconds.append(first.elapsed_time(last) / 1e3 / len(calls))
    return statistics.median(seconds[2:])


def graph_nodes(call: Call) -> list[int]:
    """The types of the nodes that a call becomes in a CUDA graph, by the driver's numbers: 0 is a
    kernel launch.
    """
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with capturing(graph, call):
        kept = call()
    driver = ctypes.CDLL("libcuda.so.1")
    handle, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t(0)
    status = driver.cuGraphGetNodes(handle, None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * max(1, count.value))()
    status = status or driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count))
    kinds = []
    for node in nodes[: count.value]:
        kind = ctypes.c_int(-1)
        status = status or driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
        kinds.append(kind.value)
    if status:
        raise RuntimeError(f"the driver answers {status} when asked for the nodes of a graph")
    del kept
    return kinds
