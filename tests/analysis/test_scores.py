"""What evaluate() makes of outputs: one logit, labels that are none, metrics, changed settings."""

import math

import pytest
import torch
from tiny_network import batches, tiny
from torch import nn

import cos_ext
from cos_ext import evaluate
from cos_ext.analysis.scores import Answers


def logits():
    """A binary classifier; outputs [T, B, 1]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    return cos_ext.convert(model, timesteps=8, rho=8, thresholds={"1": 2.0})


X = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32, torch.bool])
def test_one_logit_decides_at_zero(dtype):
    network = logits()
    totals = network(X)[..., 0].cumsum(0)
    labels = (totals[-1] > totals[-1].median()).to(dtype)
    expected = [((total > 0) == labels.bool()).double().mean().item() for total in totals]
    assert min(expected) > 0 and len(set(expected)) > 1
    found = evaluate(network, [(X[:30], labels[:30]), (X[30:], labels[30:])], progress=False)
    assert found.accuracy == expected and found.top5 is None


def test_a_logit_without_a_dimension():
    labels, (one, flat) = (X.sum(1) > 0).long(), (Answers(), Answers())
    outputs = logits()(X)
    one.add(outputs, labels)
    flat.add(outputs[..., 0], labels)
    assert torch.equal(one.correct, flat.correct) and flat.classes == 1


@pytest.mark.parametrize(
    "labels, error, words",
    [
        (torch.zeros(7), TypeError, "must be integers .*labels.long"),
        (torch.zeros(7, dtype=torch.float64), TypeError, "metric="),
        (torch.zeros(7, 1), ValueError, r"shape \(7, 1\); for targets that are no classes.*metric"),
        (torch.zeros(7, 1, dtype=torch.long), ValueError, r"give labels\[:, 0\]"),
        (torch.zeros(7, 7, dtype=torch.long), ValueError, r"labels.argmax\(-1\)"),
        (torch.zeros(6, dtype=torch.long), ValueError, r"labels must be \[B\] = \(7,\)"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 7]), ValueError, "lie in 0..6, .*from 0 to 7"),
        (torch.tensor([0, 1, 2, 3, 4, 5, -1]), ValueError, "lie in 0..6, .*from -1 to 5"),
        (torch.full((7,), 255, dtype=torch.uint8), ValueError, "from 255 to 255"),
    ],
)
def test_labels_that_are_none(labels, error, words):
    (inputs, _), *_ = batches()
    with pytest.raises(error, match=words):
        evaluate(tiny(), [(inputs, labels)], progress=False)


def test_a_logit_has_two_classes():
    with pytest.raises(ValueError, match=r"lie in 0..1, since the network has 1 output"):
        evaluate(logits(), [(X, torch.arange(40) % 3)], progress=False)


def test_outputs_that_are_no_answers():
    network = cos_ext.convert(
        nn.Sequential(nn.Conv2d(1, 2, 3), cos_ext.QCFS(4, 1.0), nn.Conv2d(2, 2, 3)),
        timesteps=2,
        rho=2,
    )
    images = torch.randn(3, 1, 8, 8)
    with pytest.raises(ValueError, match="score them yourself with evaluate"):
        evaluate(network, [(images, torch.zeros(3, dtype=torch.long))], progress=False)


def test_a_sample_that_is_nan_is_never_right():
    network, ((inputs, _), *_) = tiny(), batches()
    answers = network(inputs).sum(0).argmax(-1)
    inputs[:3, 0, 2, 2] = math.nan
    answers[:3] = 0
    found = evaluate(network, [(inputs, answers)], progress=False)
    assert found.accuracy[-1] == 4 / 7 and found.top5[-1] == 4 / 7
    logit, x = logits(), X.clone()
    x[:10] = math.nan
    found = evaluate(logit, [(x, torch.zeros(40, dtype=torch.long))], progress=False)
    assert found.accuracy[-1] == (logit(X[10:]).sum(0) <= 0).sum().item() / 40


def test_a_metric_is_the_mean_over_samples_at_every_step():
    network, loader = tiny(), batches()
    targets = [
        torch.randn(len(x), 7, generator=torch.Generator().manual_seed(3)) for x, _ in loader
    ]
    data = [(x, target) for (x, _), target in zip(loader, targets)]

    def error(outputs, target):
        return (outputs - target).square().mean(1)

    found = evaluate(network, data, metric=error, progress=False)
    rates = torch.cat([network(x) for x, _ in loader], 1).double().cumsum(0)
    rates /= torch.arange(1, 5).view(4, 1, 1)
    expected = (rates - torch.cat(targets)).square().mean((1, 2)).tolist()
    assert found.metric == pytest.approx(expected, rel=1e-6)
    assert (found.accuracy, found.top5, found.samples) == ([], None, 31)
    assert "error" in str(found) and found.to_dict()["metric_name"] == "error"
    # The mean of a batch, which weighs as much as its samples.
    mean = evaluate(network, data, metric=lambda *both: error(*both).mean(), progress=False)
    assert mean.metric == pytest.approx(found.metric)
    plain = evaluate(network, data, metric=lambda *both: error(*both).mean().item(), progress=False)
    assert plain.metric == pytest.approx(found.metric)


def test_a_metric_of_maps():
    network = cos_ext.convert(
        nn.Sequential(nn.Conv2d(1, 2, 3), cos_ext.QCFS(4, 1.0), nn.Conv2d(2, 2, 3)),
        timesteps=2,
        rho=2,
    )
    images, classes = torch.randn(3, 1, 8, 8), torch.randint(0, 2, (3, 4, 4))

    def pixels(outputs, target):
        return (outputs.argmax(1) == target).double().mean((1, 2))

    found = evaluate(network, [(images, classes)], metric=pixels, progress=False)
    expected = pixels(network.rate(images), classes).mean().item()
    assert found.metric[-1] == pytest.approx(expected)


def test_metrics_that_are_none():
    network, loader = tiny(), batches()
    with pytest.raises(TypeError, match="metric must be callable, got str"):
        evaluate(network, loader, metric="mse", progress=False)
    with pytest.raises(ValueError, match=r"metric must give a number.*it gave \(7, 7\)"):
        evaluate(network, loader, metric=lambda y, _: y, progress=False)


CHANGES = {
    "rho": lambda network: setattr(network, "rho", 2),
    "timesteps": lambda network: setattr(network, "timesteps", 2),
    "a layer": lambda network: network.set_layer("1", iterations=0),
    "a node": lambda network: network.nodes()["1"].configure(rho=2),
}
MEASURES = {
    "evaluate": lambda network, loader: evaluate(network, loader, progress=False, prefetch=0),
    "statistics": lambda network, loader: network.statistics(loader, progress=False),
    "energy": lambda network, loader: network.energy_report(loader, progress=False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_settings_stay_while_something_is_measured(measure, change):
    network = tiny()

    def loader():
        for number, batch in enumerate(batches()):
            if number == 2:
                change(network)
            yield batch

    with pytest.raises(RuntimeError, match="settings were changed while it was measured"):
        measure(network, loader())
