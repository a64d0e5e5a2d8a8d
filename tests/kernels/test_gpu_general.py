"""General neurons on a GPU, bit for bit as on the CPU, over anything drawn. Skipped without one.

Whether the CPU's are right: test_general.py. The same kernels' bodies without a GPU:
test_general_on_host.py.
"""

from dataclasses import replace

import pytest
from general_jobs import Job, assert_equal, jobs
from hypothesis import given, settings
from on_gpu import WHY_NOT, move, twin

from cos_ext import Neuron

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def moved(job: Job) -> Job:
    """The same job with all tensors on the GPU, in memory that is laid out alike."""
    neuron: Neuron = job.options["neuron"]
    neuron = neuron.with_tensors(move(neuron.emitted), move(neuron.step_bias))
    fused = {
        name: twin(tensor) if name == "residual" else move(tensor)
        for name, tensor in job.fused.items()
    }
    parts = {"theta": move(job.theta), "v_init": move(job.v_init), "fused": fused}
    return replace(job, x=twin(job.x), options={**job.options, "neuron": neuron}, **parts)


@pytest.mark.parametrize("inplace", [False, True])
def test_any_job(inplace):
    @settings(max_examples=300, derandomize=True, deadline=None)
    @given(jobs())
    def check(job: Job) -> None:
        if inplace and job.x.stride(0) == 0 and job.x.shape[0] > 1:
            return
        expected = job.run()
        result = moved(job).run(inplace=inplace)
        assert_equal([None if each is None else each.cpu() for each in result], expected)

    check()
