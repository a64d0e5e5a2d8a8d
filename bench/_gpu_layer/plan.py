"""What is measured, the most important first: a run ends when its time is up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .cases import NAMES, Case, Grid
from .kernels import kernels
from .learning import learning
from .quantisers import compiled_quantisers, quantisers
from .rivals import compiled_peers, eager_peers
from .run import Job, Run
from .small import small_layer, small_peers

# The jobs by name, and what each asks.
KERNELS, SMALL, PEERS, LEARNING, QCFS, COMPILED, SMALL_PEERS, QCFS_PEERS = QUESTIONS = {
    "kernels": "A copy, if_forward and cos_forward (rho 4 and 8, one round and exact, in place "
    "too): is a layer at the bandwidth of a copy?",
    "small layer": "Microseconds a call, of the host, of the device and in a graph; how many "
    "launches; torch.relu beside.",
    "peers": "Plain torch and SpikingJelly (Triton; jit and cupy): how many times our time?",
    "learning": "if_backward beside a copy; forwards and backwards beside plain torch and "
    "SpikingJelly.",
    "QCFS": "Its kernels beside a copy; forwards and backwards beside plain torch.",
    "torch.compile": "The loop, the stacked form and the calibration under torch.compile.",
    "small layer, compiled": "The small layers under torch.compile.",
    "QCFS, compiled": "Plain torch's QCFS under torch.compile, both ways.",
}

PER_CHANNEL = {"layout": "nchw", "per_channel": True}
CHANNELS_LAST = {"layout": "channels_last", "per_channel": True}
STATIC = {"static": True}
LAYOUTS = (
    PER_CHANNEL,
    CHANNELS_LAST,
    {"layout": "channels_last"},
    STATIC,
    {**PER_CHANNEL, "static": True},
)


def plan(g: Grid) -> Iterator[Job]:
    def over(
        name: str,
        measure: Callable[[Run, Case], None],
        steps: Sequence[int],
        sizes: Sequence[int] = (g.base,),
        forms: Sequence[dict[str, Any]] = ({},),
    ) -> Iterator[Job]:
        for log2, t, dtype, form in itertools.product(sizes, steps, g.dtypes, forms):
            yield Job(name, measure, Case(dtype, t, 2**log2, image=g.image, **form))

    first, others = g.steps[:1], g.steps[1:]
    main, rest = g.steps[:2], g.steps[2:]
    other_sizes = [log2 for log2 in sorted(g.sizes, reverse=True) if log2 != g.base]
    small = [Case(dtype, t, 2**log2, image=g.image) for dtype, t, log2 in g.small]
    # Compiling takes longer the longer the loop is.
    compiled = [
        job._replace(needed=10 + job.case.timesteps, compiles=True)
        for job in over(COMPILED, compiled_peers, g.steps)
    ]

    yield from over(KERNELS, kernels, main)
    for case in small:
        yield Job(SMALL, small_layer, case, 5)
    yield from over(PEERS, eager_peers, first)
    yield from over(LEARNING, learning, main)
    yield from over(QCFS, quantisers, (1,))
    yield from over(PEERS, eager_peers, main[1:])
    yield from over(KERNELS, kernels, rest)
    yield compiled[0]
    yield from over(KERNELS, kernels, first, forms=LAYOUTS)
    yield from over(KERNELS, kernels, first, other_sizes)
    yield from over(LEARNING, learning, rest)
    yield from over(PEERS, eager_peers, rest)
    for case in small:
        yield Job(SMALL_PEERS, small_peers, case, 15, True)
    for job in over(QCFS_PEERS, compiled_quantisers, (1,)):
        yield job._replace(needed=20, compiles=True)
    yield from compiled[1:]
    if rest:
        yield from over(KERNELS, kernels, others, other_sizes)
        yield from over(KERNELS, kernels, others, forms=(PER_CHANNEL, STATIC, CHANNELS_LAST))


def lines(g: Grid) -> Iterator[str]:
    """The plan in words: what each job asks, then the jobs in their order, neighbours as one."""
    for name, question in QUESTIONS.items():
        yield f"{name}: {question}"

    def kind(job: Job) -> tuple[str, bool]:
        return job.name, job.case.layout == "flat" and not job.case.static

    for (name, _), group in itertools.groupby(plan(g), kind):
        cases = [job.case for job in group]
        dtypes = dict.fromkeys(NAMES[case.dtype] for case in cases)
        steps = dict.fromkeys(str(case.timesteps) for case in cases)
        sizes = dict.fromkeys(f"2^{case.elements.bit_length() - 1}" for case in cases)
        layouts = dict.fromkeys(str(case).split(" ", 3)[3] for case in cases)
        yield (
            f"{len(cases):4} x {name}: {' '.join(dtypes)}, T = {' '.join(steps)}, "
            f"{' '.join(sizes)} elements, {' | '.join(layouts)}"
        )
