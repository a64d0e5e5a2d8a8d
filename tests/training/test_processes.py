"""Training a network in two processes with DistributedDataParallel: the steps of one process on the
whole batch.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import cos_ext
from cos_ext.surrogate import Sigmoid

ROOT = Path(__file__).resolve().parents[2]


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), cos_ext.QCFS(4, 0.2), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 2), cos_ext.QCFS(4, 0.2), nn.Flatten(), nn.Linear(16, 3)),
    )
    made = cos_ext.convert(model.double().eval(), timesteps=3, trainable=True)
    for node in made.nodes().values():
        node.surrogate = Sigmoid(1.0)
    return made


def steps(model, x, labels):
    """Two steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).mean(0), labels).backward()
        optimizer.step()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 1, 8, 8, generator=generator).double(), torch.arange(8) % 3


def work(folder, rank):
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    made, (x, labels) = network(), batch()
    steps(nn.parallel.DistributedDataParallel(made), x[rank::2], labels[rank::2])
    torch.save(made.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    code = "import sys, test_processes; test_processes.work(sys.argv[1], int(sys.argv[2]))"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(rank)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    made, before = network(), network().state_dict()
    steps(made, *batch())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in made.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)
            assert not torch.equal(value, before[name]), name
