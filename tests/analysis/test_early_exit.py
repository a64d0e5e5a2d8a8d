"""Early exit and delayed readout: evaluate() says what a loop over samples says, and samples that
really leave change nothing.
"""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import batches, numbers, tiny
from torch import nn

import cos_ext
from cos_ext import Confidence, convert, early_exit, evaluate
from cos_ext.analysis.readout import Readout, recorded
from cos_ext.network.latency import pipeline_watch

pytestmark = pytest.mark.usefixtures("one_thread")


def static(**changes):
    """Without watching, and with weights whose sums are the same in any order."""
    network = tiny(**{"rho": 0, "timesteps": 5, **changes})
    for name, parameter in network.named_parameters():
        if name.endswith(("weight", "bias")):
            parameter.data.copy_((parameter * 32).round() / 32)
    return network


def rounded():
    return [((x * 8).round() / 8, labels) for x, labels in batches()]


def by_hand(outputs, stop, first_step):
    """Of one sample's outputs [T, K]: the means that it can answer from, and its last step."""
    means, held = [], None
    for t in range(1, len(outputs) + 1):
        start = min(first_step, t)
        mean = outputs[start - 1 : t].mean(0)
        chances = (mean.double() / stop.temperature).softmax(-1)
        entropy = -sum(p * p.log() for p in chances if p > 0)
        score = chances.max() if stop.score == "max_softmax" else 1 - entropy / math.log(len(mean))
        limits = stop.threshold
        limit = limits[min(t, len(limits)) - 1] if isinstance(limits, tuple) else limits
        if held is None:
            means.append(mean)
            held = t if score > limit else None
        else:
            means.append(means[-1])
    return torch.stack(means), held or len(outputs)


STOPS = [
    Confidence(0.4, temperature=0.2),
    Confidence(0.185),
    Confidence(0.19, "entropy", 0.2),
    Confidence((0.45, 0.4, 0.3, 0.25), temperature=0.2),
    Confidence((0.25, 0.2, 0.1, 0.3, 9.0), "entropy", 0.2),
]
SOME = STOPS[0]


@pytest.mark.parametrize("first_step", [1, 2, 4])
@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("network", [static(), tiny(timesteps=5, rho=3)], ids=["static", "cos"])
def test_it_is_a_loop_over_samples(network, stop, first_step):
    data = rounded()
    found = evaluate(network, data, progress=False, stop=stop, first_step=first_step)
    right, steps = torch.zeros(5), []
    for x, labels in data:
        outputs = network(x).double()
        for sample, label in enumerate(labels):
            means, last = by_hand(outputs[:, sample], stop, first_step)
            right += means.argmax(-1) == label
            steps.append(last)
    assert len(set(steps)) > 1  # some stop, and some do not
    assert found.accuracy == pytest.approx((right / len(steps)).tolist())
    assert found.stopped == pytest.approx([steps.count(t) / len(steps) for t in range(1, 6)])
    mean = sum(steps) / len(steps)
    watched, piped = network.watch_steps, pipeline_watch(network)
    assert piped == 2 * watched
    assert found.mean_latency == pytest.approx(watched + mean)
    assert found.mean_pipeline_latency == pytest.approx(piped + mean)
    assert found.pipeline_latency == [piped + t for t in range(1, 6)]


@pytest.mark.parametrize("leave_every", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_samples_that_leave_change_nothing(stop, leave_every):
    network, data = static(), rounded()
    options = {"progress": False, "stop": stop, "first_step": 2}
    expected = numbers(evaluate(network, data, **options))
    found = numbers(evaluate(network, data, leave_every=leave_every, **options))
    spikes = expected.pop("spike_rate"), found.pop("spike_rate")
    assert found == expected and 0 < found["stopped"][0] < 1 and min(spikes) > 0


def test_samples_that_leave_are_not_run():
    network, steps = static(), []
    node = network.nodes()["1"]
    node.register_forward_hook(lambda _m, _x, out: steps.append(out.shape[0]))
    data, stop = rounded(), SOME
    found = evaluate(network, data, progress=False, stop=stop, leave_every=1)
    assert sum(steps) == round(found.mean_latency * found.samples)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 1), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_real_is_recorded(threshold, first_step, leave_every, seed):
    network = static()
    x = torch.randint(-8, 9, (4, 1, 6, 6), generator=torch.Generator().manual_seed(seed)) / 4
    stop = Confidence(threshold, temperature=0.2)
    read = recorded(network(x), Readout(first_step, stop))
    found = early_exit(network, x, stop=stop, leave_every=leave_every, first_step=first_step)
    assert torch.equal(found.mean, read.means[-1]) and torch.equal(found.steps, read.stopped)


