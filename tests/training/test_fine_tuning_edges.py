"""Fine-tuning with what is odd: teachers, test batches, settings, thresholds of channels, failures.
What it does otherwise is in test_fine_tuning.py.
"""

import numpy as np
import pytest
import torch
from torch import nn
from toy import assert_same, snapshot

import cos_ext
from cos_ext import QCFS
from cos_ext.surrogate import ATan, FastSigmoid, Triangle
from cos_ext.training.fine_tuning import FineTuneConfig, RateTask

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def ann(*end, classes=3):
    torch.manual_seed(0)
    layers = nn.Linear(6, 16), QCFS(4, 1.0), nn.Linear(16, 16), nn.BatchNorm1d(16), QCFS(4, 1.0)
    return nn.Sequential(*layers, nn.Linear(16, classes), *end).eval()


def trainable(model=None, **options):
    return cos_ext.convert(model or ann(), **{"timesteps": 2, "trainable": True, **options})


def tune(network, batches=((X, Y),), **options):
    return cos_ext.fine_tune(network, batches, **{"epochs": 1, "progress": False, **options})


class Tuple(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    "teacher, error, said",
    [
        (ann(nn.Softmax(1)), ValueError, "must return logits, it returns probabilities"),
        (ann(classes=1), ValueError, r"must return \(40, 3\), as the network, got \(40, 1\)"),
        (ann(classes=7), ValueError, r"got \(40, 7\)"),
        (Tuple(), ValueError, "as the network, got tuple"),
        (lambda x: x, TypeError, "teacher must be the ANN, an nn.Module, got function"),
        (cos_ext.convert(ann(), timesteps=2), TypeError, "an nn.Module, got SpikingNetwork"),
    ],
    ids=["softmax", "one class", "more classes", "a tuple", "a function", "a spiking network"],
)
def test_a_teacher_that_is_none(teacher, error, said):
    network = trainable()
    before = snapshot(network)
    with pytest.raises(error, match=said):
        tune(network, teacher=teacher)
    assert_same(network, before)


def test_a_teacher_takes_the_images_in_its_own_dtype():
    network = trainable(ann().double())
    result = tune(network, teacher=ann().double(), test_batches=[(X, Y)])
    assert result.accuracy is not None


def test_one_step_is_a_step():
    for schedule in ("onecycle", "cosine"):
        network = trainable()
        before = snapshot(network)
        tune(network, schedule=schedule)
        moved = max((before[n] - p).abs().max().item() for n, p in network.named_parameters())
        assert moved > 1e-3, schedule


@pytest.mark.parametrize(
    "tests", [lambda: iter([(X, Y)]), tuple, list], ids=["iterator", "tuple", "list"]
)
def test_test_batches_that_yield_nothing(tests):
    with pytest.raises(ValueError, match="test_batches must yield samples whenever"):
        tune(trainable(), test_batches=tests())


@pytest.mark.parametrize("which", ["train", "test"])
def test_labels_of_another_shape(which):
    odd = [(X, Y[:, None])]
    with pytest.raises(ValueError, match=r"labels must be int64 \[B\], got shape \(40, 1\)"):
        if which == "train":
            tune(trainable(), odd)
        else:
            tune(trainable(), test_batches=odd)


def test_settings_of_numpy_are_those_of_python(tmp_path):
    given = {
        "lr": np.float64(0.02),
        "epochs": np.int64(2),
        "seed": np.int64(3),
        "threshold_lr": np.float32(0.25),
        "state_path": tmp_path / "a.state",
    }
    network = trainable()
    tune(network, **given)
    again = trainable()
    tune(again, **given, resume=True)
    assert_same(again, snapshot(network))


@pytest.mark.parametrize("name", ["lr", "epochs", "temperature", "clip_norm"])
@pytest.mark.parametrize("value", ["3", None, True])
def test_settings_that_are_no_numbers(name, value):
    said = "learning_rate" if name == "lr" else name
    with pytest.raises(TypeError, match=f"{said} must be"):
        tune(trainable(), **{name: value})


def test_a_function_as_surrogate_resumes(tmp_path):
    def make():
        def steep(u):
            return ATan(3.0)(u)

        return steep

    path = tmp_path / "a.state"
    network = trainable()
    tune(network, surrogate=make(), state_path=path)
    again = trainable()
    tune(again, surrogate=make(), state_path=path, resume=True)
    assert_same(again, snapshot(network))


def test_rates_of_thresholds_by_channel_are_in_their_own_units():
    """Channels alike but for their scale learn alike."""
    scale = torch.tensor([0.1, 1.0, 10.0])
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(3, 6) * scale[:, None])
        model[0].bias.zero_()
        model[2].weight.copy_(torch.eye(3)[[0, 0, 0]] + 1 / scale)
    network = trainable(model, thresholds={"1": 4 * scale}, timesteps=3)
    task = RateTask(network, FineTuneConfig(), None)
    optimizer = torch.optim.SGD(task.groups()[:2])
    network(X).square().mean().backward()
    optimizer.step()
    (node,) = network.nodes().values()
    moved = node.v_threshold.detach() / (4 * scale) - 1
    assert bool((moved.abs() > 1e-6).all())
    # Their gradients by log θ, and nothing else, decide.
    by_log = node.v_threshold.grad / (scale.square() / scale.square().mean()) * 4 * scale
    torch.testing.assert_close(moved / by_log, (moved / by_log)[[0, 0, 0]], rtol=1e-3, atol=0)
    task.close()
    assert not node.v_threshold._backward_hooks


def test_a_failure_leaves_neurons_and_mode_as_they_were():
    network = trainable()
    with pytest.raises(ValueError, match="at least one batch"):
        tune(network, [], surrogate=FastSigmoid(7.0), detach_reset=True)
    with pytest.raises(ValueError, match="labels must be"):
        tune(network, [(X, Y[:, None])], surrogate=Triangle(3.0))
    assert {(node.surrogate, node.detach_reset) for node in network.nodes().values()} == {
        (Triangle(), False)
    }
    assert not network.training


def test_nothing_to_train():
    network = trainable().requires_grad_(False)
    with pytest.raises(ValueError, match="parameters that require a gradient, it has none"):
        tune(network)


def test_each_neuron_keeps_a_surrogate_of_its_own():
    network = trainable()
    first, second = network.nodes().values()
    first.surrogate, first.detach_reset = ATan(3.0), True
    tune(network)
    assert (first.surrogate, first.detach_reset) == (ATan(3.0), True)
    assert (second.surrogate, second.detach_reset) == (Triangle(), False)
    tune(network, detach_reset=False)
    assert (first.surrogate, first.detach_reset) == (ATan(3.0), False)


def test_resuming_needs_a_file():
    with pytest.raises(ValueError, match="resume needs state_path"):
        tune(trainable(), resume=True)


@pytest.mark.parametrize("name", ["learning_rate", "weight_deacy"])
def test_settings_of_other_names(name):
    with pytest.raises(TypeError, match=f"no setting .'{name}'.; beside epochs and lr"):
        tune(trainable(), **{name: 0.1})


def test_a_trained_network_resumes_its_own_run(tmp_path):
    """θ has moved, and is no other architecture."""
    network, path = trainable(), tmp_path / "a.state"
    tune(network, epochs=2, state_path=path)
    learned = snapshot(network)
    result = tune(network, epochs=2, state_path=path, resume=True)
    assert_same(network, learned)
    assert len(result.history) == 2
