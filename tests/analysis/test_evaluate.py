"""evaluate(): its counts, loading ahead, and the same numbers from several processes. The shipped
network: test_network.py.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cos_ext
from cos_ext import data, evaluate
from cos_ext.analysis.evaluation import _pass
from cos_ext.cli import main
from cos_ext.data import distributed
from cos_ext.data.prefetch import prefetched

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SIZES = (7, 7, 7, 7, 3)

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(classes=7, **changes):
    """A small network, the same at every call."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        cos_ext.QCFS(4, 1.0),
        nn.Conv2d(6, 8, 3),
        cos_ext.QCFS(4, 1.0),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    return cos_ext.convert(model, **{"timesteps": 4, "rho": 4, "iterations": 1, **changes})


def batches(sizes=SIZES, classes=7):
    generator = torch.Generator().manual_seed(2)
    return [
        (
            3 * torch.randn(size, 1, 6, 6, generator=generator),
            torch.randint(0, classes, (size,), generator=generator),
        )
        for size in sizes
    ]


def numbers(result):
    """All of an Evaluation but the speed."""
    return {key: value for key, value in asdict(result).items() if key != "images_per_second"}


def loading_threads():
    return [thread for thread in threading.enumerate() if thread.name == "cos_ext prefetch"]


def recount(network, loader):
    """Correct answers and labels among the best five at every t, one sample after the other, in
    Python numbers.
    """
    steps = network.timesteps
    correct, best5 = [0] * steps, [0] * steps
    for inputs, labels in loader:
        outputs = network(inputs)
        for sample, label in enumerate(labels.tolist()):
            for t in range(steps):
                total = [
                    sum(outputs[: t + 1, sample, c].double().tolist())
                    for c in range(outputs.shape[2])
                ]
                better = sum(value > total[label] for value in total)
                correct[t] += better == 0
                best5[t] += better < 5
    return correct, best5


@pytest.mark.parametrize("rho, timesteps", [(0, 3), (4, 4), (4, 2)])
def test_every_step_is_counted_as_in_a_plain_recount(rho, timesteps):
    network, loader = tiny(rho=rho, timesteps=timesteps), batches()
    result = evaluate(network, loader, progress=False)
    correct, best5 = recount(network, loader)
    assert result.accuracy == [count / 31 for count in correct]
    assert result.top5 == [count / 31 for count in best5]
    assert result.samples == 31 and result.latency == [rho + t for t in range(1, timesteps + 1)]
    assert min(correct) > 0 and max(best5) < 31  # neither count is trivial


def test_five_classes_have_no_top5():
    assert evaluate(tiny(5), batches(classes=5), progress=False).top5 is None


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), prefetch=st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_loading_ahead_changes_no_number(sizes, prefetch):
    network, loader = tiny(), batches(sizes)
    expected = numbers(evaluate(network, loader, progress=False, prefetch=0))
    assert numbers(evaluate(network, loader, progress=False, prefetch=prefetch)) == expected
    assert (
        numbers(evaluate(network, (batch for batch in loader), progress=False, prefetch=prefetch))
        == expected
    )


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_torch_data_loader_and_a_progress_bar(prefetch, capsys):
    loader = batches()
    samples = [
        (image, int(label)) for inputs, labels in loader for image, label in zip(inputs, labels)
    ]
    network = tiny()
    result = evaluate(network, torch.utils.data.DataLoader(samples, 7), prefetch=prefetch)
    assert numbers(result) == numbers(evaluate(network, loader, progress=False))
    assert "/5" in capsys.readouterr().err