@pytest.mark.parametrize("leave_every", [None, 2])
def test_thresholds_of_nobody_and_of_all(leave_every):
    network, data = static(), rounded()
    options = {"progress": False, "leave_every": leave_every}
    plain = evaluate(network, data, progress=False)
    never = evaluate(network, data, stop=Confidence(1.0), **options)
    assert never.accuracy == plain.accuracy and never.stopped == [0, 0, 0, 0, 1]
    assert never.mean_latency == 5 and plain.stopped is None and plain.mean_latency is None
    at_once = evaluate(network, data, stop=Confidence(0.0), **options)
    assert at_once.stopped == [1, 0, 0, 0, 0] and at_once.mean_latency == 1
    assert at_once.accuracy == plain.accuracy[:1] * 5


@pytest.mark.parametrize("leave_every", [None, 1])
def test_nan_stops_nobody_and_is_never_right(leave_every):
    network, x = static(), torch.randn(3, 1, 6, 6)
    x[1, 0, 2, 2] = math.nan
    labels = torch.zeros(3, dtype=torch.long)
    stop = Confidence(0.0)
    found = evaluate(network, [(x, labels)], progress=False, stop=stop, leave_every=leave_every)
    assert found.stopped == pytest.approx([2 / 3, 0, 0, 0, 1 / 3])
    expected = evaluate(network, [(x[[0, 2]], labels[:2])], progress=False, stop=stop)
    assert found.accuracy == pytest.approx([a * 2 / 3 for a in expected.accuracy])


@pytest.mark.parametrize("leave_every", [None, 1])
def test_one_step_and_empty_batches(leave_every):
    network, data = static(timesteps=1), [(torch.empty(0, 1, 6, 6), torch.empty(0).long())]
    data += rounded()[:1]
    found = evaluate(network, data, progress=False, stop=Confidence(0.5), leave_every=leave_every)
    assert found.stopped == [1.0] and found.samples == 7
    assert found.accuracy == evaluate(network, data, progress=False).accuracy


@pytest.mark.parametrize("leave_every", [None, 1])
def test_a_metric_is_given_what_samples_keep(leave_every):
    network, data = static(), rounded()
    stop = SOME

    def right(means, labels):
        return (means.argmax(-1) == labels).double()

    options = {"progress": False, "stop": stop, "leave_every": leave_every}
    found = evaluate(network, data, metric=right, **options)
    assert found.metric == pytest.approx(evaluate(network, data, **options).accuracy)
    assert "mean latency" in str(found) and "stopped" in str(found)
    assert found.to_dict()["mean_latency"] == found.mean_latency


def test_one_logit_is_two_classes():
    means = torch.tensor([[0.5, -3.0], [2.0, -1.0]])
    both = torch.stack((torch.zeros_like(means), means), -1)
    for score in ("max_softmax", "entropy"):
        stop = Confidence(0.7, score)
        assert torch.equal(stop.scores(means), stop.scores(both))
        assert torch.equal(stop.scores(means[..., None]), stop.scores(both))
    assert Confidence(0.7).stops(means).tolist() == [2, 1]


@pytest.mark.parametrize("score, value", [("max_softmax", 0.25), ("entropy", 0.0)])
def test_a_score_at_the_threshold_stops_nobody(score, value):
    means = torch.zeros(3, 2, 4, dtype=torch.float64)
    assert Confidence(0.0, score).scores(means) == pytest.approx(torch.full((3, 2), value))
    assert Confidence(value + 1e-12, score).stops(means).tolist() == [3, 3]
    assert Confidence(value - 1e-12, score).stops(means).tolist() == [1, 1]
    exact = Confidence(float(Confidence(0.0, score).scores(means)[0, 0]), score)
    assert exact.stops(means).tolist() == [3, 3]


def test_delayed_readout_is_the_mean_from_there():
    network, data = static(), rounded()
    x, labels = torch.cat([x for x, _ in data]), torch.cat([labels for _, labels in data])
    found = evaluate(network, data, progress=False, first_step=3)
    outputs = network(x)
    for t, accuracy in enumerate(found.accuracy, 1):
        answers = outputs[min(t, 3) - 1 : t].mean(0).argmax(-1)
        assert accuracy == pytest.approx((answers == labels).double().mean().item())
    assert found.accuracy != evaluate(network, data, progress=False).accuracy


