"""cos_ext.train: the loop, its settings, resumption, checkpoints, on toy data. No architectures and
no data files.
"""

import copy
import json
import math
import os
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from safetensors import safe_open
from torch import nn

from cos_ext import QCFS, models
from cos_ext.data import ImageSet
from cos_ext.training.train import (
    SCHEDULES,
    TrainConfig,
    accuracy,
    fit,
    parameter_groups,
    save_checkpoint,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainConfig(epochs=2, learning_rate=0.05, seed=7)


@pytest.fixture(scope="module")
def images():
    """64 noisy 8x8 images of four classes, each bright in its own quarter."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(64) % 4
    pixels = torch.randint(0, 120, (64, 1, 8, 8), generator=generator)
    for image, label in zip(pixels, labels):
        row, column = divmod(int(label), 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    return ImageSet(pixels.to(torch.uint8), labels, (0.4,), (0.25,), 4)


def network(seed=0, dropout=0.2, width=8):
    """Convolution, BatchNorm, QCFS, and dropout, so that torch's random state matters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2),
        nn.BatchNorm2d(width),
        QCFS(4, 2.0),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(9 * width, 4),
    )


def shuffled(images, batch_size=16, own_generator=True):
    generator = torch.Generator().manual_seed(11) if own_generator else None
    return images.batches(batch_size, shuffle=True, augment=True, generator=generator)


