"""The general neuron's CUDA kernels' bodies on the host against its CPU kernels: all results EQUAL,
over anything drawn, and where memory is awkward. As test_cuda_on_host.py has it for one level.
"""

from __future__ import annotations

import pytest
import torch
from conftest import DTYPES, layouts
from general_jobs import Job, assert_equal, jobs
from hypothesis import given, settings

from cos_ext import Neuron, _ops
from cos_ext import functional as F

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
ALL = {"return_v": True, "return_count": True}


def on(ops, job, **more):
    cpu = _ops.ops
    _ops.ops = ops
    try:
        return job.run(**more)
    finally:
        _ops.ops = cpu


@pytest.mark.parametrize("inplace", [False, True])
def test_any_job(inplace, shim):
    seen = set()

    @settings(max_examples=500, derandomize=True)
    @given(jobs())
    def check(job: Job) -> None:
        if inplace and job.x.stride(0) == 0 and job.x.shape[0] > 1:
            return
        seen.add((job.x.dtype, job.options["emission"], job.options["neuron"].ladder is None))
        expected = job.run()
        if inplace:
            job.x = job.x.clone(memory_format=torch.preserve_format)
        result = on(shim, job, inplace=inplace)
        assert_equal(result, expected)
        for a, b in zip(result, expected):
            assert a is None or inplace or a.stride() == b.stride()

    check()
    assert {dtype for dtype, _, _ in seen} == set(DTYPES) and len(seen) > 16


@pytest.mark.parametrize("channels", [1, 3, 5, 8, 16, 33])
@pytest.mark.parametrize("planes", [(1, 1), (4, 4), (7, 7), (8, 16)], ids=str)
def test_rows_of_bias_and_emitted_by_channel(channels, planes, dtype, on_host):
    """A row of [T, C] begins anywhere, and channels_last reads it with stride 1."""
    x = (torch.randn(9, 2, channels, *planes) + 0.4).to(dtype)
    state = F.state_dtype(dtype)
    bias = (torch.randn(9 * channels + 1, dtype=state) / 4)[1:].view(9, channels)
    by_time = (torch.randn(channels, 9, dtype=state) / 4).T
    emitted = torch.rand(channels, 1, 1, dtype=state)
    for name, tensor in layouts(x).items():
        for step_bias, own in ((bias, None), (by_time, emitted), (bias[:, 0], emitted[:1])):
            for more in ({}, {"rho": 4}, {"rho": 4, "emission": "block"}):
                neuron = Neuron(levels=(-2, 4), lower=0.5, step_bias=step_bias, emitted=own)
                given = {"neuron": neuron, "return_count": True, **more}
                expected = F.neuron_forward(tensor, 0.75, **given)
                assert_equal(on_host(F.neuron_forward, tensor, 0.75, **given), expected)
        assert name


@pytest.mark.parametrize("size", [1, 3, 31, 129, 4097, 4096, 9_001])
def test_sizes_static_inputs_and_streaming(size, dtype, on_host):
    for steps in (1, 7, 8, 9, 33):
        x = (torch.randn(steps, size) * 2 + 0.3).to(dtype)
        for tensor in (x, x[:1].expand(steps, size)):
            for neuron in (Neuron(levels=(0, 4)), Neuron(levels=(-7, 7), lower=0.0)):
                for more in ({}, {"rho": steps, "iterations": None}):
                    given = {"neuron": neuron, **ALL, **more}
                    expected = F.neuron_forward(tensor, 0.8, **given)
                    assert_equal(on_host(F.neuron_forward, tensor, 0.8, **given), expected)
