"""evaluate() by several processes: it finds what one does, and what fails in one fails in all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_network import SIZES, batches, numbers, tiny

from cos_ext import evaluate
from cos_ext.cli import main
from cos_ext.data import distributed

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]


def _broken(loader):
    yield loader[0]
    raise OSError("disk")


# By name: what each of the two processes does, and the loader whose evaluation by one process is
# the same (None: an error).
CASES = {
    "shared out": (lambda rank, network: evaluate(network, batches(), progress=False), SIZES),
    "generators": (
        lambda rank, network: evaluate(network, iter(batches()), progress=False, prefetch=0),
        SIZES,
    ),
    "one has none": (lambda rank, network: evaluate(network, batches((7,)), progress=False), (7,)),
    "own shares": (
        lambda rank, network: evaluate(network, batches()[rank::2], progress=False, shard=False),
        SIZES,
    ),
    "all in the second": (
        lambda rank, network: evaluate(
            network, batches() if rank else [], progress=False, shard=False
        ),
        SIZES,
    ),
    "each alone": (
        lambda rank, network: evaluate(network, batches(), progress=False, distributed=False),
        SIZES,
    ),
    "no sample": (lambda rank, network: evaluate(network, [], progress=False), None),
    "a broken loader": (
        lambda rank, network: evaluate(
            network, _broken(batches()) if rank else batches(), progress=False
        ),
        None,
    ),
    "a bad argument": (
        lambda rank, network: evaluate(network, batches(), progress=False, prefetch=-rank),
        None,
    ),
    "loaders that differ": (
        lambda rank, network: evaluate(network, batches()[rank:], progress=False),
        None,
    ),
    "shares taken for the whole": (
        lambda rank, network: evaluate(network, batches([7] * 4)[rank::2], progress=False),
        None,
    ),
    "settings that differ": (
        lambda rank, network: (
            setattr(network, "timesteps", 4 + rank),
            evaluate(network, batches(), progress=False),
        ),
        None,
    ),
}


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, (case, _) in CASES.items():
        try:
            result = case(rank, tiny())
            found[name] = {**numbers(result), "images_per_second": result.images_per_second}
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    first = dist.new_group([0])
    try:
        found["a group"] = numbers(evaluate(tiny(), batches(), progress=False, group=first))
    except ValueError as error:
        found["a group"] = str(error)
    found["whoami"] = distributed.whoami()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two gloo processes found, for every case."""
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.spawn(_process, (str(folder),), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    try:
        while not context.join(1):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, sizes) in CASES.items() if sizes is not None])
def test_two_processes_find_what_one_does(name, two_processes):
    expected = numbers(evaluate(tiny(), batches(CASES[name][1]), progress=False))
    speeds = [found[name].pop("images_per_second") for found in two_processes]
    assert [found[name] for found in two_processes] == [expected, expected]
    assert (speeds[0] == speeds[1]) == (
        name != "each alone"
    )  # of all samples, by the slowest process's time


@pytest.mark.slow
def test_a_group_of_some_processes(two_processes):
    assert two_processes[0]["a group"] == numbers(evaluate(tiny(), batches(), progress=False))
    assert two_processes[1]["a group"].startswith("group must contain this process")
    assert [found["whoami"] for found in two_processes] == [[0, 2], [1, 2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, first, second",
    [
        ("no sample", "ValueError: loader must yield at least one sample", None),
        (
            "a broken loader",
            "RemoteError: evaluation failed in process 1: OSError: disk",
            "OSError: disk",
        ),
        (
            "a bad argument",
            "RemoteError: evaluation failed in process 1: ValueError: prefetch must be >= 0, got "
            "-1",
            "ValueError: prefetch must be >= 0, got -1",
        ),
        (
            "loaders that differ",
            "ValueError: loader must yield the same batches in every process with shard=True",
            None,
        ),
        (
            "shares taken for the whole",
            "ValueError: loader must yield the same batches in every process",
            None,
        ),
        (
            "settings that differ",
            "ValueError: the networks of all processes must have the same settings",
            None,
        ),
    ],
)
def test_what_fails_in_one_process_fails_in_both(name, first, second, two_processes):
    assert two_processes[0][name].startswith(first)
    assert two_processes[1][name].startswith(first if second is None else second)


@pytest.mark.slow
def test_the_demo_under_torchrun_is_the_demo(tmp_path, capsys):
    options = [
        "--samples",
        "70",
        "--timesteps",
        "2",
        "--rho",
        "2",
        "--exact",
        "--quiet",
        "--device",
        "cpu",
        "--json",
    ]
    assert main(["demo", *options, str(tmp_path / "one.json")]) == 0
    single = capsys.readouterr().out
    several = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "cos_ext",
            "demo",
            *options,
            str(tmp_path / "two.json"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert several.returncode == 0, several.stderr
    assert several.stdout.count("calibration ") == single.count("calibration ") == 1
    assert "70 images on 2 processes, cpu; ANN accuracy" in several.stdout
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["ann_accuracy"] == two["ann_accuracy"]
    for found in (one, two):
        for result in found["results"].values():
            assert result.pop("images_per_second") > 0
    assert one["results"] == two["results"] and one["results"]["exact"]["samples"] == 70
    assert not list(tmp_path.glob("*.part"))


def test_the_report_under_torchrun_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["demo", "--report"]) == 2
    assert "--report works in one process" in capsys.readouterr().err
