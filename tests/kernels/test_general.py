"""The general neuron: its kernels against the loop of cos_ext.reference, EQUAL, over anything.

With the CUDA kernels' bodies: test_general_on_host.py. As published neurons:
test_published_neurons.py.
"""

from __future__ import annotations

import torch
from conftest import DTYPES
from general_jobs import Job, assert_equal, jobs
from hypothesis import given, settings


def test_any_job_equals_the_reference():
    seen = set()

    @settings(max_examples=600, derandomize=True)
    @given(jobs())
    def check(job: Job) -> None:
        seen.add((job.x.dtype, job.options["emission"], job.options["neuron"].ladder is None))
        assert_equal(job.run(), job.refer())

    check()
    assert {dtype for dtype, _, _ in seen} == set(DTYPES) and len(seen) > 16


def test_any_job_in_place():
    @settings(max_examples=300, derandomize=True)
    @given(jobs())
    def check(job: Job) -> None:
        if job.x.stride(0) == 0 and job.x.shape[0] > 1:
            return
        expected = job.run()
        job.x = job.x.clone(memory_format=torch.preserve_format)
        ours = job.run(inplace=True)
        assert ours.spikes is job.x
        assert_equal(ours, expected)

    check()