def test_the_same_from_several_threads():
    network, data, stop, found = static(), rounded(), SOME, []
    options = {"progress": False, "stop": stop, "leave_every": 1}
    expected = numbers(evaluate(network, data, **options))
    threads = [
        threading.Thread(target=lambda: found.append(numbers(evaluate(network, data, **options))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_a_memory_limit_changes_nothing():
    network, data = static(), rounded()
    options = {"progress": False, "stop": SOME, "leave_every": 2}
    expected = numbers(evaluate(network, data, **options))
    network.memory_limit = network.activation_bytes(data[0][0]) // 3
    assert numbers(evaluate(network, data, **options)) == expected


def test_the_readout_of_a_model_is_applied_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), cos_ext.QCFS(4, 1.0), nn.Linear(8, 3), nn.Softmax(-1))
    network = convert(model, timesteps=3, readout="mean")
    x = torch.randn(5, 4)
    found = early_exit(network, x, stop=Confidence(1.0))
    torch.testing.assert_close(found.mean, network.rate(x))
    assert not found.mean.requires_grad


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"stop": 0.5}, TypeError, "stop must be a cos_ext.Confidence"),
        ({"leave_every": 1}, ValueError, "leave_every needs stop"),
        ({"stop": Confidence(0.5), "leave_every": 0}, ValueError, "leave_every must be >= 1"),
        ({"stop": Confidence(0.5), "leave_every": 1.0}, TypeError, "leave_every must be an int"),
        ({"stop": Confidence((0.5, 0.5))}, ValueError, "each of the 4 steps before the last"),
        ({"first_step": 6}, ValueError, "first_step must be <= 5"),
        ({"first_step": 0}, ValueError, "first_step must be >= 1"),
    ],
)
def test_what_does_not_fit(options, error, words):
    with pytest.raises(error, match=words):
        evaluate(static(), rounded(), progress=False, **options)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((math.nan,), ValueError, "threshold must not be NaN"),
        (("high",), TypeError, "threshold must be a float"),
        (((),), ValueError, "got none"),
        (((0.5, None),), TypeError, "threshold must be a float"),
        ((0.5, "margin"), ValueError, "score must be one of"),
        ((0.5, "entropy", 0.0), ValueError, "temperature must be positive"),
        ((0.5, "entropy", math.inf), ValueError, "temperature must be positive"),
    ],
)
def test_confidences_that_are_none(arguments, error, words):
    with pytest.raises(error, match=words):
        Confidence(*arguments)


def test_what_watches_is_recorded_and_does_not_leave():
    network, data, stop = tiny(), batches(), SOME
    assert evaluate(network, data, progress=False, stop=stop).mean_latency > 5
    with pytest.raises(ValueError, match="rho = 0 in every layer"):
        evaluate(network, data, progress=False, stop=stop, leave_every=1)
    with pytest.raises(ValueError, match="rho = 0 in every layer"):
        early_exit(network, data[0][0], stop=stop)


def test_outputs_without_classes_have_no_confidence():
    network = convert(nn.Sequential(nn.Conv2d(1, 2, 3), cos_ext.QCFS(4, 1.0)), timesteps=2)
    with pytest.raises(ValueError, match=r"\[T, B, classes\]"):
        early_exit(network, torch.rand(2, 1, 5, 5), stop=Confidence(0.5))


def test_settling_is_the_time_of_the_first_spikes():
    model = nn.Sequential(nn.Linear(2, 2), cos_ext.QCFS(4, 1.0), nn.Linear(2, 2))
    model.insert(3, cos_ext.QCFS(4, 1.0)), model.append(nn.Linear(2, 3))
    for layer, weight in ((model[0], 0.2), (model[2], 0.25)):
        layer.weight.data.copy_(weight * torch.eye(2))
        layer.bias.data.zero_()
    network = convert(model, timesteps=10)
    x = torch.tensor([[1.0, 0.5], [1.0, -9.0]])
    # θ - v(0) = 1/2. Currents: 0.2, and spikes at 0.2 of the steps times 1/4.
    assert cos_ext.settling_step(network, [x]) == pytest.approx(0.5 / 0.2 + 0.5 / 0.05)
    assert cos_ext.settling_step(network, [(x[:1],), (x[1:],)]) == pytest.approx(12.5)
    with pytest.raises(ValueError, match="no|none"):
        cos_ext.settling_step(network, [])
