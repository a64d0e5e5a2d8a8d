"""evaluate(): its counts, loading ahead, and what it never does. Several processes:
test_evaluate_processes.py; the shipped network: test_network.py.
"""

import threading
import time
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import batches, numbers, tiny
from torch.utils._python_dispatch import TorchDispatchMode

import cos_ext
from cos_ext import evaluate
from cos_ext._neuron.runs import active
from cos_ext.analysis.evaluation import _pass
from cos_ext.data.prefetch import prefetched

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


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
    assert not loading_threads() and not active()


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
    with (
        pytest.raises(KeyboardInterrupt),
        prefetched(iter(endless()), CPU, prefetch) as arriving,
    ):
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
    network.convolution = "dense"  # by events, on a CPU alone, a sample of the weights is read
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
            seen, _ = _pass(network, arriving)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [count / 128 for count in seen.correct.tolist()] == results[0]["accuracy"]


@pytest.mark.parametrize("stop", [None, cos_ext.Confidence(0.22)])
@pytest.mark.parametrize("rho, timesteps", [(0, 3), (4, 4), (5, 3)])
def test_sequences(rho, timesteps, stop):
    network, images = tiny(rho=rho, timesteps=timesteps), batches()
    weights = torch.tensor([1.0, 0.2, 2.0, 0.5, 0.0])[: max(rho, timesteps)].view(-1, 1, 1, 1, 1)
    loader = [(weights * x, labels) for x, labels in images]
    result = evaluate(network, loader, over_time=True, stop=stop, progress=False)
    totals = torch.cat([network.run(x).cumsum(0) for x, _ in loader], 1)
    answers, labels = totals.argmax(-1), torch.cat([labels for _, labels in loader])
    if stop is not None:
        means = totals / torch.arange(1, timesteps + 1).view(-1, 1, 1)
        at = torch.minimum(torch.arange(timesteps)[:, None], stop.stops(means) - 1)
        answers = answers.gather(0, at)
        assert sum(share > 0 for share in result.stopped) > 1
    right = (answers == labels).sum(1)
    assert result.accuracy == [count / 31 for count in right.tolist()] and result.samples == 31
    repeated = [(x.expand(network._steps, *x.shape), labels) for x, labels in images]
    same = evaluate(network, repeated, over_time=True, stop=stop, progress=False)
    assert numbers(same) == numbers(evaluate(network, images, stop=stop, progress=False))
    assert numbers(same) != numbers(result)


def test_sequences_are_asked_for():
    network, (images, labels) = tiny(), batches()[0]
    with pytest.raises(ValueError, match=r"\[T, B, ...\] to run"):
        evaluate(network, [(images.expand(4, *images.shape), labels)], progress=False)
    with pytest.raises(ValueError, match="sequence"):
        evaluate(network, [(images, labels)], over_time=True, progress=False)
    stop = cos_ext.Confidence(0.5)
    with pytest.raises(ValueError, match="leave_every is for images"):
        evaluate(tiny(rho=0), [], stop=stop, leave_every=1, over_time=True, progress=False)
