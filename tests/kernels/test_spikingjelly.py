"""IFNode against SpikingJelly's, recorded by record_spikingjelly.py: EQUAL spikes and potentials,
in every step mode.

SpikingJelly starts at v = 0 and emits 0 or 1; IFNode emits 0 or θ. spikingjelly itself is not
needed here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from cos_ext import IFNode, functional


class Case(NamedTuple):
    x: Tensor
    v_threshold: float
    v_reset: float | None
    spikes: Tensor  # bool [T, *neurons]
    v: Tensor

    def node(self, **kwargs) -> IFNode:
        return IFNode(self.v_threshold, v_init=0.0, v_reset=self.v_reset, **kwargs)

    def check_emitted(self, out: Tensor) -> None:
        assert torch.equal(out > 0, self.spikes)
        assert torch.equal(out, self.spikes * torch.tensor(self.v_threshold))


def _load() -> list[Case]:
    with np.load(
        Path(__file__).parents[1] / "golden" / "spikingjelly_if.npz", allow_pickle=False
    ) as record:
        cases = zip(record["v_threshold"].tolist(), record["v_reset"].tolist(), record["input"])
        return [
            Case(
                torch.from_numpy(record[f"x_{i}"]),
                threshold,
                None if math.isnan(v_reset) else v_reset,
                torch.from_numpy(record[f"spikes_{n}"]).bool(),
                torch.from_numpy(record[f"v_{n}"]),
            )
            for n, (threshold, v_reset, i) in enumerate(cases)
        ]


CASES = _load()
each_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=f"{'x'.join(map(str, c.x.shape))}-{c.v_threshold}-{c.v_reset}")
        for c in CASES
    ],
)


def step_by_step(node: IFNode, x: Tensor) -> Tensor:
    return torch.stack([node(current) for current in x])


@each_case
def test_multi_step(case):
    case.check_emitted(case.node()(case.x))


@each_case
def test_folded_multi_step(case):
    out = case.node(timesteps=len(case.x))(case.x.flatten(0, 1))
    case.check_emitted(out.view_as(case.x))


@each_case
def test_single_step(case):
    node = case.node(step_mode="s")
    case.check_emitted(step_by_step(node, case.x))
    assert torch.equal(node.v, case.v)


@each_case
def test_functional_potential(case):
    # A node in step_mode "m" keeps no potential; the function that it calls returns it.
    result = functional.if_forward(
        case.x, case.v_threshold, 0.0, v_reset=case.v_reset, return_v=True
    )
    case.check_emitted(result.spikes)
    assert torch.equal(result.v, case.v)


@each_case
def test_multi_step_starts_anew_at_each_call(case):
    # Unlike SpikingJelly's, whose multi-step node goes on from the potential of the last call until
    # reset().
    node = case.node()
    node(case.x)
    case.check_emitted(node(case.x))


@pytest.mark.parametrize("v_init", [None, 0.0, -0.7])
@each_case
def test_single_step_equals_multi_step(case, v_init):
    multi = IFNode(case.v_threshold, v_init=v_init, v_reset=case.v_reset)
    single = IFNode(case.v_threshold, v_init=v_init, v_reset=case.v_reset, step_mode="s")
    assert torch.equal(step_by_step(single, case.x), multi(case.x))


@each_case
def test_reset_forgets(case):
    node = case.node(step_mode="s")
    step_by_step(node, case.x)
    assert node.v is not None
    node.reset()
    assert node.v is None
    case.check_emitted(step_by_step(node, case.x))
    assert torch.equal(node.v, case.v)


@each_case
def test_without_reset_the_potential_is_kept(case):
    node = case.node(step_mode="s")
    step_by_step(node, case.x)
    out = step_by_step(node, case.x)
    twice = case.node()(torch.cat([case.x, case.x]))
    assert torch.equal(out, twice[len(case.x) :])
    assert not torch.equal(out > 0, case.spikes)


def test_the_record_is_worth_comparing_with():
    assert len(CASES) == 36
    assert {c.v_reset for c in CASES} == {None, 0.0}
    for case in CASES:
        theta = torch.tensor(case.v_threshold)
        # v = 0 before the first step, so these arrive exactly on the threshold, and one ulp below
        # it.
        first, fired = case.x[0], case.spikes[0]
        on, below = first == theta, first == torch.nextafter(theta, torch.tensor(0.0))
        assert on.any() and fired[on].all()
        assert below.any() and not fired[below].any()
        if case.v_reset is None:
            assert (
                case.v >= theta
            ).any()  # a residual over the threshold: one spike a step takes only θ away
        else:
            assert (case.v < theta).all()
