"""Choosing one of several options for every layer, so that what it harms is least and what it costs
stays within a budget. Numbers alone: no network here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

KEPT = 1 << 16  # partial choices that are kept between two layers


class _Front(NamedTuple):
    """Choices for some layers that no other beats in both, cost rising and harm falling, [F]."""

    cost: Tensor
    harm: Tensor
    before: Tensor  # the index in the front of one layer less
    option: Tensor  # of the last layer


def cheapest(
    harms: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """The index of an option for every layer: least sum of harms, sum of costs at most the budget.

    A dynamic programme over the layers. It keeps the partial choices that no other beats in both
    sums and that can still stay within the budget. The result is the best one unless more than
    KEPT of them remain; then the least harmful in each of KEPT equal intervals of cost goes on.
    Of equal harms the cheaper choice is taken.

    Raises:
        ValueError: no choice stays within the budget.
    """
    least = [min(own) for own in costs]
    rest = [sum(least[index + 1 :]) for index in range(len(costs))]
    if sum(least) > budget:
        raise ValueError(f"the budget must be at least {sum(least)}, got {budget}")
    none = torch.zeros(1, dtype=torch.int64)
    front = _Front(none.double(), none.double(), none, none)
    fronts = []
    for harm, cost, later in zip(harms, costs, rest):
        front = _extended(front, harm, cost, budget - later, budget)
        fronts.append(front)
    chosen, place = [], len(front.cost) - 1  # the last has the least harm
    for front in reversed(fronts):
        chosen.append(int(front.option[place]))
        place = int(front.before[place])
    return chosen[::-1]


def _extended(
    front: _Front, harm: Sequence[float], cost: Sequence[float], most: float, budget: float
) -> _Front:
    """The front with one layer more, of costs up to `most`."""
    costs = front.cost[:, None] + torch.tensor(cost, dtype=torch.float64)
    harms = front.harm[:, None] + torch.tensor(harm, dtype=torch.float64)
    options = torch.arange(len(cost)).expand_as(costs)
    before = torch.arange(len(front.cost))[:, None].expand_as(costs)
    every = _Front(costs.flatten(), harms.flatten(), before.flatten(), options.flatten())
    fits = every.cost <= most
    every = _Front(*(part[fits] for part in every))
    order = every.harm.argsort(stable=True)
    order = order[every.cost[order].argsort(stable=True)]
    every = _Front(*(part[order] for part in every))
    best = every.harm.cummin(0).values
    better = torch.ones_like(best, dtype=torch.bool)
    better[1:] = every.harm[1:] < best[:-1]
    every = _Front(*(part[better] for part in every))
    if len(every.cost) <= KEPT:
        return every
    interval = (every.cost / budget * KEPT).floor()
    last = torch.ones_like(interval, dtype=torch.bool)
    last[:-1] = interval[1:] != interval[:-1]
    return _Front(*(part[last] for part in every))