def test_the_next_batches_load_while_the_network_computes():
    network, produced, enough = tiny(), [], threading.Event()

    def loader():
        for number, batch in enumerate(batches([2] * 12)):
            assert not torch.is_grad_enabled()
            produced.append(number)
            if number == 3:
                enough.set()
            yield batch

    seen = []

    def during(module, inputs):
        if not seen:
            # One in the network, two that wait, one in the thread's hand; while the network is busy
            # no more come.
            assert enough.wait(30)
            time.sleep(0.05)
            seen.append(len(produced))

    handle = network.register_forward_pre_hook(during)
    evaluate(network, loader(), progress=False, prefetch=2)
    handle.remove()
    assert seen == [4] and produced == list(range(12))

    produced.clear()
    ahead = []
    network.register_forward_pre_hook(lambda module, inputs: ahead.append(len(produced)))
    evaluate(network, loader(), progress=False, prefetch=0)
    assert ahead == list(range(1, 13))  # none ahead


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
def test_an_error_of_the_loader_comes_in_its_place(prefetch):
    network, calls, error = tiny(), [], OSError("disk")
    network.register_forward_hook(lambda *_: calls.append(1))

    def loader():
        yield from batches()[:3]
        raise error

    with pytest.raises(OSError) as caught:
        evaluate(network, loader(), progress=False, prefetch=prefetch)
    assert caught.value is error and len(calls) == 3
    assert not loading_threads() and not any(node.count_spikes for node in network.nodes().values())


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_the_thread_ends_with_a_failing_evaluation(prefetch):
    network, drawn = tiny(), []

    def endless():
        inputs, labels = batches()[0]
        while True:
            drawn.append(1)
            yield inputs, labels if len(drawn) < 3 else labels[:-1]

    with pytest.raises(ValueError, match=r"labels must be \[B\] = \(7,\)"):
        evaluate(network, endless(), progress=False, prefetch=prefetch)
    assert not loading_threads() and len(drawn) <= 3 + prefetch + 2
    with pytest.raises(KeyboardInterrupt):
        with prefetched(iter(endless()), CPU, prefetch) as arriving:
            next(arriving)
            raise KeyboardInterrupt
    assert not loading_threads()


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    "item, what",
    [(torch.zeros(2, 1, 6, 6), "Tensor"), ((torch.zeros(1), [1]), "Tensor, list"), (3, "int")],
)
def test_only_pairs_of_tensors(prefetch, item, what):
    with pytest.raises(
        TypeError, match=rf"loader must yield pairs of tensors \(inputs, labels\), got {what}"
    ):
        evaluate(tiny(), [item], progress=False, prefetch=prefetch)


@pytest.mark.parametrize(
    "prefetch, error", [(-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)]
)
def test_prefetch_is_checked_first(prefetch, error):
    network = tiny()
    with pytest.raises(error, match="prefetch must be"):
        evaluate(network, iter(lambda: pytest.fail("loaded"), None), prefetch=prefetch)


