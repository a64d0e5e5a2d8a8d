"""cos_ext.train on toy data: the loop and its settings. No architectures and no data files.

Resumption: test_resuming.py; checkpoints: test_saving.py.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from toy import CONFIG, assert_same, make_images, network, shuffled, snapshot, train, without_time

from cos_ext import QCFS
from cos_ext.training.train import (
    SCHEDULES,
    TrainConfig,
    accuracy,
    fit,
    parameter_groups,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return make_images()


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_learns(images, schedule):
    model = network(dropout=0.0)
    config = TrainConfig(epochs=12, learning_rate=0.05, schedule=schedule)
    history = train(model, images, config, batches=images.batches(16))
    assert len(history) == 12
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["train_accuracy"] >= 0.95 and history[-1]["test_accuracy"] >= 0.95
    assert set(history[0]) == {"loss", "train_accuracy", "test_accuracy", "seconds"}
    assert model[2].threshold.item() != 2.0
    assert not model.training
    assert accuracy(model, images.batches(10)) == history[-1]["test_accuracy"]


def test_first_record_is_what_the_model_did(images):
    model = network(dropout=0.0)
    before = copy.deepcopy(model)
    batches = images.batches(64)
    record = train(model, images, replace(CONFIG, epochs=1, learning_rate=1e-9), batches=batches)[0]
    inputs, labels = next(iter(batches))
    outputs = before.train()(inputs)
    assert record["loss"] == pytest.approx(
        nn.functional.cross_entropy(outputs, labels).item(), rel=1e-6
    )
    assert record["train_accuracy"] == (outputs.argmax(1) == labels).float().mean().item()


def test_loss_is_the_mean_over_images_not_batches(images):
    model = network(dropout=0.0)
    batches = images.batches(48)  # 48 and 16
    twin = copy.deepcopy(model).train()
    expected = sum(nn.functional.cross_entropy(twin(x), y).item() * len(y) for x, y in batches) / 64
    record = train(model, images, replace(CONFIG, epochs=1, learning_rate=1e-9), batches=batches)[0]
    assert record["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("own_generator", [True, False])
def test_same_seed_same_run(images, own_generator):
    def run(seed):
        model, batches = network(), shuffled(images, own_generator=own_generator)
        history = train(model, images, replace(CONFIG, seed=seed), batches=batches)
        return snapshot(model), without_time(history)

    (first, first_history), (second, second_history), (third, _) = run(7), run(7), run(8)
    assert first_history == second_history
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_learning_rate_and_momentum_follow_the_schedule(images, monkeypatch, schedule, momentum):
    rates, momenta, nesterov = [], [], []
    step = torch.optim.SGD.step

    def recorded(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        momenta.append(self.param_groups[0]["momentum"])
        nesterov.append(self.param_groups[0]["nesterov"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    train(
        network(),
        images,
        TrainConfig(epochs=10, learning_rate=0.1, momentum=momentum, schedule=schedule),
    )
    assert len(rates) == 40 and rates[-1] < 0.001
    assert set(nesterov) == {momentum > 0}
    if schedule == "cosine":
        assert rates == pytest.approx(
            [0.05 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
        )
        assert set(momenta) == {momentum}
    else:
        assert rates.index(max(rates)) == 9 and max(rates) == pytest.approx(0.1) and rates[0] < 0.01
        swing = 0.05 if momentum else 0.0
        assert min(momenta) == pytest.approx(momentum - swing) and max(momenta) == pytest.approx(
            momentum + swing
        )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6])
def test_very_short_runs(images, schedule, steps):
    batches = images.first(2 * steps).batches(2)
    history = train(
        network(),
        images,
        TrainConfig(epochs=1, learning_rate=0.01, schedule=schedule),
        batches=batches,
    )
    assert len(history) == 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision(images, precision):
    model = network(dropout=0.0)
    dtypes = set()
    model[2].register_forward_hook(
        lambda module, inputs, output: dtypes.add((module.training, output.dtype))
    )
    config = TrainConfig(epochs=8, learning_rate=0.05, precision=precision)
    history = train(model, images, config, batches=images.batches(16))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert dtypes == {(True, getattr(torch, precision)), (False, torch.float32)}
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("bias, loss", [(math.nan, "nan"), (-math.inf, "inf")])
def test_non_finite_loss(images, tmp_path, bias, loss):
    model = network()
    model[5].bias.data[0] = bias
    with pytest.raises(FloatingPointError, match=f"became {loss} in epoch 1; lower learning_rate"):
        train(model, images, state_path=tmp_path / "run.state")
    assert list(tmp_path.iterdir()) == []


def test_divergence_is_noticed(images):
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 4)),
            images,
            TrainConfig(epochs=50, learning_rate=1e6),
        )


def test_no_batches(images):
    model = network()
    before = snapshot(model)
    for schedule in SCHEDULES:
        with pytest.raises(ValueError, match="at least one batch"):
            train(
                model,
                images,
                TrainConfig(epochs=1, schedule=schedule),
                batches=images.batches(65, drop_last=True),
            )
    assert_same(model, before)


def test_accuracy(images):
    class Constant(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(torch.full((len(x),), 2), 4).float()

    model = Constant().train()
    assert accuracy(model, images.batches(7)) == 0.25 and not model.training
    assert accuracy(model, [(torch.zeros(3, 1), torch.tensor([2, 2, 0]))]) == pytest.approx(2 / 3)


def test_progress_goes_to_stderr(images, capfd):
    fit(network(), shuffled(images), images.batches(32), replace(CONFIG, epochs=1), progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "epoch 1" in err and "test 0." in err
    train(network(), images, replace(CONFIG, epochs=1))
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "setting, value",
    [
        ("epochs", 0),
        ("epochs", -1),
        ("schedule", "linear"),
        ("precision", "float64"),
        ("precision", "bf16"),
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("momentum", math.nan),
        ("weight_decay", -1e-4),
        ("weight_decay", math.nan),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.1),
    ],
)
def test_bad_settings(setting, value):
    with pytest.raises(ValueError, match=rf"{setting} must.*got {value!r}"):
        TrainConfig(**{setting: value})


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        TrainConfig().epochs = 3


def test_parameter_groups():
    model = nn.Sequential(network(), QCFS(3))
    model[1].threshold = nn.Parameter(
        torch.ones(5, 1, 1)
    )  # per channel: a threshold is one whatever its shape
    decayed, plain = parameter_groups(model, 0.125)
    assert decayed["weight_decay"] == 0.125 and plain["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["0.0.weight", "0.5.weight"]
    assert sorted(names[id(p)] for p in plain["params"]) == [
        "0.0.bias",
        "0.1.bias",
        "0.1.weight",
        "0.2.threshold",
        "0.5.bias",
        "1.threshold",
    ]


def test_fit_decays_weights_only(images):
    class Detached(nn.Sequential):
        def forward(self, x):  # zero gradients for all: decay alone moves a parameter
            return super().forward(x) * 0

    model = Detached(*network())
    for p in model.parameters():
        p.data.fill_(1.0)
    train(model, images, replace(CONFIG, weight_decay=0.01))
    moved = {name: bool((p != 1).all()) for name, p in model.named_parameters()}
    assert moved == {
        "0.weight": True,
        "0.bias": False,
        "1.weight": False,
        "1.bias": False,
        "2.threshold": False,
        "5.weight": True,
        "5.bias": False,
    }
