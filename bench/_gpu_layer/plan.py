"""What is measured, the most important first: a run ends when its time is up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .cases import COMPILED, Case, Grid
from .kernels import kernels
from .learning import learning
from .rivals import compiled_peers, eager_peers
from .run import Job, Run
from .small import small_layer

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
            # Compiling takes longer the longer the loop is.
            needed = 10 + t if name == COMPILED else 0
            yield Job(name, measure, Case(dtype, t, 2**log2, image=g.image, **form), needed)

    first, others = g.steps[:1], g.steps[1:]
    main, rest = g.steps[:2], g.steps[2:]
    other_sizes = [log2 for log2 in sorted(g.sizes, reverse=True) if log2 != g.base]
    compiled = over(COMPILED, compiled_peers, g.steps)

    yield from over("kernels", kernels, g.steps)
    yield from over("peers", eager_peers, main)
    yield from over("learning", learning, main)
    for dtype, t, log2 in g.small:
        yield Job("small layer", small_layer, Case(dtype, t, 2**log2, image=g.image), 5)
    yield next(compiled)._replace(needed=15)
    yield from over("kernels", kernels, first, forms=LAYOUTS)
    yield from over("kernels", kernels, first, other_sizes)
    yield from over("peers", eager_peers, rest)
    yield from over("learning", learning, rest)
    yield from compiled
    if rest:
        yield from over("kernels", kernels, others, other_sizes)
        yield from over("kernels", kernels, others, forms=(PER_CHANNEL, STATIC, CHANNELS_LAST))