def train(model, images, config=CONFIG, batches=None, **options):
    batches = shuffled(images) if batches is None else batches
    return fit(model, batches, images.batches(32), config, progress=False, **options)


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(model, state):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def without_time(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


class Killed(Exception):
    pass


class Killing:
    """Batches that raise in the given pass, at the given batch."""

    def __init__(self, batches, epoch, index):
        self.batches, self.epoch, self.index, self.passes = batches, epoch, index, 0
        self.generator = batches.generator

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.passes += 1
        for index, batch in enumerate(self.batches):
            if (self.passes, index) == (self.epoch, self.index):
                raise Killed
            yield batch


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


# ---------------------------------------------------------------- resumption


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resuming_equals_never_stopping(
    images, tmp_path, monkeypatch, schedule, precision, own_generator
):
    config = replace(CONFIG, schedule=schedule, precision=precision)
    # With float16 the loss scale doubles at every step, so that it overflows, and skips steps,
    # after the first epoch.
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, growth_interval=1))

    def batches():
        return shuffled(images, own_generator=own_generator)

    whole = network()
    expected = train(whole, images, config, batches=batches())

    path = tmp_path / "new folder" / "run.state"
    killed = network()
    with pytest.raises(Killed):
        train(killed, images, config, batches=Killing(batches(), epoch=2, index=2), state_path=path)
    assert [file.name for file in path.parent.iterdir()] == ["run.state"]

    resumed = network(seed=123)  # other initial weights: all must come from the file
    torch.rand(5)
    history = train(resumed, images, config, batches=batches(), state_path=path, resume=True)
    assert_same(resumed, snapshot(whole))
    assert without_time(history) == without_time(expected)
    assert not all(torch.equal(p, q) for p, q in zip(killed.parameters(), whole.parameters()))

    finished = network(seed=55)  # nothing is left to do
    assert (
        train(finished, images, config, batches=batches(), state_path=path, resume=True) == history
    )
    assert_same(finished, snapshot(whole))
    assert [file.name for file in path.parent.iterdir()] == ["run.state"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resuming_equals_never_stopping_on_cuda(images, tmp_path):
    torch.backends.cudnn.deterministic = True
    whole, killed, resumed = network(), network(), network(seed=123)
    train(whole, images, device="cuda")
    with pytest.raises(Killed):
        train(
            killed,
            images,
            batches=Killing(shuffled(images), 2, 2),
            state_path=tmp_path / "run",
            device="cuda",
        )
    train(resumed, images, state_path=tmp_path / "run", resume=True, device="cuda")
    assert_same(resumed, snapshot(whole))


def test_without_resume_training_starts_anew(images, tmp_path):
    path = tmp_path / "run.state"
    first, second = network(), network()
    train(first, images, state_path=path)
    history = train(second, images, state_path=path)
    assert len(history) == 2
    assert_same(second, snapshot(first))


def test_resume_without_a_file_starts_anew(images, tmp_path):
    first, second = network(), network()
    train(first, images)
    train(second, images, state_path=tmp_path / "none.state", resume=True)
    assert_same(second, snapshot(first))


@pytest.fixture
def half_way(images, tmp_path):
    """The state file of a run that was killed in its second epoch."""
    path = tmp_path / "run.state"
    with pytest.raises(Killed):
        train(
            network(), images, batches=Killing(shuffled(images), epoch=2, index=1), state_path=path
        )
    return path


def assert_refused(images, path, match, model=None, config=CONFIG, batches=None):
    model = model or network(seed=321)
    before, raw = snapshot(model), path.read_bytes()
    with pytest.raises(ValueError, match=match) as caught:
        train(model, images, config, batches=batches, state_path=path, resume=True)
    assert str(path) in str(caught.value)
    assert_same(model, before)
    assert path.read_bytes() == raw


@pytest.mark.parametrize(
    "setting, value",
    [
        ("epochs", 3),
        ("learning_rate", 0.06),
        ("momentum", 0.8),
        ("weight_decay", 0.0),
        ("label_smoothing", 0.1),
        ("schedule", "onecycle"),
        ("precision", "bfloat16"),
        ("seed", 8),
    ],
)
def test_resuming_with_other_settings(images, half_way, setting, value):
    assert set(asdict(CONFIG)) == {
        "epochs",
        "learning_rate",
        "momentum",
        "weight_decay",
        "label_smoothing",
        "schedule",
        "precision",
        "seed",
    }
    assert_refused(
        images, half_way, rf"\['{setting}'\] differ", config=replace(CONFIG, **{setting: value})
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resuming_with_other_batches(images, tmp_path, schedule):
    config, path = replace(CONFIG, schedule=schedule), tmp_path / "run.state"
    with pytest.raises(Killed):
        train(network(), images, config, batches=Killing(shuffled(images), 2, 0), state_path=path)
    for batch_size in (8, 32):
        assert_refused(images, path, "8 steps", config=config, batches=shuffled(images, batch_size))


def test_resuming_another_model(images, half_way):
    wider, deeper = network(width=9), nn.Sequential(network(), QCFS(4))
    assert_refused(images, half_way, "does not fit this model", wider)
    assert_refused(images, half_way, "does not fit this model", deeper)


def test_truncated_or_corrupt_state(images, half_way):
    raw = half_way.read_bytes()
    for length in (0, 1, 3, 100, len(raw) // 4, len(raw) // 2, len(raw) - 30, len(raw) - 1):
        half_way.write_bytes(raw[:length])
        assert_refused(images, half_way, "truncated")
    half_way.write_bytes(b"not a state file")
    assert_refused(images, half_way, "truncated")


@pytest.mark.parametrize(
    "missing",
    ["model", "optimizer", "scheduler", "scaler", "torch_rng", "data_rng", "config", "history"],
)
def test_state_that_lacks_something(images, half_way, missing):
    state = torch.load(half_way, weights_only=True)
    del state[missing]
    torch.save(state, half_way)
    assert_refused(images, half_way, "does not fit|not a training state")


@pytest.mark.filterwarnings("ignore")  # torch's, about a tensor indexed by a string
def test_file_that_is_no_state(images, half_way):
    for content in ([1, 2], {"config": 3, "history": []}, network().state_dict(), torch.zeros(3)):
        torch.save(content, half_way)
        assert_refused(images, half_way, "not a training state")
    torch.save(network(), half_way)  # a pickled module
    assert_refused(images, half_way, "not a training state")


def test_state_that_runs_code_is_refused(images, half_way, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({**torch.load(half_way, weights_only=True), "config": Attack()}, half_way)
    assert_refused(images, half_way, "not a training state")
    assert not (tmp_path / "executed").exists()
    torch.load(half_way, weights_only=False)
    assert (tmp_path / "executed").exists()


def test_a_kill_while_writing_leaves_the_previous_state(images, half_way, monkeypatch):
    before = half_way.read_bytes()
    save = torch.save

    def half(content, path, **options):
        save(content, path, **options)
        with open(path, "r+b") as file:
            file.truncate(500)
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        train(network(), images, state_path=half_way, resume=True)
    monkeypatch.undo()
    assert half_way.read_bytes() == before
    whole, resumed = network(), network()
    train(whole, images)
    train(resumed, images, state_path=half_way, resume=True)
    assert_same(resumed, snapshot(whole))
    assert [file.name for file in half_way.parent.iterdir()] == [half_way.name]


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_round_trip(tmp_path):
    model, other = network(seed=1), network(seed=2)
    path = tmp_path / "new folder" / "net.v1.safetensors"
    save_checkpoint(model, path, {"architecture": "toy", "history": [{"loss": 0.5}]})
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "net.v1.json",
        "net.v1.safetensors",
    ]
    assert models.load_weights(other, path) == {"format": "pt"}
    assert_same(other, snapshot(model))
    record = json.loads((path.parent / "net.v1.json").read_text())
    assert record["architecture"] == "toy" and record["history"] == [{"loss": 0.5}]
    assert record["versions"]["torch"] == torch.__version__
    save_checkpoint(other, path, {"architecture": "again"})  # overwrites
    assert json.loads((path.parent / "net.v1.json").read_text())["architecture"] == "again"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "net.v1.json",
        "net.v1.safetensors",
    ]


def test_checkpoint_of_channels_last_weights(tmp_path):
    model, other = network(seed=1).to(memory_format=torch.channels_last), network(seed=2)
    save_checkpoint(model, str(tmp_path / "net.safetensors"), {})
    models.load_weights(other, tmp_path / "net.safetensors")
    assert_same(other, snapshot(model))


def test_checkpoint_is_as_readable_as_any_new_file(tmp_path):
    save_checkpoint(network(), tmp_path / "net.safetensors", {})
    (tmp_path / "plain").touch()
    modes = {file.suffix: file.stat().st_mode for file in tmp_path.iterdir()}
    assert modes[".safetensors"] == modes[".json"] == modes[""]


def test_checkpoint_with_a_bad_record_leaves_the_old_one(tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(network(seed=1), path, {"number": 1})
    with pytest.raises(TypeError, match="JSON"):
        save_checkpoint(network(seed=2), path, {"number": torch.zeros(1)})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("0.weight"), network(seed=1)[0].weight)