class _Calls(TorchDispatchMode):
    """Counts the operators that this thread calls."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_on_the_host_for_a_batch(monkeypatch):
    monkeypatch.setattr(
        cos_ext.functional, "check_values", lambda *_: None
    )  # reads thresholds, on a CPU alone
    network, reads = tiny(), []
    for count in (2, 9):
        with _Calls() as calls:
            evaluate(network, batches([3] * count), progress=False)
        reads.append(calls.seen["_local_scalar_dense"])
        assert calls.seen["argmax"] == count  # the batches are seen here
        assert not calls.seen.keys() & {"is_nonzero", "equal", "nonzero", "item"}
    assert reads[0] == reads[1] > 0  # what is read, is read at the end


def test_rate_is_the_mean_of_the_steps_that_were_asked_for_without_a_copy():
    network, inputs = tiny(timesteps=2, rho=8), batches()[0][0]
    with _Calls() as forward:
        outputs = network(inputs)
    with _Calls() as rate:
        mean = network.rate(inputs)
    assert outputs.shape == (2, 7, 7)
    assert not (rate.seen - forward.seen).keys() & {
        "clone",
        "copy_",
        "_to_copy",
        "cat",
        "stack",
        "_local_scalar_dense",
    }
    assert torch.allclose(mean, (outputs[0] + outputs[1]) / 2)


def test_latency_counts_the_largest_rho_of_any_layer():
    network, loader = tiny(rho=0, timesteps=2), batches()
    first, second = network.nodes()

    def latency():
        return network.watch_steps, evaluate(network, loader, progress=False).latency

    assert latency() == (0, [1, 2])
    network.set_layer(second, rho=3)
    assert latency() == (3, [4, 5])
    network.rho = 2
    assert latency() == (3, [4, 5])
    network.set_layer(second, rho=0)
    assert latency() == (2, [3, 4])
    network.set_layer(first, rho=0)
    assert latency() == (0, [1, 2])  # no layer follows the network's rho


@pytest.mark.skipif(
    not torch.cuda.is_available() or not cos_ext.build_info()["cuda"],
    reason="needs a GPU and its kernels",
)
def test_on_a_gpu_nothing_waits_and_nothing_changes():
    network, loader = tiny().cuda(), batches([16] * 8)
    results = [
        numbers(evaluate(network, loader, progress=False, prefetch=prefetch))
        for prefetch in (0, 1, 3)
    ]
    resident = [(inputs.cuda(), labels.cuda()) for inputs, labels in loader]
    results += [
        numbers(evaluate(network, resident, progress=False, prefetch=prefetch))
        for prefetch in (0, 2)
    ]
    assert all(result == results[0] for result in results)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad(), prefetched(loader, torch.device("cuda", 0), 2) as arriving:
            correct, *_ = _pass(network, arriving)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [count / 128 for count in correct.tolist()] == results[0]["accuracy"]


def image_set(count):
    images = torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8)
    return data.ImageSet(images, torch.arange(count) % 10, (0.5,), (0.5,), 10)


@given(
    count=st.integers(0, 30),
    size=st.integers(1, 7),
    processes=st.integers(1, 5),
    drop=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_shards_are_the_batches_dealt_out(count, size, processes, drop):
    images = image_set(count)
    whole = list(images.batches(size, drop_last=drop))
    for index in range(processes):
        share = images.batches(size, drop_last=drop, shard=(index, processes))
        expected = whole[index::processes]
        assert len(share) == len(expected) == len(list(share))
        for (ours, our_labels), (theirs, their_labels) in zip(share, expected):
            assert torch.equal(ours, theirs) and torch.equal(our_labels, their_labels)


def test_shards_of_a_folder(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs the extra `vision`")
    for number in range(7):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        image.new("RGB", (8, 8), (30 * number, 0, 0)).save(folder / f"{number}.png")
    folder = data.ImageFolder(tmp_path, size=8)
    whole = list(folder.batches(2))
    for processes in (2, 5):
        for index in range(processes):
            share = folder.batches(2, shard=(index, processes))
            expected = whole[index::processes]
            assert len(share) == len(expected)
            for ours, theirs in zip(share, expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_shards_are_checked():
    for shard in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="shard must be"):
            image_set(4).batches(2, shard=shard)
    with pytest.raises(ValueError, match="shuffle must be False with a shard"):
        image_set(4).batches(2, shuffle=True, shard=(0, 2))


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


@pytest.mark.parametrize("name", [name for name, (_, sizes) in CASES.items() if sizes is not None])
def test_two_processes_find_what_one_does(name, two_processes):
    expected = numbers(evaluate(tiny(), batches(CASES[name][1]), progress=False))
    speeds = [found[name].pop("images_per_second") for found in two_processes]
    assert [found[name] for found in two_processes] == [expected, expected]
    assert (speeds[0] == speeds[1]) == (
        name != "each alone"
    )  # of all samples, by the slowest process's time


def test_a_group_of_some_processes(two_processes):
    assert two_processes[0]["a group"] == numbers(evaluate(tiny(), batches(), progress=False))
    assert two_processes[1]["a group"].startswith("group must contain this process")
    assert [found["whoami"] for found in two_processes] == [[0, 2], [1, 2]]


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
